"""Writes what the encode job predicts to latent shards."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from vqvae2.data.latent_shards import CODES, LABELS, shard_keys, write_shard
from vqvae2.data.latents import Manifest, write_manifest
from vqvae2.data.views import ViewImages
from vqvae2.jobs.chunk_writer import ChunkWriter, Splits
from vqvae2.jobs.encode import Encoded, EncodeModule
from vqvae2.nn.checks import require
from vqvae2.pixels import size_of
from vqvae2.storage.shards import Shard


class LatentWriter(ChunkWriter):
    """Writes one shard for each chunk of the data, in the order of the data, then the manifest.

    Args:
        folder: see `ChunkWriter`.
        samples_per_record: see `vqvae2.data.latent_shards`.
        overwrite: see `ChunkWriter`.
    """

    splits = ("train", "val")

    def __init__(
        self, folder: str | None = None, samples_per_record: int = 256, *, overwrite: bool = False
    ) -> None:
        super().__init__(folder, overwrite=overwrite)
        require(samples_per_record >= 1, "samples_per_record", samples_per_record, "at least 1")
        self.samples_per_record = samples_per_record

    def identity(self, trainer: L.Trainer, module: EncodeModule) -> dict[str, Any]:
        data = trainer.datamodule
        return {
            "job": "vqvae2 latents",
            "autoencoder": module.fingerprint,
            "precision": trainer.precision,
            **data.identity(),
            "num_samples": {name: batches.num_samples for name, batches in data.predict_batches().items()},
            "chunk_size": data.chunk_size,
            "samples_per_record": self.samples_per_record,
        }

    def file(self, split: str, number: int) -> str:
        return f"{split}/{number:06d}.tar"

    def sample_bytes(self, trainer: L.Trainer, module: EncodeModule) -> int:
        grids = module.network.grids(*size_of(trainer.datamodule.image_size))
        codes = sum(height * width for height, width in grids)
        return codes * CODES.itemsize + LABELS.itemsize

    def count_samples(self, path: Path, dataset: ViewImages, samples: range, module: EncodeModule) -> int:
        keys = list(shard_keys(path))
        images = dataset.split
        asked = iter([images.key(i % len(images)) for i in samples])
        # Unreadable images are missing; a view's key is its image's, with what was done to it behind a '#'.
        if not keys or not all(any(f"{key}#".startswith(f"{name}#") for name in asked) for key in keys):
            raise ValueError(f"its {len(keys)} samples are not those of this job.")
        return len(keys)

    def keep(self, prediction: Encoded) -> Encoded:
        small = tuple(level.numpy().astype(CODES) for level in prediction.codes)  # a chunk of int64 is large
        return prediction._replace(codes=small)

    def write_chunk(self, split: str, number: int, predictions: list[Encoded], module: EncodeModule) -> Shard:
        return write_shard(
            self.folder,
            self.file(split, number),
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
