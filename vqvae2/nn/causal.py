"""Causal building blocks of the priors: two-stream gated convolutions and strictly causal attention.

Source: VQ-VAE-2 (Razavi et al., 2019), supplement A.2, after Gated PixelCNN and PixelSNAIL. The supplement's
figure of the gated layer is lost; the reading here is the one whose weights fit the paper's sampling times.

The vertical stream v sees all rows above, the horizontal stream h what stands left in the same row and,
through v, all rows above: together every earlier code, no blind spot.
Shape legend: B batch, C hidden units, R residual units (before the gate halves them), H W grid.
"""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vqvae2.nn.dropout import Dropout, attend_dropping_logits


def shift_down(x: Tensor) -> Tensor:
    """Row r becomes row r - 1; row 0 becomes zero."""
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


def shift_right(x: Tensor) -> Tensor:
    """Column c becomes column c - 1; column 0 becomes zero."""
    return F.pad(x, (1, 0))[:, :, :, :-1]


class VerticalConv(nn.Conv2d):
    """Convolution over this row and those above: the upper (k + 1) / 2 rows of a k x k window."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, ((kernel + 1) // 2, kernel))

    def forward(self, x: Tensor) -> Tensor:
        return self.last_rows(x, rows_above=self.kernel_size[0] - 1)

    def last_rows(self, window: Tensor, rows_above: int = 0) -> Tensor:
        """Outputs of the rows of `window` [B, C, H, W] that have all their rows above in it.

        `rows_above` are rows of zeros to put above the window first.
        """
        side = self.kernel_size[1] // 2
        return super().forward(F.pad(window, (side, side, rows_above, 0)))


class HorizontalConv(nn.Conv2d):
    """Convolution over this column and those left of it, (k + 1) / 2 in all, within the row."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, (1, (kernel + 1) // 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.kernel_size[1] - 1, 0)))


class PointwiseConv(nn.Conv2d):
    """1x1 convolution as the one matrix product that it is where channels lie last in memory, as here."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        flat = rearrange(x, "b c h w -> (b h w) c")
        flat = F.linear(flat, self.weight.flatten(1), self.bias)
        return rearrange(flat, "(b h w) c -> b c h w", b=batch, h=height, w=width)


def gate(x: Tensor) -> Tensor:
    """tanh(x₁)·σ(x₂) of the two halves of the channels."""
    a, b = x.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


class GatedLayer(nn.Module):
    """One residual layer of both streams.

    v += W drop(gate(Conv_v(elu v) + context)), h += W' drop(gate(Conv_h(elu h) + U elu(v) + context)).

    Args:
        hidden: C.
        residual: R.
        kernel: odd size of the window.
        dropout: on the branch, before its last 1x1 convolution ("after each residual block", A.2, read so).
        condition: channels of the conditioning map; 0 without one.
        labelled: whether the layer takes a class embedding [B, C].
    """

    def __init__(
        self, hidden: int, residual: int, kernel: int, dropout: float, condition: int, labelled: bool
    ) -> None:
        super().__init__()
        self.v_conv = VerticalConv(hidden, residual, kernel)
        self.v_out = PointwiseConv(residual // 2, hidden)
        self.h_conv = HorizontalConv(hidden, residual, kernel)
        self.h_from_v = PointwiseConv(hidden, residual, bias=False)
        self.h_out = PointwiseConv(residual // 2, hidden)
        self.v_label = nn.Linear(hidden, residual, bias=False) if labelled else None
        self.h_label = nn.Linear(hidden, residual, bias=False) if labelled else None
        self.condition = PointwiseConv(condition, residual, bias=False) if condition else None
        self.dropout = Dropout(dropout)

    def forward(
        self, v: Tensor, h: Tensor, condition: Tensor | None, label: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Both streams [B, C, H, W] after the layer; `condition` [B, Z, H/s, W/s], `label` [B, C]."""
        v_context, h_context = self.contexts(condition, label, v.shape[-2:])
        v = v + self.v_branch(_plus(self.v_conv(F.elu(v)), v_context))
        h_pre = _plus(self.h_conv(F.elu(h)), self.h_from_v(F.elu(v)))
        return v, h + self.h_branch(_plus(h_pre, h_context))

    def v_branch(self, v_pre: Tensor) -> Tensor:
        return self.v_out(self.dropout(gate(v_pre)))

    def h_branch(self, h_pre: Tensor) -> Tensor:
        return self.h_out(self.dropout(gate(h_pre)))

    def contexts(
        self, condition: Tensor | None, label: Tensor | None, grid: tuple[int, int]
    ) -> tuple[Tensor | float, Tensor | float]:
        """What condition and class add to v_pre and to h_pre, broadcastable to [B, R, H, W] of `grid`.

        The conditioning map is projected on its own grid and then repeated: the same, and cheaper.
        """
        shared: Tensor | float = 0.0
        if condition is not None:
            rows, columns = grid
            scale = columns // condition.shape[-1]
            projected = self.condition(condition)
            shared = F.interpolate(projected, scale_factor=scale, mode="nearest")[:, :, :rows]
        if label is None:
            return shared, shared
        return shared + _as_map(self.v_label(label)), shared + _as_map(self.h_label(label))


