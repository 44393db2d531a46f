"""Pictures of how training goes: reconstructions level by level, and samples.

The first rank draws. All take part where the network is sharded: its weights are gathered.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from vqvae2.data.images import ImageBatch
from vqvae2.data.latents import LatentBatch, check_autoencoder
from vqvae2.nn.contracts import PriorNetwork, Tokenizer
from vqvae2.nn.weights import fingerprint
from vqvae2.pixels import to_uint8
from vqvae2.runs.log_pictures import log_picture
from vqvae2.sampling.draw import Draw, Noise, level_sampler
from vqvae2.storage.checkpoint import load_network
from vqvae2.training.base import NetworkModule
from vqvae2.training.prior import PriorModule
from vqvae2.training.tokenizer import TokenizerModule


class Grid(L.Callback, ABC):
    """A picture of some held-out samples, drawn in every n-th validation.

    The samples come from batches all over the split, since data are often sorted by class.

    Args:
        num_samples: how many the picture shows, or fewer if there are fewer.
        every_n_validations: how often it is drawn.
    """

    name: str

    def __init__(self, num_samples: int, every_n_validations: int) -> None:
        self.num_samples = num_samples
        self.every_n_validations = every_n_validations
        self._validations = 0
        self._batches: list[Any] = []

    @abstractmethod
    def draw(self, module: NetworkModule, network: nn.Module, batches: list[Any]) -> Tensor:
        """The picture, uint8 [C, H, W], of samples of some batches; `network` is the average, whole."""

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batches = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking or self._validations % self.every_n_validations:
            return
        num_batches = int(trainer.num_val_batches[0])
        count = min(num_batches, self.num_samples)
        if batch_idx in {i * num_batches // count for i in range(count)} and len(batch.labels):
            self._batches.append(first_samples(batch, -(-self.num_samples // count)))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: NetworkModule) -> None:
        if trainer.sanity_checking:
            return
        due = self._validations % self.every_n_validations == 0
        self._validations += 1
        if due:
            with torch.no_grad():
                network = pl_module.whole_average()
                if self._batches and trainer.is_global_zero:
                    log_picture(trainer, self.name, self.draw(pl_module, network, self._batches))
        self._batches = []

    def join(self, batches: Iterable[Tensor]) -> Tensor:
        """The rows of some batches, `num_samples` at most."""
        return torch.cat(list(batches))[: self.num_samples]


def first_samples(batch: Any, count: int) -> Any:
    """The start of a batch, a named tuple of tensors, lists and tuples of these."""
    if isinstance(batch, tuple):
        parts = [first_samples(part, count) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch[:count]


class ReconstructionGrid(Grid):
    """Reconstructions as in figure 3 of the paper, one held-out image a row.

    From left to right: the decoder sees the top level only, one level more each, all levels; the original.

    Args:
        num_samples: rows.
        every_n_validations: how often it is drawn.
    """

    name = "reconstructions"

    def __init__(self, num_samples: int = 8, every_n_validations: int = 1) -> None:
        super().__init__(num_samples, every_n_validations)

    def draw(self, module: TokenizerModule, network: Tokenizer, batches: list[ImageBatch]) -> Tensor:
        return level_by_level(network, self.join(batch.images for batch in batches))


def level_by_level(autoencoder: Tokenizer, images: Tensor) -> Tensor:
    """uint8 [C, height, width]: a row for each of the images [B, C, H, W], from its top level to itself."""
    steps = autoencoder.refinements(autoencoder.encode(images))
    rows = torch.stack([*steps, images], 1).flatten(0, 1)
    return make_grid(to_uint8(rows), nrow=len(steps) + 1, padding=1)


class SampleGrid(Grid):
    """What the prior makes of the labels and upper levels of held-out images.

    Each pair of columns holds reconstructions and beside them the same with this prior's level sampled.
    Levels below it are hidden from the decoder in both.

    Args:
        autoencoder: checkpoint of the autoencoder that made the codes.
        num_samples: pairs.
        every_n_validations: how often it is drawn; sampling takes time.

    Raises:
        ValueError: the checkpoint is missing or of another kind, or another autoencoder made the codes.
    """

    name = "samples"

    def __init__(self, autoencoder: str, num_samples: int = 16, every_n_validations: int = 1) -> None:
        super().__init__(num_samples, every_n_validations)
        self.checkpoint = autoencoder
        self.autoencoder: Tokenizer = load_network(autoencoder, Tokenizer.kind).network

    def setup(self, trainer: L.Trainer, pl_module: PriorModule, stage: str) -> None:
        data = trainer.datamodule
        digest = fingerprint(self.autoencoder)
        check_autoencoder(data.spec, digest, codes=str(data.latents), checkpoint=self.checkpoint)

    def draw(self, module: PriorModule, network: PriorNetwork, batches: list[LatentBatch]) -> Tensor:
        codes = [self.join(level) for level in zip(*(batch.codes for batch in batches), strict=True)]
        labels = self.join(batch.labels for batch in batches)
        above, here, below = codes[: module.index], codes[module.index], codes[module.index + 1 :]
        sampler = level_sampler(network, Draw(), graphed=False)  # nothing is recorded for one batch
        noise = Noise(seed=0, images=range(len(labels)), level=module.index)
        sampled = sampler(above, labels, noise, torch.full_like(here, -1)).codes
        self.autoencoder.to(labels.device)
        pair = [self.autoencoder.decode([*above, x, *below], module.index + 1) for x in (here, sampled)]
        return make_grid(to_uint8(torch.stack(pair, 1).flatten(0, 1)), nrow=8, padding=1)
