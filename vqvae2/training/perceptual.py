"""The perceptual loss of a config: its network, from files that are named."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torchmetrics
from torch import Tensor

from vqvae2.data.images import ImageDataModule
from vqvae2.nn.perceptual import SMALLEST, ClassifierDistance, load_lpips
from vqvae2.pixels import size_of
from vqvae2.storage.checkpoint import load_network

Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Perceptual:
    """What compares images as a viewer would.

    Args:
        network: `lpips-vgg`, or a `classifier` that this suite has trained.
        weights: file of torchvision's VGG-16, or checkpoint of the classifier. "random" has to be asked for,
            of `lpips-vgg` alone, and is for tests.
        heads: of LPIPS v0.1; by default the file that torchmetrics comes with.
        compare: what of the classifier, its `features` or its `logits`.
    """

    network: Literal["lpips-vgg", "classifier"]
    weights: str
    heads: str | None = None
    compare: Literal["features", "logits"] = "features"


def load_distance(options: Perceptual, data: ImageDataModule, device: torch.device) -> Distance:
    """The distance of two batches of images, a scalar; a function, since it belongs to no checkpoint.

    Raises:
        ValueError: a file is missing or holds something else, or is not for images like those of `data`.
    """
    if options.network == "lpips-vgg":
        if min(size_of(data.image_size)) < SMALLEST:
            height, width = size_of(data.image_size)
            raise ValueError(
                f"lpips-vgg needs images of at least {SMALLEST}x{SMALLEST}, these are {height}x{width}. "
                "Take --model.perceptual.network classifier."
            )
        return load_lpips(options.weights, options.heads or _installed_heads()).to(device).__call__
    classifier, facts = load_network(options.weights, "classifier")
    if facts["network"]["channels"] != data.channels:
        raise ValueError(
            f"{options.weights} was trained on images of {facts['network']['channels']} channels, the data "
            f"has {data.channels}. Name a classifier of such images: --model.perceptual.weights."
        )
    return ClassifierDistance(classifier, options.compare).to(device).__call__


def _installed_heads() -> Path:
    return Path(torchmetrics.__file__).parent / "functional/image/lpips_models/vgg.pth"
