"""What the sample job is asked for: which images, of which classes."""

from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vqvae2.data.loader import batch_loader
from vqvae2.data.order import ChunkBatches, Index


class RequestBatch(NamedTuple):
    """Images to be sampled."""

    index: Tensor  # int64 [B], number of the image within the set
    labels: Tensor  # int64 [B], -1 without classes


class SampleRequests(L.LightningDataModule):
    """Asks for `per_class` images of each class, the classes taking turns.

    Args:
        per_class: images of each class; of a model without classes, images in all.
        classes: labels; None for all that the model has.
        batch_size: images sampled together on each device.
        chunk_size: images in one file.
    """

    split_names = ("samples",)

    def __init__(
        self, *, per_class: int, batch_size: int, classes: list[int] | None = None, chunk_size: int = 1024
    ) -> None:
        super().__init__()
        for name, value in (("per_class", per_class), ("batch_size", batch_size), ("chunk_size", chunk_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}, wanted at least 1.")
        if classes == []:
            raise ValueError("classes is empty, wanted labels such as [0, 3], or null for all classes.")
        self.per_class = per_class
        self.classes = classes
        self.batch_size = batch_size
        self.chunk_size = chunk_size

    def labels(self, num_classes: int) -> list[int]:
        """The labels asked for, of a model with `num_classes` classes.

        Raises:
            ValueError: a label is out of range, or asked of a model without classes.
        """
        classes = range(num_classes) if self.classes is None else self.classes
        wrong = [label for label in classes if not 0 <= label < num_classes]
        if wrong and not num_classes:
            raise ValueError(f"The classes {wrong} are asked of priors without classes. Leave out `classes`.")
        if wrong:
            raise ValueError(f"There is no class {wrong[0]}: the priors know 0 to {num_classes - 1}.")
        return list(classes) or [-1]

    def predict_dataloader(self) -> DataLoader:
        labels = self.labels(self.trainer.lightning_module.num_classes)
        requests = _Requests(labels, len(labels) * self.per_class)
        batches = ChunkBatches(len(requests), batch_size=self.batch_size, chunk_size=self.chunk_size)
        return batch_loader(requests, batches, num_workers=0)


class _Requests(Dataset):
    def __init__(self, labels: list[int], num_images: int) -> None:
        self.labels = torch.tensor(labels)
        self.num_images = num_images

    def __len__(self) -> int:
        return self.num_images

    def __getitems__(self, batch: list[Index]) -> RequestBatch:
        index = torch.tensor([image for _, image in batch])
        return RequestBatch(index, self.labels[index % len(self.labels)])
