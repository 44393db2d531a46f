"""Perceptual distances: how unlike two images look to a network that has learned to see.

Sources: LPIPS, Zhang et al. (2018), "The unreasonable effectiveness of deep features as a perceptual metric",
equation 1, version 0.1; a classifier in its place: Weber et al. (2024), "MaskBit", section 3 (VQGAN+).
By hand, for torchmetrics' LPIPS downloads its trunk and takes no file; a test holds the two together.

Shape legend: B batch, C channels, H W image.
"""

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vqvae2.nn.classifier import Classifier
from vqvae2.nn.precision import without_autocast

RANDOM = "random"  # in the place of a file: a network without training, for tests
SMALLEST = 16  # pixels a side that VGG-16's four poolings leave something of
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # to ImageNet's, from [-1, 1]
_WIDTHS = (64, 128, 256, 512, 512)  # of VGG-16 between its poolings; LPIPS looks at the end of each part
_CONVOLUTIONS = (2, 2, 3, 3, 3)
_NORM_EPS = 1e-10
_HOW = (
    "Trunk: https://download.pytorch.org/models/vgg16-397923af.pth (528 MB, torchvision's "
    "VGG16_Weights.IMAGENET1K_V1). Heads: lpips/weights/v0.1/vgg.pth (7 KB) of "
    "https://github.com/richzhang/PerceptualSimilarity, which torchmetrics also holds. Download them once "
    "and name the files, or take a classifier of this suite: --model.perceptual.network classifier"
)


class LPIPS(nn.Module):
    """The distance of images [B, 3, H, W] in [-1, 1]; grey ones are repeated.

    It is made of random weights and has to be given trained ones: see `load_lpips`. There is no dropout, in
    training neither: its heads are not trained here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slices = nn.ModuleList()
        before = 3
        for width, count in zip(_WIDTHS, _CONVOLUTIONS, strict=True):
            part = [nn.MaxPool2d(2)] if self.slices else []
            for _ in range(count):
                part += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            self.slices.append(nn.Sequential(*part))
        self.heads = nn.ParameterList(
            torch.full((width,), 1 / width, dtype=torch.float32) for width in _WIDTHS
        )
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None])
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "LPIPS":
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean over the batch of Σ_l mean_hw Σ_c w_lc (x̂_lhwc − ŷ_lhwc)², features of unit length.

        No gradient goes to `y`.
        """
        if min(x.shape[-2:]) < SMALLEST:
            height, width = x.shape[-2:]
            raise ValueError(f"LPIPS sees nothing in images of {height}x{width}: {SMALLEST} is the least.")
        a, b = self._scaled(x), self._scaled(y.detach())
        distances = []
        for part, head in zip(self.slices, self.heads, strict=True):
            a = part(a)
            with torch.no_grad():
                b = part(b)
            with without_autocast(a.device):  # features of near images differ by less than bfloat16 shows
                squares = (_unit(a.float()) - _unit(b.float())).square()
                distances.append((squares * head[:, None, None]).sum(1).mean())
        return torch.stack(distances).sum()

    def _scaled(self, images: Tensor) -> Tensor:
        return (images - self.shift) / self.scale


def _unit(features: Tensor) -> Tensor:
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + _NORM_EPS)


class ClassifierDistance(nn.Module):
    """The mean square by which a classifier's features [B, F] or logits [B, K] of images differ.

    Args:
        classifier: trained; it stays as it is.
        compare: `features` (what its last layer reads) or `logits`.
    """

    def __init__(self, classifier: Classifier, compare: Literal["features", "logits"]) -> None:
        super().__init__()
        if compare not in ("features", "logits"):
            raise ValueError(f"perceptual.compare is {compare}, wanted features or logits.")
        self.classifier = classifier.eval().requires_grad_(False)
        self.compare = compare

    def train(self, mode: bool = True) -> "ClassifierDistance":
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance, a scalar. No gradient goes to `y`."""
        see = self.classifier.features if self.compare == "features" else self.classifier
        with torch.no_grad():
            wanted = see(y.detach()).float()
        return (see(x).float() - wanted).square().mean()


def load_lpips(trunk: str | Path, heads: str | Path) -> LPIPS:
    """LPIPS with the weights of two files.

    Args:
        trunk: torchvision's VGG-16, a state dict; or "random", the same numbers each time.
        heads: of LPIPS v0.1; or "random", equal weights.

    Raises:
        ValueError: a file is missing, damaged or holds something else; says where to get it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LPIPS()
    if str(trunk) != RANDOM:
        wanted = {f"features.{at}": layer for at, layer in _convolutions(network)}
        state = _state(trunk, [f"{name}.{part}" for name in wanted for part in ("weight", "bias")])
        for name, layer in wanted.items():
            _copy(layer.weight, state[f"{name}.weight"], trunk)
            _copy(layer.bias, state[f"{name}.bias"], trunk)
    if str(heads) != RANDOM:
        names = [f"lin{level}.model.1.weight" for level in range(len(_WIDTHS))]
        state = _state(heads, names)
        for head, name in zip(network.heads, names, strict=True):
            _copy(head, state[name].flatten(), heads)
    return network


def _convolutions(network: LPIPS) -> list[tuple[int, nn.Conv2d]]:
    """Those of the trunk, with their places in torchvision's VGG-16."""
    layers = [layer for part in network.slices for layer in part]
    return [(at, layer) for at, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]


def _copy(here: Tensor, value: Tensor, path: str | Path) -> None:
    if here.shape != value.shape:
        raise ValueError(f"{path} holds {tuple(value.shape)} where {tuple(here.shape)} is wanted. {_HOW}.")
    with torch.no_grad():
        here.copy_(value)


def _state(path: str | Path, wanted: list[str]) -> Mapping[str, Tensor]:
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path} with weights of LPIPS. {_HOW}.")
    try:  # these files are older than torch's format that can be mapped into memory
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, struct.error, EOFError, OSError, LookupError) as error:
        raise ValueError(f"{path} cannot be read as weights: it is damaged or something else.") from error
    missing = [name for name in wanted if not isinstance(state, Mapping) or name not in state]
    if missing:
        raise ValueError(f"{path} lacks {missing[0]}, so it does not hold these weights of LPIPS. {_HOW}.")
    return state
