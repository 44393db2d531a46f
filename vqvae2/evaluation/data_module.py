"""The data of an evaluation: samples, real images, held-out images, and the codes of both splits."""

from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vqvae2.data.images import ImageDataModule
from vqvae2.data.latent_module import LatentDataset
from vqvae2.data.latent_shards import check_files, verify
from vqvae2.data.latents import LatentBatch, LatentSpec, Manifest, latent_folder, read_manifest
from vqvae2.data.loader import batch_loader
from vqvae2.data.order import EpochBatches, Index
from vqvae2.data.plain_samples import num_plain
from vqvae2.data.sources import open_source
from vqvae2.data.views import Split, ViewImages
from vqvae2.jobs.scores import read_scorer, read_scores
from vqvae2.nn.checks import require
from vqvae2.pixels import ImageSize, written

_MODES = {1: "L", 3: "RGB"}
_NUM_PROBES = 16  # samples that are checked before the job starts
SAMPLES = "samples"  # what a single candidate is called
_RESERVED = ("real", "reconstructed", "held_out", "reconstructions", "latents_train", "latents_val")


class EvaluationDataModule(ImageDataModule):
    """An `ImageDataModule` whose tests read samples, real images and latents, each sample once.

    The test loaders, in this order, as far as there are such data: one for each candidate, by its name;
    `real`; `held_out` (images of the data's held-out part); `latents_train` and `latents_val`. Images are
    plain: no augmentation, centre crop.

    Args:
        samples: location of the samples to evaluate, such as runs/NAME/samples, a folder of pictures or an
            .npz file; or several by name, {NAME: LOCATION}. Size, colour and classes must be those of the
            real images, because nothing is converted. Pictures without labels have no figures by class.
        latents: folder of latent shards, here or at an address, for likelihoods and the use of the codebooks.
        real: which part of the images the samples are compared with; papers take the training images.
        max_real: take at most so many real images, evenly spread over the part.
        max_latents: take at most so many samples of each split of the latents, evenly spread.
        images: options of `ImageDataModule`.
    """

    def __init__(
        self,
        *,
        samples: str | dict[str, str] | None = None,
        latents: str | None = None,
        real: Literal["train", "val"] = "train",
        max_real: int | None = None,
        max_latents: int | None = None,
        **images: Any,
    ) -> None:
        super().__init__(**images)
        for name, most in (("max_real", max_real), ("max_latents", max_latents)):
            require(most is None or most >= 1, name, most, "at least 1, or null for all")
        self.samples = samples
        self.candidates = _by_name(samples)
        self.latents_location = latents
        self.real = real
        self.max_real = max_real
        self.max_latents = max_latents
        self._datasets: dict[str, Dataset] = {}

    @cached_property
    def latents(self) -> Path | None:
        """The folder of the latents on this machine."""
        return None if self.latents_location is None else latent_folder(self.latents_location)

    @cached_property
    def manifest(self) -> Manifest:
        """Of the latents."""
        return read_manifest(self.latents)

    @property
    def latent_spec(self) -> LatentSpec:
        """Of the latents."""
        return self.manifest.spec

    @property
    def test_names(self) -> tuple[str, ...]:
        """The names of the test loaders, in their order."""
        return tuple(self._datasets)

    def num_test_samples(self, name: str) -> int:
        """How many samples a test loader is to read; unreadable images will be missing."""
        return len(self._datasets[name])

    def select(self, names: Collection[str]) -> None:
        """Keeps only these test loaders; call it before they are made."""
        self._datasets = {name: dataset for name, dataset in self._datasets.items() if name in names}

    def prepare_data(self) -> None:
        """Verifies the shards of the latents, in one process of each machine."""
        super().prepare_data()
        if self.latents is not None:
            check_files(self.latents, self.manifest)
            verify(self.latents, self.manifest)

    def setup(self, stage: str | None = None) -> None:
        """Opens everything.

        Raises:
            ValueError: something is not there, or the samples are not like the real images.
        """
        super().setup(stage)
        self._datasets = {
            name: ViewImages(self._open_samples(location)) for name, location in self.candidates.items()
        }
        self._datasets["real"] = ViewImages(self._open_real())
        if "val" in self.splits:
            self._datasets["held_out"] = ViewImages(self.splits["val"])
        if self.latents is not None:
            self._add_latents("train", at_most=num_plain(self.latents, self.manifest))
            self._add_latents("val", at_most=None)

    def test_dataloader(self) -> list[DataLoader]:
        return [self.loader(name) for name in self.test_names]

    def loader(self, name: str) -> DataLoader:
        """One of the test loaders, made anew."""
        dataset = self._datasets[name]
        batches = EpochBatches(len(dataset), global_batch_size=self.batch_size, shuffle=False)
        return batch_loader(dataset, batches, self.num_workers)

    def labels_of(self, name: str) -> Tensor:
        """The labels of a loader's images in its order, int64 [N]; -1 when unlabelled."""
        split = self._datasets[name].split
        return torch.from_numpy(split.source.labels[split.samples]).long()

    def picture(self, name: str, index: int) -> Tensor:
        """The image at a position of a loader, uint8 [C, H, W].

        Raises:
            ValueError: it is unreadable.
        """
        view = self._datasets[name].view(0, index)
        if view is None:
            raise ValueError(f"Image {index} of '{name}' cannot be read.")
        return torch.tensor(view.pixels)

    def key_of(self, name: str, index: int) -> str:
        """What the image at a position of a loader is called in its source."""
        return self._datasets[name].split.key(index)

    def identity_of(self, name: str) -> dict[str, Any]:
        """Decides what the images of a loader are (plain types)."""
        return self._datasets[name].split.identity()

    def sample_scores(self, name: str) -> Tensor:
        """The log scores that the sample job wrote, float64 [M], in the order of the loader.

        Raises:
            ValueError: there are none, or not of all samples.
        """
        return read_scores(self._datasets[name].split.source)

    def sample_scorer(self, name: str) -> str | None:
        """Fingerprint of the classifier that gave those scores; None if it is not known."""
        return read_scorer(self._datasets[name].split.source)

    def _open_samples(self, location: str) -> Split:
        source = open_source(
            location, num_classes=self.num_classes, classes=self.classes, labels_optional=True
        )
        split = self._split(SampleSplit, "sample", source, np.arange(len(source)))
        for i in spread(len(split), _NUM_PROBES):
            split.pixels(int(i))
        return split

    def _open_real(self) -> Split:
        if self.real not in self.splits:
            raise ValueError(
                f"real is '{self.real}', but {self.train} has no held-out images. Give val or holdout."
            )
        split = self.splits[self.real]
        if self.max_real is None:
            return split
        return self._split(Split, "real", split.source, split.samples[spread(len(split), self.max_real)])

    def _split(self, kind: Callable[..., Split], name: str, source: Any, samples: np.ndarray) -> Split:
        options = {name: getattr(self, name) for name in ("image_size", "channels", "fit", "strict")}
        return kind(name, source, samples, cache=False, **options)

    def _add_latents(self, split: str, at_most: int | None) -> None:
        dataset = LatentDataset(self.latents, self.manifest, split)
        num_samples = len(dataset) if at_most is None else min(len(dataset), at_most)
        if num_samples:
            self._datasets[f"latents_{split}"] = _Chosen(dataset, spread(num_samples, self.max_latents))


