"""The hierarchical VQ-VAE, of one, two or three levels.

Source: VQ-VAE-2 (Razavi et al., 2019), section 3.1, algorithm 1 and figure 2a. Layers as in Sonnet's VQ-VAE,
which the paper links: strided convolutions are 4x4, all others 3x3 or 1x1 (table 3 says only "encoder conv
filter size 3"); encoders by factors other than 4 are formed alike.

Levels are ordered top (coarsest) first. Shape legend: B batch, C hidden units, R residual units, D code
dimension, h w a level's grid.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vqvae2.nn.checks import require
from vqvae2.nn.contracts import Tokenizer, divided
from vqvae2.nn.quantizer import Quantized, VectorQuantizer

LEVEL_NAMES = {1: ("top",), 2: ("top", "bottom"), 3: ("top", "mid", "bottom")}


class ResidualBlock(nn.Module):
    """h + Conv1x1(relu(Conv3x3(relu(h))))."""

    def __init__(self, hidden: int, residual: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(hidden, residual, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(residual, hidden, 1),
        )

    def forward(self, h: Tensor) -> Tensor:
        return self.layers(h).add_(h)


def residual_stack(hidden: int, residual: int, blocks: int) -> list[nn.Module]:
    return [*(ResidualBlock(hidden, residual) for _ in range(blocks)), nn.ReLU(inplace=True)]


def encoder(in_channels: int, hidden: int, residual: int, blocks: int, factor: int) -> nn.Sequential:
    """[B, in, H, W] → [B, C, H/factor, W/factor]: strided 4x4 convolutions, a 3x3, residual blocks."""
    widths = [in_channels, hidden // 2, *[hidden] * (_log2(factor) - 1)]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(
        *layers, nn.Conv2d(widths[-1], hidden, 3, padding=1), *residual_stack(hidden, residual, blocks)
    )


def decoder(
    in_channels: int, out_channels: int, hidden: int, residual: int, blocks: int, factor: int
) -> nn.Sequential:
    """[B, in, h, w] → [B, out, factor·h, factor·w]: a 3x3, residual blocks, transposed 4x4 convolutions."""
    num_up = _log2(factor)
    widths = [*[hidden] * max(num_up - 1, 1), *[hidden // 2] * (num_up > 1), out_channels]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, 3, padding=1), *residual_stack(hidden, residual, blocks), *layers[:-1]
    )


class Reconstruction(NamedTuple):
    """What `HierarchicalVQVAE.forward` returns; tuples hold one entry a level, top first."""

    images: Tensor  # [B, C, H, W]
    codes: tuple[Tensor, ...]  # [B, h, w] int64
    commitments: tuple[Tensor, ...]  # scalars
    statistics: tuple[Tensor, ...]  # [K, >= D + 1], for `update_codebooks`


class HierarchicalVQVAE(Tokenizer, architecture="vqvae2"):
    """Compresses images into one, two or three grids of codes, and back.

    Args:
        channels: of the images.
        num_levels: grids of codes, 1 to 3.
        factor: image side over the bottom grid's side, a power of two; each level above halves the grid.
        hidden: C, width of encoders and decoders.
        residual: R, width inside a residual block.
        residual_blocks: residual blocks of each encoder and decoder.
        num_codes: K, size of each level's codebook.
        code_dim: D, dimension of a code.
        decay: decay of the codebooks' moving averages.
        eps: Laplace smoothing of their counts.
        codebook_init: see `VectorQuantizer`.
        revive_below: see `VectorQuantizer`; 0 is the paper's.
        level_dropout: in training, the probability with which the decoder sees only the upper levels of an
            image, so that they have to carry its structure; 0 is the paper's.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_levels: int,
        factor: int,
        hidden: int,
        residual: int,
        residual_blocks: int,
        num_codes: int,
        code_dim: int,
        decay: float,
        eps: float,
        codebook_init: Literal["normal", "uniform", "data"] = "normal",
        revive_below: float = 0.0,
        level_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require(num_levels in LEVEL_NAMES, "num_levels", num_levels, f"one of {sorted(LEVEL_NAMES)}")
        check_widths(channels, hidden, residual, residual_blocks)
        require(0 <= level_dropout <= 1, "level_dropout", level_dropout, "0 to 1")
        if level_dropout and num_levels == 1:
            raise ValueError("level_dropout needs at least two levels: with one there is nothing to drop.")
        self.channels = channels
        self.factor = factor
        self.level_names = LEVEL_NAMES[num_levels]
        self.codebook_sizes = (num_codes,) * num_levels
        self.level_dropout = level_dropout
        widths = (hidden, residual, residual_blocks)
        self.encoders = nn.ModuleList(
            encoder(hidden, *widths, 2) if level < num_levels - 1 else encoder(channels, *widths, factor)
            for level in range(num_levels)
        )
        # Level i > 0 sees its own features beside a decoding of all levels above it.
        self.conditioners = nn.ModuleList(
            decoder(level * code_dim, code_dim, *widths, 2) for level in range(1, num_levels)
        )
        self.to_code = nn.ModuleList(
            nn.Conv2d(hidden + (code_dim if level else 0), code_dim, 1) for level in range(num_levels)
        )
        self.quantizers = nn.ModuleList(
            VectorQuantizer(
                num_codes=num_codes,
                dim=code_dim,
                decay=decay,
                eps=eps,
                init=codebook_init,
                revive_below=revive_below,
            )
            for _ in range(num_levels)
        )
        # upsamplers[i][j] brings level j < i from the grid of level i - 1 to the grid of level i.
        self.upsamplers = nn.ModuleList(
            nn.ModuleList(
                nn.ConvTranspose2d(code_dim, code_dim, 4, stride=2, padding=1) for _ in range(level)
            )
            for level in range(num_levels)
        )
        self.decoder = decoder(num_levels * code_dim, channels, *widths, factor)
        # Convolutions follow the layout of their weights. The quantisers' rows are then views.
        self.to(memory_format=torch.channels_last)

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.encoders, *self.conditioners, self.decoder]

    def grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Each level's grid (h, w) for images of this size, top first.

        Raises:
            ValueError: the size is not a multiple of the coarsest level's factor.
        """
        return divided(height, width, [self.factor * 2**above for above in reversed(range(self.num_levels))])

    def forward(self, images: Tensor) -> Reconstruction:
        """Encodes and decodes `images` [B, C, H, W] in [-1, 1] (algorithm 1)."""
        vectors, codes, commitments, statistics = zip(*self._quantize(images), strict=True)
        if self.training and self.level_dropout:
            vectors = self._drop_lower_levels(vectors)
        return Reconstruction(self._decode(vectors), codes, commitments, statistics)

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Codes [B, h, w] of each level, top first."""
        features = self._features(images)
        codes: list[Tensor] = []
        vectors: list[Tensor] = []
        for level, quantizer in enumerate(self.quantizers):
            codes.append(quantizer.encode(self._to_quantize(level, features, vectors)))
            if level < self.num_levels - 1:
                vectors.append(quantizer.lookup(codes[-1]))
        return tuple(codes)

    def decode(self, codes: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Images [B, C, H, W] of the codes of all levels, top first.

        With `num_levels`, only that many upper levels are shown to the decoder, zeros in place of the others
        (figure 3; the paper does not say what replaces a missing level).
        """
        vectors = [quantizer.lookup(level) for quantizer, level in zip(self.quantizers, codes, strict=True)]
        for level in range(self.num_levels if num_levels is None else num_levels, self.num_levels):
            vectors[level] = torch.zeros_like(vectors[level])
        return self._decode(vectors)

    def _quantize(self, images: Tensor) -> list[Quantized]:
        features = self._features(images)
        levels: list[Quantized] = []
        for level, quantizer in enumerate(self.quantizers):
            levels.append(quantizer(self._to_quantize(level, features, [above.vectors for above in levels])))
        return levels

    def _features(self, images: Tensor) -> list[Tensor]:
        """Features [B, C, h, w] of each level, top first."""
        features = [images]
        for encode in reversed(self.encoders):
            features.append(encode(features[-1]))
        return features[:0:-1]  # without the images

    def _to_quantize(self, level: int, features: Sequence[Tensor], above: Sequence[Tensor]) -> Tensor:
        """What `level` quantises: its features beside a decoding of the vectors of all levels above it."""
        feature = features[level]
        if level > 0:
            feature = torch.cat([self.conditioners[level - 1](self._gather(above)), feature], 1)
        return self.to_code[level](feature)

    def _decode(self, vectors: Sequence[Tensor]) -> Tensor:
        return self.decoder(self._gather(vectors))

    def _gather(self, vectors: Sequence[Tensor]) -> Tensor:
        """The vectors of these uppermost levels, brought to the lowest one's grid and concatenated."""
        dtype = self.decoder[0].weight.dtype  # codes are float32 also where the rest is half precision
        gathered: list[Tensor] = []
        for upsamplers, vector in zip(
            self.upsamplers, (vector.to(dtype) for vector in vectors), strict=False
        ):
            gathered = [*(up(above) for up, above in zip(upsamplers, gathered, strict=True)), vector]
        return torch.cat(gathered, 1)

    def _drop_lower_levels(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        batch, device = len(vectors[0]), vectors[0].device
        dropped = torch.rand(batch, device=device) < self.level_dropout
        seen = torch.randint(1, self.num_levels, (batch,), device=device)  # levels seen where dropped
        return [
            vector * ~(dropped & (level >= seen))[:, None, None, None] for level, vector in enumerate(vectors)
        ]


def check_widths(channels: int, hidden: int, residual: int, residual_blocks: int) -> None:
    """Raises ValueError if no `encoder` and `decoder` have these."""
    require(channels >= 1, "channels", channels, "at least 1")
    require(hidden >= 2, "hidden", hidden, "at least 2")
    require(residual >= 1, "residual", residual, "at least 1")
    require(residual_blocks >= 0, "residual_blocks", residual_blocks, "0 or more")


def _log2(factor: int) -> int:
    require(factor >= 2 and not factor & (factor - 1), "factor", factor, "a power of two, at least 2")
    return factor.bit_length() - 1
