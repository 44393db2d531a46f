"""PatchGAN: tells patches of images from patches of reconstructions.

Source: Isola et al. (2017), "Image-to-image translation with conditional adversarial networks", section
3.2.2, as Esser et al. (2021) use it in VQ-GAN.

Shape legend: B batch, C channels, h w patches.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vqvae2.nn.batch_norm import BatchNorm
from vqvae2.nn.checks import require

_SLOPE = 0.2  # of the leaky ReLUs; Isola et al., appendix 6.1.2


class PatchDiscriminator(nn.Module):
    """Logits of overlapping patches, high where a patch looks real.

    4x4 convolutions, padded by 1: the first and `layers - 1` more halve the picture, two more do not. All but
    the first and the last are normalised, and have no bias then. Weights start as N(0, 0.02), the factors of
    norms as N(1, 0.02).

    `batch` normalisation is taming's, here over all ranks. It sees real images and reconstructions in passes
    of their own, so it also judges a batch as a whole. `group` judges each image alone, whatever the batch.

    Args:
        channels: of the images.
        hidden: width of the first layer; it doubles with each layer, up to 8 times.
        layers: convolutions before the last two that halve the picture.
        norm: `group` or `batch`.
        norm_groups: of `group`.
    """

    def __init__(
        self,
        *,
        channels: int,
        hidden: int,
        layers: int,
        norm: Literal["group", "batch"],
        norm_groups: int | None = None,
    ) -> None:
        super().__init__()
        require(channels >= 1, "channels", channels, "at least 1")
        require(hidden >= 1, "discriminator.hidden", hidden, "at least 1")
        require(layers >= 1, "discriminator.layers", layers, "at least 1")
        require(norm in ("group", "batch"), "discriminator.norm", norm, "group or batch")
        widths = [hidden * min(2**i, 8) for i in range(layers + 1)]
        if norm == "group":
            divides = norm_groups is not None and all(width % norm_groups == 0 for width in widths[1:])
            wanted = f"a divisor of each of the widths {widths[1:]}"
            require(divides, "discriminator.norm_groups", norm_groups, wanted)
        strides = [2] * layers + [1, 1]
        parts: list[nn.Module] = [nn.Conv2d(channels, hidden, 4, 2, 1), nn.LeakyReLU(_SLOPE, True)]
        for before, after, stride in zip(widths, widths[1:], strides[1:], strict=False):
            normalise = BatchNorm(after) if norm == "batch" else nn.GroupNorm(norm_groups, after)
            conv = nn.Conv2d(before, after, 4, stride, 1, bias=False)
            parts += [conv, normalise, nn.LeakyReLU(_SLOPE, True)]
        self.layers = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.strides = tuple(strides)
        self.apply(_start)
        self.to(memory_format=torch.channels_last)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """None: sharded training gathers it as one."""
        return ()

    def patches(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) for images of this size.

        Raises:
            ValueError: they are too small.
        """
        sides = [height, width]
        for stride in self.strides:
            sides = [(side - 2) // stride + 1 for side in sides]
        if min(sides) < 1:
            raise ValueError(
                f"Images of {height}x{width} are too small for a discriminator of {len(self.strides) - 2} "
                "layers. Take fewer: --model.discriminator.layers."
            )
        return sides[0], sides[1]

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 [B, 1, h, w] of images [B, C, H, W] in [-1, 1]."""
        return self.layers(images.to(self.layers[0].weight.dtype)).float()


def _start(part: nn.Module) -> None:
    if isinstance(part, nn.Conv2d):
        nn.init.normal_(part.weight, 0.0, 0.02)
    elif isinstance(part, nn.GroupNorm | nn.BatchNorm2d):
        nn.init.normal_(part.weight, 1.0, 0.02)
        nn.init.zeros_(part.bias)
