"""A run as the jobs leave it, made up: what the report is made from."""

import copy
import csv
import json
from pathlib import Path
from typing import Any

import torch

from vqvae2.pixels import write_png

CLASSES = ["zero", "one", "two"]


LEGEND = {
    "fid_classifier": {"name": "FID (classifier)", "metric": "fid", "better": "lower"},
    "fid_star_classifier": {"name": "FID* (classifier)", "metric": "fid_star", "better": "lower"},
    "is_classifier": {"name": "IS (classifier)", "metric": "is", "better": "higher"},
    "is_std_classifier": {"name": "IS (classifier), deviation", "metric": "is_std", "better": None},
    "kid_classifier": {"name": "KID (classifier)", "metric": "kid", "better": "lower"},
    "precision_classifier": {"name": "precision (classifier)", "metric": "precision", "better": "higher"},
    "recall_classifier": {"name": "recall (classifier)", "metric": "recall", "better": "higher"},
    "class_accuracy": {"name": "recognised as their class", "metric": "class_accuracy", "better": "higher"},
    "class_accuracy_by_class": {
        "name": "recognised",
        "metric": "class_accuracy_by_class",
        "better": "higher",
    },
    **{
        f"mse_{part}": {"name": f"MSE of reconstructions, {name} images", "metric": "mse", "better": "lower"}
        for part, name in (("train", "training"), ("val", "held-out"))
    },
    "nll_top_val": {
        "name": "NLL top, held-out images, nats a code",
        "metric": "nll_top_val",
        "better": "lower",
    },
    "bits_val": {"name": "bits an image, held-out images", "metric": "bits_val", "better": "lower"},
    "perplexity_top": {"name": "codebook top, perplexity", "metric": "perplexity_top", "better": None},
}


def row(key: str, kind: str, num_images: int, shift: float, **figures: Any) -> dict[str, Any]:
    """A set of images; `shift` makes its figures its own."""
    candidate, _, fraction = key.partition("@")
    return {
        "key": key,
        "kind": kind,
        "candidate": candidate if kind == "samples" else None,
        "fraction": float(fraction or 1),
        "num_images": num_images,
        "location": "runs/fake/<b>samples</b>" if kind == "samples" else "shards & tars",
        "figures": {
            "fid_classifier": 0.81234 + shift,
            "fid_star_classifier": 0.61234 + shift,
            "is_classifier": 4.4421 - shift,
            "is_std_classifier": 0.123456 + shift,
            "precision_classifier": 0.7123 + shift / 3,
            "recall_classifier": 0.6171 - shift / 2,
            "class_accuracy": 0.8765 + shift / 4,
            **figures,
        },
    }


def verdict() -> dict[str, Any]:
    """The content of a metrics.json."""
    return {
        "format": "vqvae2-verdict-2",
        "sets": [
            row(
                "samples",
                "samples",
                1000,
                0.0,
                class_accuracy_by_class=[0.91, None, 0.7725],
                kid_classifier=0.0123456,
            ),
            row("samples@0.25", "samples", 250, -0.21),
            row("held_out", "held_out", 465, -0.5, kid_classifier=-0.0000123),
            row("reconstructions", "reconstructions", 465, 0.3, kid_classifier=0.0543),
        ],
        "figures": {
            "mse_train": 0.021543,
            "mse_val": 0.0222346,
            "nll_top_val": 2.13728,
            "bits_val": 20170.4,
            "perplexity_top": 57.3342,
        },
        "legend": copy.deepcopy(LEGEND),
        "left_out": [
            {
                "set": "samples@0.25",
                "metric": "kid",
                "reason": "250 images are fewer than <a subset> of 1000",
            },
            {"set": "samples", "metric": "fid_infinity", "reason": "1000 images, wanted 50000"},
        ],
        "counts": {"samples": 1000, "real": 4535, "held_out": 465},
        "unreadable": {"samples": 0, "real": 17, "held_out": 0},
        "networks": {
            "distance": {
                "name": "classifier",
                "layers": ["features", "logits"],
                "fingerprint": "8c1f5b2277ad00c1",
                "weights": "runs/fake/classifier/last.ckpt",
            },
            "manifold": {"name": "classifier", "layers": ["features"], "fingerprint": "8c1f5b2277ad00c1"},
        },
        "settings": {"splits": 10, "k_precision": 3},
        "neighbours": [
            {
                "set": "samples",
                "index": 17,
                "label": 2,
                "features": [{"index": 4, "key": "d4", "distance": 1.23456}],
                "pixels": [{"index": 9, "key": "d9", "distance": 4.56789}],
            }
        ],
        "rejection": None,
        "inputs": {
            "samples": {"samples": "runs/fake/samples"},
            "real": "demo:digits",
            "real_part": "train",
            "image_size": 32,
            "channels": 1,
        },
        "command": "lightning test -c configs/fake_eval.yaml --data.note '<script>alert(1)</script>'",
        "seconds": 12.3,
    }


