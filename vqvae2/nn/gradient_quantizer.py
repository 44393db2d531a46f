"""Vector quantisation with a codebook that the gradient teaches.

Source: VQ-VAE (van den Oord et al., 2017), equation 3; VQ-GAN (Esser et al., 2021), equation 4.

Shape legend: B batch, D code dimension, H W grid, K codes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vqvae2.nn.checks import require
from vqvae2.nn.precision import exact_float32_matmul, moving_only, without_autocast
from vqvae2.nn.quantizer import nearest


class GradientQuantized(NamedTuple):
    """What `GradientQuantizer` returns."""

    vectors: Tensor  # [B, D, H, W] float32; the gradient passes straight through to the input
    codes: Tensor  # [B, H, W] int64
    commitment: Tensor  # scalar, mean (sg[e] - z)^2: moves the encoder
    codebook: Tensor  # scalar, mean (e - sg[z])^2: moves the codes
    statistics: Tensor  # in training, counts [K, 1], for the log; else empty


class GradientQuantizer(nn.Module):
    """Replaces each vector by the nearest of K codes, which are weights; first U(±1/K), as taming's.

    Args:
        num_codes: K.
        dim: D.
    """

    exact = True  # sharded training gathers it as float32

    def __init__(self, *, num_codes: int, dim: int) -> None:
        super().__init__()
        require(num_codes >= 1, "num_codes", num_codes, "at least 1")
        require(dim >= 1, "code_dim", dim, "at least 1")
        bound = 1 / num_codes
        self.codebook = nn.Parameter(torch.empty(num_codes, dim, dtype=torch.float32).uniform_(-bound, bound))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GradientQuantizer":
        """Moves, but never rounds: codebooks stay float32 in a module that is turned to half precision."""
        return super()._apply(moving_only(fn), recurse)

    @torch.compiler.disable
    def forward(self, vectors: Tensor) -> GradientQuantized:
        """Quantises `vectors` [B, D, H, W]."""
        z, codes = vectors.float(), self.encode(vectors)
        found = self.lookup(codes)
        with without_autocast(vectors.device):
            commitment, codebook = F.mse_loss(z, found.detach()), F.mse_loss(found, z.detach())
        straight = found.detach() + (z - z.detach())  # in this order it is the code to the bit
        statistics = found.new_zeros(0, 1)
        if self.training:
            statistics = torch.bincount(codes.flatten(), minlength=len(self.codebook))[:, None].float()
        return GradientQuantized(straight, codes, commitment, codebook, statistics)

    @torch.no_grad()
    @torch.compiler.disable
    def encode(self, vectors: Tensor) -> Tensor:
        """Only the codes [B, H, W] of `vectors` [B, D, H, W]."""
        rows = rearrange(vectors.float(), "b d h w -> (b h w) d")
        with without_autocast(vectors.device), exact_float32_matmul():
            codes = nearest(rows, self.codebook)
        return codes.view(len(vectors), *vectors.shape[2:])

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors [B, D, H, W] of the codes [B, H, W]."""
        return rearrange(F.embedding(codes, self.codebook), "b h w d -> b d h w")

    def accumulate(self, pending: Tensor, statistics: Tensor) -> Tensor:
        """Counts of two micro-batches as of one."""
        return pending + statistics

    def update(self, statistics: Tensor) -> tuple[Tensor]:
        """Learns nothing here: the optimiser has done that.

        Returns:
            How often each code was used, [K].
        """
        return (statistics[:, 0],)
