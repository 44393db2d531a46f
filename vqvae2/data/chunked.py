"""What the data of all jobs that write files share: samples come in chunks, one file each."""

from abc import abstractmethod
from collections.abc import Collection
from typing import Any

import lightning as L
from torch.utils.data import DataLoader, Dataset

from vqvae2.data.loader import batch_loader
from vqvae2.data.order import ChunkBatches

MAX_FILES = 10**6  # of a split: their names have six digits


class ChunkedDataModule(L.LightningDataModule):
    """The predict loaders of a job whose writer makes one file of each chunk.

    Each device takes batches of `batch_size`, and a chunk is cut into batches from its start, so what is
    computed together, and with it every last digit, does not depend on the number of devices or on which
    chunks are done already.

    Attributes:
        batch_size: samples in a batch, on each device.
        chunk_size: samples in a file.
        num_workers: loader processes on each device.
        finished: for each split the numbers of the chunks that need not be made again; the writer finds out.
    """

    batch_size: int
    chunk_size: int
    num_workers: int = 0

    def __init__(self) -> None:
        super().__init__()
        self.finished: dict[str, Collection[int]] = {}

    @abstractmethod
    def predict_datasets(self) -> dict[str, Dataset]:
        """The data by split, in the order of the predict loaders."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides which samples these are, without how many (plain types)."""

    def predict_batches(self) -> dict[str, ChunkBatches]:
        """How the data of each split are cut into batches.

        Raises:
            ValueError: they would fill too many files.
        """
        found = {}
        for name, dataset in self.predict_datasets().items():
            num_samples = dataset.__len__()  # len() fails from 2^63 on
            if num_samples > MAX_FILES * self.chunk_size:
                raise ValueError(
                    f"The job asks for {num_samples:,} {name}, which is more than {MAX_FILES:,} files of "
                    f"{self.chunk_size:,}. Ask for fewer, or set a larger chunk_size."
                )
            found[name] = ChunkBatches(
                num_samples,
                batch_size=self.batch_size,
                chunk_size=self.chunk_size,
                finished=self.finished.get(name, ()),
            )
        return found

    def predict_dataloader(self) -> list[DataLoader]:
        batches = self.predict_batches()
        return [
            batch_loader(dataset, batches[name], self.num_workers)
            for name, dataset in self.predict_datasets().items()
        ]
