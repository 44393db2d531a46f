"""What the sample job is asked for: which images, of which classes."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vqvae2.data.chunked import ChunkedDataModule
from vqvae2.data.latents import LatentSpec
from vqvae2.data.order import Index
from vqvae2.nn.checks import require

SPLIT = "samples"  # what the sample job calls its only split

_MAX_PATTERN = 10**6  # labels, which the job's files list


class RequestBatch(NamedTuple):
    """Images to be sampled; B may be 0."""

    index: Tensor  # int64 [B], number of the image within the set
    labels: Tensor  # int64 [B], -1 without classes
    kept: tuple[Tensor, ...] = ()  # int64 [B, h, w] a level, -1 where a code is to be sampled; () samples all
    prompts: Tensor | None = None  # int64 [B], where in its folder the prompt of each image lies
    pixels: Tensor | None = None  # uint8 [B, C, H, W], laid over the sampled images where they are known
    known: Tensor | None = None  # bool [B, 1, H, W], where that is


class GivenRequests(ChunkedDataModule):
    """Asks for images of which some codes are given."""

    @property
    @abstractmethod
    def num_images(self) -> int:
        """How many are asked for."""

    @abstractmethod
    def check(self, spec: LatentSpec, checkpoint: str, classes: Sequence[str] = ()) -> None:
        """Refuses what the priors cannot complete, and finds their labels of the rest.

        Args:
            spec: of the codes that the priors have learned.
            checkpoint: of their autoencoder, for messages.
            classes: names of the priors' classes in label order, where known.
        """

    @abstractmethod
    def codes(self, givers: Sequence[int]) -> tuple[Tensor, ...]:
        """All codes of what some codes are taken from, by number, int64 [B, h, w] a level."""

    @abstractmethod
    def request(self, index: Tensor) -> RequestBatch:
        """The images of some numbers [B]."""

    def predict_datasets(self) -> dict[str, Dataset]:
        return {SPLIT: _Given(self)}


class _Given(Dataset):
    def __init__(self, requests: GivenRequests) -> None:
        self.requests = requests

    def __len__(self) -> int:
        return self.requests.num_images

    def __getitems__(self, batch: list[Index]) -> RequestBatch:
        return self.requests.request(torch.tensor([image for _, image in batch], dtype=torch.int64))


class SampleRequests(ChunkedDataModule):
    """Asks for images of given classes.

    Image i has the label `pattern[i % len(pattern)]`. With a number as `per_class`, the pattern is each class
    in turn. With counts it is the smallest one in their proportions: {3: 100, 7: 20} is (3, 7, 3, 3, 3, 3),
    20 times. So an image keeps its number and its label when the job is later asked for more in the same
    proportions, and only what is new is sampled. Other classes or proportions make another job.

    Args:
        per_class: images of each class, or a mapping from labels to counts; for a model without classes, the
            number of all images.
        classes: labels, when `per_class` is a number; None for all classes of the model.
        batch_size: images sampled together on each device. If it divides chunk_size, all batches except the
            job's last are full, and the sampler prepares only once.
        chunk_size: images in one file.
    """

    def __init__(
        self,
        *,
        per_class: int | dict[int, int],
        batch_size: int,
        classes: list[int] | None = None,
        chunk_size: int = 1024,
    ) -> None:
        super().__init__()
        counts = per_class if isinstance(per_class, dict) else {"": per_class}
        named = {f"per_class {label}".strip(): count for label, count in counts.items()}
        for name, value in {**named, "batch_size": batch_size, "chunk_size": chunk_size}.items():
            require(value >= 1, name, value, "at least 1")
        if classes == [] or not counts:
            name, such = ("classes", "[0, 3]") if counts else ("per_class", "{0: 10, 3: 20}")
            raise ValueError(f"{name} is empty, wanted labels such as {such}, or null for all classes.")
        if classes and isinstance(per_class, dict):
            raise ValueError("per_class and classes both name classes, wanted one of the two.")
        if classes and len(set(classes)) < len(classes):
            raise ValueError(
                f"classes is {classes}, wanted each once. For more of one give per_class as a mapping, "
                "such as {0: 10, 3: 20}."
            )
        self.per_class = per_class
        self.classes = classes
        self.batch_size = batch_size
        self.chunk_size = chunk_size

    def pattern(self, num_classes: int) -> list[int]:
        """The labels of the first images, which repeat; [-1] for a model without classes.

        Raises:
            ValueError: a label is out of range of `num_classes` classes, or asked of a model without classes,
                or too many labels come before they repeat.
        """
        if isinstance(self.per_class, dict):
            repeats = self._num_patterns
            counts = {label: count // repeats for label, count in self.per_class.items()}
        else:
            counts = dict.fromkeys(range(num_classes) if self.classes is None else self.classes, 1)
        wrong = [label for label in counts if not 0 <= label < num_classes]
        if wrong and not num_classes:
            raise ValueError(
                f"The classes {wrong} are asked for, but the priors have no classes. Leave out `classes`, "
                "and give per_class as the number of all images."
            )
        if wrong:
            raise ValueError(f"There is no class {wrong[0]}: the priors know 0 to {num_classes - 1}.")
        if (length := sum(counts.values())) > _MAX_PATTERN:
            raise ValueError(
                f"per_class asks for {length:,} images before their labels repeat, wanted at most "
                f"{_MAX_PATTERN:,}. Give counts with a larger common divisor, or ask in several jobs."
            )
        turns = ((turn, place) for place, count in enumerate(counts.values()) for turn in range(count))
        labels = list(counts)
        return [labels[place] for _, place in sorted(turns)] or [-1]

    def check(self, spec: LatentSpec, checkpoint: str, classes: Sequence[str] = ()) -> None:
        """Refuses what priors of these codes cannot sample.

        Args:
            spec: of the codes that the priors have learned.
            checkpoint: of their autoencoder, for messages.
            classes: names of the priors' classes, which are asked for by number.

        Raises:
            ValueError: as `pattern`.
        """
        self.pattern(spec.num_classes)

    def identity(self) -> dict[str, Any]:
        return {"labels": self.pattern(self._num_classes)}

    def predict_datasets(self) -> dict[str, Dataset]:
        return {SPLIT: _Requests(self.pattern(self._num_classes), self._num_patterns)}

    @property
    def _num_classes(self) -> int:
        return self.trainer.lightning_module.spec.num_classes

    @property
    def _num_patterns(self) -> int:
        return math.gcd(*self.per_class.values()) if isinstance(self.per_class, dict) else self.per_class


class _Requests(Dataset):
    def __init__(self, pattern: list[int], num_patterns: int) -> None:
        self.pattern = torch.tensor(pattern)
        self.num_patterns = num_patterns

    def __len__(self) -> int:
        return len(self.pattern) * self.num_patterns

    def __getitems__(self, batch: list[Index]) -> RequestBatch:
        index = torch.tensor([image for _, image in batch], dtype=torch.int64)
        return RequestBatch(index, self.pattern[index % len(self.pattern)])
