"""Stage 2 of VQ-GAN + SUNDAE: training the prior that denoises all codes at once."""

import math
from typing import Any

from vqvae2.nn.checks import require
from vqvae2.nn.contracts import PriorShape
from vqvae2.nn.sundae import SUNDAE
from vqvae2.training.prior import PriorModule
from vqvae2.training.schedules import Schedule


class SUNDAEModule(PriorModule):
    """Trains a `SUNDAE` by the unrolled denoising loss, with AdamW.

    Args:
        schedule: learning rate of AdamW.
        polyak: decay of the averaged weights, which are evaluated and sampled from; 0 is the paper's.
        level: name of the grid that is modelled.
        weight_decay: of matrices; not of biases and norms.
        compiled: see `NetworkModule`.
        checkpoint_layers: see `PriorNetwork`; for batches that do not fit otherwise.
        network: options of `SUNDAE` beyond what the manifest says.
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        polyak: float,
        level: str = "top",
        weight_decay: float = 0.01,
        compiled: bool = False,
        checkpoint_layers: bool = False,
        **network: Any,
    ) -> None:
        super().__init__(
            level=level,
            schedule=schedule,
            polyak=polyak,
            compiled=compiled,
            checkpoint_layers=checkpoint_layers,
        )
        require(0 <= weight_decay < math.inf, "weight_decay", weight_decay, "a finite number, 0 or more")
        self.weight_decay = weight_decay
        self.options = network

    def make(self, shape: PriorShape) -> SUNDAE:
        return SUNDAE(
            grid=shape.grid,
            num_codes=shape.num_codes,
            condition_grids=shape.condition_grids,
            condition_codes=shape.condition_codes,
            num_classes=shape.num_classes,
            **self.options,
        )

    def configure_optimizers(self) -> dict[str, Any]:
        return self.scheduled(self.adam(self.weight_decay), self.schedule, width=self.options["width"])
