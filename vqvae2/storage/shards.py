"""Shards: WebDataset tars that are written whole, and what a manifest says of them.

Everything is written aside first, to the disk, and then renamed, so a file in its place is whole, whatever
ended the job. A tar's bytes depend on its content alone.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MANIFEST = "manifest.json"  # the table of contents of a folder of shards, written last

_BLOCK = 512  # bytes; members of a tar start at multiples
_END = bytes(2 * _BLOCK)  # the mark behind the last member


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
    from webdataset import TarWriter  # a second of start that no other verb than predict needs

    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream, TarWriter(stream, user="", group="", mtime=0, encoder=False) as tar:
            for record in records:
                tar.write(record)
        _to_disk(part)
        shard = Shard(file, num_samples, part.stat().st_size, sha256(part))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return shard


class Member(NamedTuple):
    """Where in a tar the content of a member lies, in bytes."""

    offset: int
    size: int


def index_members(path: Path) -> dict[str, dict[str, Member]]:
    """The members of a shard by key and extension, in their order.

    Raises:
        ValueError: the file is not a tar, damaged or cut short.
    """
    members: dict[str, dict[str, Member]] = {}
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                members.setdefault(key, {})[extension] = Member(member.offset_data, member.size)
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
    except tarfile.TarError as error:
        raise ValueError(f"{path} cannot be read as a tar ({error}).") from error
    if read_member(path, Member(end, len(_END))) != _END:  # `tarfile` takes damage for the end
        raise ValueError(f"{path} is damaged or cut short: no end mark after {end:,} bytes.")
    return members


def read_member(path: Path, member: Member) -> bytes:
    """The content of a member of a shard."""
    with path.open("rb", buffering=0) as file:
        file.seek(member.offset)
        return file.read(member.size)


def npy_array(content: bytes) -> np.ndarray:
    """The array in the content of a .npy file.

    Raises:
        ValueError: it is damaged, or holds pickled objects.
    """
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)


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
    _to_disk(part)
    os.replace(part, path)


def _to_disk(path: Path) -> None:
    """Without this, a machine that loses power could keep the rename and lose the content."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
