"""How often a classifier is right, in counts: one pass for what takes four metrics of torchmetrics.

Shape legend: B batch, K classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vqvae2 import distributed

_GUESSES = 5  # of top-5


class Accuracy(NamedTuple):
    """Shares of the images, 0 to 1.

    Attributes:
        top1: whose class is the best guess.
        top5: whose class is among the five best; None where there are no more than five classes.
        by_class: top1 of each class; None for a class without images.
    """

    top1: float
    top5: float | None
    by_class: list[float | None]


class Tally:
    """Sums over labelled images, exact however they are dealt to batches and ranks.

    Args:
        num_classes: K.
        device: of the logits to come.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.counts = torch.zeros(
            num_classes, 3, dtype=torch.int64, device=device
        )  # images, first, among five
        self.loss_nats = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Takes in logits [B, K] and labels int64 [B]."""
        logits = logits.float()
        hits = logits.topk(min(_GUESSES, logits.shape[1])).indices == labels[:, None]
        self.counts.index_add_(0, labels, torch.stack([torch.ones_like(labels), hits[:, 0], hits.any(1)], 1))
        self.loss_nats += F.cross_entropy(logits, labels, reduction="sum")

    def all_reduce(self) -> "Tally":
        """Sums over all ranks, in place."""
        distributed.all_reduce_sum(self.counts)
        distributed.all_reduce_sum(self.loss_nats)
        return self

    @property
    def num_images(self) -> int:
        return int(self.counts[:, 0].sum())

    def accuracy(self) -> Accuracy:
        """Of at least one image."""
        total, first, among = self.counts.sum(0).tolist()
        by_class = [right / images if images else None for images, right, _ in self.counts.tolist()]
        return Accuracy(first / total, among / total if len(by_class) > _GUESSES else None, by_class)

    def figures(self, stage: str, suffix: str = "") -> dict[str, float]:
        """What is logged, by name; nothing without images."""
        if not self.num_images:
            return {}
        accuracy = self.accuracy()
        found = {"loss": self.loss_nats.item() / self.num_images, "accuracy": accuracy.top1}
        if accuracy.top5 is not None:
            found["accuracy_top5"] = accuracy.top5
        return {f"{stage}/{name}{suffix}": value for name, value in found.items()}
