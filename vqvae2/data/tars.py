"""Random access to WebDataset tars: an index of where each sample's bytes lie, and no unpacking."""

import gzip
import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np

from vqvae2.data.decode import IMAGE_SUFFIXES
from vqvae2.data.shard_cache import cache_folder

log = logging.getLogger(__name__)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")

_BLOCK = 512  # bytes; everything in a tar starts at a multiple
WORTH_KEEPING = 1000  # samples; the index of fewer is made in less than 0.1 s
_NO_LABEL = -(2**63)  # in a kept index


class TarSample(NamedTuple):
    """Where a sample's image is in its tar, and its label (None without a .cls member)."""

    key: str
    suffix: str
    offset: int
    size: int
    label: int | None


def is_tar(name: str) -> bool:
    return name.lower().endswith(TAR_SUFFIXES)


def is_image(name: str) -> bool:
    """By its ending, in any case; hidden files are never images."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def without_tar_suffix(name: str) -> str:
    suffix = next(suffix for suffix in sorted(TAR_SUFFIXES, key=len) if name.lower().endswith(suffix))
    return name[: -len(suffix)]


def plain_tar(path: Path) -> Path:
    """The path itself, or for a compressed tar an unpacked copy, made once in the system's temporary folder.

    Raises:
        ValueError: the compression is damaged or the file was cut short.
    """
    if path.suffix.lower() == ".tar":
        return path

    def unpack(target: BinaryIO) -> None:
        with gzip.open(path) as packed:
            shutil.copyfileobj(packed, target, 1 << 20)

    return unpacked_once(path, ".tar", unpack)


def unpacked_once(path: Path, suffix: str, unpack: Callable[[BinaryIO], None]) -> Path:
    """An unpacked copy in the system's temporary folder, made anew only when the packed file has changed.

    Args:
        path: the packed file.
        suffix: of the copy's name.
        unpack: writes what is unpacked.

    Raises:
        ValueError: the compression is damaged or the file was cut short.
    """
    facts = path.stat()
    identity = hashlib.sha256(f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()
    folder = Path(tempfile.gettempdir(), f"vqvae2-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{identity[:32]}{suffix}"
    if target.exists():
        return target
    # Written aside and renamed, so that ranks doing the same at once never see half a file.
    handle, aside = tempfile.mkstemp(dir=folder)
    try:
        with os.fdopen(handle, "wb") as unpacked:
            unpack(unpacked)
        os.replace(aside, target)
    except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked, it is damaged or cut short: {error}") from error
    finally:
        Path(aside).unlink(missing_ok=True)
    return target


def index_tar(path: Path, name: str) -> list[TarSample]:
    """The samples of an uncompressed tar that hold an image, in the tar's order.

    Neighbouring members with the same name up to the first dot are one sample, as in WebDataset.

    Args:
        name: how messages call the tar.

    Raises:
        ValueError: the tar is damaged or cut short, or a sample has two images or a label that is no number.
    """
    samples = []
    with path.open("rb") as data:
        for key, members in _grouped(path, name):
            images = [member for member in members if is_image(member.name)]
            if len(images) > 1:
                found = ", ".join(member.name for member in images)
                raise ValueError(f"{name}: sample {key} has several images ({found}), wanted one.")
            if images:
                image, label = images[0], _label(data, members, f"{name}: sample {key}")
                suffix = image.name.removeprefix(key)
                samples.append(TarSample(key, suffix, image.offset_data, image.size, label))
    return samples


def kept_index(
    name: str,
    version: str,
    index: Callable[[], list[TarSample]],
    *,
    at_least: int,
) -> list[TarSample]:
    """The samples of a tar from the index that the cache folder keeps, made anew when the tar has changed.

    Args:
        name: the tar's absolute path or address.
        version: changes with its content.
        index: makes the index.
        at_least: so many samples make an index worth keeping.
    """
    path = cache_folder() / "indices" / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.npz"
    if (known := _read_index(path, version)) is not None:
        return known
    samples = index()
    if len(samples) >= at_least:
        try:
            _write_index(path, version, samples)
        except OSError as error:
            log.info("Cannot keep the index of %s, so the next run makes it again: %s", name, error)
    return samples


def _read_index(path: Path, version: str) -> list[TarSample] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            if file["version"].item() != version:
                return None
            columns = [file[field].tolist() for field in TarSample._fields]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):  # none, or a damaged one
        return None
    keys, suffixes, *numbers, labels = columns
    texts = (map(os.fsdecode, keys), map(os.fsdecode, suffixes))
    return list(map(TarSample, *texts, *numbers, (None if n == _NO_LABEL else n for n in labels)))


def _write_index(path: Path, version: str, samples: list[TarSample]) -> None:
    """Writes aside, then renames."""
    columns = {field: [sample[i] for sample in samples] for i, field in enumerate(TarSample._fields)}
    for field in ("key", "suffix"):
        columns[field] = [os.fsencode(text) for text in columns[field]]
    columns["label"] = [_NO_LABEL if label is None else label for label in columns["label"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, version=np.array(version), **columns)
        os.replace(aside, path)
    finally:
        Path(aside).unlink(missing_ok=True)


def read_range(path: Path, offset: int, size: int) -> bytes:
    """Opens the file anew each time, which costs little beside a decode: loader workers share nothing."""
    with path.open("rb", buffering=0) as data:
        data.seek(offset)
        return data.read(size)


def _grouped(path: Path, name: str) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
    key, group = None, []
    for member in _members(path, name):
        stem, dot, _ = PurePosixPath(member.name).name.partition(".")
        if not (member.isfile() and stem and dot):
            continue
        member_key = str(PurePosixPath(member.name).with_name(stem))
        if group and member_key != key:
            yield key, group
            group = []
        key = member_key
        group.append(member)
    if group:
        yield key, group


def _members(path: Path, name: str) -> Iterator[tarfile.TarInfo]:
    """Every member. `tarfile` takes a damaged header or a missing end for the end, so look at the end."""
    end = 0
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                archive.members = []  # it would keep them all
                yield member
    except tarfile.ReadError as error:
        raise ValueError(f"{name} is not a tar, or damaged or cut short: {error}") from error
    if read_range(path, end, _BLOCK) != bytes(_BLOCK):
        raise ValueError(
            f"{name} is damaged or cut short: no end mark after its readable {end:,} bytes. Copy it again."
        )


def _label(data: BinaryIO, members: list[tarfile.TarInfo], sample: str) -> int | None:
    for member in members:
        if member.name.endswith(".cls"):
            data.seek(member.offset_data)
            text = data.read(member.size)
            try:
                return int(text)
            except ValueError:
                raise ValueError(f"{sample} has the label {text[:40]!r}, wanted a class index.") from None
    return None
