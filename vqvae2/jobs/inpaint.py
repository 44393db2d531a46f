"""Inpainting for the sample job: what a mask hides of pictures is sampled anew, the rest is kept.

Shape legend: B batch, h w a level's grid.
"""

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae2.data.class_names import labels_of_priors
from vqvae2.data.held_out import held_out
from vqvae2.data.image_source import ImageSource
from vqvae2.data.latents import LatentSpec
from vqvae2.data.sources import open_source
from vqvae2.jobs.masked_pictures import Masked, MaskedPictures
from vqvae2.jobs.requests import GivenRequests, RequestBatch
from vqvae2.nn.checks import require
from vqvae2.nn.contracts import Tokenizer
from vqvae2.pictures.decode import Fit
from vqvae2.pictures.masks import GeneratedMask
from vqvae2.pixels import from_uint8, size_of


class InpaintRequests(GivenRequests):
    """Asks for pictures with a part of each sampled anew.

    Every picture is repainted `per_picture` times: images 0 to per_picture - 1 belong to the first, and so
    on. The order of the pictures is drawn once from all that there are, so asking for more of them later only
    adds images. They get the priors' class of the same name, or of the same number if one side has only
    class numbers; priors without classes need none.

    The autoencoder of the job encodes the whole picture. A code is kept if all pixels that it covers are, in
    each level by its own grid; all others are sampled, so what changes reaches up to the edges of the codes.
    A prior that draws a whole grid at once sees all that is kept of it. One that draws code after code sees
    what comes before; and what is kept of a lower level never influences an upper one.

    Args:
        pictures: location, as `open_source` takes it.
        masks: location of masks that have the names of their pictures, and their sizes. White is repainted,
            black is kept.
        mask: instead of `masks`, one that is generated.
        per_picture: images of each picture.
        num_pictures: how many; null for all.
        keep_pixels: lay the pixels that the mask does not hide over the results, unchanged.
        fit: crop: resized until it just covers the network's size, then cropped at the centre; pad: centred
            on black. Masks move along; a pixel that is partly hidden is repainted.
        holdout: only the pictures that a training with this `holdout` holds out; 0 for all.
        holdout_seed: likewise.
        label_field: in tars, the field of each sample's .json that is its class, by number or by name.
        batch_size: images sampled together on each device; see `SampleRequests`.
        chunk_size: images in one file.
    """

    def __init__(
        self,
        *,
        pictures: str,
        batch_size: int,
        masks: str | None = None,
        mask: GeneratedMask | None = None,
        per_picture: int = 1,
        num_pictures: int | None = None,
        keep_pixels: bool = False,
        fit: Fit = "crop",
        holdout: float = 0.0,
        holdout_seed: int = 0,
        label_field: str | None = None,
        chunk_size: int = 1024,
    ) -> None:
        super().__init__()
        self.per_picture, self.num_pictures = per_picture, num_pictures
        self.batch_size, self.chunk_size = batch_size, chunk_size
        for name in ("per_picture", "batch_size", "chunk_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(
            num_pictures is None or num_pictures >= 1, "num_pictures", num_pictures, "at least 1, or null"
        )
        require(0 <= holdout < 1, "holdout", holdout, "a fraction from 0 up to, not including, 1")
        if (masks is None) == (mask is None):
            raise ValueError(
                "Wanted one of the two: masks, a folder of masks with the names of the pictures, or mask, "
                "such as {shape: block, share: 0.25}."
            )
        self.pictures, self.masks, self.mask = pictures, masks, mask
        self.keep_pixels = keep_pixels
        self.fit = fit
        self.holdout, self.holdout_seed = holdout, holdout_seed
        self.label_field = label_field
        self.masked: list[Masked] = []  # those that are asked for, in their order
        self._labels = torch.empty(0, dtype=torch.int64)  # the priors' label of each
        self._encoder: Tokenizer | None = None

    @cached_property
    def source(self) -> ImageSource:
        """The pictures. Opened when first asked for."""
        return open_source(self.pictures, label_field=self.label_field)

    @cached_property
    def places(self) -> list[int]:
        """Where in the source the pictures that are asked for lie, in their order.

        Raises:
            ValueError: there are not as many.
        """
        there = np.arange(len(self.source))
        if self.holdout:
            there = np.flatnonzero(held_out(self.source, self.holdout, self.holdout_seed))
        wanted = len(there) if self.num_pictures is None else self.num_pictures
        if not len(there) or wanted > len(there):
            part = f", of which {len(there)} are held out" if self.holdout else ""
            raise ValueError(
                f"num_pictures is {wanted}, but {self.pictures} holds {len(self.source)} pictures{part}."
            )
        order = np.random.Generator(np.random.Philox(0)).permutation(len(there))
        return there[order[:wanted]].tolist()

    @cached_property
    def masked_pictures(self) -> MaskedPictures:
        return MaskedPictures(self.source, self.masks or self.mask, self.fit)

    @property
    def names(self) -> list[str]:
        """Of the pictures that are asked for."""
        return [self.source.name(place) for place in self.places]

    def setup(self, stage: str | None = None) -> None:
        """Reads pictures and masks.

        Raises:
            ValueError: as `MaskedPictures.read`.
        """
        module = self.trainer.lightning_module
        grids = [(level.height, level.width) for level in module.spec.levels]
        size = size_of(module.image_size)
        self.masked = list(self.masked_pictures.read(self.places, size, module.channels, grids))

    def check(self, spec: LatentSpec, checkpoint: str, classes: Sequence[str] = ()) -> None:
        """
        Raises:
            ValueError: pictures are of no class of the priors where one is needed.
        """
        self._labels = torch.tensor(
            labels_of_priors(
                [self.source.label(place) for place in self.places],
                self.source.classes,
                classes,
                num_classes=spec.num_classes,
                things="pictures",
                location=self.pictures,
            )
        )
        # A copy: half precision, which gives other codes, is for the sampler alone.
        self._encoder = copy.deepcopy(self.trainer.lightning_module.autoencoder)

    @property
    def num_images(self) -> int:
        return len(self.places) * self.per_picture

    def identity(self) -> dict[str, Any]:
        names = ("holdout", "holdout_seed", "per_picture", "keep_pixels")
        own = {name: getattr(self, name) for name in names}
        return {"inpaint": {**self.masked_pictures.identity(), **own}}

    @torch.no_grad()
    def codes(self, pictures: Sequence[int]) -> tuple[Tensor, ...]:
        """All codes of some pictures by their numbers, int64 [B, h, w] a level; they are encoded here."""
        numbers, rows = torch.tensor(pictures).unique(return_inverse=True)
        images = from_uint8(torch.stack([self.masked[i].pixels for i in numbers.tolist()]))
        device = self.trainer.strategy.root_device
        return tuple(level.cpu()[rows] for level in self._encoder.to(device).encode(images.to(device)))

    def request(self, index: Tensor) -> RequestBatch:
        """The images of some numbers [B]: what is kept of their pictures."""
        pictures = (index // self.per_picture).tolist()
        if not pictures:
            return RequestBatch(index, index)
        masked = [self.masked[i] for i in pictures]
        kept = map(torch.stack, zip(*(each.kept for each in masked), strict=True))
        given = tuple(
            codes.masked_fill(~stays, -1) for codes, stays in zip(self.codes(pictures), kept, strict=True)
        )
        places = torch.tensor([self.places[i] for i in pictures])
        batch = RequestBatch(index, self._labels[pictures], given, places)
        if not self.keep_pixels:
            return batch
        known = torch.stack([~each.mask[None] for each in masked])
        return batch._replace(pixels=torch.stack([each.pixels for each in masked]), known=known)
