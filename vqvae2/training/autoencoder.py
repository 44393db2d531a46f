"""Stage 1: training the hierarchical VQ-VAE."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vqvae2 import distributed
from vqvae2.data.images import ImageBatch, ImageDataModule
from vqvae2.metrics.sums import PEAK
from vqvae2.nn.checks import require
from vqvae2.nn.hierarchical import HierarchicalVQVAE, Reconstruction
from vqvae2.nn.quantizer import perplexity, update_codebooks, usage
from vqvae2.storage.checkpoint import load_network, register_network
from vqvae2.training.base import NetworkModule
from vqvae2.training.schedules import Schedule


class AutoencoderModule(NetworkModule):
    """Trains a `HierarchicalVQVAE` on images with equation 2 of the paper.

    Loss: mean((x − x̂)²) / recon_variance + beta · Σ_levels commitment; moving averages teach the codebooks.

    Args:
        schedule: learning rate of Adam.
        beta: weight of the commitment.
        polyak: decay of the averaged weights, which are evaluated and encode.
        recon_variance: divides the reconstruction error (1 in the paper; Sonnet uses the pixels' variance).
        compiled: see `NetworkModule`.
        network: options of `HierarchicalVQVAE`; the channels come from the data.
    """

    kind = "autoencoder"

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
        self._pending: list[Tensor] = []  # the codebooks' statistics since the last step, one a level
        self._counts: list[Tensor] = []  # how often the last step used each code, one a level

    def build_network(self) -> HierarchicalVQVAE:
        data = self.trainer.datamodule
        network = HierarchicalVQVAE(channels=data.channels, **self.options)
        network.grids(data.image_size, data.image_size)
        self.describe({"channels": data.channels, **self.options}, image_size=data.image_size)
        return network

    def configure_optimizers(self) -> dict[str, Any]:
        return self.scheduled(self.adam(), self.schedule, width=self.options["hidden"])

    def loss(self, images: Tensor, out: Reconstruction) -> tuple[Tensor, Tensor]:
        """Equation 2 and, of it, the mean squared error."""
        mse = F.mse_loss(out.images.float(), images.float())
        return mse / self.recon_variance + self.beta * sum(out.commitments), mse

    def training_step(self, batch: ImageBatch, _: int) -> Tensor:
        out: Reconstruction = self.network(batch.images)
        loss, mse = self.loss(batch.images, out)
        self._pending = self._accumulated(out.statistics)
        figures = {"train/loss": loss}
        if self.writes_step(self.global_step + 1):
            figures |= {"train/mse": mse, **self._by_level("train/commitment", out.commitments)}
        figures = self.over_ranks(figures)
        self.log("train/loss", figures.pop("train/loss"), prog_bar=True)
        self.log_dict(figures)
        return loss

    def _accumulated(self, statistics: Sequence[Tensor]) -> list[Tensor]:
        if not self._pending:
            return list(statistics)
        levels = zip(self.network.quantizers, self._pending, statistics, strict=True)
        return [quantizer.accumulate(pending, new) for quantizer, pending, new in levels]

    def after_optimizer_step(self) -> None:
        self._counts = update_codebooks(self.network.quantizers, self._pending)
        self._pending = []

    def on_train_batch_end(self, *_: Any) -> None:
        if self._counts and self.writes_step(self.global_step):
            self._log_codebooks("train", self._counts)
        self._counts = []

    def on_validation_epoch_start(self) -> None:
        network: HierarchicalVQVAE = self.average
        self._sums = torch.zeros(3 + network.num_levels, dtype=torch.float64, device=self.device)
        self._val_counts = [
            torch.zeros(size, device=self.device, dtype=torch.int64) for size in network.codebook_sizes
        ]

    def validation_step(self, batch: ImageBatch, _: int) -> None:
        if not len(batch.images):  # every image of the batch was unreadable
            return
        out: Reconstruction = self.average(batch.images)
        loss, mse = self.loss(batch.images, out)
        n = len(batch.images)
        self._sums += n * torch.stack([torch.ones_like(mse), loss, mse, *out.commitments]).double()
        for counts, codes in zip(self._val_counts, out.codes, strict=True):
            counts += torch.bincount(codes.flatten(), minlength=len(counts))

    def on_validation_epoch_end(self) -> None:
        total, *means = distributed.all_reduce_sum(self._sums)
        if not total:  # an error if all of them are unreadable, and not only those of the sanity check
            self.trainer.datamodule.splits["val"].next_readable(0)
        loss, mse, *commitments = (mean / total for mean in means)
        psnr = 10 * torch.log10(PEAK**2 / mse)
        self.log_dict({"val/loss": loss, "val/mse": mse, "val/psnr": psnr}, prog_bar=True)
        self.log_dict(self._by_level("val/commitment", commitments))
        self._log_codebooks("val", [distributed.all_reduce_sum(counts) for counts in self._val_counts])

    def _log_codebooks(self, stage: str, counts: list[Tensor]) -> None:
        self.log_dict(self._by_level(f"{stage}/perplexity", [perplexity(level) for level in counts]))
        self.log_dict(self._by_level(f"{stage}/usage", [usage(level) for level in counts]))

    def _by_level(self, name: str, values: Any) -> dict[str, Tensor]:
        return {
            f"{name}_{level}": value for level, value in zip(self.network.level_names, values, strict=True)
        }


def load_autoencoder(path: str, data: ImageDataModule) -> HierarchicalVQVAE:
    """The averaged network of a checkpoint, frozen, for the images of `data`.

    Raises:
        ValueError: there is no such checkpoint, or images of that size or colour are not for it.
    """
    network, facts = load_network(path, AutoencoderModule.kind)
    if (channels := facts["network"]["channels"]) != data.channels:
        raise ValueError(
            f"{path} was trained on images of {channels} channels, the data has {data.channels}. "
            f"Set data.init_args.channels to {channels}."
        )
    network.grids(data.image_size, data.image_size)
    return network


register_network(AutoencoderModule.kind, HierarchicalVQVAE)
