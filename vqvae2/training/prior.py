"""Stage 2: training an autoregressive prior over the codes of one level."""

from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from vqvae2.data.class_names import composed
from vqvae2.data.latents import LatentBatch, LatentSpec
from vqvae2.metrics.sums import Likelihood
from vqvae2.nn.pixelsnail import Prior
from vqvae2.storage.checkpoint import DESCRIPTION, register_network
from vqvae2.training.base import NetworkModule
from vqvae2.training.schedules import Schedule


class PriorModule(NetworkModule):
    """Trains a `Prior` on latent shards by maximum likelihood; the level is the subclass's to say.

    Grids, codebook sizes and the number of classes come from the shards' manifest.

    Args:
        level: name of the level that is modelled.
        schedule: learning rate of Adam.
        polyak: decay of the averaged weights, which are evaluated and sampled from.
        compiled: see `NetworkModule`.
        checkpoint_layers: see `Prior`; for batches that do not fit otherwise.
        network: options of `Prior` beyond what the manifest says.
    """

    kind = "prior"

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
        super().__init__(polyak=polyak, compiled=compiled)
        self.level = level
        self.schedule = schedule
        self.checkpoint_layers = checkpoint_layers
        self.options = network
        self.likelihood = Likelihood()

    def build_network(self) -> Prior:
        spec: LatentSpec = self.trainer.datamodule.spec
        names = [level.name for level in spec.levels]
        if self.level not in names:
            raise ValueError(
                f"These latents have the levels {', '.join(names)}, wanted '{self.level}'. "
                "Encode with an autoencoder that has it, or train the prior of another level."
            )
        self.index = names.index(self.level)
        *above, here = spec.levels[: self.index + 1]
        shape = {
            "grid": [here.height, here.width],
            "num_codes": here.num_codes,
            "condition_grids": [[level.height, level.width] for level in above],
            "condition_codes": [level.num_codes for level in above],
            "num_classes": spec.num_classes,
        }
        classes = list(composed(getattr(self.trainer.datamodule, "classes", ())))  # where they have names
        facts = {"level": self.level, "latents": spec.to_dict(), "classes": classes}
        self.describe({**shape, **self.options}, **facts)
        prior = Prior(  # named one by one, so that the command line knows which options are left
            grid=shape["grid"],
            num_codes=shape["num_codes"],
            condition_grids=shape["condition_grids"],
            condition_codes=shape["condition_codes"],
            num_classes=shape["num_classes"],
            **self.options,
        )
        prior.checkpoint_layers = self.checkpoint_layers  # how it trains, not what it is: not described
        return prior

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found = checkpoint.get(DESCRIPTION)
        if found is not None and "classes" not in found:  # older checkpoints have no names to differ in
            checkpoint[DESCRIPTION] = {**found, "classes": self.description["classes"]}
        super().on_load_checkpoint(checkpoint)

    def configure_optimizers(self) -> dict[str, Any]:
        return self.scheduled(self.adam(), self.schedule, width=self.options["hidden"])

    def nll(self, network: Prior, batch: LatentBatch) -> Tensor:
        """Negative log-likelihood of each code [B, h, w], in nats."""
        codes = batch.codes[self.index]
        logits = network(codes, batch.codes[: self.index], batch.labels)
        return F.cross_entropy(logits.float(), codes, reduction="none")

    def training_step(self, batch: LatentBatch, _: int) -> Tensor:
        nll = self.nll(self.network, batch).mean()
        self.log_dict(self.over_ranks({"train/nll_nats": nll}), prog_bar=True)
        return nll

    def on_validation_epoch_start(self) -> None:
        self.likelihood.reset()

    def validation_step(self, batch: LatentBatch, _: int) -> None:
        self.likelihood.update(self.nll(self.average, batch))

    def on_validation_epoch_end(self) -> None:
        nll, bits = self.likelihood.compute()
        self.log_dict({"val/loss": nll, "val/nll_nats": nll, "val/bits_per_image": bits}, prog_bar=True)


class TopPriorModule(PriorModule):
    """The prior over the top level: p(top | class) (figure 2b).

    Args:
        schedule: learning rate of Adam.
        polyak: decay of the averaged weights, which are evaluated and sampled from.
        network: further options of `PriorModule`, and of `Prior` beyond what the manifest says.
    """

    def __init__(self, *, schedule: Schedule, polyak: float, **network: Any) -> None:
        super().__init__(level="top", schedule=schedule, polyak=polyak, **network)


class ConditionalPriorModule(PriorModule):
    """The prior over a lower level, given all levels above it and the class (figure 2b).

    Args:
        level: name of the level that is modelled.
        schedule: learning rate of Adam.
        polyak: decay of the averaged weights, which are evaluated and sampled from.
        network: further options of `PriorModule`, and of `Prior` beyond what the manifest says, those of the
            conditioning stack among them.
    """

    def __init__(
        self, *, level: Literal["mid", "bottom"], schedule: Schedule, polyak: float, **network: Any
    ) -> None:
        super().__init__(level=level, schedule=schedule, polyak=polyak, **network)


register_network(PriorModule.kind, Prior)
