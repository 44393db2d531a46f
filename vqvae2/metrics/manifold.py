"""Fidelity and diversity apart: improved precision and recall, density and coverage.

Both take a set of images for the union of balls around their features, each of which reaches to its k-th
neighbour in the set. The border is inside, d ≤ r, in [K] Kynkäänniemi et al. (2019), Improved precision and
recall metric, and outside, d < r, in [N] Naeem et al. (2020), Reliable fidelity and diversity metrics.

Shape legend: M samples, N real images, D features, K neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from vqvae2 import distributed
from vqvae2.metrics.feature_set import check_comparable, check_finite
from vqvae2.metrics.neighbours import (
    Block,
    Distances,
    blocks,
    full_precision,
    own_share,
    squared_distances_to_neighbours,
)


class PrecisionRecall(NamedTuple):
    """[K], eq. 2."""

    precision: float  # share of the samples inside a ball around a real image
    recall: float  # share of the real images inside a ball around a sample


class DensityCoverage(NamedTuple):
    """[N], eq. 3 and 4. Samples as the real images are: density 1, coverage 1 − ∏ᵢ (N − i) / (N + M − i)."""

    density: float  # balls around real images that a sample is in, on average, over k; may exceed 1
    coverage: float  # share of the real images whose ball has a sample in it


class ManifoldFigures(NamedTuple):
    """All four, from one pass over the distances."""

    precision: float
    recall: float
    density: float
    coverage: float


class Balls(NamedTuple):
    """Features with their distances to their neighbours: the costly third of the work, worth keeping."""

    features: Tensor  # float32 [N, D]
    squared_radii: Tensor  # float64 [N, K], squared distances to the first to K-th neighbour in the set

    @classmethod
    def around(cls, features: Tensor, *, k: int) -> "Balls":
        """Balls for up to k neighbours of features [N, D].

        Raises:
            ValueError: there are not k others, or some are not finite.
        """
        if not 1 <= k < len(features):
            raise ValueError(
                f"Balls that reach to neighbour k={k} need k of at least 1 and {k + 1} images, found "
                f"{len(features)}. Give more images or set another k."
            )
        check_finite(features, "images")
        return cls(features, squared_distances_to_neighbours(features.float(), k))

    def to(self, device: torch.device) -> "Balls":
        """The same on a device."""
        return Balls(self.features.to(device), self.squared_radii.to(device))

    def squared_radius(self, k: int) -> Tensor:
        """float64 [N], of the balls that reach to the k-th neighbour.

        Raises:
            ValueError: so many neighbours were not searched.
        """
        if not 1 <= k <= self.squared_radii.shape[1]:
            raise ValueError(
                f"These balls know {self.squared_radii.shape[1]} neighbours, wanted k={k} of them."
            )
        return self.squared_radii[:, k - 1]


def precision_recall(samples: Tensor, real: Tensor, *, k: int) -> PrecisionRecall:
    """Improved precision and recall of samples [M, D] against real images [N, D]; [K] takes k = 3.

    With several ranks, which all hold all features, each does a part of the work and all have the result.

    Raises:
        ValueError: a side has fewer than k + 1 images, they are of two networks, or some are not finite.
    """
    _check(samples, real, metric="Precision and recall", k=k)
    precision, recall = _pair_tests(Balls.around(samples, k=k), Balls.around(real, k=k), k)
    _run(samples, real, [precision, recall])
    return PrecisionRecall(precision.share_of_samples(), recall.share_of_real())


def density_coverage(samples: Tensor, real: Tensor, *, k: int) -> DensityCoverage:
    """Density and coverage of samples [M, D] against real images [N, D]; [N] takes k = 5.

    With several ranks, which all hold all features, each does a part of the work and all have the result.

    Raises:
        ValueError: a side has fewer than k + 1 images, they are of two networks, or some are not finite.
    """
    _check(samples, real, metric="Density and coverage", k=k)
    test = _BallTest(Balls.around(real, k=k).squared_radius(k), around_samples=False, strict=True)
    _run(samples, real, [test])
    return DensityCoverage(test.balls_of_a_sample() / k, test.share_of_real())


def manifold_figures(samples: Balls, real: Balls, *, k_precision: int, k_density: int) -> ManifoldFigures:
    """Precision, recall, density and coverage, each as by its own function, in half the time of both.

    Args:
        samples: know at least `k_precision` neighbours.
        real: know at least the larger of both k.
        k_precision: of precision and recall.
        k_density: of density and coverage.

    Raises:
        ValueError: the balls know fewer neighbours, or are of two networks.
    """
    _check(samples.features, real.features, metric="Precision and recall", k=k_precision)
    precision, recall = _pair_tests(samples, real, k_precision)
    density = _BallTest(real.squared_radius(k_density), around_samples=False, strict=True)
    _run(samples.features, real.features, [precision, recall, density])
    return ManifoldFigures(
        precision.share_of_samples(),
        recall.share_of_real(),
        density.balls_of_a_sample() / k_density,
        density.share_of_real(),
    )


@dataclass
class _BallTest:
    """Who is in whose ball; rows of a block are samples, columns are real images."""

    squared_radius: Tensor  # float64, of every ball
    around_samples: bool  # or around real images
    strict: bool  # the border is outside
    samples: Tensor = field(init=False)  # int64 [M], 1 for those in at least one pair
    real: Tensor = field(init=False)  # int64 [N]
    num_pairs: Tensor = field(init=False)  # int64 scalar

    def start(self, samples: Tensor, real: Tensor) -> None:
        self.samples, self.real = (side.new_zeros(len(side), dtype=torch.int64) for side in (samples, real))
        self.num_pairs = self.samples.new_zeros(())

    def update(self, block: Block) -> None:
        radius = (
            self.squared_radius[block.i, None] if self.around_samples else self.squared_radius[None, block.j]
        )
        within = block.inside(radius, strict=self.strict)
        self.samples[block.i] |= within.any(1)
        self.real[block.j] |= within.any(0)
        self.num_pairs += within.count_nonzero()

    def finish(self) -> None:
        for count in (self.samples, self.real, self.num_pairs):
            distributed.all_reduce_sum(count)

    def share_of_samples(self) -> float:
        return (self.samples > 0).double().mean().item()

    def share_of_real(self) -> float:
        return (self.real > 0).double().mean().item()

    def balls_of_a_sample(self) -> float:
        return self.num_pairs.item() / len(self.samples)


def _pair_tests(samples: Balls, real: Balls, k: int) -> tuple[_BallTest, _BallTest]:
    """Precision's and recall's."""
    return (
        _BallTest(real.squared_radius(k), around_samples=False, strict=False),
        _BallTest(samples.squared_radius(k), around_samples=True, strict=False),
    )


def _run(samples: Tensor, real: Tensor, tests: Sequence[_BallTest]) -> None:
    """Shows every pair of a sample and a real image to the tests, each block of distances computed once."""
    with full_precision():
        distances = Distances(samples.float(), real.float())
        for test in tests:
            test.start(samples, real)
        for i, j in own_share(blocks(distances)):
            block = distances.block(i, j)
            for test in tests:
                test.update(block)
        for test in tests:
            test.finish()


def _check(samples: Tensor, real: Tensor, *, metric: str, k: int) -> None:
    if k < 1:
        raise ValueError(f"{metric} need a neighbour k of at least 1, found k={k}.")
    check_comparable(samples, real, metric=f"{metric} with k={k}", least=k + 1, cure="set a smaller k")
