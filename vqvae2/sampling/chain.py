"""Sampling all levels: labels → top → mid → bottom (algorithm 2 of VQ-VAE-2), with priors of any kind."""

from collections.abc import Sequence

from torch import Tensor

from vqvae2.nn.contracts import PriorNetwork
from vqvae2.sampling.draw import Draw, Noise, Sampled, level_sampler


class ChainSampler:
    """Draws all levels, top first, each given those above it and the labels.

    Args:
        priors: one a level, top first, in eval mode, on their device.
        draws: one a level.
        compiled: see `level_sampler`.
        graphed: likewise.
    """

    def __init__(
        self,
        priors: Sequence[PriorNetwork],
        draws: Sequence[Draw],
        *,
        compiled: bool = False,
        graphed: bool = True,
    ) -> None:
        self.grids = [prior.grid for prior in priors]
        self.samplers = [
            level_sampler(prior, how, compiled=compiled, graphed=graphed)
            for prior, how in zip(priors, draws, strict=True)
        ]

    def __call__(
        self, labels: Tensor, *, seed: int, images: Sequence[int], kept: Sequence[Tensor] = ()
    ) -> list[Sampled]:
        """
        Args:
            labels: [B] int64, on the priors' device.
            seed: of the whole set of samples.
            images: number of each image of the batch within the set; with the seed its only randomness.
            kept: of each level, codes [B, h, w] that are given, -1 where one is to be drawn; () draws all.
        """
        sampled: list[Sampled] = []
        for level, (sampler, grid) in enumerate(zip(self.samplers, self.grids, strict=True)):
            given = kept[level] if kept else labels.new_full((len(labels), *grid), -1)
            above = [upper.codes for upper in sampled]
            sampled.append(sampler(above, labels, Noise(seed, images, level), given))
        return sampled
