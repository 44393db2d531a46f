"""What every source of images is: a random-access list of encoded images that knows its labels and itself."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
from PIL import Image

from vqvae2.storage import tars

UNLABELLED = -1

_SOME = 64  # images whose bytes are part of `contents`; the sizes of all are


class ImageSource(ABC):
    """A list of encoded images with random access; safe to hand to loader workers.

    Args:
        location: what the user named, for messages.
        names: one unique name a sample, as messages show it; without its ending it is the sample's key.
        labels: int64 `[N]`; -1 everywhere when unlabelled.
        classes: class names in label order; () when unlabelled.

    Attributes:
        names_classes: whether classes have names of their own; else they are known by number only.
        missing: samples that lack their image or label, by the name of what there is.
    """

    names_classes = True
    missing: tuple[str, ...] = ()

    def __init__(
        self, location: str, names: Iterable[str], labels: np.ndarray, classes: Sequence[str] = ()
    ) -> None:
        self.location = location
        self.labels = labels
        self.classes = tuple(classes)
        encoded = [os.fsencode(name) for name in names]
        # One block of memory: a million str objects would be copied into every worker by reference counting.
        self._names = np.array(encoded)
        self._key_lengths = np.array([self._key_length(name) for name in encoded], np.int64)
        if len(self) == 0:
            raise ValueError(
                f"{location} holds no image. Wanted a folder of class folders, a folder of images, tars with "
                "images, or an .npz named by its path; an image ends in "
                f"{', '.join(sorted(tars.IMAGE_SUFFIXES))}."
            )
        self._refuse_twins()

    def __len__(self) -> int:
        return len(self._names)

    def name(self, i: int) -> str:
        """How messages call sample i within the location."""
        return os.fsdecode(self._names[i])

    def key(self, i: int) -> str:
        """Unique, stable, without the file's ending."""
        return os.fsdecode(self._names[i][: self._key_lengths[i]])

    def encoded_keys(self) -> list[bytes]:
        """All keys in the bytes of file names: for a million images many times faster than one by one."""
        columns = self._names.view(np.uint8).reshape(len(self), -1)
        kept = np.where(np.arange(columns.shape[1]) < self._key_lengths[:, None], columns, np.uint8(0))
        return kept.reshape(-1).view(self._names.dtype).tolist()

    def label(self, i: int) -> int:
        """The class index, or -1 when unlabelled."""
        return int(self.labels[i])

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 by which the images can be recognised, whatever the location is called.

        It is of the names, the labels and what the file system says of the files (size in bytes and time of
        the last change in ns), not of their contents: nothing is read. A copy keeps it if it keeps the times.
        """
        digest = hashlib.sha256(type(self).__name__.encode())
        for array in (self._names, self.labels.astype(np.int64), *self._evidence()):
            digest.update(f" {array.dtype.str} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @cached_property
    def contents(self) -> str:
        """Hex SHA-256 by which other images of the same names are told: a copy has it too, wherever it lies.

        It is of the size in bytes of every image and of the bytes of 64 of them, spread evenly, where these
        can be had without reading all: what leaves every size as it was and those 64 alone is not noticed.
        """
        digest = hashlib.sha256()
        for array in self._contents():
            digest.update(f" {array.dtype.str} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _refuse_twins(self) -> None:
        keys = self.encoded_keys()
        if len(set(keys)) == len(keys):
            return
        seen: set[bytes] = set()
        twin = next(i for i, key in enumerate(keys) if key in seen or seen.add(key))
        raise ValueError(
            f"{self.location}: the key {self.key(twin)} stands for several images, one of them "
            f"{self.name(twin)}. Names must differ in more than their ending; rename one."
        )

    @staticmethod
    def _key_length(name: bytes) -> int:
        """How much of a sample's name is its key."""
        return len(os.path.splitext(name)[0])

    @abstractmethod
    def read(self, i: int) -> Image.Image:
        """Decodes sample i.

        Raises:
            OSError: it cannot be read as an image.
        """

    @abstractmethod
    def _evidence(self) -> Iterator[np.ndarray]:
        """What changes, besides names and labels, when an image does: arrays without objects."""

    @abstractmethod
    def _contents(self) -> Iterator[np.ndarray]:
        """The same, but equal for every copy of the images: arrays without objects."""


def some_of(count: int) -> np.ndarray:
    """The numbers below `count` of the images whose bytes are compared, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, _SOME)).round().astype(np.int64))


def file_facts(paths: Iterable[str | os.PathLike[str]]) -> np.ndarray:
    """Size in bytes and time of the last change in ns of each file, int64 `[N, 2]`.

    Both are -1 for a file that is not there: whoever reads it accounts for it, as for any unreadable image.
    """
    facts = []
    for path in paths:
        try:
            found = os.stat(path)
        except OSError:
            facts.append((-1, -1))
        else:
            facts.append((found.st_size, found.st_mtime_ns))
    return np.array(facts, np.int64)
