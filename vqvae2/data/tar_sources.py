"""Images within WebDataset tars, on this machine or at addresses."""

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import braceexpand
import numpy as np
from PIL import Image

from vqvae2.data.class_names import class_labels, normal, numbered_classes
from vqvae2.data.folders import holds_pictures, refuse_parts
from vqvae2.data.image_source import UNLABELLED, ImageSource, file_facts, some_of
from vqvae2.pictures.decode import open_image
from vqvae2.storage import tars
from vqvae2.storage.cache import opened
from vqvae2.storage.job_file import written_by
from vqvae2.storage.kept_index import kept_index
from vqvae2.storage.passed_over import ending, files_by_name, files_of_endings, say
from vqvae2.storage.remote import RemoteFile, in_parallel, look
from vqvae2.storage.unpacked import plain_tar

_GRID = "grid.png"  # what the sample job writes beside its tars


class Labels(NamedTuple):
    """How the labels of tars are read.

    Attributes:
        field: of each sample's .json; None: the label is the sample's .cls.
        classes: another source's class names in label order, for labels that are names.
        ignored: there are none.
    """

    field: str | None = None
    classes: Sequence[str] | None = None
    ignored: bool = False


class _Samples(NamedTuple):
    """Of all tars together.

    Attributes:
        names: as messages show them.
        labels: int64 `[N]`; -1 everywhere when unlabelled.
        classes: class names in label order.
        places: (tar, offset, size) a sample, int64 `[N, 3]`, in the uncompressed tars.
        missing: members of samples that lack their image or label.
        names_classes: whether the labels were names.
    """

    names: list[str]
    labels: np.ndarray
    classes: list[str]
    places: np.ndarray
    missing: tuple[str, ...]
    names_classes: bool


class _TarSamples(ImageSource):
    """Images within tars, wherever those are.

    Args:
        samples: what they are.
    """

    def __init__(self, location: str, samples: _Samples) -> None:
        super().__init__(location, samples.names, samples.labels, samples.classes)
        self._places = samples.places
        self.missing = samples.missing
        self.names_classes = samples.names_classes

    def read(self, i: int) -> Image.Image:
        return open_image(self._bytes(i))

    def _bytes(self, i: int) -> bytes:
        tar, offset, size = (int(number) for number in self._places[i])
        return self._range(tar, offset, size)

    def _contents(self) -> Iterator[np.ndarray]:
        yield self._places[:, 2]

    @staticmethod
    def _key_length(name: bytes) -> int:
        start = name.rfind(b"/") + 1
        return start + len(name[start:].partition(b".")[0])

    @abstractmethod
    def _range(self, tar: int, offset: int, size: int) -> bytes: ...


class TarSource(_TarSamples):
    """Images within tars on this machine.

    Args:
        paths: the tars, as named.
        plain: the same, uncompressed.
    """

    def __init__(self, location: str, samples: _Samples, *, paths: list[Path], plain: list[Path]) -> None:
        super().__init__(location, samples)
        self._paths = paths
        self._plain = plain

    def _range(self, tar: int, offset: int, size: int) -> bytes:
        return tars.read_range(self._plain[tar], offset, size)

    def _evidence(self) -> Iterator[np.ndarray]:
        yield np.array([os.fsencode(path.name) for path in self._paths])
        yield file_facts(self._paths)
        yield self._places

    def _contents(self) -> Iterator[np.ndarray]:
        yield from super()._contents()
        for i in some_of(len(self)):
            yield np.frombuffer(self._bytes(i), np.uint8)


