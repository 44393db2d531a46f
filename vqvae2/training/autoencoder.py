"""Stage 1 of VQ-VAE-2: training the hierarchical VQ-VAE."""

import math
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from vqvae2.nn.checks import require
from vqvae2.nn.hierarchical import LEVEL_NAMES, HierarchicalVQVAE, Reconstruction
from vqvae2.training.schedules import Schedule
from vqvae2.training.tokenizer import Losses, TokenizerModule


class AutoencoderModule(TokenizerModule):
    """Trains a `HierarchicalVQVAE` on images with equation 2 of the paper.

    Loss: mean((x − x̂)²) / recon_variance + beta · Σ_levels commitment; moving averages teach the codebooks.

    Args:
        schedule: learning rate of Adam.
        beta: weight of the commitment.
        polyak: decay of the averaged weights, which are evaluated and which encode.
        recon_variance: divides the reconstruction error (1 in the paper; Sonnet uses the pixels' variance).
        compiled: see `NetworkModule`.
        network: options of `HierarchicalVQVAE`; the channels come from the data.
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        beta: float,
        polyak: float,
        recon_variance: float = 1.0,
        compiled: bool = False,
        **network: Any,
    ) -> None:
        super().__init__(polyak=polyak, compiled=compiled)
        require(0 <= beta < math.inf, "beta", beta, "a finite number, 0 or more")
        require(0 < recon_variance < math.inf, "recon_variance", recon_variance, "a finite number above 0")
        self.schedule = schedule
        self.beta = beta
        self.recon_variance = recon_variance
        self.options = network

    def make(self, channels: int) -> HierarchicalVQVAE:
        return HierarchicalVQVAE(channels=channels, **self.options)

    def configure_optimizers(self) -> dict[str, Any]:
        return self.scheduled(self.adam(), self.schedule, width=self.options["hidden"])

    def losses(self, images: Tensor, out: Reconstruction) -> Losses:
        """Equation 2."""
        mse = F.mse_loss(out.images.float(), images.float())
        loss = mse / self.recon_variance + self.beta * sum(out.commitments)
        levels = zip(LEVEL_NAMES[len(out.commitments)], out.commitments, strict=True)
        return {"loss": loss, "mse": mse, **{f"commitment_{name}": value for name, value in levels}}

    def advice(self, level: str) -> list[str]:
        tries = []
        if self.options.get("codebook_init") != "data":
            tries.append("--model.codebook_init data")
        if not self.options.get("revive_below"):
            tries.append("--model.revive_below 0.02 (unused codes are moved to where vectors are)")
        if not self.options.get("level_dropout") and level != self.network.level_names[-1]:
            tries.append("--model.level_dropout 0.5 (the levels below cannot do all the work)")
        return tries
