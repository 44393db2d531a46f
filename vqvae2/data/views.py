"""One split of the images: reading, fitting and caching them, and the data sets made of them."""

import hashlib
import logging
from abc import abstractmethod
from ctypes import c_uint8
from functools import partial
from itertools import chain
from multiprocessing.sharedctypes import RawArray
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from vqvae2.data.augment import NOTHING, Augment, centre_crop, move, recolour, sample_generator
from vqvae2.data.order import Index
from vqvae2.data.sources import ImageSource
from vqvae2.pictures.decode import Fit, Strip, fit_image, to_channels, to_pixels
from vqvae2.pixels import size_of
from vqvae2.storage.remote import Unreachable

log = logging.getLogger(__name__)


class ImageBatch(NamedTuple):
    """Images with what is known about them. B is smaller than asked, even 0, where files were unreadable.

    Attributes:
        images: float32 `[B, C, H, W]` in [-1, 1].
        labels: int64 `[B]`; -1 is unlabelled.
        index: int64 `[B]`, the position in the split's enumeration.
        keys: B names, unique within the split's enumeration.
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    keys: list[str]


class Split:
    """The fitted pixels of some samples of a source, and the account of those that cannot be read.

    Args:
        name: "train" or "val", for messages.
        samples: which samples of the source, int64 `[N]`.
        strict: an unreadable image is an error.
        cache: keep decoded images of exactly that size in memory that all loader workers share; each is
            decoded once.
    """

    def __init__(
        self,
        name: str,
        source: ImageSource,
        samples: np.ndarray,
        *,
        image_size: int | list[int],
        channels: int,
        fit: Fit,
        strict: bool,
        cache: bool,
    ) -> None:
        self.name = name
        self.source = source
        self.samples = samples
        self.image_size = image_size
        self.size = size_of(image_size)
        self.channels = channels
        self.fit = fit
        self.strict = strict
        self._unreadable = RawArray(c_uint8, len(samples))
        self._warned = RawArray(c_uint8, 1)
        self._cache = _Cache(len(samples), (channels, *self.size)) if cache else None

    def __len__(self) -> int:
        return len(self.samples)

    def pixels(self, i: int) -> np.ndarray | Strip | None:
        """Image i, fitted but not cropped, uint8 `[C, H, W]`; None if it is unreadable.

        Raises:
            ValueError: it is unreadable, and the split is strict.
            Unreachable: it is remote, and cannot be downloaded.
        """
        if self._cache is not None and (known := self._cache.get(i)) is not None:
            return known
        if self._unreadable[i]:
            return None
        try:
            image = self.source.read(int(self.samples[i]))
            image = to_channels(image, self.channels, partial(self._warn, i))
        except Unreachable:
            raise  # not this image is at fault
        except (OSError, ValueError) as error:
            self._refuse(i, error)
            return None
        fitted = fit_image(image, self.size, self.fit)
        if isinstance(fitted, Strip):
            return fitted
        pixels = to_pixels(fitted)
        if self._cache is not None:
            self._cache.put(i, pixels)
        return pixels

    def next_readable(self, i: int) -> tuple[np.ndarray | Strip, int]:
        """The pixels of the first readable image from i on, and its number.

        Raises:
            ValueError: there is none; names the first files.
        """
        for j in chain(range(i, len(self)), range(i)):
            if (pixels := self.pixels(j)) is not None:
                return pixels, j
        names = self.unreadable_names()
        listed = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        raise ValueError(
            f"none of the {len(self)} {self.name} images of {self.source.location} can be read: {listed}. "
            "The log gives the reason for each. Give other images."
        )

    def label(self, i: int) -> int:
        return self.source.label(int(self.samples[i]))

    def key(self, i: int) -> str:
        return self.source.key(int(self.samples[i]))

    def identity(self) -> dict[str, Any]:
        """Decides what the pixels of each sample are (plain types)."""
        return {
            "source": self.source.fingerprint,
            "samples": hashlib.sha256(np.ascontiguousarray(self.samples, np.int64)).hexdigest(),
            **{name: getattr(self, name) for name in ("image_size", "channels", "fit")},
        }

    def unreadable_names(self) -> list[str]:
        """Names of the images that this process or its loader workers could not read so far."""
        return [self.source.name(int(self.samples[i])) for i in np.flatnonzero(self._unreadable)]

    def _warn(self, i: int, what: str) -> None:
        """Tells what is strange about the first such image, once for all loader workers."""
        if not self._warned[0]:
            self._warned[0] = 1
            name = f"{self.source.location}: {self.source.name(int(self.samples[i]))}"
            log.warning("%s: %s. It is read as sRGB; so are others like it, without a warning.", name, what)

    def _refuse(self, i: int, error: Exception) -> None:
        name = f"{self.source.location}: {self.source.name(int(self.samples[i]))}"
        if self.strict:
            raise ValueError(f"{name} cannot be read ({error}). Mend or remove it, or set strict to false.")
        self._unreadable[i] = 1
        log.warning("skipping %s, it cannot be read (%s)", name, error)


class _Cache:
    """Decoded images in memory shared with the loader workers, for those of exactly the wanted shape."""

    def __init__(self, num_images: int, shape: tuple[int, int, int]) -> None:
        self._shape = shape
        self._size = int(np.prod(shape))
        self._filled = RawArray(c_uint8, num_images)
        self._bytes = RawArray(c_uint8, num_images * self._size)

    def get(self, i: int) -> np.ndarray | None:
        return self._slot(i) if self._filled[i] else None

    def put(self, i: int, pixels: np.ndarray) -> None:
        if pixels.shape == self._shape:
            self._slot(i)[:] = pixels
            self._filled[i] = 1

    def _slot(self, i: int) -> np.ndarray:
        slot = np.frombuffer(self._bytes, np.uint8, self._size, offset=i * self._size)
        return slot.reshape(self._shape)


class _View(NamedTuple):
    """One image on its way into a batch; pixels uint8 `[C, H, W]`."""

    pixels: np.ndarray
    generator: np.random.Generator | None
    label: int
    index: int
    key: str


class _Images(Dataset):
    """A data set of (epoch, index) pairs that is asked for whole batches."""

    def __init__(self, split: Split, augment: Augment, seed: int) -> None:
        self.split = split
        self.augment = augment
        self.seed = seed

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def view(self, epoch: int, index: int) -> _View | None:
        """The image of an index, None if it is to be left out."""

    def __getitems__(self, batch: list[Index]) -> ImageBatch:
        views = [view for epoch, index in batch if (view := self.view(epoch, index)) is not None]
        shape = (len(views), self.split.channels, *self.split.size)
        pixels = np.empty(shape, np.uint8)
        for row, view in zip(pixels, views, strict=True):
            row[:] = view.pixels
        images = torch.from_numpy(pixels).float().div_(255)
        if self.augment.changes_values:
            for image, view in zip(images, views, strict=True):
                if view.generator is not None:
                    image.copy_(recolour(image, self.augment, view.generator))
        return ImageBatch(
            images.mul_(2).sub_(1),
            torch.tensor([view.label for view in views], dtype=torch.int64),
            torch.tensor([view.index for view in views], dtype=torch.int64),
            [view.key for view in views],
        )


class TrainImages(_Images):
    """Augmented images; the next readable one replaces an unreadable one, so that batches stay equal."""

    def __len__(self) -> int:
        return len(self.split)

    def view(self, epoch: int, index: int) -> _View:
        pixels, i = self.split.next_readable(index)
        generator = sample_generator(self.seed, epoch, index)
        pixels = move(pixels, self.split.size, self.augment, generator)
        return _View(pixels, generator, self.split.label(i), i, self.split.key(i))


class ViewImages(_Images):
    """Every image `views` times, and as often again mirrored; unreadable ones are left out.

    Index view * N + i is view `view` of image i. View 0 is plain and centred; view n > 0 is augmented as in
    epoch n. The mirrored copies follow after all the others.
    """

    def __init__(
        self, split: Split, *, views: int = 1, flips: bool = False, augment: Augment = NOTHING, seed: int = 0
    ) -> None:
        super().__init__(split, augment, seed)
        self.views = views
        self.copies = 2 if flips else 1

    def __len__(self) -> int:
        return self.views * self.copies * len(self.split)

    def view(self, epoch: int, index: int) -> _View | None:
        copy, i = divmod(index, len(self.split))
        mirrored, number = divmod(copy, self.views)
        pixels = self.split.pixels(i)
        if pixels is None:
            return None
        generator = sample_generator(self.seed, number, i) if number else None
        if generator:
            pixels = move(pixels, self.split.size, self.augment, generator)
        else:
            pixels = centre_crop(pixels, self.split.size)
        key = self.split.key(i) + (f"#{number}" if number else "") + ("#flip" if mirrored else "")
        return _View(pixels[:, :, ::-1] if mirrored else pixels, generator, self.split.label(i), index, key)
