"""Images in folders: one folder a class, or all in one."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from vqvae2.data.class_names import class_labels, normal
from vqvae2.data.image_source import UNLABELLED, ImageSource, file_facts, some_of
from vqvae2.pictures.decode import open_image
from vqvae2.storage import tars
from vqvae2.storage.passed_over import ending, files_by_name, files_of_endings, say

# What systems and programs put beside pictures, such as thumbnails; hidden folders are skipped anyway.
_OF_SYSTEMS = frozenset(
    {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)

# A part of a data set by its name, and what is said beside that: train2017, images_val, Test-Set.
_PART = re.compile(
    r"(?<![^\W\d_])"
    r"(train(?:ing)?|val(?:id(?:ation)?)?|dev(?:el(?:opment)?)?|test(?:ing)?|eval(?:uation)?"
    r"|h[eo]ld[-_ ]?out)"
)
_BESIDE = re.compile(r"data|sets?|images?|imgs?|pictures?|photos?|splits?|folder|[\W\d_](?<!\*)")

_PEEK = 2**20  # bytes of a file that tell it from another


class FolderSource(ImageSource):
    """Image files below a folder."""

    def read(self, i: int) -> Image.Image:
        return open_image(Path(self._path(i)).read_bytes())

    def _path(self, i: int) -> str:
        return os.path.join(self.location, self.name(i))

    def _evidence(self) -> Iterator[np.ndarray]:
        yield file_facts(self._path(i) for i in range(len(self)))

    def _contents(self) -> Iterator[np.ndarray]:
        yield file_facts(self._path(i) for i in range(len(self)))[:, 0]
        for i in some_of(len(self)):
            try:
                yield np.frombuffer(tars.read_range(Path(self._path(i)), 0, _PEEK), np.uint8)
            except OSError:  # whoever reads it accounts for it
                yield np.empty(0, np.uint8)


def open_folder(
    location: str, root: Path, classes: Sequence[str] | None, *, ignore_classes: bool
) -> FolderSource:
    """Opens a folder of images or of class folders.

    Hidden entries are skipped, links followed. What else is passed over is said once.

    Args:
        location: what the user named, for messages.
        root: the folder.
        classes: the names of another source's classes, which decide the labels.
        ignore_classes: folders are no classes.

    Raises:
        ValueError: what is there can be meant in two ways, or a class has no image.
    """
    walk = _Walk(root)
    folders, files = walk.entries("")
    folders.sort(key=normal)  # another disk may decompose accents: the labels stay the same
    files = sorted(name for name in files if walk.is_picture(name))
    if files and folders:
        raise ValueError(
            f"{location} mixes {len(files)} images ({files[0]}, …) with {len(folders)} folders "
            f"({folders[0]}, …). Wanted either images or class folders; move one of the two away."
        )
    refuse_parts(location, folders, alone=classes is None and not ignore_classes)
    names = [sorted(walk.pictures(folder)) for folder in folders]
    say(location, walk.remarks())
    if not folders or ignore_classes:
        files += chain.from_iterable(names)
        return FolderSource(str(root), files, np.full(len(files), UNLABELLED))
    empty = [folder for folder, inside in zip(folders, names, strict=True) if not inside]
    if empty:
        raise ValueError(
            f"{location}: no image in {len(empty)} of {len(folders)} class folders ({', '.join(empty[:3])}). "
            "Remove or fill them."
        )
    label_of = class_labels(location, folders, classes, "class folders")
    labels = np.repeat([label_of[normal(name)] for name in folders], [len(inside) for inside in names])
    return FolderSource(str(root), list(chain.from_iterable(names)), labels, tuple(label_of))


def holds_pictures(root: Path, folder: str) -> bool:
    """Whether there is an image anywhere below a folder."""
    return any(True for _ in _Walk(root).pictures(folder))


def refuse_parts(location: str, names: Sequence[str], *, alone: bool = False) -> None:
    """Refuses parts of a data set, such as train and test, that would be read as one.

    Args:
        names: of folders or files.
        alone: names that are nothing but parts are refused even if there is one only.

    Raises:
        ValueError: names differ in the part only, such as train_images and test_images.
    """
    alike: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        found = _PART.search(name.lower())
        if found:
            rest = _BESIDE.sub("", name.lower()[: found.start()] + "*" + name.lower()[found.end() :])
            alike[rest].setdefault(found[1], name)
    parts = next((list(named.values()) for named in alike.values() if len(named) > 1), [])
    if not parts and alone and names and len(alike.get("*", ())) == len(names):
        parts = list(names)
    if parts:
        raise ValueError(
            f"{location} holds {', '.join(parts)}, named like parts of a data set and not like classes. Name "
            f"them one by one as train and val, such as {os.path.join(location, parts[0])}, or rename what "
            "is a class."
        )


class _Walk:
    """The visible entries below a folder, and the account of what is passed over."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.others: Counter = Counter()
        self.broken: list[str] = []
        self.loops: list[str] = []

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """Folders and other entries of a folder, relative to the root. Links count as what they lead to."""
        folders, files = [], []
        with os.scandir(self.root / folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in _OF_SYSTEMS:
                    continue
                # The entry itself would raise where a link leads in a circle.
                is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
                (folders if is_folder else files).append(os.path.join(folder, entry.name))
                if not is_folder and not entry.is_file(follow_symlinks=False):
                    self._account_for(entry, files)
        return folders, files

    def pictures(self, folder: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
        """The images below a folder, relative to the root, in no order."""
        facts = os.stat(self.root / folder)
        here = (facts.st_dev, facts.st_ino)
        above = above or self._identity_of_root()
        if here in above:
            self.loops.append(folder)
            return
        folders, files = self.entries(folder)
        yield from (name for name in files if self.is_picture(name))
        for inner in folders:
            yield from self.pictures(inner, above | {here})

    def is_picture(self, name: str) -> bool:
        """By its ending; others are counted."""
        if tars.is_image(name):
            return True
        self.others[ending(name)] += 1
        return False

    def remarks(self) -> list[str]:
        """What was passed over so far, and what of the images will be unreadable."""
        return [
            *files_of_endings(self.others),
            *files_by_name(sorted(self.broken), "link", "leading nowhere"),
            *files_by_name(sorted(self.loops), "link", "back to a folder around, not followed"),
        ]

    def _account_for(self, entry: os.DirEntry, files: list[str]) -> None:
        """A link that leads nowhere stays an image if it is called one; a pipe or a device is none."""
        if not os.path.exists(entry.path):
            self.broken.append(files[-1])
            if not tars.is_image(entry.name):
                files.pop()
        elif not os.path.isfile(entry.path):
            self.others[ending(files.pop())] += 1

    def _identity_of_root(self) -> frozenset[tuple[int, int]]:
        facts = os.stat(self.root)
        return frozenset({(facts.st_dev, facts.st_ino)})
