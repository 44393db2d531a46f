"""Shards: WebDataset tars that are written whole, and what a manifest says of them.

Everything is written aside first and then renamed; a tar's bytes depend on its content alone.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from webdataset import TarWriter

MANIFEST = "manifest.json"  # the table of contents of a folder of shards, written last


@dataclass(frozen=True)
class Shard:
    """A tar of the folder."""

    file: str  # relative to the folder, with forward slashes
    num_samples: int
    bytes: int
    sha256: str


def write_tar(folder: Path, file: str, records: Iterable[dict[str, Any]], *, num_samples: int) -> Shard:
    """Writes `folder/file`.

    Args:
        records: each a `__key__` and the bytes of its members by extension.
        num_samples: what the records hold, for the manifest.
    """
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream, TarWriter(stream, user="", group="", mtime=0, encoder=False) as tar:
            for record in records:
                tar.write(record)
        shard = Shard(file, num_samples, part.stat().st_size, sha256(part))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return shard


def npy_bytes(array: np.ndarray) -> bytes:
    """The array as the content of a .npy file; pickled objects are refused."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: object) -> None:
    """Writes JSON so that `path` never holds half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)
