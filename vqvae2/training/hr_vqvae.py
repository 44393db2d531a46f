"""Stage 1 of HR-VQVAE: training the residual levels with linked codebooks."""

import math
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from vqvae2.nn.checks import require
from vqvae2.nn.hr_vqvae import HRVQVAE, ResidualReconstruction
from vqvae2.training.schedules import Schedule
from vqvae2.training.tokenizer import Losses, TokenizerModule


class HRVQVAEModule(TokenizerModule):
    """Trains an `HRVQVAE` on images.

    Loss: mean((x − x̂)²) + beta · (mean((sg[e_C] − z)²) + Σ_i mean((sg[e^i] − ξ^(i−1))²)), e_C the sum of all
    levels' codes (HR-VQVAE's objective, its codebook terms left to moving averages).

    Args:
        schedule: learning rate of Adam.
        beta: weight of the commitments; one for all levels, as in table 6.
        polyak: decay of the averaged weights, which are evaluated and encode.
        compiled: see `NetworkModule`.
        network: options of `HRVQVAE`; the channels come from the data.
    """

    def __init__(
        self, *, schedule: Schedule, beta: float, polyak: float, compiled: bool = False, **network: Any
    ) -> None:
        super().__init__(polyak=polyak, compiled=compiled)
        require(0 <= beta < math.inf, "beta", beta, "a finite number, 0 or more")
        self.schedule = schedule
        self.beta = beta
        self.options = dict(beta=beta, **network)  # (the command line understands this form, and no {...})

    def make(self, channels: int) -> HRVQVAE:
        return HRVQVAE(channels=channels, **self.options)

    def configure_optimizers(self) -> dict[str, Any]:
        return self.scheduled(self.adam(), self.schedule, width=self.options["hidden"])

    def losses(self, images: Tensor, out: ResidualReconstruction) -> Losses:
        mse = F.mse_loss(out.images.float(), images.float())
        loss = mse + self.beta * (out.commitment + sum(out.commitments))
        found = {"loss": loss, "mse": mse, "commitment": out.commitment}
        for level, commitment, visited in zip(
            self.network.codebooks, out.commitments, out.visited, strict=True
        ):
            found |= {f"commitment_{level}": commitment, f"visited_{level}": visited}
        return found

    def advice(self, level: str) -> list[str]:
        tries = []
        if self.options.get("codebook_init") not in (None, "data"):
            tries.append("--model.codebook_init data")
        if not self.options.get("revive_below"):
            tries.append(
                "--model.revive_below 0.02 (unused codes are moved to where vectors of their cell are)"
            )
        return tries
