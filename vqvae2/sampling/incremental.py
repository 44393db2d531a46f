"""The prior's logits one position at a time, each position computed once.

A full pass spends N times too much on sampling N codes: all but one position of it were known before. Here
the vertical stream is computed once a row, for all columns together (the row pass); the horizontal stream
once a position (the pixel pass); attention reads keys and values that are kept. The result is that of
`PixelSNAIL.forward`, by the same modules and weights.

Both passes work in place on buffers made once, and the position is a tensor on the device: nothing waits for
the device, so that each pass can be captured as a CUDA graph.

Shape legend: B batch, C hidden units, R residual units, T taps of the horizontal window, L layers, H W grid,
N = H·W positions, Z conditioning channels, m heads of width d.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vqvae2.nn.causal import CausalAttention, gate, positions
from vqvae2.nn.pixelsnail import PixelSNAIL


class IncrementalPrior:
    """Logits of one position after the other, in raster order.

    Use: `start(conditions, labels)`; then for every row `start_row()` and, for each of its W positions,
    `logits(visible)`, draw a code, `append(codes)`.

    Args:
        prior: in eval mode.
        batch_size: B, for which the buffers are made.
    """

    def __init__(self, prior: PixelSNAIL, batch_size: int) -> None:
        self.prior = prior
        self.buffers: list[Tensor] = []
        self._like = prior.embedding.weight.new_empty(0)
        (height, width), channels, layers = prior.grid, prior.embedding.embedding_dim, len(prior.layers)
        rows, taps = prior.v_in.kernel_size[0], prior.h_in.kernel_size[1]
        residual = prior.layers[0].v_conv.out_channels
        self.position = self._zeros(1, dtype=torch.int64)
        self.embedded_rows = self._zeros(batch_size, channels, rows + 1, width)  # the last is being filled
        self.v_rows = [self._zeros(batch_size, channels, rows, width) for _ in range(layers)]
        self.in_taps = self._zeros(batch_size, channels, taps)
        self.h_taps = self._zeros(layers, batch_size, channels, taps)
        self.row_bias = self._zeros(width, layers, batch_size, residual)  # h_pre but for the taps' part
        self.label = self.condition = None
        if prior.label_embedding is not None:
            self.label = self._zeros(batch_size, channels)
        if prior.conditioning is not None:
            width_above = prior.conditioning.enter.out_channels
            self.condition = self._zeros(batch_size, width_above, *prior.condition_grids[-1])
        self.attention = {
            int(i): _KeysAndValues(
                layer, self._zeros(2, batch_size, layer.heads, height * width, channels // layer.heads)
            )
            for i, layer in prior.attention.items()
        }
        self.here = rearrange(positions(height, width, like=self._like), "1 two h w -> (h w) 1 two")
        self.in_matrix = prior.h_in.weight.flatten(1)  # [C, C·T]: the taps lie as the weights do
        self.h_matrices = [layer.h_conv.weight.flatten(1) for layer in prior.layers]

    def start(self, conditions: Sequence[Tensor], labels: Tensor) -> None:
        """Begins anew.

        Args:
            conditions: codes [B, h, w] of the levels above, top first.
            labels: [B]; ignored by a prior without classes.
        """
        self.restart()
        if self.condition is not None:
            self.condition.copy_(self.prior.condition(conditions))
        if self.label is not None:
            self.label.copy_(self.prior.embed_labels(labels))

    def restart(self) -> None:
        """Forgets all codes; conditions and labels stay."""
        for buffer in (self.position, self.embedded_rows, *self.v_rows):
            buffer.zero_()
        for cache in self.attention.values():
            cache.keys_values.zero_()

    def start_row(self) -> None:
        """Row pass: the vertical stream of the next row, and what each horizontal layer takes from it."""
        width = self.prior.grid[1]
        self.embedded_rows[:, :, :-1] = self.embedded_rows[:, :, 1:].clone()
        v = self.prior.v_in.last_rows(self.embedded_rows[:, :, :-1])
        condition = self._condition_row()
        for i, layer in enumerate(self.prior.layers):
            v_context, h_context = layer.contexts(condition, self.label, (1, width))
            self.v_rows[i].copy_(torch.cat([self.v_rows[i][:, :, 1:], F.elu(v)], 2))
            v = v + layer.v_branch(layer.v_conv.last_rows(self.v_rows[i]) + v_context)
            bias = layer.h_from_v(F.elu(v)) + h_context + layer.h_conv.bias[:, None, None]
            self.row_bias[:, i] = rearrange(bias, "b r 1 w -> w b r")
        self.in_taps.zero_()
        self.h_taps.zero_()

    def logits(self, visible: int) -> Tensor:
        """Pixel pass: logits [B, K] of the next position.

        Args:
            visible: attention looks at this many first positions; at least as many as there are codes.
        """
        row_bias = self.row_bias.index_select(0, self.position % self.prior.grid[1])[0]
        h = F.linear(self.in_taps.flatten(1), self.in_matrix, self.prior.h_in.bias)
        here = self.here.index_select(0, self.position)
        later = self._later(visible)
        for i, layer in enumerate(self.prior.layers):
            self.h_taps[i, :, :, -1] = F.elu(h)
            h_pre = torch.addmm(row_bias[i], self.h_taps[i].flatten(1), self.h_matrices[i].T)
            h = h + _pointwise(layer.h_out, gate(h_pre))
            if i in self.attention:
                h = self.attention[i].attend(h, here, later)
        for layer in self.prior.output:
            h = h + _pointwise(layer.reduce, gate(_pointwise(layer.expand, F.elu(h))))
        return _pointwise(self.prior.to_logits, F.elu(h))

    def append(self, codes: Tensor) -> None:
        """Fixes the codes [B] of the position whose `logits` were asked last."""
        embedded = self.prior.embedding(codes)
        here = self.here.index_select(0, self.position)
        for cache in self.attention.values():
            cache.append(embedded, here, self.position)
        column = self.position % self.prior.grid[1]
        self.embedded_rows[:, :, -1].index_copy_(2, column, embedded[:, :, None])
        for taps in (self.in_taps, self.h_taps):
            taps[..., :-1] = taps[..., 1:].clone()
        self.in_taps[..., -1] = embedded
        self.position += 1

    def _zeros(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        self.buffers.append(self._like.new_zeros(shape, dtype=dtype))
        return self.buffers[-1]

    def _condition_row(self) -> Tensor | None:
        if self.condition is None:
            return None
        height, width = self.prior.grid
        return self.condition.index_select(2, self.position // width * self.condition.shape[2] // height)

    def _later(self, visible: int) -> Tensor:
        """What is added to the attention logits [visible], to hide the positions that have no code yet.

        It is finite: the first position, which may see nothing, weighs all alike, and their values are zero.
        """
        number = torch.arange(visible, device=self.position.device)
        lowest = torch.finfo(self.here.dtype).min / 2
        return torch.zeros_like(number, dtype=self.here.dtype).masked_fill(number >= self.position, lowest)


class _KeysAndValues:
    """An attention layer with its keys and values [2, B, m, N, d]; zero where there is no code yet."""

    def __init__(self, layer: CausalAttention, keys_values: Tensor) -> None:
        self.layer = layer
        self.keys_values = keys_values

    def attend(self, h: Tensor, here: Tensor, later: Tensor) -> Tensor:
        """h [B, C] + attention; `here` [1, 1, 2], `later` [visible] as `_later` gives it."""
        self.h = h[:, None]
        query = self.layer.project_query(self.h, here.expand(len(h), -1, -1))
        keys, values = self.keys_values[:, :, :, : len(later)]
        # For a single query two products are faster than the fused kernel, which is made for many.
        logits = (query * query.shape[-1] ** -0.5) @ keys.transpose(-1, -2) + later
        attended = logits.softmax(-1) @ values
        return h + self.layer.out(rearrange(attended, "b m 1 d -> b (m d)"))

    def append(self, embedded: Tensor, here: Tensor, position: Tensor) -> None:
        """Keeps the position asked last, now that the embedding [B, C] of its code is known."""
        here = here.expand(len(embedded), -1, -1)
        key, value = self.layer.project_key_value(self.h, embedded[:, None], here)
        self.keys_values.index_copy_(3, position, torch.stack([key, value]))


def _pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of one position: x [B, in] → [B, out]."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)
