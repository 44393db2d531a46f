"""Samples as other projects publish them: an .npz with all images as `arr_0`, perhaps labels as `arr_1`.

Images are read from where they lie in the file; nothing is ever unpickled.
"""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from vqvae2.data.class_names import numbered_classes
from vqvae2.data.image_source import UNLABELLED, ImageSource, file_facts
from vqvae2.storage import tars
from vqvae2.storage.unpacked import unpacked_once

IMAGES, LABELS = "arr_0", "arr_1"

# What zipfile raises on damaged archives.
_DAMAGE = (
    *(zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, EOFError, OSError, OverflowError),
    *(zlib.error, struct.error),
)

_MOST_DEFLATED = 1032  # bytes from one byte, at most

_LOCAL_HEADER = struct.Struct("<26xHH")  # ends in the lengths of the name and of the extra field


class _Array(NamedTuple):
    """An array in the archive: where its member is, and what the member's own header says."""

    member: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype
    in_order: bool  # the last axis runs fastest
    header: int  # bytes before the first element

    @property
    def num_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=object))


class NpzSource(ImageSource):
    """Images of an .npz.

    Args:
        pixels: the file that holds the pixels as they are, uint8.
        start: where they begin in it, in bytes.
        shape: of one image, (H, W, 3) or, for grey, (H, W).
        archive: the .npz.
        checksums: (CRC-32, size in bytes) of the members that are used, int64 `[members, 2]`.
    """

    names_classes = False

    def __init__(
        self,
        location: str,
        names: Sequence[str],
        labels: np.ndarray,
        *,
        pixels: Path,
        start: int,
        shape: tuple[int, ...],
        archive: Path,
        checksums: np.ndarray,
    ) -> None:
        super().__init__(location, names, labels, numbered_classes(labels, names, location))
        self._pixels = pixels
        self._start = start
        self._shape = shape
        self._archive = archive
        self._checksums = checksums

    def read(self, i: int) -> Image.Image:
        size = int(np.prod(self._shape))
        found = tars.read_range(self._pixels, self._start + i * size, size)
        if len(found) < size:
            raise OSError("the file has become shorter since it was opened")
        return Image.fromarray(np.frombuffer(found, np.uint8).reshape(self._shape))

    def _evidence(self) -> Iterator[np.ndarray]:
        yield file_facts([self._archive])
        yield from self._contents()

    def _contents(self) -> Iterator[np.ndarray]:
        yield np.array(self._shape)
        yield self._checksums


def is_npz(name: str) -> bool:
    return name.lower().endswith(".npz")


def open_npz(location: str, *, ignore_labels: bool = False) -> NpzSource:
    """Opens an archive; if it is compressed, its images are unpacked first (see `storage.unpacked`).

    `arr_0` are images, uint8 [N, H, W, 3], or grey as [N, H, W, 1] or [N, H, W]; `arr_1` may be their labels,
    whole numbers [N].

    Args:
        location: path of the archive.
        ignore_labels: leaves arr_1 alone.

    Raises:
        ValueError: the file is damaged or cut short, holds something else, or cannot be unpacked; says what.
    """
    path = Path(location).expanduser()
    try:
        with zipfile.ZipFile(path) as archive:
            images = _images(archive, location)
            labels = None if ignore_labels else _find(archive, LABELS, location)
            used = [array.member for array in (images, labels) if array is not None]
            numbers = np.full(images.shape[0], UNLABELLED)
            if labels is not None:
                numbers = _labels(archive, labels, images, location)
    except _DAMAGE as error:
        raise ValueError(
            f"{location} cannot be read as an .npz ({error}). If it is damaged or cut short, copy it again."
        ) from None
    pixels, start = _plain(path, images)
    return NpzSource(
        location,
        [f"image-{i:06d}" for i in range(images.shape[0])],
        numbers,
        pixels=pixels,
        start=start,
        shape=images.shape[1:] if images.shape[3:] == (3,) else images.shape[1:3],
        archive=path,
        checksums=np.array([(member.CRC, member.file_size) for member in used]),
    )


