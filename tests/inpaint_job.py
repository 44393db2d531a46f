"""Pictures and masks for tests of inpainting, and what is true of its results."""

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.sample_job import read
from vqvae2.jobs.inpaint import InpaintRequests
from vqvae2.pictures.masks import GeneratedMask
from vqvae2.pixels import from_uint8, to_uint8

NAMES = [f"{label}/{i}" for label in ("cat", "dog", "owl") for i in range(2)]
BLOCK = GeneratedMask("block", 0.25)  # the middle 8x8 of 16x16
LEVELS = {1: ["top"], 2: ["top", "bottom"], 3: ["top", "mid", "bottom"]}


def draw_pictures(folder: Path, names=NAMES, size=(16, 16), seed=0) -> dict[str, np.ndarray]:
    """Writes them; gives their pixels by name."""
    draw = np.random.default_rng(seed)
    made = {name: draw.integers(0, 256, size[::-1], dtype=np.uint8) for name in names}
    for name, pixels in made.items():
        write(folder / f"{name}.png", pixels)
    return made


def draw_masks(folder: Path, seed=1, size=(16, 16)) -> dict[str, np.ndarray]:
    """Masks of another rectangle each."""
    draw = np.random.default_rng(seed)
    made = {}
    for name in NAMES:
        top, left = draw.integers(0, 8, 2)
        made[name] = np.zeros(size[::-1], np.uint8)
        made[name][top : top + 7, left : left + 8] = 255
        write(folder / f"{name}.png", made[name])
    return made


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def requests(tmp_path, **options):
    options = {"batch_size": 4, "chunk_size": 5, "per_picture": 2, **options}
    if "mask" not in options:
        options = {"masks": str(tmp_path / "masks"), **options}
    return InpaintRequests(**{"pictures": str(tmp_path / "pictures"), **options})


def picture_of(members) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(members["png"])))


def codes_of(members, names) -> list[np.ndarray]:
    return [np.load(io.BytesIO(members[f"{name}.npy"])) for name in names]


def kept_by_loops(mask: np.ndarray, grid) -> np.ndarray:
    side = mask.shape[0] // grid[0]
    kept = np.ones(grid, bool)
    for y, x in np.argwhere(mask):
        kept[y // side, x // side] = False
    return kept


@torch.no_grad()
def encoded(network, pixels: np.ndarray) -> list[np.ndarray]:
    return [level[0].numpy() for level in network.encode(from_uint8(torch.tensor(pixels))[None, None])]


def check_results(folder, network, pictures, masks, names=None) -> None:
    """Each image has the picture's codes wherever its mask leaves them, and others elsewhere."""
    names = names or LEVELS[len(network.level_names)]
    found = read(folder)
    order = sorted(pictures)
    changed = 0
    for members in found.values():
        name = order[json.loads(members["json"])["prompt"]]
        assert int(members["cls"]) == ["cat", "dog", "owl"].index(name.partition("/")[0])
        mine, own = codes_of(members, names), encoded(network, pictures[name])
        for level, original in zip(mine, own, strict=True):
            kept = kept_by_loops(masks[name], original.shape)
            assert kept.any()
            assert not kept.all()
            assert np.array_equal(level[kept], original[kept])
            changed += (level[~kept] != original[~kept]).sum()
        with torch.no_grad():
            decoded = network.decode([torch.tensor(level.astype(np.int64))[None] for level in mine])
        assert np.array_equal(picture_of(members), to_uint8(decoded)[0, 0].numpy())
    assert changed


def white(part=slice(None), size=(16, 16), value=255):
    mask = np.zeros(size, np.uint8)
    mask[part] = value
    return mask
