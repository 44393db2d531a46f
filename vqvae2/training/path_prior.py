"""Stage 2 of HR-VQVAE: training the prior over the paths of its code tree."""

from typing import Any

from vqvae2.nn.contracts import PriorShape
from vqvae2.nn.path_prior import PathPrior
from vqvae2.training.prior import PriorModule
from vqvae2.training.schedules import Schedule


class PathPriorModule(PriorModule):
    """Trains a `PathPrior`: the networks of all residual levels at once, on the same latents as a leaf prior.

    Args:
        schedule: learning rate of Adam.
        polyak: decay of the averaged weights, which are evaluated and sampled from.
        level: name of the grid that is modelled.
        compiled: see `NetworkModule`.
        checkpoint_layers: see `PriorNetwork`; for batches that do not fit otherwise.
        network: options of `PathPrior` beyond what the manifest says.
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        polyak: float,
        level: str = "top",
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
        self.options = network

    def make(self, shape: PriorShape) -> PathPrior:
        return PathPrior(
            grid=shape.grid,
            num_codes=shape.num_codes,
            condition_grids=shape.condition_grids,
            condition_codes=shape.condition_codes,
            num_classes=shape.num_classes,
            **self.options,
        )

    def configure_optimizers(self) -> dict[str, Any]:
        return self.scheduled(self.adam(), self.schedule, width=self.options["hidden"])
