"""Feature networks by name, from torch-fidelity's registry: Inception, VGG-16, CLIP, DINOv2, classifiers."""

import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

from vqvae2.nn.autoencoder import fingerprint
from vqvae2.pixels import to_uint8

INCEPTION = "inception-v3-compat"


class Features(NamedTuple):
    """What a feature network sees in a batch."""

    features: Tensor  # [B, F] float32, those that torch-fidelity takes for the Fréchet distance
    logits: Tensor | None  # [B, K] float32, those for the Inception score; None if the network has none


class FeatureNetwork(nn.Module):
    """A frozen network whose features judge images.

    Args:
        name: in torch-fidelity's registry. Importing `vqvae2.modules.classifier` adds "classifier".
        weights: file of its weights; None downloads them (a classifier needs its checkpoint here).

    Raises:
        ValueError: the name is not registered, or the weights cannot be had or do not fit.
    """

    def __init__(self, name: str, weights: str | None = None) -> None:
        super().__init__()
        if name not in FEATURE_EXTRACTORS_REGISTRY:
            raise ValueError(
                f"There are no features '{name}', wanted one of {', '.join(FEATURE_EXTRACTORS_REGISTRY)}."
            )
        if weights is not None and not Path(weights).is_file():
            raise ValueError(f"There is no file {weights} with the weights of '{name}'.")
        kind = FEATURE_EXTRACTORS_REGISTRY[name]
        layers = [kind.get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc")]
        self.name = name
        self.layers = list(dict.fromkeys(layers))
        self.extractor = _create(name, self.layers, weights)
        self.fingerprint = fingerprint(self.extractor)

    def train(self, mode: bool = True) -> "FeatureNetwork":
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """Looks at images [B, C, H, W] in [-1, 1], C = 3, or C = 1 for grey."""
        with torch.autocast(images.device.type, enabled=False):
            features, *logits = self.extractor(to_rgb_bytes(images))
        return Features(features, logits[0] if logits else None)


def to_rgb_bytes(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] of images [B, C, H, W] in [-1, 1], rounded to the nearest; grey is repeated.

    Repeating is what reading a grey picture as RGB does.
    """
    return to_uint8(images).expand(-1, 3, -1, -1)


def _create(name: str, layers: list[str], weights: str | None) -> nn.Module:
    try:
        return create_feature_extractor(
            name, layers, cuda=False, verbose=False, feature_extractor_weights_path=weights
        )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if weights is not None:
            raise ValueError(f"{weights} does not hold the weights of '{name}': {reason}") from error
        source = f"{URL_INCEPTION_V3} " if name == INCEPTION else "its weights "
        raise ValueError(
            f"The weights of '{name}' cannot be downloaded ({reason}). Get {source}where there is a "
            "network and name the file as model.init_args.weights, or use a trained classifier, which needs "
            "no download: model.init_args.features=classifier, its checkpoint as weights."
        ) from error
