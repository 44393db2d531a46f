"""Random access to WebDataset tars: an index of where each sample's bytes lie, and no unpacking."""

import json
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from vqvae2.pictures.decode import IMAGE_SUFFIXES
from vqvae2.storage.passed_over import ending

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")

_BLOCK = 512  # bytes; everything in a tar starts at a multiple
WORTH_KEEPING = 1000  # samples; the index of fewer is made in less than 0.1 s
_LONGEST_CLS = 4096  # bytes


class TarSample(NamedTuple):
    """Where a sample's image is in its tar, and its label: a class's number or name, None without one."""

    key: str
    suffix: str
    offset: int
    size: int
    label: int | str | None


class TarIndex(NamedTuple):
    """What is in a tar.

    Attributes:
        samples: those with an image, in the order of their images.
        missing: members that say that there should be more: labels without an image, links to nothing.
        others: how many further files belong to no sample, by their endings.
    """

    samples: list[TarSample]
    missing: list[str]
    others: Counter


class _File(NamedTuple):
    """A member that is a file or a link to one.

    Attributes:
        name: without ./ and with forward slashes.
        offset: where its content begins; -1 where it has none in one piece.
        size: of the content, in bytes.
        target: the name of the member that a link leads to; None of a file.
    """

    name: str
    offset: int
    size: int
    target: str | None


def is_tar(name: str) -> bool:
    return name.lower().endswith(TAR_SUFFIXES)


