"""Checks the metrics on real images, and on real images that are damaged in known ways.

    python experiments/check_metrics.py demo
    python experiments/check_metrics.py demo --beside samples=runs/demo/samples
    python experiments/check_metrics.py cifar10 --num 10000 -- --model.manifold_features vgg16

One half of the training images is the reference. The candidates have the same number of images each:

half       from the other half: as good as any set can be
blurred    the same images as `half`, blurred
dropped    from the other half, but from half of the classes only
noisy      the same images as `half`, with noise on every pixel
noise      only noise

One `lightning test` with the networks of `configs/X_eval.yaml` evaluates all of them. Options after `--` go
to that command. Every figure must change as its definition says; otherwise this program fails.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from configured import CONFIGS, instantiate
from vqvae2.cli.recipes import compose
from vqvae2.data.images import ImageDataModule
from vqvae2.pixels import size_of

SEED = 0
BLUR = 1 / 20  # radius, of the image's side
NOISE = 0.15  # deviation, of the range of the pixels
SLACK = 0.1  # by which a share may miss what it should be

Sets = dict[str, tuple[np.ndarray, np.ndarray]]  # uint8 [N, H, W, C] and labels by name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="data set of configs/CONFIG_eval.yaml, such as demo or cifar10")
    parser.add_argument("--train", metavar="LOCATION", help="real images, in place of the config's")
    parser.add_argument("--num", type=int, default=1000, help="images of each candidate")
    parser.add_argument("--beside", nargs="*", default=[], metavar="NAME=LOCATION", help="further candidates")
    arguments, options = parser.parse_known_args()
    folder = Path("runs", arguments.config, "check")
    settings = compose(CONFIGS / f"{arguments.config}_eval.yaml")["data"]
    settings["init_args"].pop("augment", None)  # plain images
    if arguments.train is not None:
        settings["init_args"] |= {"train": arguments.train, "val": None}
    data = instantiate(settings)
    reference, candidates = make_sets(data, arguments.num)
    locations = {name: write(folder / f"{name}.npz", *images) for name, images in candidates.items()}
    locations |= dict(entry.split("=", 1) for entry in arguments.beside)
    real = write(folder / "reference.npz", *reference)
    options = [option for option in options if option != "--"]
    evaluate(arguments.config, folder, real, locations, arguments.num, options)
    evaluation = json.loads((folder / "metrics.json").read_text())
    failures = [claim for claim, holds in claims(evaluation) if not report(claim, holds)]
    if failures:
        sys.exit(f"error: {len(failures)} figures do not change as they should.")


def make_sets(data: ImageDataModule, num: int) -> tuple[tuple[np.ndarray, np.ndarray], Sets]:
    """The reference, and the candidates with `num` images each.

    Raises:
        ValueError: there are too few images, or no classes.
    """
    split = data.splits["train"]
    if data.num_classes < 2:
        raise ValueError("Dropping classes takes images with at least 2 classes.")
    random = np.random.default_rng(SEED)
    first, second = np.array_split(random.permutation(len(split)), 2)
    labels = np.array([split.label(int(i)) for i in second])
    few = second[labels < data.num_classes // 2]
    if min(len(second), len(few)) < num:
        raise ValueError(
            f"There are {len(few)} images of half the classes, wanted {num}: set a smaller --num."
        )
    reference, half, dropped = (read(data, chosen) for chosen in (first, second[:num], few[:num]))
    images, known = half
    radius = BLUR * min(size_of(data.image_size))
    spread = random.normal(0, 255 * NOISE, images.shape)
    return reference, {
        "half": half,
        "blurred": (np.stack([blurred(image, radius) for image in images]), known),
        "dropped": dropped,
        "noisy": (np.clip(images + spread, 0, 255).round().astype(np.uint8), known),
        "noise": (random.integers(0, 256, images.shape, np.uint8), known),
    }


def read(data: ImageDataModule, chosen: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, as a feature network sees them."""
    split = data.splits["train"]
    pixels = [(split.pixels(int(i)), split.label(int(i))) for i in chosen]
    readable = [(image, label) for image, label in pixels if image is not None]
    images = np.stack([image.transpose(1, 2, 0) for image, _ in readable])
    return images, np.array([label for _, label in readable])


