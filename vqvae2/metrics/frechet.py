"""The Fréchet distance of two sets of features, from running means and covariances.

Shape legend: N samples, F features. All arithmetic in float64.
"""

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torchmetrics import Metric


class Moments(NamedTuple):
    """Count, mean and scatter of some samples; those of two disjoint sets give those of their union."""

    count: Tensor  # scalar
    mean: Tensor  # [F]
    scatter: Tensor  # [F, F], Σ (x − mean)(x − mean)ᵀ

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """The moments of features [N, F], N > 0."""
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return cls(features.new_tensor(len(features)), mean, centred.T @ centred)

    def union(self, other: "Moments") -> "Moments":
        """Chan et al. (1979): nothing is ever subtracted from a sum of squares, so no digits are lost."""
        count = self.count + other.count
        share = other.count / count.clamp(min=1)
        step = other.mean - self.mean
        between = torch.outer(step, step) * (self.count * share)
        return Moments(count, self.mean + share * step, self.scatter + other.scatter + between)

    def statistics(self) -> dict:
        """Mean and unbiased covariance as torch-fidelity takes them."""
        covariance = self.scatter / (self.count - 1)
        return {"mu": self.mean.cpu().numpy(), "sigma": covariance.cpu().numpy()}


class FeatureMoments(Metric):
    """Moments of features over all batches and ranks."""

    full_state_update = False

    def __init__(self, num_features: int) -> None:
        super().__init__()
        zeros = torch.zeros(num_features, dtype=torch.float64)
        # Not reduced but stacked, one entry a rank: the ranks' scatters are about different means.
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx=None)
        self.add_state("mean", zeros, dist_reduce_fx=None)
        self.add_state("scatter", torch.outer(zeros, zeros), dist_reduce_fx=None)

    def update(self, features: Tensor) -> None:
        """Adds features [B, F]."""
        if len(features):
            together = Moments(self.count, self.mean, self.scatter).union(Moments.of(features))
            self.count, self.mean, self.scatter = together

    def compute(self) -> Moments:
        size = self.mean.shape[-1]
        ranks = zip(
            self.count.view(-1), self.mean.view(-1, size), self.scatter.view(-1, size, size), strict=True
        )
        return reduce(Moments.union, (Moments(*rank) for rank in ranks))


def frechet_distance(first: Moments, second: Moments) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) (Heusel et al., 2017), as torch-fidelity computes it.

    Raises:
        ValueError: a set has fewer than two samples, so no covariance.
    """
    count = int(min(first.count, second.count))
    if count < 2:
        raise ValueError(f"A Fréchet distance needs at least 2 images on each side, found {count}.")
    return fid_statistics_to_metric(first.statistics(), second.statistics(), verbose=False)[KEY_METRIC_FID]