def is_image(name: str) -> bool:
    """By its ending, in any case; hidden files are never images."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def without_tar_suffix(name: str) -> str:
    suffix = next(suffix for suffix in sorted(TAR_SUFFIXES, key=len) if name.lower().endswith(suffix))
    return name[: -len(suffix)]


def read_range(path: Path, offset: int, size: int) -> bytes:
    """Opens the file anew each time, which costs little beside a decode: loader workers share nothing."""
    with path.open("rb", buffering=0) as data:
        data.seek(offset)
        return data.read(size)


def index_tar(path: Path, name: str, label_field: str | None = None) -> TarIndex:
    """What an uncompressed tar holds; of several tars joined into one file, all of them.

    Members with the same name up to the first dot are one sample, as in WebDataset, wherever they lie. Links
    count as what they lead to. Hidden files and files in hidden folders are skipped.

    Args:
        name: how messages call the tar.
        label_field: the field of a sample's .json that is its label; None: the label is its .cls.

    Raises:
        ValueError: the tar is damaged or cut short, or a sample has two images, two labels, or one that
            cannot be read.
    """
    label_ending = ".cls" if label_field is None else ".json"
    images: dict[str, _File] = {}
    labels: dict[str, _File] = {}
    others: list[tuple[str, str]] = []
    missing: dict[str, str] = {}
    for file in _resolved(path, name):
        key = _key(file.name)
        is_label = file.name.lower().endswith(label_ending)
        if not is_label and not is_image(file.name):
            others.append((key, ending(file.name)))
        elif file.target is not None:
            missing.setdefault(key, file.name)
        else:
            _add(labels if is_label else images, key, file, name)
    missing = {key: label.name for key, label in labels.items() if key not in images} | missing
    samples = []
    with path.open("rb") as data:
        for key, image in images.items():
            known = labels.get(key)
            label = None if known is None else _label(data, known, f"{name}: sample {key}", label_field)
            samples.append(TarSample(key, image.name.removeprefix(key), image.offset, image.size, label))
    return TarIndex(samples, [*missing.values()], Counter(end for key, end in others if key not in images))


def _add(found: dict[str, _File], key: str, file: _File, tar: str) -> None:
    if file.offset < 0:
        raise ValueError(
            f"{tar}: {file.name} is not stored as a file in one piece, as tar does it with the options "
            "--sparse and --multi-volume. Make the tar again without them."
        )
    if key in found:
        raise ValueError(
            f"{tar}: sample {key} has two members of one kind ({found[key].name}, {file.name}), wanted one. "
            "Rename one of them."
        )
    found[key] = file


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _resolved(path: Path, name: str) -> list[_File]:
    """All visible files of a tar, links replaced by what they lead to; those to nothing stay links."""
    files = list(_files(path, name))
    if any(file.target is not None for file in files):
        known = {file.name: file for file in files}
        files = [_followed(file, known) for file in files]
    return [file for file in files if not _is_hidden(file.name)]


def _followed(link: _File, known: dict[str, _File]) -> _File:
    file, seen = link, set()
    while file.target in known and file.target not in seen:
        seen.add(file.target)
        file = known[file.target]
    return link if file.target is not None else file._replace(name=link.name)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != ".." for part in name.split("/"))


def _files(path: Path, name: str) -> Iterator[_File]:
    for member in _members(path, name):
        if member.isdir():
            continue
        own = _normal(member.name)
        if member.issym():
            yield _File(own, -1, 0, _normal(posixpath.join(posixpath.dirname(own), member.linkname)))
        elif member.islnk():
            yield _File(own, -1, 0, _normal(member.linkname))
        else:
            in_one_piece = member.isfile() and not member.issparse()
            yield _File(own, member.offset_data if in_one_piece else -1, member.size, None)


def _normal(name: str) -> str:
    """Without ./ in front, as `tar -C folder .` writes it; some programs of Windows write backslashes."""
    return posixpath.normpath(name.replace("\\", "/"))


def _members(path: Path, name: str) -> Iterator[tarfile.TarInfo]:
    """Every member. `tarfile` takes a damaged header or a missing end for the end, so look at the end.

    It also ends at the first end mark, behind which `cat` may have put another tar.
    """
    with path.open("rb") as data:
        start: int | None = 0
        while start is not None:
            data.seek(start)
            end = start
            try:
                with tarfile.open(fileobj=data, mode="r:", encoding="utf-8") as archive:
                    while (member := archive.next()) is not None:
                        end = archive.offset
                        archive.members = []  # it would keep them all
                        yield member
            except tarfile.TarError as error:
                raise ValueError(f"{name} is not a tar, or damaged or cut short: {error}") from error
            if read_range(path, end, _BLOCK) != bytes(_BLOCK):
                found = "no tar follows" if end == start > 0 else "no end mark"
                raise ValueError(
                    f"{name} is damaged or cut short: {found} after its readable {end:,} bytes. "
                    "Copy it again."
                )
            start = _next_archive(data, end)


def _next_archive(data: BinaryIO, start: int) -> int | None:
    """Where the first byte that is not 0 lies: a header begins with a name. None if there is none."""
    data.seek(start)
    while block := data.read(2048 * _BLOCK):
        if content := block.lstrip(b"\0"):
            return start + len(block) - len(content)
        start += len(block)
    return None


def _label(data: BinaryIO, file: _File, sample: str, field: str | None) -> int | str:
    data.seek(file.offset)
    if field is not None:
        return _json_label(data.read(file.size), field, sample)
    text = data.read(min(file.size, _LONGEST_CLS))
    label = _integer(text)
    if label is None:
        raise ValueError(f"{sample} has the label {text[:40]!r}, wanted a class index.")
    return label


def _json_label(text: bytes, field: str, sample: str) -> int | str:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{sample}: its .json cannot be read ({error}).") from None
    if not isinstance(content, dict) or field not in content:
        found = ", ".join([*content][:5]) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{sample}: its .json has no field '{field}', but {found or 'nothing'}.")
    value = content[field]
    if isinstance(value, int | str) and value != "":
        label = _integer(str(value).encode())
        if label is not None or isinstance(value, str):
            return value if label is None else label
    raise ValueError(f"{sample} has '{field}' {str(value)[:40]!r}, wanted a class's number or name.")


def _integer(text: bytes) -> int | None:
    """The number that a text is, if it fits 64 bits."""
    try:
        number = int(text.removeprefix(b"\xef\xbb\xbf"))  # Windows marks UTF-8
    except ValueError:
        return None
    return number if -(2**63) < number < 2**63 else None
