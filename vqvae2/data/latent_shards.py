"""Shards of codes: WebDataset tars of batched records, written and read without pickle.

A record holds up to `samples_per_record` samples under one key, as the members

    KEY.top.npy … KEY.bottom.npy   uint16 [n, h, w], one a level
    KEY.label.npy                  int64 [n]
    KEY.keys.json                  n strings: which image each sample comes from

One record of 256 samples reads several times faster than 256 records. A shard's bytes depend on its samples
alone. A shard is read in place: its members are found once and then mapped into memory, so any sample costs
the same and the page cache is shared by all workers and ranks of a machine.
"""

import contextlib
import io
import json
import logging
import math
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vqvae2.data.latents import ORIGIN, LatentSpec, Manifest, encode_command
from vqvae2.storage.cache import cache_bytes, fetch
from vqvae2.storage.remote import in_parallel, look
from vqvae2.storage.shards import Shard, index_members, npy_bytes, read_member, sha256, write_json, write_tar

log = logging.getLogger(__name__)

VERIFIED = ".verified.json"  # which shards were found whole, so that the next run need not read them all

CODES, LABELS = np.dtype("<u2"), np.dtype("<i8")


class Record(NamedTuple):
    """Where in its shard a record's arrays lie."""

    num_samples: int
    offsets: tuple[int, ...]  # in bytes, to the numbers of each level's codes and then of the labels


def write_shard(
    folder: Path,
    file: str,
    spec: LatentSpec,
    *,
    codes: Sequence[np.ndarray],
    labels: np.ndarray,
    keys: Sequence[str],
    samples_per_record: int,
) -> Shard:
    """Writes one shard aside and moves it to its place.

    Args:
        folder: the latents' folder; `file` is relative to it.
        codes: [N, h, w] integers of each level, top first.
        labels: [N] integers.
        keys: N strings.
    """
    arrays = {f"{level.name}.npy": code.astype(CODES) for level, code in zip(spec.levels, codes, strict=True)}
    arrays["label.npy"] = labels.astype(LABELS)

    def records() -> Iterator[dict[str, Any]]:
        for number, start in enumerate(range(0, len(keys), samples_per_record)):
            rows = slice(start, start + samples_per_record)
            record = {name: npy_bytes(array[rows]) for name, array in arrays.items()}
            names = json.dumps(list(keys[rows])).encode()
            yield {"__key__": f"{Path(file).stem}-{number:04d}", **record, "keys.json": names}

    return write_tar(folder, file, records(), num_samples=len(keys))


def shard_keys(path: Path) -> Iterator[str]:
    """Which image each sample of a shard comes from, in their order.

    Raises:
        ValueError: a record does not say.
    """
    for record, members in index_members(path).items():
        if "keys.json" not in members:
            raise ValueError(f"its record {record} has no keys.json.")
        yield from json.loads(read_member(path, members["keys.json"]))


def index_shard(path: Path, spec: LatentSpec) -> list[Record]:
    """Finds the records of a shard.

    Raises:
        ValueError: the shard is cut off, a record lacks a member or has one too many, or an array is not of
            the type and shape that `spec` says (an array of pickled objects among them).
    """
    with _naming(path), path.open("rb") as file:
        return [_read_record(file, key, members, spec) for key, members in _members(file).items()]


