"""Unpacked copies of compressed files, in the system's temporary folder: random access needs them.

A copy is made once and made anew when the packed file has changed. Making one stops before it has filled the
disk. Nothing removes the copies; the folder may be emptied at any time between runs.
"""

import gzip
import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from vqvae2.storage.cache import make_once

_BLOCK = 2**20  # bytes
_KEPT_FREE = 0.01  # of a disk, for others
_KEPT_FREE_AT_MOST = 10**9  # bytes
_MEND = "Make room there, or set the environment variable TMPDIR to another folder."


def plain_tar(path: Path) -> Path:
    """The path itself, or for a compressed tar its unpacked copy.

    Raises:
        ValueError: the compression is damaged, the file was cut short, or there is no room.
    """
    if path.suffix.lower() == ".tar":
        return path

    def blocks() -> Iterator[bytes]:
        with gzip.open(path) as packed:
            yield from iter(lambda: packed.read(_BLOCK), b"")

    return unpacked_once(path, ".tar", blocks)


def unpacked_once(path: Path, suffix: str, blocks: Callable[[], Iterator[bytes]], num_bytes: int = 0) -> Path:
    """The unpacked copy of a file, made if it is not there. Of several processes one makes it.

    Args:
        path: the packed file.
        suffix: of the copy's name.
        blocks: what is unpacked, piece by piece.
        num_bytes: how much that is, as far as it is known beforehand.

    Raises:
        ValueError: the compression is damaged, the file was cut short, or there is no room.
    """
    facts = path.stat()
    identity = hashlib.sha256(f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()
    try:
        folder = Path(tempfile.gettempdir(), f"vqvae2-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        target = folder / f"{identity[:32]}{suffix}"
        while not target.exists():
            make_once(target, lambda stream, part: _unpack(path, stream, part, blocks(), num_bytes))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be unpacked into {tempfile.gettempdir()}, the system's temporary folder "
            f"({error.strerror or error}). {_MEND}"
        ) from error
    return target


def _unpack(path: Path, stream: BinaryIO, part: Path, blocks: Iterator[bytes], num_bytes: int) -> None:
    stream.truncate(0)  # of one who was killed
    _check_room(path, part.parent, num_bytes)
    while block := _next(path, blocks):
        _check_room(path, part.parent, len(block))
        stream.write(block)
    stream.flush()


def _next(path: Path, blocks: Iterator[bytes]) -> bytes:
    try:
        return next(blocks, b"")
    except (EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked, it is damaged or cut short: {error}") from error


def _check_room(path: Path, folder: Path, num_bytes: int) -> None:
    disk = shutil.disk_usage(folder)
    if disk.free - num_bytes < min(_KEPT_FREE * disk.total, _KEPT_FREE_AT_MOST):
        raise ValueError(
            f"{path} cannot be unpacked: {disk.free / 1e9:,.3g} of {disk.total / 1e9:,.3g} GB are free in "
            f"{folder}, in the system's temporary folder, and part of that is kept free for others. {_MEND}"
        )
