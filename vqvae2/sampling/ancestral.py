"""Ancestral sampling: labels → top → mid → bottom, code by code.

Source: VQ-VAE-2 (Razavi et al., 2019), algorithm 2 and figure 2b.
Shape legend: B batch, K codes, H W a level's grid.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqvae2.nn.prior import Prior
from vqvae2.sampling.incremental import IncrementalPrior


class Sampled(NamedTuple):
    """Codes of one level and what the prior thought of them."""

    codes: Tensor  # [B, H, W] int64
    nll_nats: Tensor  # [B] float64, at temperature 1 whatever the temperature they were drawn at


def uniform_noise(seed: int, images: Sequence[int], level: int, num_codes: int) -> Tensor:
    """The randomness of one level of the given images: float64 [B, num_codes] in [0, 1).

    One generator an image, on the CPU: image 17 of seed 0 is the same image in any batch on any device.
    """
    rows = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, image, level)))).random(num_codes)
        for image in images
    ]
    return torch.from_numpy(np.stack(rows))


def draw(logits: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
    """Codes [B] by the inverse of the distribution function of softmax(logits / temperature).

    Args:
        logits: [B, K].
        uniforms: [B] in [0, 1).
        temperature: above 0; below 1 favours likely codes, which trades diversity for quality.
    """
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
    codes = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
    return codes[:, 0].clamp_(max=logits.shape[-1] - 1)


@torch.inference_mode()
def sample_level(
    prior: Prior,
    conditions: Sequence[Tensor],
    labels: Tensor,
    noise: Tensor,
    temperature: float = 1.0,
) -> Sampled:
    """Draws the codes of one level.

    Args:
        prior: in eval mode.
        conditions: codes [B, h, w] of the levels above, top first.
        labels: [B]; ignored by a prior without classes.
        noise: [B, H·W] of `uniform_noise`.
        temperature: see `draw`.
    """
    height, width = prior.grid
    noise = noise.to(labels.device)
    incremental = IncrementalPrior(prior, conditions, labels)
    nll = torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
    codes = []
    for position in range(height * width):
        logits = incremental.logits()
        drawn = draw(logits, noise[:, position], temperature)
        incremental.append(drawn)
        codes.append(drawn)
        nll -= logits.double().log_softmax(-1).gather(1, drawn[:, None])[:, 0]
    return Sampled(torch.stack(codes, 1).view(-1, height, width), nll)


def sample_codes(
    priors: Sequence[Prior],
    labels: Tensor,
    *,
    seed: int,
    images: Sequence[int],
    temperatures: Sequence[float],
) -> list[Sampled]:
    """Draws all levels, top first, each given those above it and the labels [B].

    Args:
        priors: one a level, top first, in eval mode.
        labels: [B] int64, on the priors' device.
        seed: of the whole set of samples.
        images: number of each image of the batch within the set; with the seed its only randomness.
        temperatures: one a level.
    """
    levels: list[Sampled] = []
    for level, (prior, temperature) in enumerate(zip(priors, temperatures, strict=True)):
        noise = uniform_noise(seed, images, level, prior.grid[0] * prior.grid[1])
        above = [sampled.codes for sampled in levels]
        levels.append(sample_level(prior, above, labels, noise, temperature))
    return levels