def _find(archive: zipfile.ZipFile, name: str, location: str) -> _Array | None:
    """Reads the header of an array, without its elements; None if there is no such array."""
    member = next((info for info in archive.infolist() if info.filename in (name, f"{name}.npy")), None)
    if member is None:
        return None
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f"{location}: {name} is encrypted or compressed in a way that np.savez does not use."
        )
    most = os.path.getsize(archive.filename) * (_MOST_DEFLATED if member.compress_type else 1)
    if member.file_size > most:
        raise ValueError(
            f"{location}: {name} is damaged or cut short: its {member.file_size:,} bytes cannot be in a file "
            f"of {os.path.getsize(archive.filename):,}. Copy or save it again."
        )
    with archive.open(member) as data:
        array = _Array(member, *_header(data, f"{location}: {name}"), data.tell())
    if array.dtype.hasobject:
        raise ValueError(
            f"{location}: {name} holds pickled Python objects, which are never opened: they could run any "
            "program. Save it as an array of numbers."
        )
    if array.header + array.num_bytes != member.file_size:
        raise ValueError(
            f"{location}: {name} is damaged or cut short: its header promises {array.num_bytes:,} bytes, "
            f"there are {member.file_size - array.header:,}. Copy or save it again."
        )
    return array


def _header(data: BinaryIO, name: str) -> tuple[tuple[int, ...], np.dtype, bool]:
    try:
        version = npy.read_magic(data)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(data)
    except ValueError as error:
        raise ValueError(f"{name} is no array that np.savez wrote: {str(error).splitlines()[0]}") from None
    return shape, dtype, not fortran or len(shape) < 2


def _images(archive: zipfile.ZipFile, location: str) -> _Array:
    """Finds the images and checks that they are 8-bit pictures, each in one piece."""
    images = _find(archive, IMAGES, location)
    if images is None:
        found = ", ".join(archive.namelist()[:5]) or "nothing"
        raise ValueError(
            f"{location} has no {IMAGES}, but {found}. Wanted what np.savez(file, images) writes: "
            "images as the first array without a name."
        )
    shape = " x ".join(str(size) for size in images.shape) or "a single number"
    if images.dtype != np.uint8:
        raise ValueError(
            f"{location}: {IMAGES} is {images.dtype}, wanted uint8. Save the images as whole numbers, 0 "
            "(black) to 255: np.clip(np.rint(127.5 * x + 127.5), 0, 255).astype(np.uint8) for x in [-1, 1]."
        )
    colour = len(images.shape) == 4 and images.shape[3] == 3
    grey = len(images.shape) == 3 or (len(images.shape) == 4 and images.shape[3] == 1)
    if not (colour or grey) or 0 in images.shape[1:]:
        first = " Move the channels last: np.moveaxis(x, 1, 3)." if images.shape[1:2] in ((1,), (3,)) else ""
        raise ValueError(
            f"{location}: {IMAGES} is {shape}, wanted images [N, H, W, 3], or grey ones [N, H, W].{first}"
        )
    if not images.in_order:
        raise ValueError(
            f"{location}: {IMAGES} is saved in Fortran order, so no image is in one piece. Save "
            "np.ascontiguousarray of it."
        )
    return images


def _labels(archive: zipfile.ZipFile, labels: _Array, images: _Array, location: str) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{location}: the labels {LABELS} are {labels.dtype} of shape {list(labels.shape)}, wanted a "
            f"whole number for each of the {images.shape[0]} images. Save them so, or set num_classes to 0 "
            "to ignore them."
        )
    found = np.frombuffer(archive.read(labels.member)[labels.header :], labels.dtype)
    if len(found) and int(found.max()) >= 2**63:
        raise ValueError(f"{location}: the labels {LABELS} go up to {found.max()}, wanted class indices.")
    return found.astype(np.int64)


def _plain(path: Path, images: _Array) -> tuple[Path, int]:
    """A file with the pixels uncompressed, and where in it they begin."""
    if images.member.compress_type == zipfile.ZIP_STORED:
        offset = images.member.header_offset
        name, extra = _LOCAL_HEADER.unpack(tars.read_range(path, offset, _LOCAL_HEADER.size))
        return path, offset + _LOCAL_HEADER.size + name + extra + images.header

    def blocks() -> Iterator[bytes]:
        with zipfile.ZipFile(path) as archive, archive.open(images.member) as packed:
            yield from iter(lambda: packed.read(1 << 20), b"")

    return unpacked_once(path, ".npy", blocks, images.member.file_size), images.header
