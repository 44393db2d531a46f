"""VQ-GAN's autoencoder: residual blocks and attention, one grid of codes.

Source: Esser, Rombach and Ommer (2021), "Taming transformers for high-resolution image synthesis", section
3.1 and table 7, and their public code for what the table leaves open. Larger: Bond-Taylor et al. (SUNDAE on
VQ-GAN), table 4. What makes it adversarial is in `vqvae2.training.vqgan`.

Shape legend: B batch, C channels, h w the grid, D code dimension, K codes.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqvae2.nn.checks import require
from vqvae2.nn.contracts import Tokenizer, divided
from vqvae2.nn.gradient_quantizer import GradientQuantizer
from vqvae2.nn.quantizer import VectorQuantizer

_EPS = 1e-6  # of GroupNorm, in taming's code


class ResidualBlock(nn.Module):
    """skip(x) + Conv3x3(dropout(swish(GN(Conv3x3(swish(GN(x))))))); skip is a 1x1 where the width changes."""

    def __init__(self, channels_in: int, channels_out: int, *, groups: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, channels_in, _EPS),
            nn.SiLU(),
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            nn.GroupNorm(groups, channels_out, _EPS),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
        )
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.layers(x)


class Attention(nn.Module):
    """x + W softmax(qᵀk / √C) v with one head over all places; q, k, v are 1x1 convolutions of GN(x)."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, _EPS)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        heads = self.to_qkv(self.norm(x)).view(b, 3, 1, c, h * w).transpose(-1, -2)
        q, k, v = heads.unbind(1)  # [B, 1, h·w, C]
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(attended.transpose(-1, -2).reshape(b, c, h, w))


class Downsample(nn.Conv2d):
    """3x3 with stride 2 after one row of zeros below and one column to the right."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Conv2d):
    """3x3 after each value has become a square of 2x2."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Layers:
    """Makes the parts of encoder and decoder.

    Args:
        widths: channels of each resolution, the images' first.
        attends: whether each resolution has attention after each of its residual blocks.
        groups: of GroupNorm.
        dropout: of the residual blocks.
    """

    def __init__(
        self, widths: Sequence[int], attends: Sequence[bool], *, groups: int, dropout: float
    ) -> None:
        self.widths, self.attends, self.groups, self.dropout = widths, attends, groups, dropout

    def encoder(self, channels: int, out: int, blocks: int) -> nn.Sequential:
        """[B, channels, f·h, f·w] → [B, out, h, w]."""
        widths = self.widths
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        for level, (before, width) in enumerate(pairwise([widths[0], *widths])):
            layers += self._stage(before, width, blocks, self.attends[level])
            if level < len(widths) - 1:
                layers.append(Downsample(width))
        return nn.Sequential(*layers, *self._middle(), *self._end(widths[-1]), _conv3(widths[-1], out))

    def decoder(self, channels: int, blocks: int) -> nn.Sequential:
        """[B, channels, h, w] → [B, C, f·h, f·w], all but the last layer; a block more than the encoder."""
        widths = self.widths
        layers: list[nn.Module] = [_conv3(channels, widths[-1]), *self._middle()]
        for level in reversed(range(len(widths))):
            before = widths[min(level + 1, len(widths) - 1)]
            layers += self._stage(before, widths[level], blocks + 1, self.attends[level])
            if level > 0:
                layers.append(Upsample(widths[level]))
        return nn.Sequential(*layers, *self._end(widths[0]))

    def _stage(self, before: int, width: int, blocks: int, attends: bool) -> Iterator[nn.Module]:
        for block in range(blocks):
            yield self._block(width if block else before, width)
            if attends:
                yield Attention(width, groups=self.groups)

    def _middle(self) -> list[nn.Module]:
        width = self.widths[-1]
        attention = Attention(width, groups=self.groups)
        return [self._block(width, width), attention, self._block(width, width)]

    def _end(self, width: int) -> list[nn.Module]:
        return [nn.GroupNorm(self.groups, width, _EPS), nn.SiLU()]

    def _block(self, before: int, after: int) -> ResidualBlock:
        return ResidualBlock(before, after, groups=self.groups, dropout=self.dropout)


def _conv3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


class VQGANReconstruction(NamedTuple):
    """What `VQGAN.forward` returns."""

    images: Tensor  # [B, C, H, W]
    codes: tuple[Tensor]  # ([B, h, w] int64,)
    commitment: Tensor  # scalar, mean (sg[e] - z)^2
    codebook: Tensor  # scalar, mean (e - sg[z])^2; 0 where moving averages teach the codes
    statistics: tuple[Tensor]  # for `update_codebooks`
    last_input: Tensor  # [B, C, H, W] what the last layer saw, without gradient


