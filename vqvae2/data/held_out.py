"""Held-out images: a part of the training images, or others with the same classes."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vqvae2.data.sources import FolderSource, ImageSource, open_source


def held_out(source: ImageSource, fraction: float, seed: int) -> np.ndarray:
    """Which samples are held out, bool `[N]`: decided by a hash of each key, whatever else is there."""
    seeded = (b"%d/%b" % (seed, key) for key in source.encoded_keys())
    digests = (hashlib.blake2b(key, digest_size=8).digest() for key in seeded)
    return np.array([int.from_bytes(digest, "big") < fraction * 2**64 for digest in digests])


def refuse_missing(sources: Iterable[ImageSource]) -> None:
    """Refuses samples that lack their image or label.

    Raises:
        ValueError: names how many and the first.
    """
    for source in sources:
        if source.missing:
            raise ValueError(
                f"{source.location}: {len(source.missing)} samples lack their image or label, first "
                f"{source.missing[0]}. Mend them, or set strict to false."
            )


def open_beside(train: ImageSource, location: str, label_field: str | None) -> ImageSource:
    """Opens held-out images with the classes of the training images.

    Class folders get the labels that their names have in training. Where training knows classes by number
    only, as files of samples do, the folders in sorted order are the classes 0, 1, … and name them.

    Raises:
        ValueError: the classes are not the same, or could be meant in two orders.
    """
    count = len(train.classes)
    if not train.names_classes and count and Path(location).expanduser().is_dir():
        source = open_source(location)
        if isinstance(source, FolderSource) and source.classes:
            _check_order(train, source)
            train.classes = source.classes
            return source
    return open_source(location, num_classes=count, classes=train.classes, label_field=label_field)


def _check_order(train: ImageSource, folders: FolderSource) -> None:
    names = folders.classes
    listed = ", ".join(names[:3])
    if len(names) != len(train.classes):
        raise ValueError(
            f"{folders.location} has {len(names)} class folders ({listed}, …), but {train.location} has "
            f"{len(train.classes)} classes, known by number only. Wanted a folder for each class, in "
            "the order of the numbers; if the last classes are missing there, set num_classes."
        )
    if all(name.isdecimal() for name in names) and list(names) != sorted(names, key=int):
        raise ValueError(
            f"{folders.location} has the class folders {listed}, …: sorted by name they are not in the "
            f"order of their numbers, and {train.location} knows its classes by number only. Rename the "
            "folders with leading zeros."
        )
