"""The autoregressive prior over one level's codes.

Source: VQ-VAE-2 (Razavi et al., 2019), section 3.2, figure 2b and supplement A.2, tables 1 and 2.
Shape legend: B batch, C hidden units, R residual units, K codes, H W grid.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqvae2.nn.causal import (
    CausalAttention,
    GatedLayer,
    HorizontalConv,
    OutputLayer,
    VerticalConv,
    shift_down,
    shift_right,
)
from vqvae2.nn.checks import require
from vqvae2.nn.conditioning import ConditioningStack
from vqvae2.nn.contracts import PriorNetwork
from vqvae2.nn.precision import without_autocast
from vqvae2.nn.recompute import run_again


class PixelSNAIL(PriorNetwork, architecture="pixelsnail"):
    """p(codes of a level | codes of the levels above, class), code by code in raster order.

    Args:
        grid: (H, W) of this level.
        num_codes: K of this level.
        condition_grids: (h, w) of each level above, top first; none for the top prior.
        condition_codes: K of each level above.
        num_classes: 0 for a prior without classes.
        branch: m, where codes are the nodes of a tree: code i is a child of the code i // m of the level just
            above at the same position, and only its m children are possible there. 0 for any other codes.
        hidden: C.
        residual: R, width before the gate.
        layers: gated layers.
        attention_layers: attention layers, one after every `layers // attention_layers` gated ones.
        kernel: odd size of the causal window, at least 3.
        dropout: in every residual branch, before its last convolution, and in attention.
        attention_dropout: whether attention drops logits (the paper's wording) or weights.
        output_layers: residual 1x1 layers behind the gated ones.
        heads: attention heads (unused without attention).
        conditioning_hidden: Z, width of the conditioning stack (unused by a top prior).
        conditioning_blocks: its residual blocks.
    """

    def __init__(
        self,
        *,
        grid: Sequence[int],
        num_codes: int,
        condition_grids: Sequence[Sequence[int]],
        condition_codes: Sequence[int],
        num_classes: int,
        hidden: int,
        residual: int,
        layers: int,
        attention_layers: int,
        kernel: int,
        dropout: float,
        output_layers: int,
        branch: int = 0,
        heads: int = 0,
        attention_dropout: Literal["logits", "weights"] = "logits",
        conditioning_hidden: int = 0,
        conditioning_blocks: int = 0,
    ) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.condition_grids = tuple(tuple(above) for above in condition_grids)
        self.num_codes = num_codes
        self.num_classes = num_classes
        self.branch = branch
        _check_widths(kernel, hidden, residual, dropout)
        _check_layers(layers, attention_layers, output_layers, attention_dropout)
        _check_codes(self.grid, num_codes, num_classes)
        if branch:
            _check_branch(branch, num_codes, self.grid, self.condition_grids, condition_codes)
        if self.condition_grids:
            _check_condition(self.grid, self.condition_grids[-1], conditioning_hidden, conditioning_blocks)
        self.embedding = nn.Embedding(num_codes, hidden)
        self.label_embedding = nn.Embedding(num_classes, hidden) if num_classes else None
        self.condition_embeddings = nn.ModuleList(nn.Embedding(codes, hidden) for codes in condition_codes)
        self.conditioning = None
        if self.condition_grids:
            width = len(self.condition_grids) * hidden
            self.conditioning = ConditioningStack(width, conditioning_hidden, conditioning_blocks)
        self.v_in = VerticalConv(hidden, hidden, kernel)
        self.h_in = HorizontalConv(hidden, hidden, kernel)
        told = conditioning_hidden if self.condition_grids else 0
        self.layers = nn.ModuleList(
            GatedLayer(hidden, residual, kernel, dropout, told, num_classes > 0) for _ in range(layers)
        )
        period = layers // attention_layers if attention_layers else 0
        after = [str(period * (i + 1) - 1) for i in range(attention_layers)]
        options = (self.grid, hidden, heads, dropout, attention_dropout)
        self.attention = nn.ModuleDict({place: CausalAttention(*options) for place in after})
        self.output = nn.Sequential(*(OutputLayer(hidden, residual, dropout) for _ in range(output_layers)))
        self.to_logits = nn.Conv2d(hidden, branch or num_codes, 1)
        nn.init.zeros_(self.to_logits.weight)  # an untrained prior is uniform: ln K nats per code
        nn.init.zeros_(self.to_logits.bias)

    @property
    def blocks(self) -> list[nn.Module]:
        stack = [] if self.conditioning is None else [*self.conditioning.blocks, self.conditioning]
        return [*stack, *self.layers, *self.attention.values(), *self.output]

    def forward(
        self, codes: Tensor, conditions: Sequence[Tensor] = (), labels: Tensor | None = None
    ) -> Tensor:
        """Logits [B, K, H, W], or [B, m, H, W] of children; they depend on the codes before a position only.

        Args:
            codes: [B, H, W]. The grid may be cut below any row: the remaining rows' logits are the same.
            conditions: codes [B, h, w] of the levels above, top first.
            labels: [B]; ignored by a prior without classes.
        """
        return self.logits(codes, self.condition(conditions), self.embed_labels(labels))

    def nll(self, codes: Tensor, conditions: Sequence[Tensor], labels: Tensor) -> Tensor:
        logits = self(codes, conditions, labels).float()
        return F.cross_entropy(logits, self.choices(codes), reduction="none")

    def loss(self, codes: Tensor, conditions: Sequence[Tensor], labels: Tensor) -> Tensor:
        return self.nll(codes, conditions, labels).mean()

    def choices(self, codes: Tensor) -> Tensor:
        """Which of the logits each code [B, H, W] is."""
        return codes % self.branch if self.branch else codes

    def condition(self, conditions: Sequence[Tensor]) -> Tensor | None:
        """What the layers are told of the levels above: [B, Z, h, w] on the grid of the one just above."""
        if self.conditioning is None:
            return None
        grid = self.condition_grids[-1]
        embedded = [
            F.interpolate(embed(codes).permute(0, 3, 1, 2), size=grid, mode="nearest")
            for embed, codes in zip(self.condition_embeddings, conditions, strict=True)
        ]
        return self.conditioning(torch.cat(embedded, 1), recompute=self.checkpoint_layers)

    def embed_labels(self, labels: Tensor | None) -> Tensor | None:
        """Class embeddings [B, C] of the labels [B]."""
        return None if self.label_embedding is None else self.label_embedding(labels)

    def logits(self, codes: Tensor, condition: Tensor | None, label: Tensor | None) -> Tensor:
        """Logits [B, K, H, W] given what `condition` and `embed_labels` returned."""
        embedded = self.embedding(codes).permute(0, 3, 1, 2)
        v = self.v_in(shift_down(embedded))
        h = self.h_in(shift_right(embedded))
        for i, layer in enumerate(self.layers):
            v, h = self._run(layer, v, h, condition, label)
            if str(i) in self.attention:
                h = self._run(self.attention[str(i)], h, embedded)
        for layer in self.output:
            h = self._run(layer, h)
        with without_autocast(h.device):
            return self.to_logits(F.elu(h).to(self.to_logits.weight.dtype))

    def _run(self, layer: nn.Module, *inputs: Tensor | None) -> Any:
        return run_again(layer, *inputs) if self.checkpoint_layers else layer(*inputs)


def _check_widths(kernel: int, hidden: int, residual: int, dropout: float) -> None:
    fits = kernel >= 3 and kernel % 2 == 1
    require(fits, "kernel", kernel, "an odd number of at least 3: a window of 1 has a blind spot")
    require(hidden >= 1, "hidden", hidden, "at least 1")
    require(residual >= 2 and residual % 2 == 0, "residual", residual, "an even number: the gate halves it")
    require(0 <= dropout < 1, "dropout", dropout, "0 up to, not including, 1")


def _check_layers(layers: int, attention_layers: int, output_layers: int, attention_dropout: str) -> None:
    require(layers >= 1, "layers", layers, "at least 1")
    require(0 <= attention_layers <= layers, "attention_layers", attention_layers, f"0 to {layers}")
    require(output_layers >= 0, "output_layers", output_layers, "0 or more")
    known = attention_dropout in ("logits", "weights")
    require(known, "attention_dropout", attention_dropout, "logits or weights")


def _check_codes(grid: tuple[int, int], num_codes: int, num_classes: int) -> None:
    require(num_classes >= 0, "num_classes", num_classes, "0 (no classes) or more")
    require(num_codes >= 1, "num_codes", num_codes, "at least 1")
    require(min(grid) >= 1, "grid", grid, "at least 1x1")


def _check_condition(
    grid: tuple[int, int], above: tuple[int, int], conditioning_hidden: int, conditioning_blocks: int
) -> None:
    require(conditioning_blocks >= 0, "conditioning_blocks", conditioning_blocks, "0 or more")
    fits = conditioning_hidden > 0 and conditioning_hidden % 4 == 0
    require(fits, "conditioning_hidden", conditioning_hidden, "a positive multiple of 4")
    scale = grid[1] // above[1]
    if (above[0] * scale, above[1] * scale) != grid:
        raise ValueError(
            f"A grid of {grid[0]}x{grid[1]} cannot be conditioned on one of {above[0]}x{above[1]}: "
            "wanted a whole multiple of the one above."
        )


def _check_branch(
    branch: int,
    num_codes: int,
    grid: tuple[int, int],
    condition_grids: Sequence[tuple[int, int]],
    condition_codes: Sequence[int],
) -> None:
    parents = condition_codes[-1] if condition_codes and condition_grids[-1] == grid else 0
    fits = num_codes == parents * branch
    wanted = f"{num_codes} codes over those of the level above, on the same grid"
    require(fits, "branch", branch, wanted)
