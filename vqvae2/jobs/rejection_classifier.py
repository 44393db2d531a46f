"""The classifier of rejection sampling: one of this suite, or torchvision's of ImageNet.

The paper does not name its classifier. It should not be the network that evaluates the samples afterwards.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import WeightsEnum

from vqvae2.data.class_names import composed, some
from vqvae2.metrics.extractors import DAMAGE, read_tensors
from vqvae2.nn.classifier import residual_networks
from vqvae2.storage.checkpoint import load_network
from vqvae2.training.classifier import ClassifierModule

TORCHVISION = "torchvision:"


def load_rejection_classifier(
    path: str, *, num_classes: int, channels: int, image_size: int | list[int], classes: Sequence[str] = ()
) -> nn.Module:
    """A frozen classifier that gives logits [B, K] of images [B, C, H, W] in [-1, 1], on the CPU.

    Args:
        path: checkpoint of a `ClassifierModule`; or "torchvision:resnet50", whose ImageNet weights are
            downloaded once; or "torchvision:resnet50:FILE", a file with such weights, which is preprocessed
            for as the release of that file name was, and as torchvision's newest if it has another name.
            Class k of torchvision's is the k-th ImageNet class in the order of the WordNet identifiers, which
            is that of the sorted class folders.
        num_classes: K, of the samples.
        channels: C, of the samples.
        image_size: of the samples, as `pixels.written` gives it; torchvision's networks resize images as
            their weights ask for.
        classes: the samples' class names, where known.

    Raises:
        ValueError: there is no such classifier, or it does not know the samples' classes, channels or size.
    """
    if num_classes == 0:
        raise ValueError(
            "A rejection classifier scores samples by the class that was asked for, but these have no "
            "classes. Leave out rejection_classifier."
        )
    wanted = {"image_size": image_size, "channels": channels, "num_classes": num_classes}
    if path.startswith(TORCHVISION):
        classifier = _torchvision_classifier(path)
        check_classifier(path, {**wanted, "channels": 3, "num_classes": classifier.num_classes}, wanted)
        return classifier
    loaded = load_network(path, ClassifierModule.kind)
    known_classes = loaded.facts["classes"] if classes else ()
    check_classifier(path, trained_for(loaded.facts), wanted, known_classes, classes)
    return loaded.network


def trained_for(facts: Mapping[str, Any]) -> dict[str, int | list[int]]:
    """Image size, channels and number of classes of a `ClassifierModule`'s checkpoint."""
    network = facts["network"]
    return {
        "image_size": facts["image_size"],
        "channels": network["channels"],
        "num_classes": network["num_classes"],
    }


def check_classifier(
    path: str,
    found: Mapping[str, int | list[int]],
    wanted: Mapping[str, int | list[int]],
    found_classes: Sequence[str] = (),
    wanted_classes: Sequence[str] = (),
) -> None:
    """Refuses a classifier that was trained for other images or classes.

    Raises:
        ValueError: names what it was trained for and what the images are.
    """
    if dict(found) != dict(wanted):
        raise ValueError(
            f"{path} was trained for {_pairs(found)}, but the data has {_pairs(wanted)}. "
            "Take a classifier that was trained on such images."
        )
    if composed(found_classes) != composed(wanted_classes):
        raise ValueError(
            f"{path} was trained on the classes {some(found_classes)}, but the data has "
            f"{some(wanted_classes)}. Take a classifier that was trained on the same classes in this order."
        )


class TorchvisionClassifier(nn.Module):
    """A classifier with torchvision's weights behind their own preprocessing.

    Args:
        network: with the weights loaded.
        weights: says how images are resized, cropped and normalised, and which classes there are.
    """

    def __init__(self, network: nn.Module, weights: WeightsEnum) -> None:
        super().__init__()
        self.network = network
        self.preprocess = weights.transforms()
        self.num_classes = len(weights.meta["categories"])
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, 3, H, W] in [-1, 1]."""
        return self.network(self.preprocess((images + 1) / 2))


def _torchvision_classifier(path: str) -> TorchvisionClassifier:
    name, _, file = path.removeprefix(TORCHVISION).partition(":")
    if name not in residual_networks():
        raise ValueError(
            f"There is no classifier '{path}', wanted {TORCHVISION}NAME with one of the names "
            f"{', '.join(residual_networks())}."
        )
    releases = models.get_model_weights(name)
    weights = next((w for w in releases if Path(w.url).name == Path(file).name), releases.DEFAULT)
    with torch.device("meta"):
        network = models.get_model(name, weights=None)
    state = _downloaded(path, weights) if not file else _from_file(path, file)
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"{file or weights.url} does not hold the weights of torchvision's {name}. Name a file "
            "that does, or the network of this file."
        ) from error
    return TorchvisionClassifier(network, weights)


def _downloaded(path: str, weights: WeightsEnum) -> dict[str, Tensor]:
    try:
        return weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"The weights of '{path}' cannot be downloaded ({_first(error)}). Download {weights.url} on a "
            f"machine with a network connection and name the file: {path}:FILE."
        ) from error


def _from_file(path: str, file: str) -> dict[str, Tensor]:
    if not Path(file).is_file():
        raise ValueError(f"{path}: there is no file {file}.")
    try:
        return read_tensors(Path(file))
    except DAMAGE as error:
        raise ValueError(
            f"{file} cannot be read as weights by name, it is damaged or something else: {_first(error)}."
        ) from error


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _pairs(values: Mapping[str, int | list[int]]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
