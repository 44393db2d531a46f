"""Loaders of data sets that make whole batches."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vqvae2.data.order import EpochBatches, Index


def batch_loader(dataset: Dataset, batches: Sampler[list[Index]], num_workers: int) -> DataLoader:
    """Asks a data set for one batch of `batches` after the other.

    Args:
        dataset: its `__getitems__` makes a whole batch of a list of indices.
        batches: which samples make up which batch.
        num_workers: processes; they stay from epoch to epoch.
    """
    return DataLoader(dataset, **_options(batches, num_workers))


class EpochLoader(DataLoader):
    """A `batch_loader` for training, which goes on in the middle of an epoch.

    Lightning keeps the state in checkpoints. It is the same on all ranks: the epoch and how many of its
    batches are behind.
    """

    def __init__(self, dataset: Dataset, batches: EpochBatches, num_workers: int) -> None:
        super().__init__(dataset, **_options(batches, num_workers))
        self._done = self._resume = (0, 0)  # epoch, batches

    def __iter__(self) -> Iterator[Any]:
        batches: EpochBatches = self.batch_sampler
        (epoch, done), self._resume = self._resume, (0, 0)
        batches.skip = done if epoch == batches.epoch else 0
        loaded = super().__iter__()
        loaded = _naming_dead_workers(loaded) if self.num_workers else loaded
        for number, batch in enumerate(loaded, batches.skip + 1):
            self._done = (batches.epoch, number)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        epoch, done = self._done
        return {"epoch": epoch, "batches_done": done, "shards_at_once": self._shards_at_once}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: the order of this epoch was another, as the cache of shards was larger or smaller.
        """
        found = state_dict.get("shards_at_once")
        if found != self._shards_at_once:
            raise ValueError(
                f"The epoch was shuffled within {found or 'all'} shards at once, and now would be within "
                f"{self._shards_at_once or 'all'}. Set VQVAE2_CACHE_GB as it was when the run began."
            )
        self._resume = (state_dict["epoch"], state_dict["batches_done"])

    @property
    def _shards_at_once(self) -> int | None:
        """What the order depends on beside seed and epoch, where data are larger than the cache."""
        return getattr(self.batch_sampler, "at_once", None)


def _naming_dead_workers(batches: Iterator[Any]) -> Iterator[Any]:
    """
    Raises:
        ChildProcessError: a worker process is gone; torch itself may only say that a connection broke.
    """
    try:
        yield from batches
    except (ConnectionError, EOFError) as error:
        if "in DataLoader worker process" in str(error):  # alive, and passes on an error of its data set
            raise
        raise ChildProcessError(
            "A loader worker died, killed or out of memory. Set data.init_args.num_workers lower, or give "
            "it more memory."
        ) from error


def _options(batches: Sampler[list[Index]], num_workers: int) -> dict[str, Any]:
    return {
        "batch_sampler": batches,
        "collate_fn": _as_it_is,
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "pin_memory": torch.cuda.is_available(),
    }


def _as_it_is(batch: Any) -> Any:
    return batch
