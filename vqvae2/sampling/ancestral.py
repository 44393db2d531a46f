"""Ancestral sampling: labels → top → mid → bottom, code by code.

Source: VQ-VAE-2 (Razavi et al., 2019), algorithm 2 and figure 2b.
Shape legend: B batch, K codes, H W a level's grid, N = H·W positions.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vqvae2.nn.checks import require
from vqvae2.nn.pixelsnail import Prior
from vqvae2.sampling.graphs import captured
from vqvae2.sampling.incremental import IncrementalPrior

_KEY_STEPS = 4  # where passes are recorded or compiled, attention looks at 1/4, 2/4, 3/4 or all of the rows

SIZES_KEPT = 2  # of batches whose passes are kept: the usual one, and the rest at the end of a file


class Draw(NamedTuple):
    """How codes are drawn; without top_k and top_p, at temperature 1, as the prior has learned them.

    Attributes:
        temperature: divides the logits; below 1 favours likely codes, which trades diversity for quality.
        top_k: only the k likeliest codes can be drawn, of equally likely ones the lowest; None for all.
        top_p: only the likeliest codes that together have this probability can be drawn; None for all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    @property
    def exact(self) -> bool:
        """Whether codes follow the distribution that the prior has learned."""
        return self == _AS_LEARNED

    def check(self, num_codes: int) -> None:
        """Raises ValueError if codes cannot be drawn so from `num_codes`."""
        finite = 0 < self.temperature < math.inf
        require(finite, "temperature", self.temperature, "above 0, finite (1 is what the prior learned)")
        top_k, top_p = self.top_k, self.top_p
        require(
            top_k is None or 1 <= top_k <= num_codes, "top_k", top_k, f"1 to {num_codes}, or null for all"
        )
        require(top_p is None or 0 < top_p <= 1, "top_p", top_p, "above 0, up to 1, or null for all")


_AS_LEARNED = Draw()


class Sampled(NamedTuple):
    """Codes of one level and what the prior thought of them."""

    codes: Tensor  # [B, H, W] int64
    nll_nats: Tensor  # [B] float64, of all codes, at temperature 1 however they were drawn


def uniform_noise(seed: int, images: Sequence[int], level: int, num_codes: int) -> Tensor:
    """The randomness of one level of the given images: float64 [B, num_codes] in [0, 1).

    One generator an image, on the CPU: image 17 of seed 0 is the same image in any batch on any device.
    """
    rows = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, image, level)))).random(num_codes)
        for image in images
    ]
    return torch.from_numpy(np.stack(rows))


def draw(logits: Tensor, uniforms: Tensor, how: Draw = _AS_LEARNED) -> Tensor:
    """Codes [B] by the inverse of the distribution function that `how` makes of logits [B, K].

    Args:
        logits: float64 [B, K].
        uniforms: [B] in [0, 1).
        how: see `Draw`.
    """
    if how.temperature != 1:  # the largest becomes 0 first: divided by next to nothing it would be infinite
        logits = (logits - logits.amax(-1, keepdim=True)) / how.temperature
    if how.top_k is not None:
        likeliest = logits.argsort(dim=-1, descending=True, stable=True)[:, : how.top_k]
        kept = logits.gather(-1, likeliest)
        logits = torch.full_like(logits, -math.inf).scatter(-1, likeliest, kept)
    probabilities = logits.softmax(-1)
    if how.top_p is not None and how.top_p < 1:
        descending, order = probabilities.sort(dim=-1, descending=True, stable=True)
        reached = descending.cumsum(-1) - descending >= how.top_p  # without this code there is enough already
        probabilities = probabilities.masked_fill(reached.gather(-1, order.argsort(-1)), 0.0)
    cumulative = probabilities.cumsum(-1)
    codes = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
    return codes[:, 0].clamp_(max=logits.shape[-1] - 1)


class LevelSampler:
    """Draws the codes of one level, batch after batch.

    Args:
        prior: in eval mode, on its device.
        how: the codes are drawn.
        compiled: passes go through `torch.compile`, which takes a minute once for each size of batch.
        graphed: on a GPU, passes are recorded as CUDA graphs, once for each size of batch.
    """

    def __init__(self, prior: Prior, how: Draw, *, compiled: bool = False, graphed: bool = True) -> None:
        self.prior = prior
        self.how = how
        self.compiled = compiled
        self.graphed = graphed and prior.embedding.weight.is_cuda
        self._passes: dict[int, _Passes] = {}  # by size of batch, the last used at the end

    @torch.inference_mode()
    def __call__(self, conditions: Sequence[Tensor], labels: Tensor, noise: Tensor, kept: Tensor) -> Sampled:
        """
        Args:
            conditions: codes [B, h, w] of the levels above, top first.
            labels: [B]; ignored by a prior without classes.
            noise: [B, N] of `uniform_noise`.
            kept: codes [B, H, W] that are given; -1 where one is to be drawn.
        """
        if bool((kept >= 0).all()):
            return self._scored(conditions, labels, kept)
        return self._passes_for(len(labels))(conditions, labels, noise, kept)

    def _scored(self, conditions: Sequence[Tensor], labels: Tensor, codes: Tensor) -> Sampled:
        """Nothing is to be drawn: one full pass."""
        logits = self.prior(codes, conditions, labels)
        nll = F.cross_entropy(logits.double(), codes, reduction="none")
        return Sampled(codes.clone(), nll.sum((1, 2)))

    def _passes_for(self, batch_size: int) -> "_Passes":
        """Made anew or, where making them takes long, kept for `SIZES_KEPT` sizes of batch."""
        passes = self._passes.pop(batch_size, None)
        if passes is None:
            keep = SIZES_KEPT if self.compiled or self.graphed else 1
            while len(self._passes) >= keep:
                del self._passes[next(iter(self._passes))]
            passes = _Passes(self.prior, self.how, batch_size, compiled=self.compiled, graphed=self.graphed)
        self._passes[batch_size] = passes
        return passes


