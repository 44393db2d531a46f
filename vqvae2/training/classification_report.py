"""How often a classifier is right about held-out images and their reconstructions (section 5.3, table 2)."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae2.data.images import ImageDataModule
from vqvae2.metrics.accuracy import Tally
from vqvae2.nn.contracts import Tokenizer
from vqvae2.nn.weights import fingerprint
from vqvae2.pixels import from_uint8, to_uint8
from vqvae2.storage.job_file import SAMPLES_FORMAT
from vqvae2.storage.shards import MANIFEST, write_json
from vqvae2.training.tokenizer import load_tokenizer

REPORT = "accuracy.json"  # in the run folder, trainer.default_root_dir
FORMAT = "vqvae2-accuracy-1"


def load_reconstructor(path: str, data: ImageDataModule, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What an autoencoder makes of images [B, C, H, W] in [-1, 1], in eight bits as the samples are.

    Args:
        path: its checkpoint.
        data: images that are to be reconstructed; if it trains on samples, those of this autoencoder.
        device: for the autoencoder.

    Raises:
        ValueError: there is no such checkpoint, it was trained on other images, or the samples are another's.
    """
    network = load_tokenizer(path, data)
    manifest = Path(data.train, MANIFEST)
    content = json.loads(manifest.read_bytes()) if manifest.is_file() else {}
    wanted, found = content.get("autoencoder"), fingerprint(network)
    if content.get("format") == SAMPLES_FORMAT and wanted != found:
        raise ValueError(
            f"{data.train} holds samples of the autoencoder with the fingerprint {wanted[:16]}, but {path} "
            f"holds the autoencoder {found[:16]}. Name the checkpoint that made the samples, or sample again."
        )
    return partial(_reconstruct, network.to(device))


def _reconstruct(network: Tokenizer, images: Tensor) -> Tensor:
    return from_uint8(to_uint8(network(images.float()).images)).to(images.dtype)


def accuracy_report(
    tallies: Mapping[str, Tally],
    data: ImageDataModule,
    *,
    autoencoder: str | None,
    checkpoint: str | Path | None,
    step: int,
) -> dict[str, Any]:
    """The content of `accuracy.json`.

    Args:
        tallies: over all ranks: "real" and, with an autoencoder, "reconstructed".
        data: the images that the network was trained on and is tested on.
        autoencoder: checkpoint that reconstructed.
        checkpoint: of the tested network; None if it was not read from one.
        step: optimiser steps that it was trained for.
    """
    accuracies = {name: tally.accuracy()._asdict() for name, tally in tallies.items()}
    num_images = tallies["real"].num_images
    return {
        "format": FORMAT,
        "trained_on": data.train,
        "num_train": len(data.splits["train"]),
        "num_images": num_images,
        "unreadable": len(data.splits["val"]) - num_images,
        "real": accuracies["real"],
        "reconstructed": accuracies.get("reconstructed"),
        "classes": list(data.classes),
        "data": data.held_out_from,
        "image_size": data.image_size,
        "channels": data.channels,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "step": step,
        "autoencoder": autoencoder,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def write_accuracy_report(path: Path, report: dict[str, Any]) -> None:
    """Writes `accuracy.json` aside, moves it to its place, and prints a line for each kind of image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report)
    rows = {name: report[name] for name in ("real", "reconstructed") if report[name] is not None}
    print(f"\n{'images':<14} {'top-1':>8} {'top-5':>8}   of {report['num_images']:,}, {report['data']}")
    for name, row in rows.items():
        shares = [row["top1"]] if row["top5"] is None else [row["top1"], row["top5"]]
        print(f"{name:<14} {' '.join(f'{share:>8.2%}' for share in shares)}")
    print(f"By class, with counts and inputs: {path}")
