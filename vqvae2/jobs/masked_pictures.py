"""Pictures with masks of what is to be repainted in them.

Shape legend: C channels, H W image, h w a level's grid. In a mask True is to be repainted.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vqvae2.data.augment import centre_crop
from vqvae2.data.image_source import ImageSource
from vqvae2.data.sources import open_source
from vqvae2.pictures.decode import Fit, fit_image, to_channels, to_pixels
from vqvae2.pictures.masks import GeneratedMask, black_and_white, kept_codes
from vqvae2.pixels import ImageSize


class Masked(NamedTuple):
    """A picture with what is to be repainted of it."""

    pixels: Tensor  # uint8 [C, H, W]
    mask: Tensor  # bool [H, W]
    kept: tuple[Tensor, ...]  # bool [h, w] a level, which codes stay


class MaskedPictures:
    """Pictures, each with a mask of its own, or all with a generated one.

    Args:
        source: of the pictures.
        masks: location of masks with the keys of the pictures, white where they are repainted; or a mask that
            is generated.
        fit: how both are brought to a size. A pixel that is partly hidden is repainted.
    """

    def __init__(self, source: ImageSource, masks: str | GeneratedMask, fit: Fit) -> None:
        self.source = source
        self.masks = masks
        self.fit = fit

    def read(
        self, places: Sequence[int], size: ImageSize, channels: int, grids: Sequence[Sequence[int]]
    ) -> Iterator[Masked]:
        """Some of the pictures.

        Args:
            places: where they lie in the source.
            size: of what comes out.
            channels: likewise.
            grids: (h, w) of each level, top first.

        Raises:
            ValueError: a picture or a mask cannot be read or does not fit, a mask is missing or not black and
                white, or it hides nothing or all.
        """
        self._refuse_missing(places)
        generated = self.masks.drawn(size, grids[0]) if isinstance(self.masks, GeneratedMask) else None
        for place in places:
            name = f"{self.source.location}: {self.source.name(place)}"
            image = _opened(self.source, place)
            if self.fit == "crop" and (image.height < size.height or image.width < size.width):
                raise ValueError(
                    f"{name} has {image.width}x{image.height} pixels, fewer than the {size.width}x"
                    f"{size.height} of the network. Give a larger picture, or fit: pad."
                )
            pixels = _fitted(to_channels(image, channels), size, self.fit)
            mask = self._mask_of(place, image, size) if generated is None else generated
            kept = tuple(kept_codes(mask, grid) for grid in grids)
            self._refuse_nothing(name, mask, kept)
            yield Masked(torch.from_numpy(pixels.copy()), mask, kept)

    def identity(self) -> dict[str, Any]:
        """Decides what is hidden of which pictures (plain types), whichever of them are read."""
        names = hashlib.sha256(b"\n".join(self.source.encoded_keys()))
        names.update(np.ascontiguousarray(self.source.labels, np.int64))
        masks = asdict(self.masks) if isinstance(self.masks, GeneratedMask) else self._masks_digest
        return {
            "names_and_labels": names.hexdigest(),
            "pictures": self.source.contents,
            "masks": masks,
            "fit": self.fit,
        }

    @cached_property
    def _mask_source(self) -> ImageSource:
        return open_source(self.masks, num_classes=0)

    @cached_property
    def _mask_places(self) -> dict[str, int]:
        return {self._mask_source.key(i): i for i in range(len(self._mask_source))}

    def _has_mask(self, place: int) -> bool:
        return self.source.key(place) in self._mask_places

    def _refuse_missing(self, places: Sequence[int]) -> None:
        if isinstance(self.masks, GeneratedMask):
            return
        missing = [place for place in places if not self._has_mask(place)]
        if missing:
            raise ValueError(
                f"{self.masks} has no mask for {len(missing)} of {len(places)} pictures, such as "
                f"{self.source.name(missing[0])}. A mask has the name of its picture, and ends in .png."
            )

    def _mask_of(self, place: int, picture: Image.Image, size: ImageSize) -> Tensor:
        """bool [H, W]."""
        number = self._mask_places[self.source.key(place)]
        name = f"{self.masks}: {self._mask_source.name(number)}"
        mask = black_and_white(_opened(self._mask_source, number), name)
        if mask.size != picture.size:
            raise ValueError(
                f"{name} has {mask.width}x{mask.height} pixels, its picture has {picture.width}x"
                f"{picture.height}. Wanted the same size."
            )
        return torch.from_numpy(_fitted(mask, size, self.fit)[0] > 0)

    def _refuse_nothing(self, name: str, mask: Tensor, kept: Sequence[Tensor]) -> None:
        if not mask.any():
            where = ", or only what is cropped away" if self.fit == "crop" else ""
            raise ValueError(f"The mask of {name} hides nothing{where}. White is what is repainted.")
        if not any(bool(level.any()) for level in kept):
            larger = "" if mask.all() else "every code covers a hidden pixel; hide fewer, larger parts. "
            raise ValueError(
                f"The mask of {name} leaves nothing of the picture: {larger or 'it hides all. '}To sample "
                "whole images take SampleRequests."
            )

    @cached_property
    def _masks_digest(self) -> str:
        """Of all masks of pictures."""
        digest = hashlib.sha256()
        for place in filter(self._has_mask, range(len(self.source))):
            mask = _opened(self._mask_source, self._mask_places[self.source.key(place)])
            digest.update(f" {place} {mask.size} ".encode() + to_channels(mask, 1).tobytes())
        return digest.hexdigest()


def _opened(source: ImageSource, i: int) -> Image.Image:
    try:
        return source.read(i)
    except OSError as error:
        raise ValueError(f"{source.location}: {source.name(i)} cannot be read ({error}).") from None


def _fitted(image: Image.Image, size: ImageSize, fit: Fit) -> np.ndarray:
    """uint8 [C, H, W]."""
    fitted = fit_image(image, size, fit)
    return centre_crop(to_pixels(fitted) if isinstance(fitted, Image.Image) else fitted, size)
