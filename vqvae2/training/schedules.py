"""Learning rates as functions of the step."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule(ABC):
    """A learning rate for every optimiser step."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:  # false for a value that is not a number, too
                raise ValueError(f"{name} of the schedule is {value}, wanted a finite number, 0 or more.")

    @abstractmethod
    def rate(self, step: int, *, width: int, total_steps: float) -> float:
        """Learning rate of `step`, counted from 1, for a network of `width` hidden units.

        `total_steps` is what the run will take, infinite when nothing limits it.
        """


@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate throughout (VQ-VAE-2, supplement table 3)."""

    learning_rate: float

    def rate(self, step: int, *, width: int, total_steps: float) -> float:
        return self.learning_rate


@dataclass(frozen=True)
class InverseSquareRoot(Schedule):
    """scale · width^-0.5 · min(step^-power, step · warmup^-1.5) (VQ-VAE-2, supplement A.2).

    A `warmup` of 0 is none: the rate falls from the first step on.

    The scan garbles the first exponent. "Linear warm-up and square root decay" asks for a power of 0.5, and
    only with 0.5 does the minimum switch exactly at step `warmup`.
    """

    scale: float
    warmup: int
    power: float

    def rate(self, step: int, *, width: int, total_steps: float) -> float:
        rising = step * self.warmup**-1.5 if self.warmup else math.inf
        return self.scale * width**-0.5 * min(step**-self.power, rising)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Linear warm-up, then half a cosine down to zero at the last step; for short runs, not the paper's.

    A run that is shorter than its `warmup` ends while the rate still rises.
    """

    learning_rate: float
    warmup: int = 0

    def rate(self, step: int, *, width: int, total_steps: float) -> float:
        if math.isinf(total_steps):
            raise ValueError("A cosine needs to know where it ends: set trainer.max_steps.")
        if step <= self.warmup:
            return self.learning_rate * step / self.warmup
        progress = (step - self.warmup) / max(total_steps - self.warmup, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