class RemoteTarSource(_TarSamples):
    """Images within tars at addresses, read from whole copies in the cache of this machine.

    Args:
        files: the tars.
    """

    def __init__(self, location: str, samples: _Samples, *, files: list[RemoteFile]) -> None:
        super().__init__(location, samples)
        self._files = files

    @property
    def shards(self) -> np.ndarray:
        """Which tar each sample is in, int64 `[N]`."""
        return self._places[:, 0]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each tar."""
        return [file.size for file in self._files]

    def _range(self, tar: int, offset: int, size: int) -> bytes:
        with opened(self._files[tar]) as data:
            data.seek(offset)
            return data.read(size)

    def _evidence(self) -> Iterator[np.ndarray]:
        yield np.array([" ".join(map(str, file)).encode() for file in self._files])
        yield self._places


def tar_paths(location: str) -> list[Path] | None:
    """The tars that a location means; None when it means none.

    Raises:
        ValueError: some are not there, or lie among pictures or parts of a data set.
    """
    path = Path(location).expanduser()
    if location and os.path.isdir(path):
        return _tars_of_folder(location, path)
    if not tars.is_tar(location):
        return None
    paths = _expanded(path)
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise ValueError(
            f"{location}: {len(missing)} of {len(paths)} tars are not there, first {missing[0]}. "
            "Wanted local paths; a pattern is written x-{0000..0009}.tar."
        )
    return paths


def open_tars(location: str, paths: list[Path], labels: Labels) -> TarSource:
    """Opens tars on this machine; compressed ones are unpacked first."""
    plain = [plain_tar(path) for path in paths]
    indices = [_index(path, unpacked, labels.field) for path, unpacked in zip(paths, plain, strict=True)]
    samples = _samples([path.absolute() for path in paths], indices, location, labels)
    return TarSource(location, samples, paths=paths, plain=plain)


def open_remote_tars(location: str, labels: Labels) -> RemoteTarSource:
    """Opens tars at addresses; those whose index is not kept are downloaded."""
    urls = list(braceexpand.braceexpand(location))
    paths = [Path("/", address.netloc, address.path.lstrip("/")) for address in map(urlsplit, urls)]
    if not all(path.suffix.lower() == ".tar" for path in paths):
        raise ValueError(
            f"{location}: images at addresses are read from uncompressed tars, such as "
            "https://host/x-{0000..0009}.tar. Download other files first."
        )
    files = in_parallel(look, urls)
    indices = in_parallel(lambda file: _remote_index(file, labels.field), files)
    return RemoteTarSource(location, _samples(paths, indices, location, labels), files=files)


def _tars_of_folder(location: str, root: Path) -> list[Path] | None:
    visible = sorted(entry for entry in os.listdir(root) if not entry.startswith("."))
    found = [name for name in visible if tars.is_tar(name)]
    if not found:
        return None
    if written_by(root) is None:  # a job's folder holds what the job writes
        _refuse_pictures(location, root, found, [name for name in visible if name not in (*found, _GRID)])
    refuse_parts(location, found)
    return [root / name for name in found]


def _refuse_pictures(location: str, root: Path, found: list[str], others: list[str]) -> None:
    """Refuses tars among pictures, and says what else is beside them."""
    folders = [name for name in others if os.path.isdir(root / name)]
    files = [name for name in others if name not in folders]
    pictures = [name for name in files if tars.is_image(name)]
    pictures += [f"those in {name}" for name in folders if not pictures and holds_pictures(root, name)]
    if pictures:
        raise ValueError(
            f"{location} mixes {len(found)} tars ({found[0]}, …) with pictures ({pictures[0]}, …). Name the "
            f"tars, such as {os.path.join(location, found[0])} or {location}/x-{{0000..0009}}.tar, or move "
            "one of the two away."
        )
    say(location, files_of_endings(Counter(map(ending, files)), "tars"))


def _expanded(path: Path) -> list[Path]:
    """The paths of a pattern. What exists is no pattern: neither the path nor the folders that it lies in."""
    known = path
    while not os.path.exists(known):
        known = known.parent
    if known == path:
        return [path]
    return [known / name for name in braceexpand.braceexpand(str(path.relative_to(known)))]


def _index(path: Path, plain: Path, field: str | None) -> tars.TarIndex:
    size, changed_at = file_facts([plain])[0]
    return kept_index(
        str(plain.resolve()),
        f"{size} {changed_at} {field or ''}",
        lambda: tars.index_tar(plain, str(path), field),
        at_least=tars.WORTH_KEEPING,
    )


def _remote_index(file: RemoteFile, field: str | None) -> tars.TarIndex:
    def index() -> tars.TarIndex:
        with opened(file) as data:
            return tars.index_tar(Path(data.name), file.url, field)

    return kept_index(file.url, f"{file.size} {file.version} {field or ''}", index, at_least=0)


def _samples(paths: list[Path], indices: list[tars.TarIndex], location: str, how: Labels) -> _Samples:
    """The samples in some tars with absolute paths."""
    common = os.path.commonpath([path.parent for path in paths])
    names, places, labels, missing, others = [], [], [], [], Counter()
    for number, (path, index) in enumerate(zip(paths, indices, strict=True)):
        shard = tars.without_tar_suffix(os.path.relpath(path, common))
        for sample in index.samples:
            names.append(f"{shard}/{sample.key}{sample.suffix}")
            places.append((number, sample.offset, sample.size))
            labels.append(sample.label)
        missing += [f"{shard}/{name}" for name in index.missing]
        others += index.others
    say(location, [*files_by_name(missing, "sample", "without image or label"), *files_of_endings(others)])
    if how.ignored:
        labels = [None] * len(names)
    numbers, classes, named = _numbers(labels, names, location, how)
    return _Samples(names, numbers, classes, np.array(places, np.int64), tuple(missing), named)


def _numbers(
    labels: list[int | str | None], names: list[str], location: str, how: Labels
) -> tuple[np.ndarray, list[str], bool]:
    """The labels as numbers, int64 `[N]`; the classes; whether these have names."""
    unlabelled = [name for name, label in zip(names, labels, strict=True) if label is None]
    if len(unlabelled) == len(names):
        return np.full(len(names), UNLABELLED), [], False
    member = ".cls" if how.field is None else ".json"
    if unlabelled:
        raise ValueError(
            f"{location}: {len(unlabelled)} of {len(names)} samples have no {member} member, first "
            f"{unlabelled[0]}. Label all or none."
        )
    named = {isinstance(label, str) for label in labels}
    if len(named) > 1:
        raise ValueError(
            f"{location}: '{how.field}' is a class's number in some samples and a name in others. "
            "Wanted one kind in all."
        )
    if not named.pop():
        numbers = np.array(labels, np.int64)
        return numbers, numbered_classes(numbers, names, location), False
    label_of = class_labels(location, {*map(normal, labels)}, how.classes, f"'{how.field}' of .json members")
    return np.array([label_of[normal(name)] for name in labels]), list(label_of), True
