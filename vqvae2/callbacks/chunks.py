"""What jobs that predict into files share: one file a chunk of the data, then a manifest."""

import re
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import lightning as L

from vqvae2 import distributed
from vqvae2.callbacks.run_folder import check_writable
from vqvae2.data.shards import MANIFEST, Shard

Splits = dict[str, tuple[Shard, ...]]

_OURS = re.compile(r"\d{6}\.tar(\.part)?")


class ChunkWriter(L.Callback, ABC):
    """Writes the predictions of each chunk of the data to a file of its own, then a manifest of the files.

    A chunk comes to one rank, in consecutive batches, so no rank waits for another and the files do not
    depend on the number of ranks. A folder without a manifest is unfinished: an old manifest goes before the
    first file is replaced, the new one comes after the last.

    The data module says `split_names`, one a predict loader, and `chunk_size`; predictions have an `index`.

    Args:
        folder: for the files; what an older run left there is replaced.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._chunk: tuple[str, int] | None = None  # split and number of the chunk at hand
        self._predictions: list[Any] = []
        self._shards: list[tuple[str, Shard]] = []  # this rank's, with their splits
        self._started_s = 0.0
        self._summary = ""

    @abstractmethod
    def write_chunk(
        self, split: str, number: int, predictions: list[Any], module: L.LightningModule
    ) -> Shard:
        """Writes one chunk aside and moves it to its place."""

    @abstractmethod
    def finish(self, splits: Splits, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Writes the manifest; on rank 0, when all files are in their places."""

    def keep(self, prediction: Any) -> Any:
        """What is kept in memory of a prediction until its chunk is complete."""
        return prediction

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        check_writable(self.folder)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started_s = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._chunk, self._predictions, self._shards, self._summary = None, [], [], ""
        if trainer.is_global_zero:
            (self.folder / MANIFEST).unlink(missing_ok=True)
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
        data = trainer.datamodule
        chunk = (data.split_names[dataloader_idx], int(outputs.index[0]) // data.chunk_size)
        if chunk != self._chunk:
            self._flush(pl_module)
            self._chunk = chunk
        self._predictions.append(self.keep(outputs))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._flush(pl_module)
        shards = [shard for shards in distributed.all_gather_objects(self._shards) for shard in shards]
        splits = {split: self._of_split(shards, split) for split in trainer.datamodule.split_names}
        if trainer.is_global_zero:
            self._remove_leftovers(splits)
            self.finish(splits, trainer, pl_module)
            counts = ", ".join(f"{sum(s.num_samples for s in splits[name])} {name}" for name in splits)
            elapsed_s = time.monotonic() - self._started_s
            self._summary = f"Wrote {counts} in {elapsed_s:.1f} s, {len(shards)} shards: {self.folder}"
        trainer.strategy.barrier()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._summary:  # by now the progress bar is closed
            print(self._summary)

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
        """Removes what an older or broken run left: files of our names in our places, and no others."""
        listed = {self.folder / shard.file for shards in splits.values() for shard in shards}
        for place in {path.parent for path in listed}:
            for path in place.iterdir():
                if _OURS.fullmatch(path.name) and path not in listed:
                    path.unlink()
