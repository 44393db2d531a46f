"""Cells of `hr_claims.py`: each is an ordinary training run of the suite, with what was measured of it.

A cell's folder holds its config, the run (`last.ckpt`, `metrics.csv`) and, once it is done, `measured.json`.
A cell that is done is not run again; one that was killed goes on from its last checkpoint.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from torch import Tensor

from configured import instantiate
from vqvae2.cli import main as lightning
from vqvae2.data.images import ImageBatch, ImageDataModule
from vqvae2.metrics.sums import CodebookUse, ReconstructionError
from vqvae2.nn.contracts import Tokenizer
from vqvae2.pixels import size_of
from vqvae2.storage.checkpoint import load_network
from vqvae2.storage.shards import write_json
from vqvae2.training.tokenizer import load_tokenizer

FORMAT = "vqvae2-hr-cell-1"
MEASURED = "measured.json"
AUTOENCODER = "vqvae2.training.autoencoder.AutoencoderModule"
HR_VQVAE = "vqvae2.training.hr_vqvae.HRVQVAEModule"
VQVAE2_LEVELS = 3  # HR-VQVAE, appendix, table 7
VARIANTS: dict[str, dict[str, Any]] = {  # what a variant's network has besides the shared options
    "flat": {},
    "flat-revived": {"revive_below": 0.02},
    "residual": {"linked": False},
    "linked": {"linked": True, "residual_gradient": "stop"},
    "linked-full": {"linked": True, "residual_gradient": "full"},
    "linked-none": {"linked": True, "residual_gradient": "none"},
    "linked-revived": {"linked": True, "residual_gradient": "stop", "revive_below": 0.02},
    "vqvae2": {},
}
NETWORK = {  # HR-VQVAE, appendix, table 6, CIFAR10; what it does not say is as in configs/cifar10_vqvae.yaml
    "beta": 0.25,
    "polyak": 0.9,
    "factor": 2,
    "hidden": 64,
    "residual": 64,
    "residual_blocks": 2,
    "code_dim": 16,
    "decay": 0.99,
    "eps": 1e-5,
    "codebook_init": "data",
    "revive_below": 0.0,
}


class Cell(NamedTuple):
    """One training run."""

    variant: str  # of VARIANTS
    branch: int  # m
    depth: int  # L
    seed: int

    @property
    def num_codes(self) -> int:
        """Of the flat codebook, and leaves of the tree."""
        return self.branch**self.depth

    def folder(self, out: Path) -> Path:
        return out / f"m{self.branch}-l{self.depth}" / self.variant / f"seed{self.seed}"


def model(cell: Cell, network: Mapping[str, Any], schedule: Mapping[str, Any]) -> dict[str, Any]:
    """The model of a config: all variants have these options of the network."""
    shared = {"schedule": dict(schedule), **network, **VARIANTS[cell.variant]}
    if cell.variant in ("flat", "flat-revived", "vqvae2"):
        levels = VQVAE2_LEVELS if cell.variant == "vqvae2" else 1
        return {
            "class_path": AUTOENCODER,
            "init_args": shared | {"num_levels": levels, "num_codes": cell.num_codes},
        }
    return {"class_path": HR_VQVAE, "init_args": shared | {"branch": cell.branch, "depth": cell.depth}}


def finish(cell: Cell, config: dict[str, Any], out: Path) -> dict[str, float]:
    """Trains and measures what is not yet done.

    Args:
        cell: which run.
        config: of its `lightning fit`, without the folder.
        out: folder of all cells.

    Returns:
        Its figures, by name.

    Raises:
        ValueError: the cell was run with another config.
    """
    folder = cell.folder(out)
    path = folder / MEASURED
    if path.is_file():
        return read(path, config)
    folder.mkdir(parents=True, exist_ok=True)
    config_path = folder / "job.yaml"
    trainer = config["trainer"] | {"default_root_dir": str(folder)}
    config_path.write_text(yaml.safe_dump(config | {"trainer": trainer}, sort_keys=False), encoding="utf-8")
    lightning(["fit", "-c", str(config_path)])  # ends the program where it fails or is stopped
    data = open_images(config)
    network = load_tokenizer(str(folder / "last.ckpt"), data)
    figures = measure(network, data)
    write_json(path, {"format": FORMAT, "config": config, "figures": figures})
    return figures


def read(path: Path, config: dict[str, Any]) -> dict[str, float]:
    """
    Raises:
        ValueError: the figures are of another config.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if found.get("format") != FORMAT or found["config"] != json.loads(json.dumps(config)):
        raise ValueError(
            f"{path} is of a run with other settings. Give the same ones, or another folder with --out."
        )
    return found["figures"]


def measure(network: Tokenizer, data: ImageDataModule) -> dict[str, float]:
    """Of all held-out images: the error, and of each grid how many codes occur and their perplexity."""
    error, use = ReconstructionError(), [CodebookUse(size) for size in network.codebook_sizes]
    for batch in batches(data):
        codes = network.encode(batch.images)
        error.update(batch.images, network.decode(codes))
        for used, grid in zip(use, codes, strict=True):
            used.update(grid)
    grids = network.grids(*size_of(data.image_size))
    sizes = zip(grids, network.codebook_sizes, strict=True)
    bits = sum(height * width * (size - 1).bit_length() for (height, width), size in sizes)
    weights = sum(weight.numel() for weight in network.parameters())
    found = {"mse": error.compute().mse, "bits": bits, "weights": weights}
    for name, used in zip(network.level_names, use, strict=True):
        found[f"codes_{name}"] = len(used.counts)
        found[f"alive_{name}"] = int((used.counts > 0).sum())
        found[f"perplexity_{name}"] = used.compute().perplexity
    return found


def open_images(config: Mapping[str, Any], **changes: Any) -> ImageDataModule:
    """The images of a config as they are held out: not augmented."""
    options = {name: value for name, value in config["data"]["init_args"].items() if name != "augment"}
    return instantiate({"class_path": config["data"]["class_path"], "init_args": options | changes})


def batches(data: ImageDataModule) -> Iterable[ImageBatch]:
    """The held-out images, in order.

    Raises:
        ValueError: there are none.
    """
    data.setup("validate")
    loader = data.val_dataloader()
    if not loader:
        raise ValueError("There are no held-out images: give --val, or --holdout.")
    return loader


def work(cell: Cell, out: Path, images: Tensor) -> dict[str, Callable[[], object]]:
    """What is timed: the nearest-code search of the features of images, and decoding their codes."""
    network = load_network(cell.folder(out) / "last.ckpt", Tokenizer.kind).network
    features: list[Tensor] = []
    hooks = [
        quantizer.register_forward_pre_hook(lambda _, given: features.append(given[0]))
        for quantizer in network.quantizers
    ]
    codes = network(images).codes
    for hook in hooks:
        hook.remove()
    pairs = list(zip(network.quantizers, features, strict=True))
    return {
        "search": lambda: [quantizer.encode(own) for quantizer, own in pairs],
        "decode": lambda: network.decode(codes),
    }
