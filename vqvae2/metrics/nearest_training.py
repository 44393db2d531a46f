"""Nearest training images: whether samples are copies of what was learned.

Shape legend: Q queries, B batch, D numbers of an image, k nearest.
"""

from typing import NamedTuple

from torch import Tensor

from vqvae2.metrics.feature_set import check_finite
from vqvae2.metrics.neighbours import Neighbours, Pairs, blocks


class NearestImages(NamedTuple):
    """From the nearest on; of two equally near ones the one with the lower index comes first."""

    distance: Tensor  # float64 [Q, k], Euclidean, in the units of the space
    index: Tensor  # int64 [Q, k], positions in the training set


class NearestTrainingImages:
    """The k training images that are nearest to each query, in a stream of training images.

    One for each space: the features of a network, or pixels, which are compared as float32. Distances are
    those of float64, so an image of the training set finds itself at 0. Memory: the queries and a batch.

    Args:
        queries: [Q, ...], the same on all ranks.
        k: how many to find.

    Raises:
        ValueError: there is no query, or one that is not finite, or k is below 1.
    """

    def __init__(self, queries: Tensor, k: int) -> None:
        if k < 1 or not len(queries):
            raise ValueError(
                f"Wanted at least 1 nearest image of at least 1 query, found {k} of {len(queries)}."
            )
        self.shape = tuple(queries.shape[1:])
        self.queries = queries.flatten(1).float()
        check_finite(self.queries, "queries")
        self.found = Neighbours(len(queries), k, queries.device)

    def update(self, images: Tensor, index: Tensor) -> None:
        """Searches a batch of training images [B, ...] with the positions [B] in the training set.

        Raises:
            ValueError: they have another shape than the queries, or are not finite.
        """
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"Training images of shape {tuple(images.shape[1:])} cannot be compared with queries of "
                f"shape {self.shape}. Bring both to one size, or use the same network for both."
            )
        if not len(images):
            return
        images = images.flatten(1).float()
        check_finite(images, "training images of a batch")
        for j in blocks(images):
            self.found.search(Pairs(self.queries, images[j]), index[j].to(self.found.index))

    def compute(self) -> NearestImages:
        """What all ranks together have found; each must call this.

        Raises:
            ValueError: fewer than k training images were shown.
        """
        self.found.gather()
        num_seen = int(self.found.squared[0].isfinite().sum())
        k = self.found.index.shape[1]
        if num_seen < k:
            raise ValueError(
                f"Wanted the {k} nearest of {num_seen} training images. Show more or ask for fewer."
            )
        return NearestImages(self.found.squared.sqrt(), self.found.index)
