"""Turns the published files of MNIST or Fashion-MNIST into WebDataset tars of PNGs.

    python data/mnist.py FOLDER data/mnist

FOLDER holds the four IDX files: train-images-idx3-ubyte, train-labels-idx1-ubyte, and the same with t10k in
the place of train. Each may be compressed (.gz).
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from image_tars import Images, convert

SPLITS = {"train": "train", "test": "t10k"}  # how the tars are called, and the files
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
MAGIC = {IMAGES: 0x0803, LABELS: 0x0801}  # unsigned bytes in three dimensions, and in one
SIDE = 28
CLASSES = 10
SHARD = 10_000  # images in a tar
WANTED = "Wanted the files of MNIST or Fashion-MNIST as they are published; see data/README.md"


def read_shards(folder: Path) -> dict[str, Images]:
    """The images of each shard, uint8 `[N, 1, 28, 28]`, and their labels, uint8 `[N]`.

    Raises:
        ValueError: as `read_split`.
    """
    shards = {}
    for split, name in SPLITS.items():
        images, labels = read_split(folder, name)
        for number, start in enumerate(range(0, len(images), SHARD)):
            part = slice(start, start + SHARD)
            shards[f"{split}-{number:04d}"] = images[part, None], labels[part]
    return shards


def read_split(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The images of one split, uint8 `[N, 28, 28]`, and their labels, uint8 `[N]`.

    Raises:
        ValueError: a file is missing or damaged, or is not what its name says.
    """
    images_path, images = read_idx(folder, f"{name}-{IMAGES}", MAGIC[IMAGES])
    labels_path, labels = read_idx(folder, f"{name}-{LABELS}", MAGIC[LABELS])
    if images.shape[1:] != (SIDE, SIDE):
        height, width = images.shape[1:]
        raise ValueError(f"{images_path} has images of {height}x{width}, wanted {SIDE}x{SIDE}. {WANTED}.")
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} has {len(images)} images, and {labels_path} has {len(labels)} labels. Are they "
            f"of one data set? {WANTED}."
        )
    if len(labels) == 0:
        raise ValueError(f"{images_path} has no images. {WANTED}.")
    if labels.max() >= CLASSES:
        where = int(labels.argmax())
        raise ValueError(
            f"{labels_path}: label {where} is {labels[where]}, wanted 0 to {CLASSES - 1}. {WANTED}."
        )
    return images, labels


def read_idx(folder: Path, name: str, magic: int) -> tuple[Path, np.ndarray]:
    """A file of unsigned bytes in IDX format, and what it holds, in its own shape.

    The format: a number that says type and dimensions, the size of each dimension, then the bytes; all
    numbers are 32 bits, big-endian.

    Raises:
        ValueError: the file is missing, damaged, or of another kind.
    """
    path = next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)
    if path is None:
        raise ValueError(f"{folder} has neither {name}.gz nor {name}. {WANTED}.")
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is damaged or cut short ({error}). Download it again.") from error
    found = int.from_bytes(content[:4])
    if found != magic:
        raise ValueError(f"{path} begins with the number {found}, wanted {magic}. {WANTED}.")
    start = 4 * (1 + magic % 256)
    shape = np.frombuffer(content[4:start], ">u4").tolist() if len(content) >= start else []
    if not shape or len(content) - start != math.prod(shape):
        sizes = " x ".join(map(str, shape))
        what = f"says {sizes}, and has {len(content) - start} bytes for them" if shape else "has no sizes"
        raise ValueError(f"{path} {what}: damaged or cut short. Download it again.")
    return path, np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def main() -> None:
    convert(__doc__, "source", "the folder with the four IDX files", read_shards)


if __name__ == "__main__":
    main()
