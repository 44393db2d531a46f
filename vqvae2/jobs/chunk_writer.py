"""What jobs that predict into files share: a file for each chunk of the data, a manifest, and completion."""

import logging
import re
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import Dataset

from vqvae2 import distributed
from vqvae2.data.order import ChunkBatches
from vqvae2.runs.run_folder import check_writable
from vqvae2.storage.job_file import JOB, Job, check_continues, listed_shards, write_job
from vqvae2.storage.shards import MANIFEST, Shard, sha256

log = logging.getLogger(__name__)

Splits = dict[str, tuple[Shard, ...]]

_OURS = re.compile(r"\d{6}\.tar(\.part)?")


class ChunkWriter(L.Callback, ABC):
    """Writes the predictions of each chunk of the data to a file of its own, then a manifest of the files.

    A chunk comes to one rank, in consecutive batches, so no rank waits for another and the files do not
    depend on the number of ranks. A folder without a manifest is unfinished: an old manifest goes before the
    first file is replaced, the new one comes after the last.

    A rerun of the same job keeps the files that are whole, makes those that are missing or damaged, and ends
    with the same bytes as a run that nothing interrupted; a finished folder it leaves alone. Another job's
    folder is refused. See `vqvae2.storage.job_file`.

    The data are a `ChunkedDataModule`; predictions have an `index`.

    Args:
        folder: of the files; null takes the folder of the job, `trainer.default_root_dir`.
        overwrite: replace what another job left in the folder, instead of refusing it.
    """

    splits: tuple[str, ...]  # all that such a job may write
    outputs: tuple[str, ...] = ()  # what `finish` writes beside the manifest

    folder: Path

    def __init__(self, folder: str | None = None, *, overwrite: bool = False) -> None:
        self.location = folder
        self.overwrite = overwrite
        self._chunk: tuple[str, int] | None = None  # split and number of the chunk at hand
        self._predictions: list[Any] = []
        self._shards: list[tuple[str, Shard]] = []  # this rank's, with their splits
        self._job = Job({}, {})
        self._kept: list[tuple[str, Shard]] = []  # found whole, of all ranks
        self._continues = self._complete = False
        self._started_s = 0.0
        self._summary = ""

    def folder_of(self, trainer: L.Trainer) -> Path:
        """Where the files go."""
        return Path(trainer.default_root_dir if self.location is None else self.location)

    @abstractmethod
    def identity(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        """What decides each file's content, but for rounding (plain types)."""

    @abstractmethod
    def file(self, split: str, number: int) -> str:
        """Where a chunk goes, relative to the folder."""

    @abstractmethod
    def sample_bytes(self, trainer: L.Trainer, module: L.LightningModule) -> int:
        """How many bytes a sample takes in a file, at least."""

    @abstractmethod
    def count_samples(self, path: Path, dataset: Dataset, samples: range, module: L.LightningModule) -> int:
        """How many samples a chunk's file holds.

        Raises:
            ValueError: it is damaged, or not what this job writes for these samples of the data.
        """

    @abstractmethod
    def write_chunk(
        self, split: str, number: int, predictions: list[Any], module: L.LightningModule
    ) -> Shard:
        """Writes one chunk aside and moves it to its place."""

    @abstractmethod
    def finish(self, splits: Splits, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Writes `outputs` and then the manifest; on rank 0, when all files are in their places."""

    def keep(self, prediction: Any) -> Any:
        """What is kept in memory of a prediction until its chunk is complete."""
        return prediction

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Finds out what the folder holds; changes nothing yet.

        Raises:
            ValueError: the folder cannot be written, has no room for what is asked for, or is another job's.
        """
        self.folder = self.folder_of(trainer)
        check_writable(self.folder)
        if not isinstance(trainer.limit_predict_batches, float) or trainer.limit_predict_batches < 1:
            raise ValueError(
                f"trainer.limit_predict_batches is {trainer.limit_predict_batches}, which would leave files "
                "half full. Ask the data for less instead."
            )
        data = trainer.datamodule
        data.finished = {}
        batches = data.predict_batches()
        num_samples = sum(chunks.num_samples for chunks in batches.values())
        self._check_room(num_samples, self.sample_bytes(trainer, pl_module))
        self._job = Job(
            self.identity(trainer, pl_module),
            {split: chunks.num_samples for split, chunks in batches.items()},
        )
        asked = self._asked_before()
        self._continues = asked is not None
        self._kept, self._complete = [], False
        if self._continues:
            data.finished = self._look_around(batches, data.predict_datasets(), pl_module, asked)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started_s = time.monotonic()
        self._chunk, self._predictions, self._shards, self._summary = None, [], [], ""
        if self._complete:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if trainer.is_global_zero:
            for name in (MANIFEST, *self.outputs):
                (self.folder / name).unlink(missing_ok=True)
            if not self._continues:  # no shard of another job may ever lie beside this one's job.json
                (self.folder / JOB).unlink(missing_ok=True)
                for path in self._our_files():
                    path.unlink()
            write_job(self.folder, self._job)
        trainer.strategy.barrier()

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not len(outputs.index):
            return
        split = list(self._job.num_samples)[dataloader_idx]
        chunk = (split, int(outputs.index[0]) // trainer.datamodule.chunk_size)
        if chunk != self._chunk:
            self._flush(pl_module)
            self._chunk = chunk
        self._predictions.append(self.keep(outputs))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._flush(pl_module)
        new = [shard for shards in distributed.all_gather_objects(self._shards) for shard in shards]
        splits = {split: self._of_split([*self._kept, *new], split) for split in self._job.num_samples}
        if trainer.is_global_zero:
            self._summary = self._summarise(new)
            if not self._complete:
                self._remove_leftovers(splits)
                self.finish(splits, trainer, pl_module)
        trainer.strategy.barrier()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._summary:  # by now the progress bar is closed
            print(self._summary)

    def _check_room(self, num_samples: int, sample_bytes: int) -> None:
        """
        Raises:
            ValueError: the disk could not hold so many samples even without the files of ours that are there.
        """
        place = next(path for path in (self.folder, *self.folder.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(place).free + sum(path.stat().st_size for path in self._our_files())
        if num_samples * sample_bytes > free:
            raise ValueError(
                f"{num_samples:,} samples take at least {num_samples * sample_bytes / 1e9:,.0f} GB, but "
                f"{self.folder} has room for {free / 1e9:,.1f} GB. Ask for fewer, or name a folder elsewhere."
            )

    def _asked_before(self) -> dict[str, int] | None:
        """How many samples the run asked for that this one continues; None if it starts anew."""
        entries = [self.folder / name for name in (JOB, MANIFEST)]
        if not any(path.exists() for path in entries) and not any(self._our_files()):
            return None
        try:
            return check_continues(self.folder, self._job)
        except ValueError:
            if self.overwrite:
                return None
            raise

    def _look_around(
        self,
        batches: dict[str, ChunkBatches],
        datasets: dict[str, Dataset],
        module: L.LightningModule,
        asked: dict[str, int],
    ) -> dict[str, set[int]]:
        """Sorts out what is there, the ranks sharing the work; returns the finished chunks of each split."""
        listed = listed_shards(self.folder)
        chunks = [(split, number) for split in batches for number in range(batches[split].num_chunks)]
        found = {}
        for split, number in chunks[distributed.rank() :: distributed.world_size()]:
            samples = batches[split].chunk(number)
            shard = self._whole_shard(self.file(split, number), listed, datasets[split], samples, module)
            if shard is not None:
                found[split, number] = shard
        found = {key: shard for part in distributed.all_gather_objects(found) for key, shard in part.items()}
        self._kept = [(split, shard) for (split, _), shard in found.items()]
        was_finished = bool(listed) and asked == self._job.num_samples
        self._complete = (
            was_finished
            and listed == {shard.file: shard for _, shard in self._kept}
            and set(self._our_files()) == {self.folder / file for file in listed}
            and all((self.folder / name).exists() for name in self.outputs)
        )
        # A chunk without a readable image has no file; in a finished folder it need not be tried again.
        empty = {key for key in chunks if was_finished and self.file(*key) not in listed}
        return {split: {n for s, n in {*found, *empty} if s == split} for split in batches}

    def _whole_shard(
        self,
        file: str,
        listed: dict[str, Shard],
        dataset: Dataset,
        samples: range,
        module: L.LightningModule,
    ) -> Shard | None:
        path = self.folder / file
        if not path.is_file():
            return None
        try:
            num_samples = self.count_samples(path, dataset, samples, module)
        except ValueError as error:
            log.warning("%s is made again: %s", path, error)
            return None
        shard = Shard(file, num_samples, path.stat().st_size, sha256(path))
        if listed.get(file, shard) != shard:
            log.warning("%s is made again: it is not as the manifest says.", path)
            return None
        return shard

    def _our_files(self) -> Iterator[Path]:
        """Files of our names in our places, and no others."""
        for place in {(self.folder / self.file(split, 0)).parent for split in self.splits}:
            if place.is_dir():
                yield from [path for path in place.iterdir() if _OURS.fullmatch(path.name)]

    def _flush(self, module: L.LightningModule) -> None:
        """Writes the file of the chunk at hand, if there is one."""
        if self._chunk is not None:
            split, number = self._chunk
            self._shards.append((split, self.write_chunk(split, number, self._predictions, module)))
        self._chunk, self._predictions = None, []

    def _of_split(self, shards: list[tuple[str, Shard]], split: str) -> tuple[Shard, ...]:
        """The split's shards in the order of its samples."""
        chosen = [shard for name, shard in shards if name == split]
        if not chosen:  # raised on every rank, so that none waits for another
            raise ValueError(
                f"No image of the split '{split}' could be read, so {self.folder} stays unfinished. "
                "Check the images and start again."
            )
        return tuple(sorted(chosen, key=lambda shard: shard.file))

    def _remove_leftovers(self, splits: Splits) -> None:
        """Removes what an older or broken run left."""
        listed = {self.folder / shard.file for shards in splits.values() for shard in shards}
        for path in self._our_files():
            if path not in listed:
                path.unlink()

    def _summarise(self, new: list[tuple[str, Shard]]) -> str:
        kept = self._count(self._kept)
        if self._complete:
            return f"{self.folder} is finished: {kept}, each of them checked. Nothing to do."
        elapsed_s = time.monotonic() - self._started_s
        before = f", in addition to {kept} from before" if self._kept else ""
        return f"Wrote {self._count(new)} in {elapsed_s:.1f} s, {len(new)} shards{before}: {self.folder}"

    def _count(self, shards: list[tuple[str, Shard]]) -> str:
        return ", ".join(
            f"{sum(shard.num_samples for name, shard in shards if name == split)} {split}"
            for split in self._job.num_samples
        )
