"""Batches of images for the autoencoder, the classifiers and the encode job."""

import hashlib
import json
import logging
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from vqvae2 import distributed
from vqvae2.data.augment import NOTHING, Augment
from vqvae2.data.chunked import ChunkedDataModule
from vqvae2.data.held_out import held_out, open_beside, refuse_missing
from vqvae2.data.loader import EpochLoader, batch_loader
from vqvae2.data.order import EpochBatches, ShardBatches, check_shares
from vqvae2.data.sources import RemoteTarSource, TarSource, open_source
from vqvae2.data.views import ImageBatch, Split, TrainImages, ViewImages
from vqvae2.nn.checks import require
from vqvae2.pictures.decode import Fit
from vqvae2.pixels import size_of, written
from vqvae2.storage.cache import shards_at_once
from vqvae2.storage.job_file import CONTENTS, listed_shards

__all__ = ["ImageBatch", "ImageDataModule", "held_out"]

log = logging.getLogger(__name__)


class ImageDataModule(ChunkedDataModule):
    """Images in, batches out. Locations are what `open_source` takes.

    Args:
        train: location of the training images.
        val: location of the held-out images.
        image_size: of the images that come out: the side of squares, or [height, width].
        batch_size: images in a batch, over all devices together; in the encode job, on each device.
        channels: 3 for colour, 1 for grey.
        fit: crop: resized until it just covers image_size (bicubic, antialiased), then cropped, at the centre
            unless augment.random_crop; pad: centred on black, never enlarged.
        augment: changes made to training images.
        num_classes: None: as many as the training images have; 0: ignore labels.
        holdout: without `val`, the fraction of the training images that is held out instead.
        holdout_of: location of the images of which that part is held out, if not `train`: the real images,
            when training on samples. The part is the same as with `train`; the rest is not used.
        holdout_seed: another seed holds out another part.
        num_workers: loader processes on each device.
        seed: with epoch and sample, decides order and augmentation.
        strict: an unreadable or missing image is an error; otherwise it is skipped, counted and named.
        label_field: in tars, the field of each sample's .json that is its class, by number or by name.
        cache: keep the decoded images in memory (height · width · channels bytes each), for small data sets.
        encode_views: how often the encode job encodes each training image: once plain, then augmented.
        encode_flips: whether it also encodes each of these mirrored.
        chunk_size: images that the encode job writes into one file.
    """

    def __init__(
        self,
        *,
        train: str,
        val: str | None = None,
        image_size: int | list[int],
        batch_size: int,
        channels: int = 3,
        fit: Fit = "crop",
        augment: Augment = NOTHING,
        num_classes: int | None = None,
        holdout: float = 0.0,
        holdout_of: str | None = None,
        holdout_seed: int = 0,
        num_workers: int = 0,
        seed: int = 0,
        strict: bool = False,
        cache: bool = False,
        label_field: str | None = None,
        encode_views: int = 1,
        encode_flips: bool = False,
        chunk_size: int = 4096,
    ) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.image_size = written(size_of(image_size))
        self.batch_size = batch_size
        self.channels = channels
        self.fit = fit
        self.augment = augment
        self.holdout, self.holdout_of, self.holdout_seed = holdout, holdout_of, holdout_seed
        self.num_workers = num_workers
        self.seed = seed
        self.strict, self.cache = strict, cache
        self.label_field = label_field
        self.encode_views, self.encode_flips = encode_views, encode_flips
        self.chunk_size = chunk_size
        self._num_classes = num_classes
        self._splits: dict[str, Split] = {}
        self._check_arguments()

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 when unlabelled. Opens the images if they are not open yet."""
        return len(self.classes)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names in label order; () when unlabelled."""
        return self.splits["train"].source.classes

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name: train, and val if there are held-out images. Opened when first asked for."""
        if not self._splits:
            self._splits = self._open()
        return self._splits

    @property
    def held_out_from(self) -> str:
        """What the held-out images are, for reports."""
        part = f"{self.holdout_of or self.train} (holdout {self.holdout:g}, seed {self.holdout_seed})"
        return part if self.val is None else self.val

    @property
    def num_views(self) -> int:
        """How often the encode job sees each training image."""
        return self.encode_views * (2 if self.encode_flips else 1)

    def setup(self, stage: str | None = None) -> None:
        """Opens the images.

        Raises:
            ValueError: they are not there, not enough for a batch, or the batch cannot be shared equally.
        """
        world_size = distributed.world_size()
        if stage != "predict":  # whose batches are not shared
            check_shares(self.batch_size, world_size)
        num_images = len(self.splits["train"])
        if stage == "fit" and num_images < self.batch_size:
            raise ValueError(
                f"{self.train} holds {num_images} training images, too few for a batch of {self.batch_size}. "
                + _smaller_batch(num_images, world_size)
            )

    def train_dataloader(self) -> EpochLoader:
        split = self.splits["train"]
        batches = _shuffled(split, global_batch_size=self.batch_size, seed=self.seed)
        return EpochLoader(TrainImages(split, self.augment, self.seed), batches, self.num_workers)

    def val_dataloader(self) -> DataLoader | list:
        """The held-out images in order; no loader, [], if there are none."""
        if "val" not in self.splits:
            return []
        images = ViewImages(self.splits["val"])
        batches = EpochBatches(len(images), global_batch_size=self.batch_size, shuffle=False)
        return batch_loader(images, batches, self.num_workers)

    def test_dataloader(self) -> DataLoader | list:
        return self.val_dataloader()

    def predict_datasets(self) -> dict[str, ViewImages]:
        """For the encode job: every view of the training images, and the held-out images once, plain."""
        train = ViewImages(
            self.splits["train"],
            views=self.encode_views,
            flips=self.encode_flips,
            augment=self.augment,
            seed=self.seed,
        )
        return {name: train if name == "train" else ViewImages(split) for name, split in self.splits.items()}

    def identity(self) -> dict[str, Any]:
        """Settings, and digests: of all names, labels and classes, and of the images as `contents` has them.

        A folder of samples also has a manifest with the hashes of its shards, which counts as well.
        """
        settings = (
            *("train", "val", "image_size", "channels", "fit", "holdout", "holdout_seed", "seed"),
            *("encode_views", "encode_flips"),
        )
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for name, split in self.splits.items():
            shards = listed_shards(Path(split.source.location).expanduser()).values()
            digest.update("".join(shard.sha256 for shard in shards).encode())
            keys, labels = split.source.encoded_keys(), split.source.labels.tolist()
            samples = ((name.encode(), keys[i], labels[i]) for i in split.samples)
            digest.update(b"".join(b"%b/%b %d\n" % sample for sample in samples))
        return {
            **{name: getattr(self, name) for name in settings},
            **({} if self.holdout_of is None else {"holdout_of": self.holdout_of}),
            "augment": asdict(self.augment),
            "names_and_labels": digest.hexdigest(),
            CONTENTS: {name: split.source.contents for name, split in self.splits.items()},
        }

    def teardown(self, stage: str | None = None) -> None:
        """Reports how many images were unreadable, over all devices."""
        for name, split in self._splits.items():
            names = sorted(set(chain.from_iterable(distributed.all_gather_objects(split.unreadable_names()))))
            if names and distributed.rank() == 0:
                listed = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
                log.warning(
                    "skipped %d of %d %s images, unreadable: %s", len(names), len(split), name, listed
                )

    def _check_arguments(self) -> None:
        for name in ("batch_size", "encode_views", "chunk_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("num_workers", "seed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        require((self._num_classes or 0) >= 0, "num_classes", self._num_classes, "at least 0")
        require(self.channels in (1, 3), "channels", self.channels, "3 (colour) or 1 (grey)")
        require(0 <= self.holdout < 1, "holdout", self.holdout, "a fraction from 0 up to, not including, 1")
        if self.val is not None and self.holdout:
            raise ValueError(f"val is {self.val} and holdout is {self.holdout}; wanted one of the two.")
        if self.holdout_of is not None and not self.holdout:
            raise ValueError(
                f"holdout_of is {self.holdout_of}, but holdout is 0. Give the fraction, such as 0.1."
            )
        if self.channels == 1 and self.augment.needs_colour:
            raise ValueError(
                "augment.hue and augment.saturation need colour; leave them 0 when channels is 1."
            )
        if self.augment.random_crop and self.fit == "pad":
            raise ValueError("augment.random_crop needs fit: crop; with fit: pad use augment.shift.")
        shift, side = self.augment.shift, min(size_of(self.image_size))
        require(shift < side, "augment.shift", shift, f"less than {side}")
        if self.encode_views > 1 and not self.augment.does_anything:
            raise ValueError(
                f"encode_views is {self.encode_views}, but augment is off, so all views would be the same."
            )

    def _open(self) -> dict[str, Split]:
        train = open_source(self.train, num_classes=self._num_classes, label_field=self.label_field)
        if self.label_field is not None and not isinstance(train, TarSource | RemoteTarSource):
            raise ValueError(
                f"label_field is {self.label_field}, but {self.train} is not tars, and only images in tars "
                "have a .json. Leave label_field out."
            )
        chosen = {"train": (train, np.arange(len(train)))}
        if self.val is not None:
            val = open_beside(train, self.val, self.label_field)
            chosen["val"] = (val, np.arange(len(val)))
        elif self.holdout:
            of = self.holdout_of
            source = train if of is None else open_beside(train, of, self.label_field)
            out = held_out(source, self.holdout, self.holdout_seed)
            if out.all() or not out.any():
                raise ValueError(
                    f"holdout {self.holdout} takes {out.sum()} of {len(source)} in {source.location}, wanted "
                    "some in both parts. Change holdout or holdout_seed."
                )
            chosen["val"] = (source, np.flatnonzero(out))
            if source is train:
                chosen["train"] = (train, np.flatnonzero(~out))
        if self.strict:
            refuse_missing(source for source, _ in chosen.values())
        options = {name: getattr(self, name) for name in ("image_size", "channels", "fit", "strict", "cache")}
        return {name: Split(name, source, samples, **options) for name, (source, samples) in chosen.items()}


def _shuffled(split: Split, **options: int) -> EpochBatches:
    """Batches in a random order, which keeps to some shards at a time if the cache cannot hold all."""
    source = split.source
    if isinstance(source, RemoteTarSource):
        at_once = shards_at_once(source.sizes, source.location)
        if at_once < len(source.sizes):
            return ShardBatches(source.shards[split.samples], at_once=at_once, **options)
    return EpochBatches(len(split), shuffle=True, **options)


def _smaller_batch(num_images: int, world_size: int) -> str:
    most = num_images // world_size * world_size
    if not most:
        return f"Not even one for each of {world_size} devices: give more images or use fewer devices."
    return f"Give more images, or set batch_size to {most}."