def map_shard(path: Path, records: Sequence[Record], spec: LatentSpec) -> list[tuple[np.ndarray, ...]]:
    """Each record's arrays (codes of each level, then labels), as views of the mapped file."""
    # Unlike numpy.memmap, this keeps no file open: thousands of shards would meet the limit on open files.
    content = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8).numpy()
    return [_arrays(content, record, spec) for record in records]


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compares the names and sizes of the shards with the manifest.

    In the local copy of a remote folder, shards that are missing or damaged are downloaded first.

    Raises:
        ValueError: a shard is missing, has another size or is not in the manifest.
    """
    if (folder / ORIGIN).is_file():
        _fetch_shards((folder / ORIGIN).read_text(), folder, manifest)
    mend = f"Encode again: {encode_command(folder)}."
    listed = {shard.file: shard for shards in manifest.splits.values() for shard in shards}
    for file, shard in listed.items():
        path = folder / file
        if not path.is_file():
            raise ValueError(f"{path} is missing, but the manifest lists it. {mend}")
        if path.stat().st_size != shard.bytes:
            raise ValueError(
                f"{path} has {path.stat().st_size} bytes, the manifest says {shard.bytes}. {mend}"
            )
    for path in sorted(folder.glob("*/*.tar")):
        if path.relative_to(folder).as_posix() not in listed:
            raise ValueError(f"{path} is not in the manifest. Remove it. {mend}")


def verify(folder: Path, manifest: Manifest) -> None:
    """Reads every shard and compares it with the manifest; shards found whole are remembered in the folder.

    Raises:
        ValueError: a shard's hash differs, it cannot be read, or a code or label is out of range.
    """
    known = _read_verified(folder)
    verified = {}
    for shard in (shard for shards in manifest.splits.values() for shard in shards):
        verified[shard.file] = _noted(folder / shard.file, shard)
        if known.get(shard.file) != verified[shard.file]:
            _verify_shard(folder / shard.file, shard, manifest.spec)
    if verified != known:
        try:
            write_json(folder / VERIFIED, verified)
        except OSError as error:
            log.info(
                "Cannot record in %s that its shards are complete, so the next run checks them again: %s",
                folder,
                error,
            )


def _fetch_shards(origin: str, folder: Path, manifest: Manifest) -> None:
    shards = [shard for shards in manifest.splits.values() for shard in shards]
    total = sum(shard.bytes for shard in shards)
    if total > cache_bytes():
        raise ValueError(
            f"{origin} has {total / 1e9:.3g} GB of latents. They are read in random order, so all must fit "
            f"into the cache, but the cache may hold {cache_bytes() / 1e9:.3g} GB. Raise VQVAE2_CACHE_GB."
        )
    known = _read_verified(folder)

    def fetch_shard(shard: Shard) -> None:
        path = folder / shard.file
        if path.is_file() and known.get(shard.file) != _noted(path, shard) and sha256(path) != shard.sha256:
            path.unlink()
        while not path.is_file():
            file = look(f"{origin}/{shard.file}")
            if file.size != shard.bytes:
                raise ValueError(
                    f"{file.url} has {file.size} bytes, the manifest says {shard.bytes}. Copy the folder "
                    f"there again, the manifest last, or encode again: {encode_command(folder)}."
                )
            fetch(file, path, lambda part: sha256(part) == shard.sha256)

    in_parallel(fetch_shard, shards)


def _noted(path: Path, shard: Shard) -> list:
    """What is remembered of a shard that was found whole."""
    status = path.stat()
    return [shard.sha256, status.st_size, status.st_mtime_ns]


def _verify_shard(path: Path, shard: Shard, spec: LatentSpec) -> None:
    with _naming(path):
        found = sha256(path)
        if found != shard.sha256:
            raise ValueError(f"its SHA-256 is {found[:16]}…, the manifest says {shard.sha256[:16]}…")
    records = index_shard(path, spec)
    with _naming(path):
        for *codes, labels in map_shard(path, records, spec):
            for level, code in zip(spec.levels, codes, strict=True):
                _check_range(f"codes of level '{level.name}'", code, 0, level.num_codes - 1)
            _check_range("labels", labels, -1, spec.num_classes - 1)


def _check_range(name: str, values: np.ndarray, lowest: int, highest: int) -> None:
    if values.min() < lowest or values.max() > highest:
        raise ValueError(
            f"its {name} go from {values.min()} to {values.max()}, wanted {lowest} to {highest} at most"
        )


def _read_verified(folder: Path) -> dict[str, list]:
    try:
        known = json.loads((folder / VERIFIED).read_bytes())
    except (OSError, ValueError):  # no such note, or a damaged one: then nothing is known
        return {}
    return known if isinstance(known, dict) else {}


def _members(file: io.BufferedReader) -> dict[str, dict[str, tarfile.TarInfo]]:
    """The members of a tar by record key and extension."""
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                members.setdefault(key, {})[extension] = member
    except tarfile.TarError as error:
        raise ValueError(f"it cannot be read as a tar ({error})") from error
    return members


def _read_record(
    file: io.BufferedReader, key: str, members: dict[str, tarfile.TarInfo], spec: LatentSpec
) -> Record:
    wanted = {f"{level.name}.npy": (CODES, (level.height, level.width)) for level in spec.levels}
    wanted["label.npy"] = (LABELS, ())
    if members.keys() != {*wanted, "keys.json"}:
        raise ValueError(f"record {key} has the members {sorted(members)}, wanted {[*wanted, 'keys.json']}")
    lengths, offsets = set(), []
    for extension, (dtype, shape) in wanted.items():
        length, offset = _read_header(file, members[extension], dtype, shape)
        lengths.add(length)
        offsets.append(offset)
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"record {key} has arrays of the lengths {sorted(lengths)}, wanted one above 0")
    return Record(lengths.pop(), tuple(offsets))


def _read_header(
    file: io.BufferedReader, member: tarfile.TarInfo, dtype: np.dtype, shape: tuple[int, ...]
) -> tuple[int, int]:
    """Length of the array in a member and the offset of its numbers."""
    file.seek(member.offset_data)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("wanted version 1.0 of the format")
        found, fortran, found_dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        raise ValueError(f"{member.name} is not an array: {error}") from error
    if found_dtype != dtype or fortran or found[1:] != shape or not found:
        raise ValueError(f"{member.name} is {found_dtype} {list(found)}, wanted {dtype} {['n', *shape]}")
    offset = file.tell()
    if offset + dtype.itemsize * math.prod(found) != member.offset_data + member.size:
        raise ValueError(f"{member.name} has {member.size} bytes, too few or too many for {list(found)}")
    return found[0], offset


def _arrays(content: np.ndarray, record: Record, spec: LatentSpec) -> tuple[np.ndarray, ...]:
    shapes = [(CODES, (record.num_samples, level.height, level.width)) for level in spec.levels]
    shapes.append((LABELS, (record.num_samples,)))
    return tuple(
        np.ndarray(shape, dtype, content, offset)
        for (dtype, shape), offset in zip(shapes, record.offsets, strict=True)
    )


@contextlib.contextmanager
def _naming(path: Path):  # noqa: ANN202
    """Adds to a ValueError the shard's path and the command that writes it again."""
    try:
        yield
    except ValueError as error:
        command = encode_command(path.parent.parent)
        raise ValueError(f"{path} is damaged: {error}. Encode again: {command}.") from error
