"""Writes what the encode job predicts to latent shards."""

import lightning as L
import numpy as np

from vqvae2.callbacks.chunks import ChunkWriter, Splits
from vqvae2.data.latent_shards import CODES, write_shard
from vqvae2.data.latents import Manifest, write_manifest
from vqvae2.data.shards import Shard
from vqvae2.modules.encode import Encoded, EncodeModule


class LatentWriter(ChunkWriter):
    """One shard for each chunk of the data, in the order of the data, then the manifest.

    Args:
        folder: for the shards; what an older run left there is replaced.
        samples_per_record: see `vqvae2.data.latent_shards`.
    """

    def __init__(self, folder: str, samples_per_record: int = 256) -> None:
        super().__init__(folder)
        if samples_per_record < 1:
            raise ValueError(f"samples_per_record is {samples_per_record}, wanted at least 1.")
        self.samples_per_record = samples_per_record

    def keep(self, prediction: Encoded) -> Encoded:
        small = tuple(level.numpy().astype(CODES) for level in prediction.codes)  # a chunk of int64 is large
        return prediction._replace(codes=small)

    def write_chunk(self, split: str, number: int, predictions: list[Encoded], module: EncodeModule) -> Shard:
        return write_shard(
            self.folder,
            f"{split}/{number:06d}.tar",
            module.spec,
            codes=[np.concatenate(level) for level in zip(*(p.codes for p in predictions), strict=True)],
            labels=np.concatenate([prediction.labels for prediction in predictions]),
            keys=[key for prediction in predictions for key in prediction.keys],
            samples_per_record=self.samples_per_record,
        )

    def finish(self, splits: Splits, trainer: L.Trainer, module: EncodeModule) -> None:
        images = trainer.datamodule
        described = {name: getattr(images, name) for name in ("train", "val", "image_size", "num_views")}
        source = {"checkpoint": module.checkpoint, **described}
        write_manifest(self.folder, Manifest(module.spec, tuple(images.classes), source, splits))
