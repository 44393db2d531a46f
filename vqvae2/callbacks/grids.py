"""Pictures of how training goes: reconstructions level by level, and samples.

Every rank draws, though only the first one writes: a sharded network needs all ranks for a forward pass.
"""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchvision.utils import make_grid

from vqvae2.callbacks.pictures import log_picture
from vqvae2.data.images import ImageBatch
from vqvae2.data.latents import LatentBatch, check_autoencoder
from vqvae2.modules.autoencoder import AutoencoderModule
from vqvae2.modules.checkpoint import load_network
from vqvae2.modules.prior import PriorModule
from vqvae2.nn.autoencoder import HierarchicalVQVAE, fingerprint
from vqvae2.pixels import to_uint8
from vqvae2.sampling.ancestral import sample_level, uniform_noise


class ReconstructionGrid(L.Callback):
    """After each validation a picture like figure 3 of the paper, one held-out image a row.

    From left to right: the decoder sees the top level only, one level more each, all levels; the original.

    Args:
        num_images: rows.
    """

    def __init__(self, num_images: int = 8) -> None:
        self.num_images = num_images

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: AutoencoderModule,
        outputs: Any,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0 and not trainer.sanity_checking:
            log_picture(
                trainer, "reconstructions", level_by_level(pl_module.average, batch.images[: self.num_images])
            )


def level_by_level(autoencoder: HierarchicalVQVAE, images: Tensor) -> Tensor:
    """uint8 [C, height, width]: a row for each of the images [B, C, H, W], from its top level to itself."""
    codes = autoencoder.encode(images)
    steps = [autoencoder.decode(codes, levels) for levels in range(1, autoencoder.num_levels + 1)]
    rows = torch.stack([*steps, images], 1).flatten(0, 1)
    return make_grid(to_uint8(rows), nrow=len(steps) + 1, padding=1)


class SampleGrid(L.Callback):
    """After validations a picture of what the prior makes of held-out images' labels and upper levels.

    Each pair of columns holds reconstructions and beside them the same with this prior's level sampled.
    Levels below it are hidden from the decoder in both.

    Args:
        autoencoder: checkpoint of the autoencoder that made the codes.
        num_images: pairs.
        every_n_validations: how often; sampling takes time.

    Raises:
        ValueError: the checkpoint is missing or of another kind, or another autoencoder made the codes.
    """

    def __init__(self, autoencoder: str, num_images: int = 16, every_n_validations: int = 1) -> None:
        self.checkpoint = autoencoder
        self.autoencoder: HierarchicalVQVAE = load_network(autoencoder, AutoencoderModule.kind).network
        self.num_images = num_images
        self.every_n_validations = every_n_validations
        self._validations = 0

    def setup(self, trainer: L.Trainer, pl_module: PriorModule, stage: str) -> None:
        data = trainer.datamodule
        check_autoencoder(
            data.spec, fingerprint(self.autoencoder), codes=data.latents, checkpoint=self.checkpoint
        )

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: PriorModule,
        outputs: Any,
        batch: LatentBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx or trainer.sanity_checking:
            return
        self._validations += 1
        if (self._validations - 1) % self.every_n_validations == 0:
            log_picture(trainer, "samples", self._pairs(pl_module, batch))

    def _pairs(self, module: PriorModule, batch: LatentBatch) -> Tensor:
        codes, labels = [level[: self.num_images] for level in batch.codes], batch.labels[: self.num_images]
        noise = uniform_noise(0, range(len(labels)), module.index, codes[module.index][0].numel())
        sampled = sample_level(module.average, codes[: module.index], labels, noise)
        self.autoencoder.to(labels.device)
        pairs = [
            self.autoencoder.decode(
                [*codes[: module.index], here, *codes[module.index + 1 :]], module.index + 1
            )
            for here in (codes[module.index], sampled.codes)
        ]
        return make_grid(to_uint8(torch.stack(pairs, 1).flatten(0, 1)), nrow=8, padding=1)
