"""Loaders of data sets that make whole batches."""

import logging
import os
import shutil
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vqvae2.data.order import EpochBatches, Index
from vqvae2.data.workers import SHARED_MEMORY, Piped, begin, born_deaf, hand_over

log = logging.getLogger(__name__)

_MORE_MEMORY = (
    "Give it more (docker run --shm-size 8g; kubernetes: an emptyDir with medium: Memory), or set "
    "data.init_args.num_workers lower; 0 needs none."
)


class BatchLoader(DataLoader):
    """Asks a data set for one batch of a sampler after the other; see `batch_loader`.

    Workers hand their batches over in shared memory, and through pipes where that is too small, with a
    warning: 64 MB, a container's default, hold half a batch of 128 images of 256x256.
    """

    warned = False  # once a process

    def __iter__(self) -> Iterator[Any]:
        if not self.num_workers:
            return super().__iter__()
        try:
            with born_deaf():
                batches = super().__iter__()
        except OSError as error:  # of the queues' semaphores, which are shared memory too
            raise ChildProcessError(
                f"The loader workers cannot be started ({error.strerror}). Shared memory is {_room()}. "
                f"{_MORE_MEMORY}"
            ) from error
        return _received(batches)


def batch_loader(dataset: Dataset, batches: Sampler[list[Index]], num_workers: int) -> BatchLoader:
    """Asks a data set for one batch of `batches` after the other.

    Args:
        dataset: its `__getitems__` makes a whole batch of a list of indices.
        batches: which samples make up which batch.
        num_workers: processes; they stay from epoch to epoch.
    """
    return BatchLoader(dataset, **_options(batches, num_workers))


class EpochLoader(BatchLoader):
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
        for number, batch in enumerate(super().__iter__(), batches.skip + 1):
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
                f"The epoch was shuffled in groups of {found or 'all'} shards, and would now be shuffled in "
                f"groups of {self._shards_at_once or 'all'}. Set VQVAE2_CACHE_GB to what it was when the run "
                "began."
            )
        self._resume = (state_dict["epoch"], state_dict["batches_done"])

    @property
    def _shards_at_once(self) -> int | None:
        """What the order depends on beside seed and epoch, where data are larger than the cache."""
        return getattr(self.batch_sampler, "at_once", None)


def of_dead_worker(error: BaseException) -> bool:
    """Whether torch says so; it may at any line of the program, when the signal of the death arrives."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def dead_worker(error: BaseException) -> ChildProcessError:
    """What the user can do about a worker process that is gone."""
    reason = str(error).splitlines()[0] if of_dead_worker(error) else "it was killed, or is out of memory"
    return ChildProcessError(
        f"A loader worker died ({reason}). Set data.init_args.num_workers lower, or give it more memory; "
        f"shared memory is {_room()}."
    )


def _received(batches: Iterator[Any]) -> Iterator[Any]:
    """
    Raises:
        ChildProcessError: a worker process is gone; torch itself may only say that a connection broke.
    """
    try:
        for batch in batches:
            if isinstance(batch, Piped):
                _warn(batch.problem)
                batch = batch.unpacked()
            yield batch
    except (ConnectionError, EOFError) as error:
        if "in DataLoader worker process" in str(error):  # alive, and passes on an error of its data set
            raise
        raise dead_worker(error) from error


def _warn(problem: str) -> None:
    if not BatchLoader.warned and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        log.warning(
            "shared memory is too small (%s), so the loader workers send batches through pipes. This takes "
            "the main process longer. %s",
            problem,
            _MORE_MEMORY,
        )
    BatchLoader.warned = True


def _room() -> str:
    if not SHARED_MEMORY.is_dir():
        return "unknown here"
    usage = shutil.disk_usage(SHARED_MEMORY)
    return f"{SHARED_MEMORY}, {usage.total / 1e6:.0f} MB of which {usage.free / 1e6:.0f} are free"


def _options(batches: Sampler[list[Index]], num_workers: int) -> dict[str, Any]:
    return {
        "batch_sampler": batches,
        "collate_fn": hand_over if num_workers else _as_it_is,
        "worker_init_fn": begin,
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "pin_memory": torch.cuda.is_available(),
    }


def _as_it_is(batch: Any) -> Any:
    return batch
