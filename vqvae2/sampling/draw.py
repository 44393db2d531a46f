"""Drawing codes: how, with which randomness, and by which sampler.

Shape legend: B batch, K codes, h w a level's grid.
"""

import importlib
import math
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import singledispatch
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqvae2.nn.checks import require
from vqvae2.nn.contracts import PriorNetwork


@dataclass(frozen=True)
class Steps:
    """How a sampler that draws a whole grid at once goes on from step to step.

    Attributes:
        steps: network evaluations at most.
        proportion: of the codes that a step draws anew, at the first and at the last step.
        temperature: at the first and at the last step; both change evenly in between.
        stop: when an image is done: `accepted`, if a step leaves all its codes as they were (the paper's);
            `proposed`, if the codes that it did not draw anew would have stayed too; `never`.
        min_steps: of an image that stops early.
        guidance: w in l₀ + (1 + w) (l − l₀), l₀ the logits without a class; w grows evenly from 0 to this.
        argmax: after the first step, which draws all codes, takes the likeliest and draws none (Savinov et
            al., 2022): of all positions in one step, in the next once more of the `proportion` of them where
            that step was least sure, and so on.
    """

    steps: int = 20
    proportion: tuple[float, float] = (0.5, 0.5)
    temperature: tuple[float, float] = (1.0, 0.6)
    stop: Literal["accepted", "proposed", "never"] = "accepted"
    min_steps: int = 10
    guidance: float = 0.0
    argmax: bool = False

    def check(self) -> None:
        """Raises ValueError if no image can be drawn so."""
        require(self.steps >= 1, "steps", self.steps, "at least 1")
        require(self.min_steps >= 1, "min_steps", self.min_steps, "at least 1")
        within = len(self.proportion) == 2 and all(0 < value <= 1 for value in self.proportion)
        require(within, "proportion", self.proportion, "two numbers above 0, up to 1")
        finite = len(self.temperature) == 2 and all(0 < value < math.inf for value in self.temperature)
        require(finite, "temperature", self.temperature, "two finite numbers above 0")
        require(
            self.stop in ("accepted", "proposed", "never"), "stop", self.stop, "accepted, proposed or never"
        )
        require(0 <= self.guidance < math.inf, "guidance", self.guidance, "a finite number, 0 or more")


class Draw(NamedTuple):
    """How codes are drawn; without top_k and top_p, at temperature 1, as the prior has learned them.

    Attributes:
        temperature: divides the logits; below 1 favours likely codes, which trades diversity for quality.
        top_k: only the k likeliest codes can be drawn, of equally likely ones the lowest; None for all.
        top_p: only the likeliest codes that together have this probability can be drawn; None for all.
        steps: of a sampler that draws a whole grid at once; its temperatures are multiplied by `temperature`.
            None for other samplers, or for the usual ones.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    steps: Steps | None = None

    @property
    def exact(self) -> bool:
        """Whether codes follow the distribution that the prior has learned."""
        return self == _AS_LEARNED

    def described(self) -> dict[str, Any]:
        """In plain types; without steps where there are none."""
        found = self._asdict()
        steps = found.pop("steps")
        return found if steps is None else {**found, "steps": asdict(steps)}

    def check(self, num_codes: int) -> None:
        """Raises ValueError if codes cannot be drawn so from `num_codes`."""
        finite = 0 < self.temperature < math.inf
        require(finite, "temperature", self.temperature, "above 0, finite (1 is what the prior learned)")
        top_k, top_p = self.top_k, self.top_p
        require(
            top_k is None or 1 <= top_k <= num_codes, "top_k", top_k, f"1 to {num_codes}, or null for all"
        )
        require(top_p is None or 0 < top_p <= 1, "top_p", top_p, "above 0, up to 1, or null for all")
        if self.steps is not None:
            self.steps.check()


_AS_LEARNED = Draw()


class Sampled(NamedTuple):
    """Codes of one level and what the prior thought of them."""

    codes: Tensor  # [B, h, w] int64
    nll_nats: Tensor | None  # [B] float64, of all codes, at temperature 1 however drawn; None: no likelihood


class Noise(NamedTuple):
    """All randomness of one level of some images.

    One generator an image, on the CPU: image 17 of seed 0 is the same image in any batch on any device.

    Attributes:
        seed: of the whole set of samples.
        images: the number of each image of the batch within the set.
        level: of the codes, 0 is the top.
        step: of a sampler that takes several; each has other noise.
    """

    seed: int
    images: Sequence[int]
    level: int
    step: int | None = None

    def uniforms(self, count: int) -> Tensor:
        """float64 [B, count] in [0, 1)."""
        number = 0 if self.step is None else self.step + 1  # a last 0 changes no seed sequence
        seeds = [np.random.SeedSequence((self.seed, image, self.level, number)) for image in self.images]
        rows = [np.random.Generator(np.random.Philox(seed)).random(count) for seed in seeds]
        return torch.from_numpy(np.stack(rows))


LevelSampler = Callable[[Sequence[Tensor], Tensor, Noise, Tensor], Sampled]
"""Draws the codes of one level. It takes the codes [B, h, w] of the levels above, top first; the labels [B];
the noise; and given codes [B, h, w], -1 where one is to be drawn. Given codes are returned as they are."""


@singledispatch
def level_sampler(
    prior: PriorNetwork, how: Draw, *, compiled: bool = False, graphed: bool = True
) -> LevelSampler:
    """The sampler of a prior, chosen by its class; each is registered in the file that defines it.

    Args:
        prior: in eval mode, on its device.
        how: the codes are drawn.
        compiled: passes go through `torch.compile`, which takes a minute once for each size of batch.
        graphed: on a GPU, passes are recorded as CUDA graphs, once for each size of batch.

    Raises:
        TypeError: no sampler is registered for such a prior.
    """
    package = importlib.import_module("vqvae2.sampling")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"vqvae2.sampling.{module.name}")
    found = level_sampler.dispatch(type(prior))
    if found is level_sampler.dispatch(PriorNetwork):
        raise TypeError(f"{type(prior).__name__} has no sampler: register one with level_sampler.register.")
    return found(prior, how, compiled=compiled, graphed=graphed)


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
