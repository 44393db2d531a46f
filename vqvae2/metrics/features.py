"""Feature networks by name, from torch-fidelity's registry: Inception, VGG-16, CLIP, DINOv2, classifiers."""

import hashlib
import http.client
from pathlib import Path
from typing import NamedTuple

import torch
import torch_fidelity
from torch import Tensor, nn
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from vqvae2.metrics.extractors import DAMAGE, URLS, create_extractor, download
from vqvae2.nn.weights import fingerprint
from vqvae2.pixels import to_uint8


class WeightsUnavailable(ValueError):
    """The weights of a network can neither be downloaded nor are they named as a file."""


class Features(NamedTuple):
    """What a feature network sees in a batch."""

    features: Tensor  # [B, F] float32, those that torch-fidelity takes for FID, KID, precision and recall
    logits: Tensor | None  # [B, K] float32, of classes, for the Inception score; None if the network has none


class FeatureNetwork(nn.Module):
    """A frozen network that gives features of images.

    Attributes:
        name: as given.
        layers: of torch-fidelity's network: that of the features, and that of the logits if there are any.
        weights: as given.
        fingerprint: hex SHA-256 of all that decides the features: weights, name, layers, and the version of
            torch-fidelity, which prepares the images.

    Args:
        name: in torch-fidelity's registry. Importing `vqvae2.training.classifier` adds "classifier".
        weights: file of its weights; None downloads them (a classifier needs its checkpoint here).
        option: under model.init_args, what the user sets to give `weights`, for messages. The name of the
            network is then the option that has "features" in place of "weights".

    Raises:
        ValueError: the name is not registered, or the weights are not available (then it is a
            `WeightsUnavailable`) or do not fit.
    """

    def __init__(self, name: str, weights: str | None = None, *, option: str = "weights") -> None:
        super().__init__()
        if name not in FEATURE_EXTRACTORS_REGISTRY:
            raise ValueError(
                f"There are no features '{name}', wanted one of {', '.join(FEATURE_EXTRACTORS_REGISTRY)}."
            )
        if weights is not None and not Path(weights).is_file():
            raise ValueError(f"There is no file {weights} with the weights of '{name}'.")
        self.name = name
        self.weights = weights
        self.layers = feature_layers(name)
        self.extractor = _load(name, self.layers, weights, option)
        facts = f"{name} {self.layers} {torch_fidelity.__version__} {fingerprint(self.extractor)}"
        self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()

    def train(self, mode: bool = True) -> "FeatureNetwork":
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """Features of images [B, C, H, W] in [-1, 1], C = 3, or C = 1 for grey."""
        with torch.autocast(images.device.type, enabled=False):
            features, *logits = self.extractor(to_rgb_bytes(images))
        return Features(features, logits[0] if logits else None)


def feature_layers(name: str) -> list[str]:
    """The layer of the features and, if the network knows classes, that of its logits.

    torch-fidelity names a layer for the Inception score for each network, also where it holds no logits: an
    Inception score of features means nothing.
    """
    kind = FEATURE_EXTRACTORS_REGISTRY[name]
    features, scores = (kind.get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc"))
    return [features, scores] if scores.startswith("logits") else [features]


def to_rgb_bytes(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] of images [B, C, H, W] in [-1, 1], rounded to the nearest; grey is repeated.

    Repeating is what reading a grey picture as RGB does.
    """
    return to_uint8(images).expand(-1, 3, -1, -1)


def _load(name: str, layers: list[str], weights: str | None, option: str) -> nn.Module:
    try:
        path = download(name) if weights is None and name in URLS else weights
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise _nowhere(name, option, error) from error
    try:
        return create_extractor(name, layers, path)
    except DAMAGE as error:
        if path is None:  # a network of the user's own, which looks for its weights itself
            raise _nowhere(name, option, error) from error
        advice = "" if path == weights else " Remove it to download it again."
        raise ValueError(
            f"{path} does not hold the weights of '{name}': {_reason(error)}.{advice}"
        ) from error


def _nowhere(name: str, option: str, error: Exception) -> WeightsUnavailable:
    features = option.replace("weights", "features")
    return WeightsUnavailable(
        f"The weights of '{name}' cannot be downloaded ({_reason(error)}). Download {URLS.get(name, 'them')} "
        f"on a machine with a network connection and name the file as model.init_args.{option}. Or use a "
        f"trained classifier, which needs no download: model.init_args.{features}=classifier, its checkpoint "
        f"as model.init_args.{option}."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return " ".join(str(error).split("\n")[:2]).strip().rstrip(".") or type(error).__name__