def accuracy(trained_on: str, top1: float) -> dict[str, Any]:
    """The content of an accuracy.json."""
    return {
        "format": "vqvae2-accuracy-1",
        "trained_on": trained_on,
        "num_train": 1234,
        "num_images": 465,
        "real": {"top1": top1, "top5": None, "by_class": [0.5123, 0.6234, 0.7345]},
        "reconstructed": {"top1": top1 - 0.0111, "top5": None, "by_class": [0.4, 0.5, 0.6]},
        "classes": CLASSES,
        "data": "demo:digits",
        "checkpoint": "last.ckpt",
        "step": 450,
        "command": "lightning test",
    }


def make_run(folder: Path, content: dict[str, Any] | None = None) -> Path:
    """A whole run in `folder`: verdict, pictures, logs, accuracies.

    Args:
        folder: of the data set's runs; its name is the data set's.
        content: of eval/metrics.json; `verdict()` if None.
    """
    write_verdict(folder / "eval", content or verdict())
    for stage, top1 in (("cas", 0.8123), ("classifier", 0.9678)):
        write_json(folder / stage / "accuracy.json", accuracy(f"runs/fake/{stage}", top1))
    write_picture(folder / "vqvae/images/reconstructions-0000100.png", 100, 265)
    write_picture(folder / "complete/grid.png", 331, 199)
    steps = range(50, 500, 50)
    write_log(folder / "vqvae", {"mse": [5 / step for step in steps]}, steps)
    for level in ("top", "bottom"):
        write_log(folder / level, {"nll_nats": [2 + 50 / step for step in steps]}, steps)
    return folder


def write_verdict(folder: Path, content: dict[str, Any]) -> None:
    """A verdict and its pictures."""
    write_json(folder / "metrics.json", content)
    sizes = {
        "samples": (331, 331),
        "reconstructions": (100, 265),
        "neighbours-features": (298, 265),
        "neighbours-pixels": (298, 265),
    }
    for name, size in sizes.items():
        write_picture(folder / f"images/{name}-0000000.png", *size)


def write_picture(path: Path, width: int, height: int) -> None:
    slope = torch.linspace(0, 255, width).expand(1, height, width)
    write_png(path, (slope + torch.arange(height)[:, None] * 3).to(torch.uint8))


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_log(folder: Path, columns: dict[str, list[float]], steps: range) -> None:
    """A metrics.csv: training figures at each step, at each second one held-out figures in their own rows."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        header = [f"{part}/{name}" for name in columns for part in ("train", "val")]
        writer = csv.DictWriter(file, ["step", *header])
        writer.writeheader()
        for i, step in enumerate(steps):
            writer.writerow(
                {"step": step, **{f"train/{name}": values[i] for name, values in columns.items()}}
            )
            if i % 2:
                held_out = {f"val/{name}": values[i] * 1.1 for name, values in columns.items()}
                writer.writerow({"step": step, **held_out})
