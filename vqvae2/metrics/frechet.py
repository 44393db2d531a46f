"""The Fréchet distance of two sets of features, from running means and covariances.

Shape legend: N samples, F features, R rank. All arithmetic in float64.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from vqvae2 import distributed


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

    def covariance(self) -> Tensor:
        """[F, F], unbiased."""
        return self.scatter / (self.count - 1)

    def gaussian(self) -> "Gaussian":
        """The Gaussian with this mean and covariance, on the CPU: the costly half of a distance, kept.

        Raises:
            ValueError: there are fewer than two samples, so no covariance, or features that are not finite.
        """
        count = int(self.count)
        if count < 2:
            raise ValueError(f"A Fréchet distance needs at least 2 images on each side, found {count}.")
        covariance = self.covariance().cpu()
        if not covariance.isfinite().all():
            raise ValueError(
                "A Fréchet distance needs finite features, found NaN or infinite ones. Look at the images, "
                "and whether their network ran in half precision."
            )
        return Gaussian(self.mean.cpu(), covariance.trace(), _root(covariance))


class Gaussian(NamedTuple):
    """A normal distribution, its covariance as a factor."""

    mean: Tensor  # [F]
    trace: Tensor  # scalar, of the covariance Σ
    root: Tensor  # [F, R], root rootᵀ = Σ

    def distance(self, other: "Gaussian") -> float:
        """‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½ (Dowson & Landau, 1982).

        With Σ = LLᵀ the last trace is the sum of the singular values of L₁ᵀL₂: their squares are the
        eigenvalues of Σ₁Σ₂, but here each is exact to the rounding of the largest. A root of an eigenvalue
        that should be 0 would be off by the root of that, in sum by 1e-5 for 2,048 features.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"A Fréchet distance compares features of one network, found {len(self.mean)} features on "
                f"one side and {len(other.mean)} on the other. Compute both with the same network."
            )
        overlap = torch.linalg.svdvals(self.root.T @ other.root).sum()
        squared = (self.mean - other.mean).square().sum() + self.trace + other.trace - 2 * overlap
        return max(squared.item(), 0.0)  # equal sets differ by roundings of either sign


def _root(covariance: Tensor) -> Tensor:
    """A factor L [F, R] of LLᵀ = covariance, whose rank is R.

    Cholesky's where there is one. Directions that are zero but for rounding would come out as large as its
    root, 1e-8 of the largest; so where there are any, eigenvectors tell them from the others.
    """
    rounding = len(covariance) * torch.finfo(covariance.dtype).eps
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not failed and factor.diagonal().square().min() > rounding * covariance.diagonal().max():
        return factor
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > rounding * values[-1]
    return vectors[:, kept] * values[kept].sqrt()


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
    """The Fréchet distance of two sets from their moments (Heusel et al., 2017), never below 0.

    The same set twice gives 0 within 1e-8 whatever its batches were, also with fewer samples than features.
    Where one set meets many others, `Moments.gaussian` of it saves its share of the work.

    Raises:
        ValueError: a set has fewer than two samples, or features that are not finite, or of another number.
    """
    return first.gaussian().distance(second.gaussian())


def frechet_infinity(samples: Tensor, real: Gaussian, *, sizes: Sequence[int], seed: int) -> float:
    """The Fréchet distance that infinitely many samples would have (Chong & Forsyth, 2020).

    The distance of N samples is biased by about a constant times 1/N. This is the intercept of the least
    squares line through the distances of `sizes` samples over 1/N, each with a draw of its own.

    Args:
        samples: features [N, F], the same on all ranks, which share the sizes among them.
        real: what they are compared with.
        sizes: numbers of samples; the paper takes 15 from 5,000 to 50,000.
        seed: of the draws.

    Raises:
        ValueError: there are fewer samples than the largest size, or not two different sizes.
    """
    if len(set(sizes)) < 2 or min(sizes) < 2:
        raise ValueError(f"A line needs at least two sizes, each at least 2, found {list(sizes)}.")
    if max(sizes) > len(samples):
        raise ValueError(
            f"The largest size is {max(sizes)}, but there are {len(samples)} samples. Give more samples or "
            "smaller sizes."
        )
    found = torch.zeros(len(sizes), dtype=torch.float64, device=samples.device)
    for i in range(distributed.rank(), len(sizes), distributed.world_size()):
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed + i))
        drawn = samples[order[: sizes[i]].to(samples.device)]
        found[i] = Moments.of(drawn).gaussian().distance(real)
    values = distributed.all_reduce_sum(found).cpu()
    x = 1 / torch.tensor(sizes, dtype=torch.float64)
    slope = ((x - x.mean()) * (values - values.mean())).sum() / (x - x.mean()).square().sum()
    return (values.mean() - slope * x.mean()).item()
