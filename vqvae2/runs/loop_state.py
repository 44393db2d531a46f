"""Where in its epochs a run is, in Lightning's own record of it."""

from typing import Any, NamedTuple

import lightning as L


class Place(NamedTuple):
    """Epochs that are behind, and batches of the one that has begun."""

    epoch: int
    batch: int


def write_place(fit_loop: dict[str, Any], place: Place, *, epoch_ends: bool) -> None:
    """Makes a fit loop's saved state, in place, that of a run about to take its next batch.

    Lightning saves counters as they are at the moment of saving, and takes them up again exactly only for
    some moments: not for the start of a batch, nor for a run that stopped in the middle of an epoch.

    Args:
        fit_loop: the saved state.
        place: the next batch.
        epoch_ends: no batch is left in the epoch; only a validation.
    """
    batches = fit_loop["epoch_loop.batch_progress"]
    done = batches["total"]["completed"]
    for name, count in (("total", done), ("current", place.batch)):
        batches[name] = dict.fromkeys(batches[name], count)
    batches["is_last_batch"] = epoch_ends
    epochs = fit_loop["epoch_progress"]
    for name in ("total", "current"):
        epochs[name] |= {"completed": place.epoch, "processed": place.epoch}
        epochs[name] |= {"started": place.epoch + 1, "ready": place.epoch + 1}
    for loader in fit_loop["state_dict"].get("combined_loader", []):
        if "batches_done" in loader:  # the loader is ahead by what has been fetched and not used
            loader |= {"epoch": place.epoch, "batches_done": place.batch}


def owe_validation(fit_loop: dict[str, Any]) -> None:
    """Makes a state of `write_place` that of a run whose next act is to begin the validation that is due."""
    validation = fit_loop["epoch_loop.val_loop.batch_progress"]
    for name in ("total", "current"):
        validation[name] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}


class StepNumbers(L.Callback):
    """Numbers the rows of a resumed run as those of an uninterrupted one; has to be the first callback.

    Lightning counts a step once more, or once less, when it resumes after a validation, by its settings.
    """

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
