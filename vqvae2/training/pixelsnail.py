"""Stage 2 of VQ-VAE-2: training the autoregressive priors by maximum likelihood."""

from typing import Any, Literal

from vqvae2.nn.contracts import PriorShape
from vqvae2.nn.pixelsnail import PixelSNAIL
from vqvae2.training.prior import PriorModule
from vqvae2.training.schedules import Schedule


class PixelSNAILModule(PriorModule):
    """Trains a `PixelSNAIL`; a subclass sets the level.

    Args:
        level: name of the level that is modelled.
        schedule: learning rate of Adam.
        polyak: decay of the averaged weights, which are evaluated and sampled from.
        compiled: see `NetworkModule`.
        checkpoint_layers: see `PriorNetwork`; for batches that do not fit otherwise.
        network: options of `PixelSNAIL` that do not come from the manifest.
    """

    def __init__(
        self,
        *,
        level: str,
        schedule: Schedule,
        polyak: float,
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

    def make(self, shape: PriorShape) -> PixelSNAIL:
        return PixelSNAIL(  # named one by one, so that the command line knows which options are left
            grid=shape.grid,
            num_codes=shape.num_codes,
            condition_grids=shape.condition_grids,
            condition_codes=shape.condition_codes,
            num_classes=shape.num_classes,
            branch=0,  # codes that are nodes of a tree are `PathPrior`'s
            **self.options,
        )

    def configure_optimizers(self) -> dict[str, Any]:
        return self.scheduled(self.adam(), self.schedule, width=self.options["hidden"])


class TopPriorModule(PixelSNAILModule):
    """The prior over the top level: p(top | class) (figure 2b).

    Args:
        schedule: learning rate of Adam.
        polyak: decay of the averaged weights, which are evaluated and sampled from.
        network: other options of `PixelSNAILModule`, and of `PixelSNAIL` that are not in the manifest.
    """

    def __init__(self, *, schedule: Schedule, polyak: float, **network: Any) -> None:
        super().__init__(level="top", schedule=schedule, polyak=polyak, **network)


class ConditionalPriorModule(PixelSNAILModule):
    """The prior over a lower level, given all levels above it and the class (figure 2b).

    Args:
        level: name of the level that is modelled.
        schedule: learning rate of Adam.
        polyak: decay of the averaged weights, which are evaluated and sampled from.
        network: other options of `PixelSNAILModule`, and of `PixelSNAIL` that are not in the manifest,
            those of the conditioning stack among them.
    """

    def __init__(
        self, *, level: Literal["mid", "bottom"], schedule: Schedule, polyak: float, **network: Any
    ) -> None:
        super().__init__(level=level, schedule=schedule, polyak=polyak, **network)
