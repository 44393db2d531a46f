"""The run folder, `trainer.default_root_dir`: whether it can be written, and its two checkpoints."""

import os
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins import TorchCheckpointIO


def check_writable(folder: str | Path) -> None:
    """Finds out, without writing anything, whether `folder` exists or could be made, and could be written to.

    Raises:
        ValueError: it cannot; the message names the folder that is in the way.
    """
    folder = Path(folder)
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"The output folder {folder} cannot be made: {existing} is a file.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(
            f"The output folder {folder} cannot be written: no permission in {existing}. "
            "Set another with --trainer.default_root_dir."
        )


class StreamedCheckpoints(TorchCheckpointIO):
    """Writes checkpoints aside, straight to the disk, and renames them.

    Lightning's own way builds the whole file in memory first: 8 GB for the paper's larger priors.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        torch.save(checkpoint, part)
        part.replace(path)


class RunCheckpoint(Checkpoint):
    """Keeps `last.ckpt` and `best.ckpt` in the run folder, written after each validation.

    The state at the end of training is always in `last.ckpt`. Without validation it is written every epoch.
    Lightning's ModelCheckpoint writes its last checkpoint only when the best one improved.

    Args:
        monitor: the validation metric whose best value `best.ckpt` has; None keeps no best.
        mode: whether the lowest or the highest value is best.
    """

    def __init__(self, *, monitor: str | None = None, mode: Literal["min", "max"] = "min") -> None:
        self.monitor = monitor
        self.mode = mode
        self.best: float | None = None
        self._saved_step = 0

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._monitored(trainer)  # a misspelt name ends the run now and not after the first epoch

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return
        value = self._monitored(trainer)
        improved = value is not None and self._improves(value)
        if trainer.strategy.broadcast(improved):  # saving is collective: all ranks do what rank 0 found
            self.best = value
            self._save(trainer, "best")
        self._save_last(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.enable_validation:
            self._save_last(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save_last(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def _monitored(self, trainer: L.Trainer) -> float | None:
        if self.monitor is None:
            return None
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            logged = ", ".join(sorted(metrics)) or "nothing"
            raise ValueError(f"checkpoint.monitor is '{self.monitor}', but validation logs {logged}.")
        return torch.as_tensor(metrics[self.monitor]).item()

    def _improves(self, value: float) -> bool:
        if self.best is None:
            return value == value  # not for NaN
        return value < self.best if self.mode == "min" else value > self.best

    def _save_last(self, trainer: L.Trainer) -> None:
        if trainer.global_step > self._saved_step and not trainer.fast_dev_run:
            self._saved_step = trainer.global_step
            self._save(trainer, "last")

    def _save(self, trainer: L.Trainer, name: str) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / f"{name}.ckpt", weights_only=False)
