"""Fidelity and diversity apart: improved precision and recall, density and coverage.

Both take a set of images for the union of balls around their features, each of which reaches to its k-th
neighbour in the set. The border is inside, d ≤ r, in [K] Kynkäänniemi et al. (2019), Improved precision and
recall metric, and outside, d < r, in [N] Naeem et al. (2020), Reliable fidelity and diversity metrics.

Shape legend: M samples, N real images, D features, K neighbours.
"""

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from vqvae2 import distributed
from vqvae2.metrics.feature_set import check_comparable, check_finite
from vqvae2.metrics.neighbours import Pairs, blocks, own_share, squared_distances_to_neighbours


class ManifoldFigures(NamedTuple):
    """Sets that are alike have density 1 and coverage 1 − ∏ᵢ (N − i) / (N + M − i), i to k."""

    precision: float  # [K], eq. 2: share of the samples inside a ball around a real image
    recall: float  # [K]: share of the real images inside a ball around a sample
    density: (
        float  # balls around real images that a sample is in, on average, over k; may exceed 1; [N], eq. 3
    )
    coverage: float  # share of the real images whose ball has a sample in it; [N], eq. 4


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


def manifold_figures(samples: Balls, real: Balls, *, k_precision: int, k_density: int) -> ManifoldFigures:
    """Precision, recall, density and coverage, from one pass over the distances.

    With several ranks, which all hold all features, each does a part of the work and all have the result.

    Args:
        samples: know at least `k_precision` neighbours.
        real: know at least the larger of both k.
        k_precision: of precision and recall; [K] takes 3.
        k_density: of density and coverage; [N] takes 5.

    Raises:
        ValueError: the balls know fewer neighbours, or are of two networks.
    """
    check_comparable(
        *(samples.features, real.features),
        metric="Precision and recall",
        least=2,
        cure="set a smaller k",
    )
    around_real, around_samples = real.squared_radius(k_precision), samples.squared_radius(k_precision)
    for_density = real.squared_radius(k_density)
    precise, recalled, covered = (
        torch.zeros(len(side), dtype=torch.int64, device=side.device)  # 1 for those in at least one pair
        for side in (samples.features, real.features, real.features)
    )
    num_pairs = precise.new_zeros(())
    for i, j in own_share(list(product(blocks(samples.features), blocks(real.features)))):
        pairs = Pairs(samples.features[i].float(), real.features[j].float())
        precise[i] |= pairs.within(around_real[None, j], strict=False).any(1)
        recalled[j] |= pairs.within(around_samples[i, None], strict=False).any(0)
        dense = pairs.within(for_density[None, j], strict=True)
        covered[j] |= dense.any(0)
        num_pairs += dense.count_nonzero()
    for count in (precise, recalled, covered, num_pairs):
        distributed.all_reduce_sum(count)
    shares = [(count > 0).double().mean().item() for count in (precise, recalled, covered)]
    return ManifoldFigures(shares[0], shares[1], num_pairs.item() / len(precise) / k_density, shares[2])
