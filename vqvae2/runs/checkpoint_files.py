"""Checkpoints on the disk: whole or not there, the earlier ones kept or pruned."""

import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from vqvae2.storage.checkpoint import META, read_checkpoint, read_file

PART = ".part"  # ends the name of what is being written
OLD = ".old"  # ends the name of a folder while another takes its place


class NotSaved(OSError):
    """A checkpoint could not be written; the one before it is untouched."""


class StreamedCheckpoints(TorchCheckpointIO):
    """Writes checkpoints aside, straight to the disk, and renames them; reads them without unpickling code.

    Lightning's own way builds the whole file in memory first: 8 GB for the paper's larger priors.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """
        Raises:
            NotSaved: the disk is full, or cannot be written.
        """
        path = Path(path)
        part = path if path.suffix == PART else path.with_name(path.name + PART)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if part != path:
                put_in_place(part, path)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError when the disk is full
            part.unlink(missing_ok=True)
            free_gb = shutil.disk_usage(path.parent).free / 1e9 if path.parent.is_dir() else 0.0
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "the write failed"
            raise NotSaved(
                f"{path.name.removesuffix(PART)} could not be written to {path.parent} ({reason}; "
                f"{free_gb:.1f} GB are free there)"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        if Path(path).is_dir():
            return read_checkpoint(path)
        return super().load_checkpoint(path, map_location=map_location, weights_only=True)


def put_in_place(new: Path, path: Path) -> None:
    """Makes the whole checkpoint `new`, a file or a folder of shards, the one at `path`.

    At every moment a whole one is there, at `path` or, while one folder replaces another, beside it; see
    `recover`.
    """
    if new.is_dir():
        for file in new.iterdir():
            _sync(file)
        _sync(new)
    if path.is_dir() or (new.is_dir() and path.exists()):
        old = path.with_name(path.name + OLD)
        os.replace(path, old)
        os.replace(new, path)
        _sync(path.parent)
        remove(old)
    else:
        os.replace(new, path)
        _sync(path.parent)


def recover(folder: Path) -> None:
    """Undoes what a killed run has left unfinished in its run folder."""
    for old in folder.glob(f"*.ckpt{OLD}"):
        path = old.with_name(old.name.removesuffix(OLD))
        if path.exists():
            remove(old)
        else:
            os.replace(old, path)
    for part in folder.glob(f"*.ckpt{PART}*"):
        remove(part)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def name_also(checkpoint: Path, other: Path) -> None:
    """Puts a checkpoint at `other` too, without a second copy of its bytes.

    What replaces either of them later leaves the other one alone.
    """
    part = other.with_name(other.name + PART)
    remove(part)
    if checkpoint.is_dir():
        shutil.copytree(checkpoint, part, copy_function=_link)
    else:
        _link(checkpoint, part)
    put_in_place(part, other)


def keep_copy(last: Path, step: int, keep: int) -> None:
    """Keeps `last` under its step number too, and prunes old ones.

    Args:
        last: a checkpoint.
        step: optimiser steps in it.
        keep: how many such copies stay, the latest.
    """
    name_also(last, last.with_name(f"step-{step:08d}.ckpt"))
    for old in history(last.parent)[keep:]:
        remove(old)


def history(folder: Path) -> list[Path]:
    """The checkpoints with step numbers in a run folder, the latest first."""
    found = [path for path in folder.glob("step-*.ckpt") if re.fullmatch(r"step-\d{8,}\.ckpt", path.name)]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")), reverse=True)


def set_aside(folder: Path) -> Path | None:
    """Moves an earlier run's checkpoints and metrics into a folder of their own, and says which."""
    files = [*folder.glob("*.ckpt"), *folder.glob("metrics.csv")]
    if not files:
        return None
    number = 1
    while (aside := folder / f"earlier-{number}").exists():
        number += 1
    aside.mkdir()
    for file in files:
        os.replace(file, aside / file.name)
    return aside


def is_whole(path: Path) -> bool:
    """Reads a checkpoint from end to end: whether it is there and every byte is as it was written."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    if path.is_dir() and not (path / META).is_file():
        return False
    try:
        for file in files:
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:
                    return False
    except (OSError, zipfile.BadZipFile):
        return False
    return True


def read_facts(path: Path) -> dict[str, Any]:
    """What a checkpoint holds beside its tensors, which stay on the disk.

    Raises:
        ValueError: it is damaged, or holds what could run code.
    """
    facts = read_file(path / META if path.is_dir() else path)
    if not isinstance(facts, dict) or "global_step" not in facts:
        raise ValueError(f"{path} is no checkpoint of a training run.")
    return facts


def find_last(folder: Path) -> Path | None:
    """The checkpoint that a run in this folder goes on from; None before its first."""
    last = folder / "last.ckpt"
    old = last.with_name(last.name + OLD)  # it was killed while one folder took another's place
    return next((path for path in (last, old) if path.exists()), None)


def check_whole(path: Path) -> None:
    """
    Raises:
        ValueError: the checkpoint is torn; names the newest other one of its folder that is whole.
    """
    if is_whole(path):
        return
    others = [*history(path.parent), path.with_name("last.ckpt"), path.with_name("best.ckpt")]
    good = next((other for other in others if other != path and is_whole(other)), None)
    mend = "Start anew with --resume false" if good is None else f"Go on from {good} with --ckpt_path {good}"
    raise ValueError(f"{path} cannot be read as a checkpoint: it is damaged or something else. {mend}.")


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
