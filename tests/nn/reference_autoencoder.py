"""The autoencoder's layers as the papers say them, one call of torch after the other: slow and obvious.

Sources: VQ-VAE-2 (Razavi et al., 2019), algorithm 1, figure 2a and supplement table 3; for the layers the
Sonnet code (v1, `nets/vqvae.py`) that the paper links: residual block h + Conv1x1(relu(Conv3x3(relu(h)))), a
relu behind the stack and none behind the 3x3 before it; strided and transposed convolutions are 4x4.

Weights are taken from a state dict by the role that their names say. A convolution has two entries, its
weight and its bias; those of one encoder or decoder come in the order of the layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]
Convolutions = Iterator[tuple[Tensor, Tensor]]


def convolutions(state: State, prefix: str) -> Convolutions:
    """(weight, bias) of every convolution below `prefix`, in order."""
    names = [name.removesuffix(".weight") for name in state if name.startswith(f"{prefix}.")]
    return iter(
        [(state[f"{name}.weight"], state[f"{name}.bias"]) for name in names if f"{name}.bias" in state]
    )


def strided(h: Tensor, weights: Convolutions) -> Tensor:
    """4x4, stride 2: halves the grid."""
    return F.conv2d(h, *next(weights), stride=2, padding=1)


def transposed(h: Tensor, weights: Convolutions) -> Tensor:
    """4x4, stride 2: doubles the grid."""
    return F.conv_transpose2d(h, *next(weights), stride=2, padding=1)


def residual_stack(h: Tensor, weights: Convolutions, blocks: int) -> Tensor:
    for _ in range(blocks):
        branch = F.relu(h)
        branch = F.conv2d(branch, *next(weights), padding=1)
        branch = F.relu(branch)
        branch = F.conv2d(branch, *next(weights))
        h = h + branch
    return F.relu(h)


def encoder(x: Tensor, weights: Convolutions, *, halvings: int, blocks: int) -> Tensor:
    """Strided convolutions with a relu behind each, a 3x3 without one, the residual stack."""
    h = x
    for _ in range(halvings):
        h = F.relu(strided(h, weights))
    h = F.conv2d(h, *next(weights), padding=1)
    h = residual_stack(h, weights, blocks)
    assert next(weights, None) is None, "there are layers that the paper does not have"
    return h


def decoder(x: Tensor, weights: Convolutions, *, doublings: int, blocks: int) -> Tensor:
    """A 3x3, the residual stack, transposed convolutions with a relu between them and none at the end."""
    h = F.conv2d(x, *next(weights), padding=1)
    h = residual_stack(h, weights, blocks)
    for left in reversed(range(doublings)):
        h = transposed(h, weights)
        h = F.relu(h) if left else h
    assert next(weights, None) is None, "there are layers that the paper does not have"
    return h


def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Equation 1, one vector at a time: codes [B, h, w] of z [B, D, h, w]."""
    b, _, h, w = z.shape
    codes = torch.empty(b, h, w, dtype=torch.int64)
    for i in range(b):
        for row in range(h):
            for column in range(w):
                codes[i, row, column] = (codebook - z[i, :, row, column]).square().sum(1).argmin()
    return codes


def brought_down(state: State, levels: Sequence[Tensor]) -> Tensor:
    """All of `levels`, top first, beside each other on the grid of the last.

    Each is doubled once a level, by a transposed convolution of its own (figure 2a).
    """
    *above, last = levels
    for lower in range(1, len(levels)):
        for level in range(lower):
            weights = convolutions(state, f"upsamplers.{lower}.{level}")
            above[level] = transposed(above[level], weights)
    return torch.cat([*above, last], 1)


class Level(NamedTuple):
    before: Tensor  # [B, D, h, w], what is quantised
    codes: Tensor  # [B, h, w]
    vectors: Tensor  # [B, D, h, w] of the codes; gradients pass straight through to what was quantised


def quantise(state: State, images: Tensor, *, num_levels: int, halvings: int, blocks: int) -> list[Level]:
    """Algorithm 1 up to the decoder, top first."""
    bottom = num_levels - 1
    features = {
        bottom: encoder(images, convolutions(state, f"encoders.{bottom}"), halvings=halvings, blocks=blocks)
    }
    for level in reversed(range(bottom)):
        features[level] = encoder(
            features[level + 1], convolutions(state, f"encoders.{level}"), halvings=1, blocks=blocks
        )
    levels: list[Level] = []
    for level in range(num_levels):
        h = features[level]
        if level > 0:  # "each level is conditioned on the levels above", through a decoder of their codes
            weights = convolutions(state, f"conditioners.{level - 1}")
            above = brought_down(state, [upper.vectors for upper in levels])
            h = torch.cat([decoder(above, weights, doublings=1, blocks=blocks), h], 1)
        z = F.conv2d(h, *next(convolutions(state, f"to_code.{level}")))
        codebook = state[f"quantizers.{level}.codebook"].to(z.dtype)
        codes = nearest_code(z.detach(), codebook)
        e = codebook[codes].permute(0, 3, 1, 2)
        levels.append(Level(z, codes, z + (e - z).detach()))
    return levels


def reconstruct(state: State, vectors: Sequence[Tensor], *, halvings: int, blocks: int) -> Tensor:
    """Images from the vectors of all levels."""
    weights = convolutions(state, "decoder")
    return decoder(brought_down(state, vectors), weights, doublings=halvings, blocks=blocks)


def loss(images: Tensor, levels: Sequence[Level], reconstruction: Tensor, beta: float) -> Tensor:
    """Equation 2; moving averages take the place of its middle term."""
    commitments = sum((level.before - level.vectors.detach()).square().mean() for level in levels)
    return (images - reconstruction).square().mean() + beta * commitments
