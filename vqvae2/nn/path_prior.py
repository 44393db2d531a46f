"""The exact prior over the paths of a code tree: one network for each residual level.

Source: HR-VQVAE (Adiban, Stefanov, Siniscalchi, Salvi, 2022), appendix, table 8 and A.2. It does not say how
the prior treats the levels. This is p(k¹) p(k² | k¹) p(k³ | k¹, k²), each factor a `PixelSNAIL` over the
whole grid that sees the levels above at all positions. One softmax over the leaves, a plain `PixelSNAIL`, is
the other exact form; both give the likelihood of the same codes.

Shape legend: B batch, h w the grid, m branch, L depth, K = m^L leaves.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vqvae2.nn.checks import require
from vqvae2.nn.contracts import PriorNetwork
from vqvae2.nn.pixelsnail import PixelSNAIL


class PathPrior(PriorNetwork, architecture="path"):
    """p(leaf indices of a grid | codes of the levels above, class), residual level by residual level.

    A child index alone is ambiguous, so what is embedded of a level, the own one's earlier positions too, is
    its node: parent and child together.

    Args:
        grid: (h, w).
        num_codes: K, leaves.
        condition_grids: (h, w) of each level above the grid, top first; residual levels are not among them.
        condition_codes: K of each level above.
        num_classes: 0 for a prior without classes.
        depth: L, residual levels.
        options: of each level's `PixelSNAIL`.

    Raises:
        ValueError: K is not a whole number to the power of L.
    """

    def __init__(
        self,
        *,
        grid: Sequence[int],
        num_codes: int,
        condition_grids: Sequence[Sequence[int]],
        condition_codes: Sequence[int],
        num_classes: int,
        depth: int,
        **options: Any,
    ) -> None:
        super().__init__()
        require(depth >= 1, "depth", depth, "at least 1")
        branch = round(num_codes ** (1 / depth))
        wanted = f"the autoencoder's: {num_codes} codes are no whole number to the power of {depth}"
        require(branch**depth == num_codes, "depth", depth, wanted)
        self.grid = tuple(grid)
        self.condition_grids = tuple(condition_grids)
        self.num_codes = num_codes
        self.num_classes = num_classes
        self.branch = branch
        self.levels = nn.ModuleList(
            PixelSNAIL(
                grid=grid,
                num_codes=branch ** (above + 1),
                condition_grids=[*condition_grids, *[grid] * above],
                condition_codes=[*condition_codes, *(branch**i for i in range(1, above + 1))],
                num_classes=num_classes,
                branch=branch if above else 0,
                **options,
            )
            for above in range(depth)
        )

    @property
    def blocks(self) -> list[nn.Module]:
        return [block for level in self.levels for block in level.blocks]

    def nodes(self, codes: Tensor) -> list[Tensor]:
        """The node of each level on the way to leaf indices; -1, not drawn yet, stays."""
        below = reversed(range(len(self.levels)))
        return [torch.div(codes, self.branch**i, rounding_mode="floor") for i in below]

    def forward(
        self, codes: Tensor, conditions: Sequence[Tensor] = (), labels: Tensor | None = None
    ) -> Tensor:
        """Negative log-likelihood of each leaf index, float32 [B, h, w], in nats: the sum over its path."""
        nodes = self.nodes(codes)
        nll = [
            level.nll(own, [*conditions, *nodes[:i]], labels)
            for i, (level, own) in enumerate(zip(self.levels, nodes, strict=True))
        ]
        return torch.stack(nll).sum(0)

    def nll(self, codes: Tensor, conditions: Sequence[Tensor], labels: Tensor) -> Tensor:
        return self(codes, conditions, labels)

    def loss(self, codes: Tensor, conditions: Sequence[Tensor], labels: Tensor) -> Tensor:
        return self(codes, conditions, labels).mean()
