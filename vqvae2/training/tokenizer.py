"""What the training of every tokenizer shares: its losses and its codebooks, in the log and over a split."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vqvae2 import distributed
from vqvae2.data.images import ImageBatch, ImageDataModule
from vqvae2.metrics.sums import PEAK
from vqvae2.nn.contracts import Reconstructed, Tokenizer
from vqvae2.nn.quantizer import perplexity, update_codebooks, usage
from vqvae2.pixels import size_of
from vqvae2.storage.checkpoint import description, load_network
from vqvae2.training.base import NetworkModule

Losses = dict[str, Tensor]  # scalars by their names in the log; "loss" is what training minimises


class TokenizerModule(NetworkModule):
    """Trains a tokenizer on images.

    A subclass builds its network and names its `losses`; where other things than moving averages teach the
    codebooks, it says that too. Validation logs the mean of each loss over all images, and how the codes of
    each codebook are used.
    """

    kind = "autoencoder"
    options: dict[str, Any]  # of the network, beside the channels

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._pending: list[Tensor] = []  # the codebooks' statistics since the last step
        self._counts: Sequence[Tensor] = []  # how often the last step used each code, one tensor a codebook

    @abstractmethod
    def make(self, channels: int) -> Tokenizer:
        """The network for images of so many channels."""

    @abstractmethod
    def losses(self, images: Tensor, out: Reconstructed) -> Losses:
        """What is minimised, "loss", and what else is logged, "mse" among it."""

    def training_losses(self, images: Tensor, out: Reconstructed) -> Losses:
        """`losses` of a batch that is trained on, where that takes more than validation does."""
        return self.losses(images, out)

    def keep_statistics(self, out: Reconstructed) -> None:
        """Keeps what the codebooks learn from a batch; several may come before a step.

        Here, and in `update_codebooks`: moving averages, for a network whose `quantizers` have given the
        `statistics` of its result, one for each.
        """
        if not self._pending:
            self._pending = list(out.statistics)
            return
        quantizers = zip(self.network.quantizers, self._pending, out.statistics, strict=True)
        self._pending = [quantizer.accumulate(pending, new) for quantizer, pending, new in quantizers]

    def update_codebooks(self) -> Sequence[Tensor]:
        """Teaches the codebooks what was kept.

        Returns:
            How often each code was used, [K] of each of the network's `codebooks`.
        """
        counts = update_codebooks(self.network.quantizers, self._pending)
        self._pending = []
        return counts

    def advice(self, level: str) -> list[str]:
        """What to try when the codebook of a level collapses, as options of the command line."""
        return []

    def build_network(self) -> Tokenizer:
        data: ImageDataModule = self.trainer.datamodule
        network = self.make(data.channels)
        network.grids(*size_of(data.image_size))
        options = {"channels": data.channels, **self.options}
        self.description = description(network, options, image_size=data.image_size)
        return network

    def training_step(self, batch: ImageBatch, _: int) -> Tensor:
        out = self.network(batch.images)
        losses = self.training_losses(batch.images, out)
        self.keep_statistics(out)
        shown = losses if self.writes_step(self.global_step + 1) else {"loss": losses["loss"]}
        figures = self.over_ranks({f"train/{name}": value for name, value in shown.items()})
        self.log("train/loss", figures.pop("train/loss"), prog_bar=True)
        self.log_dict(figures)
        return losses["loss"]

    def after_optimizer_step(self) -> None:
        self._counts = self.update_codebooks()

    def on_train_batch_end(self, *_: Any) -> None:
        if self._counts and self.writes_step(self.global_step):
            self._log_codebooks("train", self._counts)
        self._counts = []

    def on_validation_epoch_start(self) -> None:
        self._num_images = torch.zeros((), dtype=torch.float64, device=self.device)
        self._sums: Losses = {}
        self._val_counts = [
            torch.zeros(size, device=self.device, dtype=torch.int64)
            for size in self.average.codebooks.values()
        ]

    def validation_step(self, batch: ImageBatch, _: int) -> None:
        if not len(batch.images):  # every image of the batch was unreadable
            return
        out = self.average(batch.images)
        self._num_images += len(batch.images)
        for name, value in self.losses(batch.images, out).items():
            self._sums[name] = self._sums.get(name, 0) + (len(batch.images) * value).double()
        for counts, codes in zip(self._val_counts, self.average.by_codebook(out.codes), strict=True):
            counts += torch.bincount(codes.flatten(), minlength=len(counts))

    def on_validation_epoch_end(self) -> None:
        names = max(distributed.all_gather_objects(list(self._sums)), key=len)  # a rank may have none
        sums = [self._sums.get(name, torch.zeros_like(self._num_images)) for name in names]
        total, *means = distributed.all_reduce_sum(torch.stack([self._num_images, *sums]))
        found = {name: mean / total for name, mean in zip(names, means, strict=True)}
        if not total:  # an error if all of them are unreadable, and not only those of the sanity check
            self.trainer.datamodule.splits["val"].next_readable(0)
            found = dict.fromkeys(("loss", "mse"), total / total)
        psnr = 10 * torch.log10(PEAK**2 / found["mse"])
        shown = {"val/loss": found.pop("loss"), "val/mse": found.pop("mse"), "val/psnr": psnr}
        self.log_dict(shown, prog_bar=True)
        self.log_dict({f"val/{name}": value for name, value in found.items()})
        self._log_codebooks("val", [distributed.all_reduce_sum(counts) for counts in self._val_counts])

    def _log_codebooks(self, stage: str, counts: Sequence[Tensor]) -> None:
        for name, figure in (("perplexity", perplexity), ("usage", usage)):
            used = zip(self.network.codebooks, counts, strict=True)
            self.log_dict({f"{stage}/{name}_{codebook}": figure(times) for codebook, times in used})


def load_tokenizer(path: str, data: ImageDataModule) -> Tokenizer:
    """The averaged network of a checkpoint, frozen, for the images of `data`.

    Raises:
        ValueError: there is no such checkpoint, or images of that size or colour are not for it.
    """
    network: Tokenizer = load_network(path, Tokenizer.kind).network
    check_channels(network, path, data)
    network.grids(*size_of(data.image_size))
    return network


def check_channels(network: Tokenizer, path: str, data: ImageDataModule) -> None:
    """
    Raises:
        ValueError: the network of a checkpoint is for images of other channels.
    """
    if network.channels != data.channels:
        raise ValueError(
            f"{path} was trained on images of {network.channels} channels, the data has {data.channels}. "
            f"Set data.init_args.channels to {network.channels}."
        )
