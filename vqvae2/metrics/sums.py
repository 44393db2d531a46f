"""Figures that are ratios of sums: over samples, batches and ranks, in float64 and in counts.

Shape legend: B batch, C H W images, K codes, h w grid.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from vqvae2.nn.quantizer import perplexity, usage

PEAK = 2.0  # images span [-1, 1]


class _Sums(Metric):
    """A metric whose states add up."""

    full_state_update = False

    def add_sum(self, name: str, *shape: int) -> None:
        """Adds a float64 state."""
        self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def add_count(self, name: str, *shape: int) -> None:
        """Adds an int64 state."""
        self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")


class Rate(NamedTuple):
    """What it takes to write down the codes of a level."""

    nats_per_code: float
    bits_per_image: float


class Likelihood(_Sums):
    """Negative log-likelihood of codes."""

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("nats")
        self.add_count("num_codes")
        self.add_count("num_images")

    def update(self, nll_nats: Tensor) -> None:
        """Adds the negative log-likelihood of each code [B, h, w], in nats."""
        self.nats += nll_nats.double().sum()
        self.num_codes += nll_nats.numel()
        self.num_images += len(nll_nats)

    def compute(self) -> Rate:
        nats = self.nats.item()
        return Rate(nats / self.num_codes.item(), nats / self.num_images.item() / math.log(2))


class Distortion(NamedTuple):
    """How far reconstructions are from their images."""

    mse: float
    psnr_db: float


class ReconstructionError(_Sums):
    """Mean squared error of reconstructions where images span [-1, 1], and its peak signal-to-noise ratio.

    The ratio is that of the mean error, 10 log₁₀(4 / MSE), not the mean of the images' ratios.
    """

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("squares")
        self.add_count("num_values")
        self.add_count("num_images")

    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        """Adds images and their reconstructions, both [B, C, H, W]."""
        self.squares += (images.double() - reconstructions.double()).square().sum()
        self.num_values += images.numel()
        self.num_images += len(images)

    def compute(self) -> Distortion:
        mse = self.squares.item() / self.num_values.item()
        return Distortion(mse, 10 * math.log10(PEAK**2 / mse) if mse else math.inf)


class Use(NamedTuple):
    """How much of a codebook is used."""

    usage: float  # fraction of the codes that occur
    perplexity: float  # K when all occur equally often, 1 when a single one does


class CodebookUse(_Sums):
    """Use of a codebook of K codes."""

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        self.add_count("counts", num_codes)

    def update(self, codes: Tensor) -> None:
        """Adds codes of any shape."""
        self.counts += torch.bincount(codes.flatten(), minlength=len(self.counts))

    def compute(self) -> Use:
        return Use(usage(self.counts).item(), perplexity(self.counts).item())
