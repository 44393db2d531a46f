"""Whether counts follow a distribution: Pearson's test, by torch alone."""

import torch
from torch import Tensor

ALPHA = 1e-3  # of a test whose seed is fixed


def p_value(counts: Tensor, probabilities: Tensor | None = None) -> float:
    """How likely counts at least so far from the expected ones are; without `probabilities` all are equal.

    What is impossible must not have happened; cells that expect fewer than five are put together.
    """
    counts = counts.double().flatten()
    if probabilities is None:
        probabilities = torch.ones_like(counts)
    expected = probabilities.double().flatten() / probabilities.sum() * counts.sum()
    if counts[expected < 1e-9].any():
        return 0.0
    small = expected < 5
    counts, expected = (torch.cat([x[~small], x[small].sum()[None]]) for x in (counts, expected))
    there = expected > 0
    if there.sum() == 1:
        return 1.0
    statistic = ((counts - expected)[there].square() / expected[there]).sum()
    return torch.special.gammaincc((there.sum() - 1).double() / 2, statistic / 2).item()
