"""The kernel inception distance of two sets of features.

Shape legend: M samples, N real images, D features, S images of a subset.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqvae2 import distributed
from vqvae2.metrics.feature_set import check_comparable


class KernelDistance(NamedTuple):
    """Over the subsets. An estimate without bias: it may be below 0 where the sets are alike."""

    mean: float
    std: float


def kernel_distance(
    samples: Tensor,
    real: Tensor,
    *,
    subsets: int,
    subset_size: int,
    seed: int,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
) -> KernelDistance:
    """KID: squared maximum mean discrepancy with the kernel (γ xᵀy + c)ᵈ (Bińkowski et al., 2018).

    The subsets are those that torch-fidelity draws from the same seed (its default is 2020, for 100 subsets
    of 1,000), whose own function works in NumPy on one processor. The arithmetic is float64 throughout: a
    small distance is a difference of large sums. With several ranks, which all hold all features, each does
    some of the subsets and all have the result.

    Args:
        samples: features [M, D].
        real: features [N, D].
        subsets: draws whose distances are averaged.
        subset_size: images of each side in a draw, none of them twice.
        seed: of the draws.
        degree: d.
        gamma: γ; None is 1 / D.
        coef0: c.

    Raises:
        ValueError: a side has fewer images than a subset, they are of two networks, or some are not finite.
    """
    if subsets < 1 or subset_size < 2:
        raise ValueError(
            f"KID needs at least 1 subset of at least 2 images, found {subsets} of {subset_size}: an image "
            "is not compared with itself."
        )
    check_comparable(
        samples,
        real,
        metric=f"KID on subsets of {subset_size}",
        least=subset_size,
        cure="set a smaller subset_size",
    )
    gamma = 1 / samples.shape[1] if gamma is None else gamma
    random = np.random.RandomState(seed)  # torch-fidelity's, so that its figures are ours
    found = torch.zeros(subsets, dtype=torch.float64, device=samples.device)
    with torch.no_grad():
        for i in range(subsets):
            chosen = [random.choice(len(side), subset_size, replace=False) for side in (samples, real)]
            if i % distributed.world_size() == distributed.rank():
                x, y = (
                    side[torch.from_numpy(rows).to(side.device)].double()
                    for side, rows in zip((samples, real), chosen, strict=True)
                )
                found[i] = _discrepancy(x, y, degree, gamma, coef0)
    found = distributed.all_reduce_sum(found)
    return KernelDistance(found.mean().item(), found.std(correction=0).item())


def _discrepancy(x: Tensor, y: Tensor, degree: int, gamma: float, coef0: float) -> Tensor:
    """Unbiased estimate from float64 [S, D] each: no image meets itself."""
    size = len(x)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T).mul_(gamma).add_(coef0).pow_(degree)

    within = torch.stack([k.sum() - k.trace() for k in (kernel(x, x), kernel(y, y))]).sum()
    return within / (size * (size - 1)) - 2 * kernel(x, y).mean()