def _plus(convolved: Tensor, other: Tensor | float) -> Tensor:
    """Their sum, in place: the backward pass of a convolution does not read its result."""
    return convolved.add_(other) if isinstance(other, Tensor) else convolved


def _as_map(x: Tensor) -> Tensor:
    return x[:, :, None, None]


class CausalAttention(nn.Module):
    """Multi-head attention in raster order over strictly earlier positions; adds to h.

    Queries come from [h; position], keys and values from [h; code embedding; position]: as in PixelSNAIL a
    key reads the code itself, so position i attends to j < i only. The first attends to nothing: zero.
    Dropout is on the logits, as the supplement says (A.2), or on the weights.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        hidden: int,
        heads: int,
        dropout: float,
        dropout_on: Literal["logits", "weights"],
    ) -> None:
        super().__init__()
        if heads < 1 or hidden % heads:
            raise ValueError(f"{hidden} hidden units do not divide among {heads} attention heads.")
        self.grid = grid
        self.heads = heads
        self.dropout = dropout
        self.dropout_on = dropout_on
        self.query = nn.Linear(hidden + 2, hidden)
        self.key_value = nn.Linear(2 * hidden + 2, 2 * hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        """h + attention; `h` and `embedded` (the codes') are [B, C, H, W]."""
        height = h.shape[2]
        here = positions(*self.grid, like=h)[:, :, :height].expand(len(h), -1, -1, -1)
        h_flat, embedded, here = (rearrange(x, "b c h w -> b (h w) c") for x in (h, embedded, here))
        query = self.project_query(h_flat, here)
        key, value = self.project_key_value(h_flat, embedded, here)
        # Query i may see keys < i: against keys moved one place on, that is the plain causal mask.
        attended = F.pad(self._attend(query[:, :, 1:], key[:, :, :-1], value[:, :, :-1]), (0, 0, 1, 0))
        out = self.out(rearrange(attended, "b m n d -> b n (m d)"))
        return h + rearrange(out, "b (h w) c -> b c h w", h=height)

    def project_query(self, h: Tensor, here: Tensor) -> Tensor:
        """Queries [B, heads, N, d] of h [B, N, C] at the coordinates `here` [B, N, 2]."""
        return rearrange(self.query(torch.cat([h, here], -1)), "b n (m d) -> b m n d", m=self.heads)

    def project_key_value(self, h: Tensor, embedded: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, heads, N, d] of h and the embedded codes [B, N, C] at `here` [B, N, 2]."""
        both = self.key_value(torch.cat([h, embedded, here], -1))
        return tuple(rearrange(both, "b n (two m d) -> two b m n d", two=2, m=self.heads))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if dropout == 0 or self.dropout_on == "weights":
            return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        batch = len(query)
        query, key, value = (rearrange(x, "b m n d -> (b m) n d").contiguous() for x in (query, key, value))
        attended = attend_dropping_logits(query, key, value, dropout)
        return rearrange(attended, "(b m) n d -> b m n d", b=batch)


def positions(height: int, width: int, like: Tensor) -> Tensor:
    """Coordinate planes [1, 2, H, W]: (row - H/2) / H and (column - W/2) / W."""
    row = (torch.arange(height, device=like.device, dtype=like.dtype) - height / 2) / height
    column = (torch.arange(width, device=like.device, dtype=like.dtype) - width / 2) / width
    return torch.stack(torch.meshgrid(row, column, indexing="ij"))[None]


class OutputLayer(nn.Module):
    """Residual 1x1 layer of the output stack: h += W drop(gate(W' elu(h))) (supplement A.2)."""

    def __init__(self, hidden: int, residual: int, dropout: float) -> None:
        super().__init__()
        self.expand = PointwiseConv(hidden, residual)
        self.reduce = PointwiseConv(residual // 2, hidden)
        self.dropout = Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.reduce(self.dropout(gate(self.expand(F.elu(h)))))
