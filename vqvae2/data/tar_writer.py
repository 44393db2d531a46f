"""Writing WebDataset tars whole: aside first, then renamed; their bytes depend on their content alone."""

import hashlib
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from webdataset import TarWriter

from vqvae2.data.latents import Shard


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
