"""Likelihoods of codes under the priors, and how many codes are used.

Shape legend: B batch, h w a level's grid.
"""

import math
from collections.abc import Mapping

from torch import nn

from vqvae2.data.latents import LatentBatch, LatentSpec
from vqvae2.metrics.sums import CodebookUse, Likelihood
from vqvae2.nn.contracts import PriorNetwork


class CodeFigures(nn.Module):
    """Measures, on one split of the latents, how well priors predict the codes and how many codes are used.

    Args:
        spec: of the latents.
        priors: by the name of their level; those without a likelihood are left out.
        num_pixels: H · W of the images.
        channels: C of the images.
    """

    def __init__(
        self,
        split: str,
        spec: LatentSpec,
        priors: Mapping[str, PriorNetwork],
        *,
        num_pixels: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.split = split
        self.levels = [level.name for level in spec.levels]
        self.num_pixels = num_pixels
        self.image_bits = 8 * channels * num_pixels
        self.priors = nn.ModuleDict({name: one for name, one in priors.items() if one.has_likelihood})
        self.likelihoods = nn.ModuleDict({name: Likelihood() for name in self.priors})
        self.use = nn.ModuleDict({level.name: CodebookUse(level.num_codes) for level in spec.levels})

    def update(self, batch: LatentBatch) -> None:
        for i, level in enumerate(self.levels):
            self.use[level].update(batch.codes[i])
            if level in self.priors:
                nll_nats = self.priors[level].nll(batch.codes[i], batch.codes[:i], batch.labels)
                self.likelihoods[level].update(nll_nats)

    def figures(self) -> dict[str, float]:
        rates = {level: likelihood.compute() for level, likelihood in self.likelihoods.items()}
        split = self.split
        figures = {f"nll_{level}_{split}": rate.nats_per_code for level, rate in rates.items()}
        bits = {f"bits_{level}_{split}": rate.bits_per_image for level, rate in rates.items()}
        figures |= bits
        if len(bits) == len(self.levels):
            total = sum(bits.values())
            figures |= {
                f"bits_{split}": total,
                f"bpp_{split}": total / self.num_pixels,
                f"compression_{split}": self.image_bits / total,
            }
        if split == "val":
            for level, use in self.use.items():
                used = use.compute()
                figures |= {f"usage_{level}": used.usage, f"perplexity_{level}": used.perplexity}
        return figures


def storage_figures(spec: LatentSpec, *, num_pixels: int, channels: int) -> dict[str, float]:
    """The size of the codes without a prior, log₂ K bits each, and the compression against images of 8 bits.

    The compression is given in bits, and in numbers of values.
    """
    codes = {level: level.height * level.width for level in spec.levels}
    bits = sum(count * math.log2(level.num_codes) for level, count in codes.items())
    return {
        "bits_stored": bits,
        "compression_stored": 8 * channels * num_pixels / bits,
        "compression_values": channels * num_pixels / sum(codes.values()),
    }
