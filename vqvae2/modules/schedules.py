"""Learning rates as functions of the step."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule(ABC):
    """A learning rate for every optimiser step."""

    @abstractmethod
    def rate(self, step: int, *, width: int, total_steps: int) -> float:
        """Learning rate of `step`, counted from 1, for a network of `width` hidden units."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate throughout (VQ-VAE-2, supplement table 3)."""

    learning_rate: float

    def rate(self, step: int, *, width: int, total_steps: int) -> float:
        return self.learning_rate


@dataclass(frozen=True)
class InverseSquareRoot(Schedule):
    """scale · width^-0.5 · min(step^-power, step · warmup^(-power - 1)) (VQ-VAE-2, supplement A.2).

    The scan garbles the exponents. "Linear warm-up and square root decay" and a switch at exactly `warmup`
    both ask for a power of 0.5.
    """

    scale: float
    warmup: int
    power: float

    def rate(self, step: int, *, width: int, total_steps: int) -> float:
        return self.scale * width**-0.5 * min(step**-self.power, step * self.warmup ** (-self.power - 1))


@dataclass(frozen=True)
class Cosine(Schedule):
    """Linear warm-up, then half a cosine down to zero at the last step; for short runs, not the paper's."""

    learning_rate: float
    warmup: int = 0

    def rate(self, step: int, *, width: int, total_steps: int) -> float:
        if step <= self.warmup:
            return self.learning_rate * step / self.warmup
        progress = (step - self.warmup) / max(total_steps - self.warmup, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
