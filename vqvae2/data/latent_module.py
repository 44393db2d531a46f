"""The DataModule of all priors: batches of codes and labels from a folder of latent shards."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch.utils.data import Dataset

from vqvae2 import distributed
from vqvae2.data.latent_shards import check_files, index_shard, map_shard, verify
from vqvae2.data.latents import (
    LatentBatch,
    LatentSpec,
    Manifest,
    encode_command,
    latent_folder,
    read_manifest,
)
from vqvae2.data.loader import EpochLoader
from vqvae2.data.order import EpochBatches, Index, check_shares
from vqvae2.nn.checks import require


class LatentDataset(Dataset):
    """One split as a map-style data set that returns whole batches.

    Args:
        folder: of the latents.
        manifest: of the folder.
        split: name of one of its splits.

    Raises:
        ValueError: a shard cannot be read or does not hold as many samples as the manifest says.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        self.folder = folder
        self.spec, self.classes = manifest.spec, manifest.classes
        self.shards = manifest.splits.get(split, ())
        self.records = [index_shard(folder / shard.file, self.spec) for shard in self.shards]
        counted = [sum(record.num_samples for record in records) for records in self.records]
        for shard, num_samples in zip(self.shards, counted, strict=True):
            if num_samples != shard.num_samples:
                raise ValueError(
                    f"{folder / shard.file} holds {num_samples} samples, "
                    f"the manifest says {shard.num_samples}. Encode again: {encode_command(folder)}."
                )
        self._places = [(file, i) for file, records in enumerate(self.records) for i in range(len(records))]
        sizes = [record.num_samples for records in self.records for record in records]
        self._starts = np.cumsum([0, *sizes])  # first sample of each record, and the number of samples
        self._mapped: dict[int, list[tuple[np.ndarray, ...]]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_mapped": {}}  # a spawned worker maps the files itself

    def __getitem__(self, index: Index) -> LatentBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[Index]) -> LatentBatch:
        """The samples of a batch, gathered at once: the loader calls this instead of one call a sample."""
        samples = np.array([sample for _, sample in indices], dtype=np.int64)
        grids = [(level.height, level.width) for level in self.spec.levels]
        batch = [np.empty((len(samples), *shape), np.int64) for shape in (*grids, ())]
        numbers = np.searchsorted(self._starts, samples, side="right") - 1
        for row, (number, offset) in enumerate(zip(numbers, samples - self._starts[numbers], strict=True)):
            for out, stored in zip(batch, self._record(number), strict=True):
                out[row] = stored[offset]
        *codes, labels = map(torch.from_numpy, batch)
        return LatentBatch(tuple(codes), labels, torch.from_numpy(samples))

    def _record(self, number: int) -> tuple[np.ndarray, ...]:
        file, i = self._places[number]
        if file not in self._mapped:
            self._mapped[file] = map_shard(
                self.folder / self.shards[file].file, self.records[file], self.spec
            )
        return self._mapped[file][i]


class LatentDataModule(L.LightningDataModule):
    """Batches of `LatentBatch`; their order depends on the seed and the epoch, not on ranks or workers.

    Args:
        latents: folder that the encode job wrote, or its address, such as s3://bucket/NAME/latents. From an
            address all shards are downloaded into the cache of this machine, see `storage.cache`.
        batch_size: samples in a batch, over all ranks together.
        num_workers: processes that load; 0, the training process itself, is the fastest from a local disk,
            because handing a batch over costs more than gathering it.
        seed: of the order of the training samples.
    """

    def __init__(self, *, latents: str, batch_size: int, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        require(batch_size >= 1, "batch_size", batch_size, "at least 1")
        require(num_workers >= 0, "num_workers", num_workers, "at least 0")
        self.location = latents
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self._manifest: Manifest | None = None
        self._splits: dict[str, LatentDataset] = {}

    @cached_property
    def latents(self) -> Path:
        """The folder on this machine."""
        return latent_folder(self.location)

    @property
    def manifest(self) -> Manifest:
        if self._manifest is None:
            self._manifest = read_manifest(self.latents)
        return self._manifest

    @property
    def spec(self) -> LatentSpec:
        """Grids, codebook sizes, number of classes and the autoencoder's fingerprint.

        Raises:
            ValueError: the folder has no manifest, or a damaged one.
        """
        return self.manifest.spec

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names in label order; empty when not known."""
        return self.manifest.classes

    def num_samples(self, split: str) -> int:
        """Samples of "train" or "val"."""
        return self.manifest.num_samples(split)

    def prepare_data(self) -> None:
        """Verifies the shards' contents, in one process of each machine."""
        check_files(self.latents, self.manifest)
        verify(self.latents, self.manifest)

    def setup(self, stage: str | None = None) -> None:
        check_files(self.latents, self.manifest)
        self._check_batch_size()
        for split in ("train", "val"):
            if split not in self._splits:
                self._splits[split] = LatentDataset(self.latents, self.manifest, split)

    def train_dataloader(self) -> EpochLoader:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> EpochLoader | list:
        return self._loader("val", shuffle=False) if len(self._splits["val"]) else []

    def test_dataloader(self) -> EpochLoader | list:
        return self.val_dataloader()

    def _loader(self, split: str, *, shuffle: bool) -> EpochLoader:
        dataset = self._splits[split]
        batches = EpochBatches(
            len(dataset), global_batch_size=self.batch_size, shuffle=shuffle, seed=self.seed
        )
        return EpochLoader(dataset, batches, self.num_workers)

    def _check_batch_size(self) -> None:
        world_size, found = distributed.world_size(), self.batch_size
        check_shares(found, world_size)
        num_train, num_val = self.num_samples("train"), self.num_samples("val")
        if num_train < found:
            fits = num_train // world_size * world_size
            mend = f"Set it to {fits}" if fits else f"Use at most {num_train} devices"
            raise ValueError(
                f"batch_size is {found}, but {self.location} holds only {num_train} training samples. {mend} "
                "or encode more images."
            )
        if 0 < num_val < world_size:
            raise ValueError(
                f"{self.location} holds {num_val} held-out samples, too few for {world_size} ranks. "
                "Use fewer devices or encode more images."
            )
