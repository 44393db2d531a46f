"""Which samples make up which batch: pure functions of (seed, epoch, rank, world size).

The order of an epoch is drawn once for the whole job and then dealt to the ranks, so it does not depend on
how many ranks or loader workers there are: two ranks see together, batch by batch, what one rank would see.
"""

from collections.abc import Collection, Iterator

import numpy as np
from torch.utils.data import Sampler

from vqvae2 import distributed

Index = tuple[int, int]  # (epoch, sample): a data set can draw its augmentation from both, in any worker


def batch_bounds(num_samples: int, global_batch_size: int, world_size: int) -> list[tuple[int, int]]:
    """Cuts an epoch into global batches: every sample once, every rank in every batch.

    All batches are full but the last two, which share what is left in halves: a small last batch would weigh
    as much as a full one, and batch normalisation could make nothing of it.
    """
    if num_samples < world_size:
        raise ValueError(
            f"{num_samples} samples cannot be shared among {world_size} ranks: each needs at least one. "
            "Use fewer devices or more data."
        )
    bounds = [
        (start, min(start + global_batch_size, num_samples))
        for start in range(0, num_samples, global_batch_size)
    ]
    if len(bounds) > 1 and num_samples % global_batch_size:
        start = bounds[-2][0]
        middle = start + (num_samples - start + 1) // 2
        together = num_samples - middle < world_size  # a half would leave a rank without a sample
        bounds[-2:] = [(start, num_samples)] if together else [(start, middle), (middle, num_samples)]
    return bounds


def check_shares(global_batch_size: int, world_size: int) -> None:
    """
    Raises:
        ValueError: a batch cannot be shared equally; names two sizes that can.
    """
    if global_batch_size % world_size:
        lower = max(global_batch_size // world_size, 1) * world_size
        raise ValueError(
            f"batch_size {global_batch_size} cannot be shared equally among {world_size} devices; "
            f"{lower} and {lower + world_size} can."
        )


class EpochBatches(Sampler[list[Index]]):
    """Batch sampler over `num_samples` samples: this rank's part of every global batch.

    The ranks' parts of a batch differ by at most one sample, and only in an epoch's last two batches.

    Args:
        num_samples: samples in an epoch.
        global_batch_size: samples in a batch, over all ranks together.
        shuffle: a new permutation each epoch; otherwise the order of the data.
        seed: with the epoch, the only source of randomness.
    """

    def __init__(self, num_samples: int, *, global_batch_size: int, shuffle: bool, seed: int = 0) -> None:
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.skip = 0  # batches at the start of the next epoch to leave out, because a run has had them

    @property
    def sampler(self) -> "EpochBatches":
        """Lightning announces a new epoch to `batch_sampler.sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def permutation(self) -> np.ndarray:
        """The order of the whole job's samples in this epoch, int64 `[num_samples]`."""
        if not self.shuffle:
            return np.arange(self.num_samples)
        bits = np.random.Philox(np.random.SeedSequence((self.seed, self.epoch)))
        return np.random.Generator(bits).permutation(self.num_samples)

    def __iter__(self) -> Iterator[list[Index]]:
        rank, world_size = distributed.rank(), distributed.world_size()
        order = self.permutation()
        bounds = batch_bounds(self.num_samples, self.global_batch_size, world_size)
        for start, stop in bounds[self.skip :]:
            mine = np.array_split(order[start:stop], world_size)[rank]
            yield [(self.epoch, int(sample)) for sample in mine]

    def __len__(self) -> int:
        return len(batch_bounds(self.num_samples, self.global_batch_size, distributed.world_size()))


class ShardBatches(EpochBatches):
    """`EpochBatches` that a cache smaller than the data can serve: some shards at a time, then others.

    Each epoch draws an order of the shards, takes `at_once` after the other, and shuffles the samples within.
    It is a coarser shuffle than that of all samples, and the same on all ranks.

    Args:
        shards: which shard each sample is in, int64 `[num_samples]`.
        at_once: shards to mix.
        options: `global_batch_size` and `seed`.
    """

    def __init__(self, shards: np.ndarray, *, at_once: int, **options: int) -> None:
        super().__init__(len(shards), shuffle=True, **options)
        self.shards = shards
        self.at_once = at_once

    def permutation(self) -> np.ndarray:
        order = super().permutation()
        bits = np.random.Philox(np.random.SeedSequence((self.seed, self.epoch, 1)))
        turns = np.random.Generator(bits).permutation(int(self.shards.max()) + 1) // self.at_once
        return order[np.argsort(turns[self.shards[order]], kind="stable")]


class ChunkBatches(Sampler[list[Index]]):
    """Batch sampler for jobs that write: whole chunks of consecutive samples go to one rank.

    Chunk c holds the samples `[c * chunk_size, (c + 1) * chunk_size)`, so what a chunk's file contains does
    not depend on the number of ranks. A batch never crosses a chunk's border. A rank without a chunk gets one
    empty batch: Lightning's loop calls no hooks on a rank without batches, where others wait for it.

    Args:
        num_samples: in all chunks.
        batch_size: samples in a batch, fewer at a chunk's end.
        chunk_size: samples in a chunk, fewer in the last.
        finished: numbers of the chunks to leave out; the others are dealt evenly, rank 0 has the most.
    """

    def __init__(
        self, num_samples: int, *, batch_size: int, chunk_size: int, finished: Collection[int] = ()
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.chunk_size = chunk_size
        self.finished = frozenset(finished)

    @property
    def num_chunks(self) -> int:
        return -(-self.num_samples // self.chunk_size)

    @property
    def num_finished(self) -> int:
        """Samples in the chunks that are left out."""
        return sum(len(self.chunk(number)) for number in self.finished)

    @property
    def num_mine(self) -> int:
        """Samples in the chunks of this rank."""
        return sum(len(self.chunk(number)) for number in self._mine())

    def chunk(self, number: int) -> range:
        """The samples of a chunk."""
        first = number * self.chunk_size
        return range(first, min(first + self.chunk_size, self.num_samples))

    def batches(self) -> Iterator[range]:
        """The samples of each batch of this rank."""
        mine = self._mine()
        for number in mine:
            chunk = self.chunk(number)
            for start in range(0, len(chunk), self.batch_size):
                yield chunk[start : start + self.batch_size]
        if not mine:
            yield range(0)

    def _mine(self) -> list[int]:
        """The numbers of this rank's chunks."""
        missing = [number for number in range(self.num_chunks) if number not in self.finished]
        return missing[distributed.rank() :: distributed.world_size()]

    def __iter__(self) -> Iterator[list[Index]]:
        for batch in self.batches():
            yield [(0, sample) for sample in batch]

    def __len__(self) -> int:
        return sum(-(-len(self.chunk(number)) // self.batch_size) for number in self._mine()) or 1
