"""HR-VQVAE: one encoder, one grid, residual levels of codes on it.

Source: HR-VQVAE (Adiban, Stefanov, Siniscalchi, Salvi, 2022), appendix, tables 5 and 6 and A.2. Encoder and
decoder are built of the layers of VQ-VAE-2, as its table 4 suggests.

Shape legend: B batch, C hidden units, D code dimension, h w the grid, m branch, L depth.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vqvae2.nn.contracts import Tokenizer, divided
from vqvae2.nn.hierarchical import check_widths, decoder, encoder
from vqvae2.nn.linked_quantizer import LinkedQuantizer


class ResidualReconstruction(NamedTuple):
    """What `HRVQVAE.forward` returns."""

    images: Tensor  # [B, C, H, W]
    codes: tuple[Tensor]  # leaf indices [B, h, w] int64
    commitments: tuple[Tensor, ...]  # scalars, of each residual level
    commitment: Tensor  # scalar, of the sum of all levels
    statistics: tuple[Tensor]  # for `update_codebooks`
    visited: tuple[Tensor, ...]  # share of each level's nodes that training has ever used


class HRVQVAE(Tokenizer, architecture="hr-vqvae"):
    """Compresses images into one grid of leaf indices, each the path through L levels of m choices.

    Args:
        channels: of the images.
        factor: image side over the grid's side, a power of two.
        hidden: C, width of encoder and decoder.
        residual: width inside a residual block.
        residual_blocks: residual blocks of encoder and decoder.
        branch: m, codes among which each level chooses.
        depth: L, residual levels; the last has m^L codes.
        code_dim: D, dimension of a code.
        beta: see `LinkedQuantizer`.
        decay: decay of the codebooks' moving averages.
        eps: Laplace smoothing of their counts.
        linked: see `LinkedQuantizer`.
        residual_gradient: see `LinkedQuantizer`.
        codebook_init: see `Codebook`.
        revive_below: see `Codebook`.
    """

    level_names = ("top",)

    def __init__(
        self,
        *,
        channels: int,
        factor: int,
        hidden: int,
        residual: int,
        residual_blocks: int,
        branch: int,
        depth: int,
        code_dim: int,
        beta: float,
        decay: float,
        eps: float,
        linked: bool = True,
        residual_gradient: Literal["stop", "full", "none"] = "stop",
        codebook_init: Literal["normal", "uniform", "data"] = "data",
        revive_below: float = 0.0,
    ) -> None:
        super().__init__()
        check_widths(channels, hidden, residual, residual_blocks)
        self.channels = channels
        self.factor = factor
        widths = (hidden, residual, residual_blocks, factor)
        self.encoder = encoder(channels, *widths)
        self.to_code = nn.Conv2d(hidden, code_dim, 1)
        self.quantizer = LinkedQuantizer(
            branch=branch,
            depth=depth,
            dim=code_dim,
            linked=linked,
            residual_gradient=residual_gradient,
            beta=beta,
            decay=decay,
            eps=eps,
            init=codebook_init,
            revive_below=revive_below,
        )
        self.decoder = decoder(code_dim, channels, *widths)
        self.codebook_sizes = (self.quantizer.num_codes,)
        self.to(memory_format=torch.channels_last)

    @property
    def quantizers(self) -> list[LinkedQuantizer]:
        return [self.quantizer]

    @property
    def blocks(self) -> list[nn.Module]:
        return [self.encoder, self.decoder]

    @property
    def codebooks(self) -> dict[str, int]:
        return {f"level{i}": size for i, size in enumerate(self.quantizer.sizes, start=1)}

    def by_codebook(self, codes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self.quantizer.nodes(codes[0])

    def grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """The grid (h, w) for images of this size.

        Raises:
            ValueError: the size is not a multiple of the factor.
        """
        return divided(height, width, [self.factor])

    def forward(self, images: Tensor) -> ResidualReconstruction:
        """Encodes and decodes `images` [B, C, H, W] in [-1, 1]."""
        found = self.quantizer(self.to_code(self.encoder(images)))
        visited = tuple(level.visited.float().mean() for level in self.quantizer.levels)
        return ResidualReconstruction(
            self._decode(found.vectors),
            (found.codes,),
            found.commitments,
            found.commitment,
            (found.statistics,),
            visited,
        )

    def encode(self, images: Tensor) -> tuple[Tensor]:
        """Leaf indices ([B, h, w],)."""
        return (self.quantizer.encode(self.to_code(self.encoder(images))),)

    def decode(self, codes: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Images [B, C, H, W] of leaf indices ([B, h, w],); `num_levels` can only be 1 or None."""
        return self._decode(self.quantizer.lookup(codes[0]))

    def refinements(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Images [B, C, H, W] after the first residual level, the first two, and so on to all."""
        depths = range(1, self.quantizer.depth + 1)
        return [self._decode(self.quantizer.lookup(codes[0], depth)) for depth in depths]

    def _decode(self, vectors: Tensor) -> Tensor:
        return self.decoder(vectors.to(self.decoder[0].weight.dtype))
