"""The prior's logits one position at a time, each position computed once.

A full pass spends N times too much on sampling N codes: all but one position of it were known before. Here
the vertical stream is computed once a row, for all columns together; the horizontal stream once a position;
attention reads keys and values that are kept. The result is that of `Prior.forward`, by the same weights.

Shape legend: B batch, C hidden units, R residual units, T taps of the horizontal window, W columns.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vqvae2.nn.causal import CausalAttention, HorizontalConv, gate, positions
from vqvae2.nn.prior import Prior


class IncrementalPrior:
    """Logits of one position after the other, in raster order.

    Use: `logits()`, draw a code, `append(code)`, and so on for H·W positions.

    Args:
        prior: in eval mode.
        conditions: codes [B, h, w] of the levels above, top first.
        labels: [B]; ignored by a prior without classes.
    """

    def __init__(self, prior: Prior, conditions: Sequence[Tensor], labels: Tensor) -> None:
        self.prior = prior
        self.position = 0
        self.condition = prior.condition(conditions)
        self.label = prior.embed_labels(labels)
        zeros = prior.embedding.weight.new_zeros
        (height, width), batch, channels = prior.grid, len(labels), prior.embedding.embedding_dim
        rows, taps = prior.v_in.kernel_size[0], prior.h_in.kernel_size[1]
        self.embedded_rows = zeros(batch, channels, rows + 1, width)  # the last of them is being filled
        self.v_rows = [zeros(batch, channels, rows, width) for _ in prior.layers]
        self.in_taps = zeros(batch, taps * channels)
        self.h_taps = [zeros(batch, taps * channels) for _ in prior.layers]
        self.row_bias: list[Tensor] = []  # a layer: what a position's h_pre gets besides its taps, [W, B, R]
        self.attention = {
            i: _AttentionCache(layer, batch, height * width) for i, layer in prior.attention.items()
        }
        self.here = rearrange(positions(height, width, like=zeros(())), "1 two h w -> (h w) 1 1 two")
        self.in_matrix = _tap_matrix(prior.h_in)
        self.h_matrices = [_tap_matrix(layer.h_conv) for layer in prior.layers]

    def logits(self) -> Tensor:
        """Logits [B, K] of the next position."""
        column = self.position % self.prior.grid[1]
        if column == 0:
            self._start_row()
        here = self.here[self.position]
        h = F.linear(self.in_taps, self.in_matrix, self.prior.h_in.bias)
        for i, layer in enumerate(self.prior.layers):
            self.h_taps[i] = _push(self.h_taps[i], F.elu(h))
            h_pre = torch.addmm(self.row_bias[i][column], self.h_taps[i], self.h_matrices[i].T)
            h = h + _pointwise(layer.h_out, gate(h_pre))
            if str(i) in self.attention:
                h = self.attention[str(i)].attend(h, here)
        for layer in self.prior.output:
            h = h + _pointwise(layer.reduce, gate(_pointwise(layer.expand, F.elu(h))))
        return _pointwise(self.prior.to_logits, F.elu(h))

    def append(self, codes: Tensor) -> None:
        """Fixes the codes [B] of the position whose `logits` were asked last."""
        embedded = self.prior.embedding(codes)
        for cache in self.attention.values():
            cache.append(embedded)
        self.embedded_rows[:, :, -1, self.position % self.prior.grid[1]] = embedded
        self.in_taps = _push(self.in_taps, embedded)
        self.position += 1

    def _start_row(self) -> None:
        """The vertical stream of the new row, and what each layer's horizontal stream takes from it."""
        row, width = self.position // self.prior.grid[1], self.prior.grid[1]
        v = self.prior.v_in.last_rows(self.embedded_rows[:, :, 1:])
        self.embedded_rows = F.pad(self.embedded_rows[:, :, 1:], (0, 0, 0, 1))
        condition = self._condition_row(row)
        self.row_bias = []
        for i, layer in enumerate(self.prior.layers):
            v_context, h_context = layer.contexts(condition, self.label, (1, width))
            self.v_rows[i] = torch.cat([self.v_rows[i][:, :, 1:], F.elu(v)], 2)
            v = v + layer.v_branch(layer.v_conv.last_rows(self.v_rows[i]) + v_context)
            bias = layer.h_from_v(F.elu(v)) + h_context + layer.h_conv.bias[:, None, None]
            self.row_bias.append(rearrange(bias, "b r 1 w -> w b r").contiguous())
            self.h_taps[i].zero_()
        self.in_taps = torch.zeros_like(self.in_taps)

    def _condition_row(self, row: int) -> Tensor | None:
        if self.condition is None:
            return None
        above = row * self.condition.shape[2] // self.prior.grid[0]
        return self.condition[:, :, above : above + 1]


class _AttentionCache:
    """Keys and values of the positions whose codes are fixed."""

    def __init__(self, layer: CausalAttention, batch: int, num_positions: int) -> None:
        self.layer = layer
        hidden = layer.out.in_features
        shape = (batch, layer.heads, num_positions, hidden // layer.heads)
        self.keys, self.values = (layer.out.weight.new_zeros(shape) for _ in range(2))
        self.length = 0

    def attend(self, h: Tensor, here: Tensor) -> Tensor:
        """h + attention over the positions before this one; h [B, C], `here` [1, 1, 2]."""
        self.h = h[:, None]
        self.here = here.expand(len(h), -1, -1)
        if self.length == 0:
            return h + self.layer.out.bias
        query = self.layer.project_query(self.h, self.here)
        earlier = slice(0, self.length)
        attended = F.scaled_dot_product_attention(query, self.keys[:, :, earlier], self.values[:, :, earlier])
        return h + self.layer.out(rearrange(attended, "b m 1 d -> b (m d)"))

    def append(self, embedded: Tensor) -> None:
        """Keeps the position asked last, now that the embedding [B, C] of its code is known."""
        key, value = self.layer.project_key_value(self.h, embedded[:, None], self.here)
        self.keys[:, :, self.length] = key[:, :, 0]
        self.values[:, :, self.length] = value[:, :, 0]
        self.length += 1


def _tap_matrix(conv: HorizontalConv) -> Tensor:
    """The weights as one matrix [R, T·C] for taps that lie behind one another, oldest first."""
    return rearrange(conv.weight, "r c 1 t -> r (t c)")


def _push(taps: Tensor, newest: Tensor) -> Tensor:
    """[B, T·C] without its oldest tap and with `newest` [B, C] at the end."""
    return torch.cat([taps[:, newest.shape[1] :], newest], 1)


def _pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of one position: x [B, in] → [B, out]."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)
