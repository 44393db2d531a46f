"""Dropout of a branch, and of attention's logits, without keeping more than is needed.

Shape legend: B batch x heads, N queries, M ≥ N keys, d width of a head.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vqvae2.nn.precision import without_autocast

QUERIES_AT_ONCE = {"cpu": 64, "elsewhere": 256}  # on a CPU, 32x32: 5% faster than 128, 10% faster than 256


def keep_mask(like: Tensor, dropout: float) -> Tensor:
    """True with probability 1 - dropout, independently, in the shape and memory order of `like`.

    A CPU draws its random numbers one by one: 6 ns for a Bernoulli variable, more than the softmax behind it
    takes. Four to one draw of 64 bits take 2 ns each; that rounds dropout to k / 2^16, k at least 1.
    """
    mask = torch.empty_like(like, dtype=torch.bool)
    if like.device.type != "cpu":
        return mask.bernoulli_(1 - dropout)
    bits = torch.empty(-(-mask.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    last_dropped = max(round(dropout * 2**16), 1) - 1 - 2**15  # of the values of an int16
    return torch.gt(bits[: mask.numel()].as_strided(mask.shape, mask.stride()), last_dropped, out=mask)


class Dropout(nn.Dropout):
    """`nn.Dropout` with the masks of `keep_mask` on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        return torch.where(keep_mask(x, self.p), x * (1 / (1 - self.p)), 0.0)


def attend_dropping_logits(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """softmax(drop(q kᵀ / √d), masked) v for each query over the keys up to its own place: [B, N, d].

    Neither the logits nor the weights [B, N, N] exist at once or are kept for the backward pass: queries are
    taken in chunks, each with the keys that it may see, and only what was dropped is kept, in a byte each.
    The softmax is in float32 also where the products are not. Computing the weights again in the backward
    pass is the idea of FlashAttention (Dao et al., 2022), which itself cannot drop logits.

    Args:
        query: [B, N, d], and so are the next two.
        key: key j is for query j and those after it.
        value: its value.
        dropout: of the logits; above 0.
    """
    scale = query.shape[-1] ** -0.5 / (1 - dropout)
    given = query.dtype
    if query.device.type == "cpu":  # such thin products are as fast in float32, and then nothing is converted
        query, key, value = (x.to(torch.promote_types(given, torch.float32)) for x in (query, key, value))
    with without_autocast(query.device):
        return _AttendDroppingLogits.apply(query * scale, key, value, dropout).to(given)


class _AttendDroppingLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        out = torch.empty_like(query)
        masks = []
        for here, seen in _chunks(query):
            logits = query[:, here] @ key[:, seen].mT
            masks.append(keep_mask(logits, dropout))
            weights = _softmax(logits.mul_(masks[-1]))
            out[:, here] = weights.to(value.dtype) @ value[:, seen]
        ctx.save_for_backward(query, key, value, *masks)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, *masks = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.zeros_like(x) for x in (query, key, value))
        for (here, seen), keep in zip(_chunks(query), masks, strict=True):
            keep = keep.to(query.dtype)
            weights = _softmax((query[:, here] @ key[:, seen].mT).mul_(keep))
            grad_value[:, seen] += weights.to(grad.dtype).mT @ grad[:, here]
            grad_weights = (grad[:, here] @ value[:, seen].mT).to(weights.dtype)
            grad_logits = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_logits = grad_logits.mul_(keep).to(query.dtype)
            grad_query[:, here] = grad_logits @ key[:, seen]
            grad_key[:, seen] += grad_logits.mT @ query[:, here]
        return grad_query, grad_key, grad_value, None


def _chunks(query: Tensor) -> Iterator[tuple[slice, slice]]:
    """Which queries, and which keys they may see between them."""
    at_once = QUERIES_AT_ONCE.get(query.device.type, QUERIES_AT_ONCE["elsewhere"])
    for start in range(0, query.shape[1], at_once):
        stop = min(start + at_once, query.shape[1])
        yield slice(start, stop), slice(0, stop)


def _softmax(logits: Tensor) -> Tensor:
    """Weights of the last n queries over M keys [B, n, M], of which the last n go with them."""
    n = logits.shape[1]
    later = torch.ones(n, n, dtype=torch.bool, device=logits.device).triu_(1)
    logits[:, :, -n:].masked_fill_(later, float("-inf"))
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
