"""Image classifiers: a small residual network for pictures of 28 to 64 pixels, and torchvision's by name.

Shape legend: B batch, C channels, K classes, F features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck

from vqvae2.nn.batch_norm import BatchNorm
from vqvae2.nn.checks import require
from vqvae2.nn.contracts import Network

SMALL = "small"


class Classifier(Network, architecture="classifier"):
    """Classifies images [B, C, H, W] in [-1, 1].

    Args:
        num_classes: K.
        channels: C.
        architecture: "small", the network of this file, or a residual network of torchvision, such as
            "resnet50" for ImageNet; those are built without weights, to be trained here.
        widths: channels of each stage of "small", the last is F; stages but the first halve the picture.
        blocks: residual blocks in each stage of "small".
        stem_stride: 2 halves the picture before the first stage of "small", for a quarter of the time.

    Raises:
        ValueError: there is no such architecture, or its options do not fit.
    """

    kind = "classifier"

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        architecture: str = SMALL,
        widths: Sequence[int] = (),
        blocks: int = 0,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(
                f"A classifier needs at least 2 classes, found {num_classes}. Name labelled images: class "
                "folders, or tars with .cls members."
            )
        of_small = bool(widths), blocks != 0, stem_stride != 1
        if not all(of_small[:2]) if architecture == SMALL else any(of_small):
            raise ValueError(
                f"architecture is '{architecture}' with widths {list(widths)}, blocks {blocks}, stem_stride "
                f"{stem_stride}: '{SMALL}' needs widths and blocks, a network of torchvision none of them."
            )
        require(channels >= 1, "channels", channels, "at least 1")
        require(stem_stride >= 1, "stem_stride", stem_stride, "at least 1")
        require(blocks >= 1 or architecture != SMALL, "blocks", blocks, "at least 1")
        require(min(widths, default=1) >= 1, "widths", list(widths), "at least 1 each")
        if architecture == SMALL:
            self.body, self.num_features = _small(channels, widths, blocks, stem_stride), widths[-1]
        else:
            self.body, self.num_features = _torchvision(architecture, channels)
        self.head = nn.Linear(self.num_features, num_classes)
        self.to(memory_format=torch.channels_last)  # two thirds of the time on a CPU

    @property
    def blocks(self) -> list[nn.Module]:
        kinds = ResidualBlock, BasicBlock, Bottleneck
        return [part for part in self.body.modules() if isinstance(part, kinds)]

    def features(self, images: Tensor) -> Tensor:
        """What the last layer reads, [B, F]."""
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K]."""
        return self.head(self.features(images))


class ResidualBlock(nn.Module):
    """relu(skip(x) + BN(Conv3x3(relu(BN(Conv3x3(x)))))) (He et al., 2016, figure 2)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(channels_in, channels_out, 3, stride)
        self.second = _conv(channels_out, channels_out, 3, 1)
        keeps_shape = channels_in == channels_out and stride == 1
        self.skip = nn.Identity() if keeps_shape else _conv(channels_in, channels_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.second(F.relu(self.first(x))))


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, BatchNorm(channels_out))


def _small(channels: int, widths: Sequence[int], blocks: int, stem_stride: int) -> nn.Sequential:
    layers: list[nn.Module] = [_conv(channels, widths[0], 3, stem_stride), nn.ReLU()]
    before = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(ResidualBlock(before, width, stride=2 if stage > 0 and block == 0 else 1))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def residual_networks() -> list[str]:
    """The names of torchvision's residual networks for images."""
    return models.list_models(models, include=["resnet*", "resnext*", "wide_resnet*"])


def _torchvision(architecture: str, channels: int) -> tuple[nn.Module, int]:
    """A residual network without its last layer, and F."""
    names = residual_networks()
    if architecture not in names:
        wanted = ", ".join([SMALL, *names])
        raise ValueError(f"There is no architecture '{architecture}', wanted one of {wanted}.")
    body = models.get_model(architecture, weights=None, norm_layer=BatchNorm)
    if channels != 3:
        body.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    num_features = body.fc.in_features
    body.fc = nn.Identity()
    return body, num_features