class VQGAN(Tokenizer, architecture="vqgan"):
    """Compresses images into one grid of codes, and back.

    Args:
        channels: of the images.
        resolution: height of the images for which `attention_resolutions` are named; others are taken
            too.
        hidden: unit of the widths.
        multipliers: widths of each resolution in units of `hidden`, the images' first. n of them make
            f = 2^(n-1), image side over grid side.
        residual_blocks: of the encoder at each resolution; the decoder has one more.
        attention_resolutions: heights at which attention follows each residual block. The middle, at the
            resolution of the grid, always has one.
        norm_groups: of every GroupNorm.
        latent_channels: that the encoder gives and the decoder takes.
        num_codes: K.
        code_dim: D.
        codebook: what teaches the codes: moving `averages` (as in VQ-VAE-2), or the `gradient` (the paper).
        decay: of the averages; only with those.
        eps: Laplace smoothing of their counts; only with those.
        codebook_init: see `Codebook`; only with averages, where null is `data`. With the gradient it is
            U(±1/K).
        revive_below: see `Codebook`; only with averages, where null is 0.
        dropout: of the residual blocks.
    """

    level_names = ("top",)

    def __init__(
        self,
        *,
        channels: int,
        resolution: int,
        hidden: int,
        multipliers: Sequence[int],
        residual_blocks: int,
        attention_resolutions: Sequence[int],
        norm_groups: int,
        latent_channels: int,
        num_codes: int,
        code_dim: int,
        codebook: Literal["averages", "gradient"],
        decay: float | None = None,
        eps: float | None = None,
        codebook_init: Literal["normal", "uniform", "data"] | None = None,
        revive_below: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require(channels >= 1, "channels", channels, "at least 1")
        require(residual_blocks >= 1, "residual_blocks", residual_blocks, "at least 1")
        require(0 <= dropout < 1, "dropout", dropout, "0 up to, not including, 1")
        require(latent_channels >= 1, "latent_channels", latent_channels, "at least 1")
        self.channels = channels
        self.factor = 2 ** (len(multipliers) - 1)
        self.codebook_sizes = (num_codes,)
        widths = _widths(hidden, multipliers, norm_groups)
        attends = _attends(resolution, len(widths), attention_resolutions)
        layers = Layers(widths, attends, groups=norm_groups, dropout=dropout)
        self.encoder = layers.encoder(channels, latent_channels, residual_blocks)
        self.quant_conv = nn.Conv2d(latent_channels, code_dim, 1)
        averaging = {"decay": decay, "eps": eps, "init": codebook_init, "revive_below": revive_below}
        self.quantizer = _quantizer(codebook, averaging, num_codes=num_codes, dim=code_dim)
        self.post_quant_conv = nn.Conv2d(code_dim, latent_channels, 1)
        self.decoder = layers.decoder(latent_channels, residual_blocks)
        self.last = _conv3(widths[0], channels)
        self.to(memory_format=torch.channels_last)

    @property
    def quantizers(self) -> list[nn.Module]:
        return [self.quantizer]

    @property
    def blocks(self) -> list[nn.Module]:
        kinds = (ResidualBlock, Attention, GradientQuantizer)
        return [part for part in self.modules() if isinstance(part, kinds)]

    def grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """The grid (h, w) for images of this size.

        Raises:
            ValueError: the size is not a multiple of the factor.
        """
        return divided(height, width, [self.factor])

    def forward(self, images: Tensor) -> VQGANReconstruction:
        """Encodes and decodes `images` [B, C, H, W] in [-1, 1]."""
        found = self.quantizer(self.quant_conv(self.encoder(images)))
        seen = self._decode_to_last(found.vectors)
        codebook = getattr(found, "codebook", found.commitment.new_zeros(()))
        return VQGANReconstruction(
            self.last(seen), (found.codes,), found.commitment, codebook, (found.statistics,), seen.detach()
        )

    def encode(self, images: Tensor) -> tuple[Tensor]:
        """Codes ([B, h, w],)."""
        return (self.quantizer.encode(self.quant_conv(self.encoder(images))),)

    def decode(self, codes: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Images [B, C, H, W] of codes ([B, h, w],); `num_levels` can only be 1 or None."""
        return self.last(self._decode_to_last(self.quantizer.lookup(codes[0])))

    def _decode_to_last(self, vectors: Tensor) -> Tensor:
        # Codes are float32 also where the rest is half precision.
        return self.decoder(self.post_quant_conv(vectors.to(self.post_quant_conv.weight.dtype)))


def _widths(hidden: int, multipliers: Sequence[int], groups: int) -> list[int]:
    """Channels of each resolution, the images' first."""
    require(len(multipliers) >= 2, "multipliers", list(multipliers), "at least 2")
    require(min(multipliers) >= 1, "multipliers", list(multipliers), "at least 1 each")
    require(hidden >= 1 and groups >= 1, "hidden, norm_groups", (hidden, groups), "at least 1 each")
    widths = [hidden * multiplier for multiplier in multipliers]
    divided = all(width % groups == 0 for width in widths)
    require(divided, "norm_groups", groups, f"a divisor of each of the widths {widths}")
    return widths


def _attends(resolution: int, levels: int, wanted: Sequence[int]) -> list[bool]:
    """Whether each resolution is one of the wanted ones, all of which have to exist."""
    heights = [resolution // 2**level for level in range(levels)]
    require(
        resolution >= 1 and resolution % 2 ** (levels - 1) == 0,
        "resolution",
        resolution,
        f"a multiple of {2 ** (levels - 1)}, by which the network divides",
    )
    require(set(wanted) <= set(heights), "attention_resolutions", list(wanted), f"some of {heights}")
    return [height in wanted for height in heights]


def _quantizer(kind: str, averaging: dict[str, object], *, num_codes: int, dim: int) -> nn.Module:
    given = {name: value for name, value in averaging.items() if value is not None}
    if kind == "gradient":
        if given:
            raise ValueError(
                f"codebook is gradient, and {', '.join(given)} {'are' if len(given) > 1 else 'is'} given: "
                "those belong to a codebook of averages. Leave them out, or set codebook to averages."
            )
        return GradientQuantizer(num_codes=num_codes, dim=dim)
    require(kind == "averages", "codebook", kind, "averages or gradient")
    if not {"decay", "eps"} <= {*given}:
        raise ValueError("A codebook of averages needs decay and eps.")
    return VectorQuantizer(num_codes=num_codes, dim=dim, **{"init": "data", "revive_below": 0.0, **given})
