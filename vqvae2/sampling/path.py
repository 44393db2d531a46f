"""Sampling the paths of a code tree: one residual level after the other, each code by code."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vqvae2.nn.path_prior import PathPrior
from vqvae2.sampling.ancestral import AncestralSampler
from vqvae2.sampling.draw import Draw, Noise, Sampled, level_sampler


class PathSampler:
    """Draws leaf indices, batch after batch.

    Args:
        prior: in eval mode, on its device.
        how: the choices of each residual level are drawn; top_k and top_p are of a node's children.
        compiled: see `level_sampler`.
        graphed: likewise.
    """

    def __init__(self, prior: PathPrior, how: Draw, *, compiled: bool = False, graphed: bool = True) -> None:
        self.prior = prior
        self.samplers = [
            AncestralSampler(level, how, compiled=compiled, graphed=graphed) for level in prior.levels
        ]

    def __call__(self, conditions: Sequence[Tensor], labels: Tensor, noise: Noise, kept: Tensor) -> Sampled:
        """See `LevelSampler`."""
        drawn: list[Sampled] = []
        for step, (sampler, given) in enumerate(zip(self.samplers, self.prior.nodes(kept), strict=True)):
            above = [*conditions, *(level.codes for level in drawn)]
            drawn.append(sampler(above, labels, noise._replace(step=step), given))
        return Sampled(drawn[-1].codes, torch.stack([level.nll_nats for level in drawn]).sum(0))


level_sampler.register(PathPrior, PathSampler)
