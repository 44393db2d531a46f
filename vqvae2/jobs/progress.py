"""The progress bar of jobs that write files: images, over all devices."""

import sys
from collections.abc import Iterator
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm import tqdm

_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"


class ImageProgress(TQDMProgressBar):
    """One bar over all splits: images done, images/s, time left.

    It begins at what an earlier run has left; its speed is that of this run. Rank 0 has the largest share of
    what is missing, so its progress tells the time left; the other ranks are taken to be as far along.

    Where the output is no terminal, such as a log file, there is a line every half a minute at most.

    The data are a `ChunkedDataModule`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None
        self._batches: list[Iterator[range]] = []  # of this rank that are still to come, in each split
        self._begun_at = self._mine = self._done = self._total = 0  # images

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        splits = trainer.datamodule.predict_batches().values()
        self._begun_at = sum(split.num_finished for split in splits)
        self._total = sum(split.num_samples for split in splits)
        self._batches = [split.batches() for split in splits]
        self._mine, self._done = sum(split.num_mine for split in splits), 0
        super().on_predict_start(trainer, pl_module)

    def init_predict_tqdm(self) -> tqdm:
        terminal = sys.stdout.isatty()
        self._bar = tqdm(
            total=self._total,
            initial=self._begun_at,
            desc=self.predict_description,
            unit=" images",
            bar_format=_FORMAT,
            file=sys.stdout,
            disable=self.is_disabled or not self._mine,
            dynamic_ncols=terminal,
            mininterval=0.1 if terminal else 30,
        )
        return self._bar

    def on_predict_batch_start(self, *_: Any) -> None:
        """Where Lightning would begin a bar for each split."""

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._done += len(next(self._batches[dataloader_idx]))
        if self._mine:
            done = self._begun_at + (self._total - self._begun_at) * self._done // self._mine
            self.predict_progress_bar.update(done - self.predict_progress_bar.n)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if self._bar is not None:
            self._bar.close()