class SampleSplit(Split):
    """Samples as they are: nothing is resized, converted or left out."""

    def pixels(self, i: int) -> np.ndarray:
        """Sample i, uint8 [C, H, W].

        Raises:
            ValueError: it cannot be read, or is not of the real images' size and colour.
        """
        name = f"{self.source.location}: {self.source.name(int(self.samples[i]))}"
        try:
            image = self.source.read(int(self.samples[i]))
        except OSError as error:
            raise ValueError(f"{name} cannot be read ({error}). Sample it again or remove it.") from error
        found, wanted = (image.mode, *image.size), (_MODES[self.channels], self.size.width, self.size.height)
        if found != wanted:
            own = written(ImageSize(image.height, image.width))
            raise ValueError(
                f"{name} is {_shape(*found)}, but the real images are {_shape(*wanted)}. Compare samples "
                f"with images of their own size and colour: set image_size to {own} and channels."
            )
        return np.asarray(image).reshape(*self.size, self.channels).transpose(2, 0, 1)


class _Chosen(Dataset):
    """Some samples of a data set that is asked for whole batches."""

    def __init__(self, dataset: LatentDataset, samples: np.ndarray) -> None:
        self.dataset = dataset
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, batch: list[Index]) -> LatentBatch:
        return self.dataset.__getitems__([(epoch, int(self.samples[i])) for epoch, i in batch])


def _by_name(samples: str | dict[str, str] | None) -> dict[str, str]:
    """The candidates' locations.

    Raises:
        ValueError: a name is taken, or could not be told from the keys of figures.
    """
    if not isinstance(samples, dict):
        return {} if samples is None else {SAMPLES: samples}
    for name in samples:
        if not name or name in _RESERVED or set(name) & set("@/"):
            raise ValueError(
                f"'{name}' cannot be the name of samples: wanted one without @ and /, and none of "
                f"{', '.join(_RESERVED)}."
            )
    return dict(samples)


def spread(num_samples: int, at_most: int | None) -> np.ndarray:
    """Numbers below `num_samples`, evenly spread if not all of them: data often come sorted by class."""
    count = num_samples if at_most is None else min(num_samples, at_most)
    return np.arange(count) * num_samples // count


def _shape(mode: str, width: int, height: int) -> str:
    colour = {"L": "grey", "RGB": "RGB"}.get(mode, f"of mode {mode}")
    return f"{width}x{height} {colour}"
