"""What the training of every prior shares: the level's codes and those above, its loss, its likelihood."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from vqvae2.data.class_names import composed
from vqvae2.data.latents import LatentBatch, LatentSpec
from vqvae2.metrics.sums import Likelihood
from vqvae2.nn.contracts import PriorNetwork, PriorShape
from vqvae2.storage.checkpoint import DESCRIPTION, description
from vqvae2.training.base import NetworkModule
from vqvae2.training.schedules import Schedule


class PriorModule(NetworkModule):
    """Trains the prior of one level on latent shards.

    Grids, codebook sizes and the number of classes come from the shards' manifest. A subclass builds its
    network. A prior without a likelihood logs its loss alone in validation.

    Args:
        level: name of the level that is modelled.
        schedule: learning rate of the optimiser.
        checkpoint_layers: see `PriorNetwork`; for batches that do not fit otherwise.
        options: of `NetworkModule`.
    """

    kind = "prior"
    options: dict[str, Any]  # of the network, beyond what the manifest says

    def __init__(
        self, *, level: str, schedule: Schedule, checkpoint_layers: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self.checkpoint_layers = checkpoint_layers
        self.level = level
        self.schedule = schedule
        self.likelihood = Likelihood()
        self.mean_loss = MeanMetric().set_dtype(torch.float64)  # of a prior without a likelihood

    @abstractmethod
    def make(self, shape: PriorShape) -> PriorNetwork:
        """The network for a level of the latents."""

    def build_network(self) -> PriorNetwork:
        spec: LatentSpec = self.trainer.datamodule.spec
        names = [level.name for level in spec.levels]
        if self.level not in names:
            raise ValueError(
                f"These latents have the levels {', '.join(names)}, wanted '{self.level}'. "
                "Encode with an autoencoder that has it, or train the prior of another level."
            )
        self.index = names.index(self.level)
        *above, here = spec.levels[: self.index + 1]
        shape = PriorShape(
            grid=[here.height, here.width],
            num_codes=here.num_codes,
            condition_grids=[[level.height, level.width] for level in above],
            condition_codes=[level.num_codes for level in above],
            num_classes=spec.num_classes,
        )
        network = self.make(shape)
        for part in network.modules():  # a prior may be made of several
            if isinstance(part, PriorNetwork):
                part.checkpoint_layers = self.checkpoint_layers
        options = {**shape._asdict(), **self.options}
        classes = list(composed(getattr(self.trainer.datamodule, "classes", ())))  # where they have names
        facts = {"level": self.level, "latents": spec.to_dict(), "classes": classes}
        self.description = description(network, options, **facts)
        return network

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found = checkpoint.get(DESCRIPTION)
        if found is not None and "classes" not in found:  # older checkpoints have no names to differ in
            checkpoint[DESCRIPTION] = {**found, "classes": self.description["classes"]}
        super().on_load_checkpoint(checkpoint)

    def inputs(self, batch: LatentBatch) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """The codes of this level, those of the levels above, and the labels."""
        return batch.codes[self.index], batch.codes[: self.index], batch.labels

    def training_step(self, batch: LatentBatch, _: int) -> Tensor:
        loss = self.network.loss(*self.inputs(batch))
        name = "train/nll_nats" if self.network.has_likelihood else "train/loss"
        self.log_dict(self.over_ranks({name: loss}), prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.likelihood.reset()
        self.mean_loss.reset()

    def validation_step(self, batch: LatentBatch, _: int) -> None:
        if self.average.has_likelihood:
            self.likelihood.update(self.average.nll(*self.inputs(batch)))
        else:
            self.mean_loss.update(self.average.loss(*self.inputs(batch)), len(batch.labels))

    def on_validation_epoch_end(self) -> None:
        if not self.average.has_likelihood:
            self.log("val/loss", self.mean_loss.compute(), prog_bar=True)
            return
        nll, bits = self.likelihood.compute()
        self.log_dict({"val/loss": nll, "val/nll_nats": nll, "val/bits_per_image": bits}, prog_bar=True)