class _Passes:
    """Row pass and pixel passes for one size of batch, with their buffers; see `LevelSampler`."""

    def __init__(self, prior: Prior, how: Draw, batch_size: int, *, compiled: bool, graphed: bool) -> None:
        self.prior = prior
        self.how = how
        self.few_visible = compiled or graphed
        state = self.state = IncrementalPrior(prior, batch_size)
        shape = prior.grid[0] * prior.grid[1], batch_size
        device = state.position.device
        self.noise = torch.zeros(shape, dtype=torch.float64, device=device)
        self.codes = torch.zeros(shape, dtype=torch.int64, device=device)
        self.nll = torch.zeros(batch_size, dtype=torch.float64, device=device)
        row_pass, pixel_pass = state.start_row, self._pixel_pass
        if compiled:
            row_pass, pixel_pass = (torch.compile(one, dynamic=False) for one in (row_pass, pixel_pass))
        visible = {self._visible(row) for row in range(prior.grid[0])}
        self.row_pass, self.pixel_passes = row_pass, {keys: partial(pixel_pass, keys) for keys in visible}
        if graphed:
            self.row_pass = captured(self.row_pass, state.restart)
            self.pixel_passes = {k: captured(one, state.restart) for k, one in self.pixel_passes.items()}

    def __call__(self, conditions: Sequence[Tensor], labels: Tensor, noise: Tensor, kept: Tensor) -> Sampled:
        height, width = self.prior.grid
        self.state.start(conditions, labels)
        self.noise.copy_(noise.T)
        self.codes.copy_(kept.flatten(1).T)
        self.nll.zero_()
        for row in range(height):
            self.row_pass()
            pixel_pass = self.pixel_passes[self._visible(row)]
            for _ in range(width):
                pixel_pass()
        codes = self.codes.T.clone(memory_format=torch.contiguous_format)
        return Sampled(codes.view(-1, height, width), self.nll.clone())

    def _visible(self, row: int) -> int:
        """How many keys attention looks at in this row: few different numbers where each has its own pass."""
        height, width = self.prior.grid
        most = min(_KEY_STEPS, height) if self.few_visible else height
        steps = most if self.prior.attention else 1
        step = row * steps // height
        return -(-(step + 1) * height // steps) * width

    def _pixel_pass(self, visible: int) -> None:
        """Draws the code of the next position, or takes the one that is given."""
        position = self.state.position
        logits = self.state.logits(visible).double()
        drawn = draw(logits, self.noise.index_select(0, position)[0], self.how)
        kept = self.codes.index_select(0, position)[0]
        codes = torch.where(kept < 0, drawn, kept)
        self.nll -= logits.log_softmax(-1).gather(1, codes[:, None])[:, 0]
        self.codes.index_copy_(0, position, codes[None])
        self.state.append(codes)


class ChainSampler:
    """Draws all levels, top first, each given those above it and the labels.

    Args:
        priors: one a level, top first, in eval mode, on their device.
        draws: one a level.
        compiled: see `LevelSampler`.
        graphed: likewise.
    """

    def __init__(
        self, priors: Sequence[Prior], draws: Sequence[Draw], *, compiled: bool = False, graphed: bool = True
    ) -> None:
        self.levels = [
            LevelSampler(prior, how, compiled=compiled, graphed=graphed)
            for prior, how in zip(priors, draws, strict=True)
        ]

    def __call__(
        self, labels: Tensor, *, seed: int, images: Sequence[int], kept: Sequence[Tensor] = ()
    ) -> list[Sampled]:
        """
        Args:
            labels: [B] int64, on the priors' device.
            seed: of the whole set of samples.
            images: number of each image of the batch within the set; with the seed its only randomness.
            kept: of each level, codes [B, h, w] that are given, -1 where one is to be drawn; () draws all.
        """
        sampled: list[Sampled] = []
        for level, sampler in enumerate(self.levels):
            height, width = sampler.prior.grid
            noise = uniform_noise(seed, images, level, height * width)
            given = kept[level] if kept else labels.new_full((len(labels), height, width), -1)
            sampled.append(sampler([above.codes for above in sampled], labels, noise, given))
        return sampled


def sample_level(
    prior: Prior, conditions: Sequence[Tensor], labels: Tensor, noise: Tensor, how: Draw = _AS_LEARNED
) -> Sampled:
    """Draws the codes of one level once, so nothing is recorded for it; see `LevelSampler`."""
    given = labels.new_full((len(labels), *prior.grid), -1)
    return LevelSampler(prior, how, graphed=False)(conditions, labels, noise, given)