def blurred(image: np.ndarray, radius: float) -> np.ndarray:
    """uint8 [H, W, C] behind a Gaussian filter of a radius in pixels."""
    found = Image.fromarray(image.squeeze()).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(found).reshape(image.shape)


def write(path: Path, images: np.ndarray, labels: np.ndarray) -> str:
    """An .npz as other projects publish their samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, arr_0=images, arr_1=labels)
    return str(path)


def evaluate(
    config: str, folder: Path, real: str, candidates: dict[str, str], num: int, options: list[str]
) -> None:
    """One evaluation of all candidates; only the figures of sets of images are computed."""
    settings = {
        "trainer.default_root_dir": folder,
        "data.train": real,
        "data.val": "null",
        "data.holdout": 0,
        "data.samples": json.dumps(candidates),
        "data.latents": "null",
        "model.autoencoder": "null",
        "model.priors": "null",
        "model.fractions": "[1.0]",
        "model.samples_each": num,
        "model.queries": 0,
        "model.keep": "null",
        "model.kid.subset_size": min(1000, num // 2),
        "model.fid_infinity.smallest": num // 5,
        "model.fid_infinity.largest": num,
    }
    command = [sys.executable, "-m", "vqvae2.cli", "test", "-c", f"{CONFIGS}/{config}_eval.yaml"]
    command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    found = subprocess.run([*command, *options], env=os.environ)
    if found.returncode:
        sys.exit(found.returncode)


def claims(evaluation: dict) -> list[tuple[str, bool]]:
    """What has to hold, in words, and whether it does."""
    metric_of = {key: entry["metric"] for key, entry in evaluation["legend"].items()}
    found = {
        row["key"]: {metric_of[key]: value for key, value in row["figures"].items()}
        for row in evaluation["sets"]
    }
    num_real, num = evaluation["counts"]["real"], evaluation["counts"]["half"]
    half = found["half"]
    k = evaluation["settings"]["manifold"]["k_density"]
    expected = 1 - math.prod((num_real - i) / (num_real + num - i) for i in range(1, k + 1))
    best = [
        ("half: density is 1", abs(half["density"] - 1) < SLACK),
        (f"half: coverage is {expected:.3f}, its expectation", abs(half["coverage"] - expected) < SLACK),
        ("half: KID is 0, within three deviations of a subset's", abs(half["kid"]) < 3 * half["kid_std"]),
    ]
    lower, higher = ("fid", "fid_infinity", "kid"), ("is", "precision", "recall", "density", "coverage")
    worse = {  # what has to be worse than in `half`
        "blurred": [*lower, "density", "coverage"],
        "dropped": [*lower, "recall", "coverage"],
        "noisy": [*lower, "precision", "density", "coverage"],
        "noise": [*lower, *higher],
    }
    moves = [
        (f"{name}: {metric} is worse than of half", _is_worse(found[name], half, metric, metric in lower))
        for name, metrics in worse.items()
        for metric in metrics
        if metric in half
    ]
    keeps = [
        ("dropped: precision is that of half", abs(found["dropped"]["precision"] - half["precision"]) < SLACK)
    ]
    others = [
        (
            f"{name}: {metric} is between that of noise and of half",
            _between(found, name, metric, metric in lower),
        )
        for name in found
        if name not in ("half", *worse)
        for metric in (*lower, *higher)
        if metric in half and metric in found[name]
    ]
    return best + moves + keeps + others


def _is_worse(found: dict[str, float], than: dict[str, float], metric: str, lower_is_better: bool) -> bool:
    return found[metric] > than[metric] if lower_is_better else found[metric] < than[metric]


def _between(found: dict[str, dict[str, float]], name: str, metric: str, lower_is_better: bool) -> bool:
    return _is_worse(found[name], found["half"], metric, lower_is_better) and _is_worse(
        found["noise"], found[name], metric, lower_is_better
    )


def report(claim: str, holds: bool) -> bool:
    print(f"{'yes' if holds else 'NO ':3}  {claim}")
    return holds


if __name__ == "__main__":
    main()
