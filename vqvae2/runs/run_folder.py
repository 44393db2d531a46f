"""The run folder, `trainer.default_root_dir`: whether it can be written, and its checkpoints."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from vqvae2.nn.checks import require
from vqvae2.runs.checkpoint_files import (
    PART,
    NotSaved,
    keep_copy,
    name_also,
    put_in_place,
    recover,
    set_aside,
)
from vqvae2.runs.identity import RUN
from vqvae2.runs.loop_state import Place, owe_validation, write_place
from vqvae2.runs.preemption import StopRequest, stopped


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


class RunCheckpoint(Checkpoint):
    """Keeps `last.ckpt` and `best.ckpt` in the run folder, and ends a run on a signal.

    `last.ckpt` is written after each validation (without validation, each epoch), in between by steps or
    minutes, when a signal ends the run, and at its end. A run continues from it exactly: it is only written
    between two optimiser steps, and the previous one stays until the new one is complete on the disk. If it
    cannot be written, the run warns, continues, and tries again when the next is due. At a run's end that is
    an error.

    On SIGTERM, SIGUSR1, Ctrl-C and the end of `trainer.max_time` the run finishes the batch, writes
    `last.ckpt` and ends, on all ranks after the same step. Lightning's ModelCheckpoint is not used: it writes
    its last checkpoint only when the best one improved.

    Args:
        monitor: the validation metric whose best value `best.ckpt` has; None keeps no best.
        mode: whether the lowest or the highest value is best.
        every_steps: also write `last.ckpt` after so many optimiser steps.
        every_minutes: also write it when so many minutes have passed since the last time.
        keep: how many of these checkpoints are also kept under their step numbers, `step-00001000.ckpt`.
    """

    def __init__(
        self,
        *,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        every_steps: int | None = None,
        every_minutes: float | None = 30.0,
        keep: int = 0,
    ) -> None:
        require(every_steps is None or every_steps >= 1, "every_steps", every_steps, "at least 1, or null")
        require(
            every_minutes is None or every_minutes > 0, "every_minutes", every_minutes, "above 0, or null"
        )
        require(keep >= 0, "keep", keep, "0 or more")
        self.monitor = monitor
        self.mode = mode
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.keep = keep
        self.best: float | None = None
        self.identity: dict[str, Any] = {}  # of the run, for the checkpoints; see `run_identity`
        self.starts_anew = False  # and what an earlier run has left is set aside
        self.request = StopRequest()
        self._saved_step = 0
        self._saved_at = 0.0
        self._place = Place(0, 0)
        self._owed = False  # a `last.ckpt` that was due in the middle of accumulated batches, or of an epoch
        self._writing: tuple[Place, bool] | None = (
            None  # while saving: the place, and whether to validate there
        )

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listen(trainer)

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._monitored(trainer)  # a misspelt name ends the run now and not after the first epoch

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listen(trainer)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        if trainer.is_global_zero and not trainer.fast_dev_run:
            folder = Path(trainer.default_root_dir)
            recover(folder)
            if self.starts_anew and (aside := set_aside(folder)):
                rank_zero_info(f"What was in {folder} is now in {aside}.")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fast_dev_run or batch_idx % trainer.accumulate_grad_batches:
            return
        self._place = Place(trainer.current_epoch, batch_idx)
        code, due = self.request.agreed(want=self._is_due(trainer.global_step))
        if code or due or self._owed:
            self._save_last(trainer, self._place, final=code > 0)
        if code:
            raise stopped(code, saved=self._saved(trainer))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._place = Place(trainer.current_epoch, batch_idx + 1)

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.state.fn != "fit" or trainer.fast_dev_run:
            return
        code, _ = self.request.agreed()
        if code and trainer.sanity_checking:
            raise stopped(code, saved="no step was done")
        if code and self._between_steps(trainer):
            self._save_last(trainer, self._place, final=True, validate=True)
            raise stopped(code, saved=self._saved(trainer))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return
        value = self._monitored(trainer)
        improved = value is not None and self._improves(value)
        before, names = self.best, []
        if trainer.strategy.broadcast(improved):  # saving is collective: all ranks do what rank 0 found
            self.best, names = value, ["best"]
        self._owed = not self._between_steps(trainer)
        if not self._owed and trainer.global_step > self._saved_step:
            names.append("last")
        if names and not self._save(trainer, names, self._next_place(trainer)):
            self.best = before

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._owed |= not trainer.enable_validation

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.fast_dev_run:
            self._save_last(trainer, self._next_place(trainer), final=True)
        self.request.leaves = True

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[RUN] = self.identity
        if self._writing is None:
            return  # not by this callback: the place is whatever Lightning says
        place, validate = self._writing
        fit_loop = checkpoint["loops"]["fit_loop"]
        write_place(fit_loop, place, epoch_ends=place.batch >= trainer.num_training_batches)
        if validate:
            owe_validation(fit_loop)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def _listen(self, trainer: L.Trainer) -> None:
        if not trainer.fast_dev_run:  # which saves nothing
            self.request.listen(getattr(trainer.strategy, "_timeout", None))  # of those for several devices

    def _is_due(self, step: int) -> bool:
        if step == self._saved_step:
            return False
        minutes = (time.monotonic() - self._saved_at) / 60
        by_time = self.every_minutes is not None and minutes >= self.every_minutes
        return by_time or (self.every_steps is not None and step % self.every_steps == 0)

    def _between_steps(self, trainer: L.Trainer) -> bool:
        """Whether no gradients of accumulated batches are pending, which no checkpoint holds."""
        ends = self._place.batch >= trainer.num_training_batches  # Lightning makes a step of what there is
        return ends or self._place.batch % trainer.accumulate_grad_batches == 0

    def _next_place(self, trainer: L.Trainer) -> Place:
        ends = self._place.batch >= trainer.num_training_batches
        return Place(self._place.epoch + 1, 0) if ends else self._place

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

    def _saved(self, trainer: L.Trainer) -> str:
        return f"{Path(trainer.default_root_dir) / 'last.ckpt'} is at step {self._saved_step}"

    def _save_last(
        self, trainer: L.Trainer, place: Place, *, final: bool = False, validate: bool = False
    ) -> None:
        self._owed = False
        if trainer.global_step > self._saved_step:
            self._save(trainer, ["last"], place, final=final, validate=validate)

    def _save(
        self,
        trainer: L.Trainer,
        names: Sequence[str],
        place: Place,
        *,
        final: bool = False,
        validate: bool = False,
    ) -> bool:
        """Saves on all ranks, once, under all of the names in this order; whether it could be written.

        Raises:
            NotSaved: it could not, and it was `final`.
        """
        *others, path = [Path(trainer.default_root_dir) / f"{name}.ckpt" for name in names]
        part = path.with_name(path.name + PART)
        if "last" in names:
            self._saved_at = time.monotonic()
        problem = None
        self._writing = (place, validate)
        try:
            trainer.save_checkpoint(part, weights_only=False)
        except NotSaved as error:  # on the rank that writes; the others wait for it
            problem = str(error)
            trainer.strategy.barrier("Trainer.save_checkpoint")
        finally:
            self._writing = None
        if trainer.is_global_zero and problem is None:
            try:
                for other in others:
                    name_also(part, other)
                put_in_place(part, path)
                if "last" in names and self.keep:
                    keep_copy(path, trainer.global_step, self.keep)
            except OSError as error:  # such as a full disk, where there are no links and names are copies
                problem = f"{part} could not be put in its place ({error.strerror})"
        problem = trainer.strategy.broadcast(problem)
        if problem and final:
            raise NotSaved(
                f"{problem}. Make room and start again: the run goes on from step {self._saved_step}."
            )
        if problem:
            rank_zero_warn(f"{problem}. Training goes on; the checkpoint of step {self._saved_step} stays.")
        elif "last" in names:
            self._saved_step = trainer.global_step
        return problem is None
