"""Indices of tars that the cache folder keeps, so that the next run need not read all headers again."""

import hashlib
import logging
import os
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vqvae2.storage.cache import cache_folder
from vqvae2.storage.tars import TarIndex, TarSample

log = logging.getLogger(__name__)

_FORMAT = "2"  # of the file and of what an index means; earlier ones are made anew
_NO_LABEL = -(2**63)


def kept_index(name: str, version: str, index: Callable[[], TarIndex], *, at_least: int) -> TarIndex:
    """The index of a tar from the cache folder, made anew when the tar has changed.

    Args:
        name: the tar's absolute path or address.
        version: changes with its content, and with what is looked for in it.
        index: makes the index.
        at_least: so many samples make an index worth keeping.
    """
    path = cache_folder() / "indices" / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.npz"
    version = f"{_FORMAT} {version}"
    if (known := _read(path, version)) is not None:
        return known
    found = index()
    if len(found.samples) >= at_least:
        try:
            _write(path, version, found)
        except OSError as error:
            log.info("Cannot keep the index of %s, so the next run makes it again: %s", name, error)
    return found


def _read(path: Path, version: str) -> TarIndex | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            if file["version"].item() != version:
                return None
            columns = {name: file[name].tolist() for name in file.files}
        labels = [_label(label) for label in columns["label"]]
        texts = {name: [*map(os.fsdecode, columns[name])] for name in ("key", "suffix", "missing", "other")}
        return TarIndex(
            [*map(TarSample, texts["key"], texts["suffix"], columns["offset"], columns["size"], labels)],
            texts["missing"],
            Counter(dict(zip(texts["other"], columns["count"], strict=True))),
        )
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):  # none, or a damaged one
        return None


def _write(path: Path, version: str, index: TarIndex) -> None:
    """Writes aside, then renames."""
    columns: dict[str, list] = {
        field: [sample[i] for sample in index.samples] for i, field in enumerate(TarSample._fields)
    }
    columns |= {"missing": index.missing, "other": [*index.others], "count": [*index.others.values()]}
    for field in ("key", "suffix", "missing", "other"):
        columns[field] = [os.fsencode(text) for text in columns[field]]
    columns["label"] = [
        label.encode() if isinstance(label, str) else _NO_LABEL if label is None else label
        for label in columns["label"]
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, version=np.array(version), **columns)
        os.replace(aside, path)
    finally:
        Path(aside).unlink(missing_ok=True)


def _label(stored: int | bytes) -> int | str | None:
    if isinstance(stored, bytes):
        return stored.decode()
    return None if stored == _NO_LABEL else stored
