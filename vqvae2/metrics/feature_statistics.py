"""What a feature network has seen of a set of images: all that the figures of the set are computed from.

Shape legend: B batch, N images of the set, n of them whose features are kept, D features, K classes.
"""

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqvae2.metrics.feature_set import FeatureSet
from vqvae2.metrics.features import Features
from vqvae2.metrics.frechet import FeatureMoments, Gaussian, Moments
from vqvae2.metrics.manifold import Balls

_ROWS = 8192  # features that are float64 at a time


class Record(NamedTuple):
    """Of one set by one network, the same on every rank."""

    count: int  # N
    index: Tensor  # int64 [n], positions in the set, ascending
    features: Tensor  # float32 [n, D]
    logits: Tensor | None  # float32 [n, K]
    moments: Moments | None  # of all N features; None where all are kept
    squared_radii: Tensor | None = None  # float64 [n, k], see `Balls`

    def gaussian(self) -> Gaussian:
        """That of all N features."""
        if self.moments is not None:
            return self.moments.gaussian()
        parts = (Moments.of(part) for part in self.features.split(_ROWS))
        return reduce(Moments.union, parts).gaussian()

    def take(self, rows: Tensor) -> "Record":
        """Some of the images alone; `rows` are numbers among those kept."""
        logits = None if self.logits is None else self.logits[rows]
        return Record(len(rows), self.index[rows], self.features[rows], logits, None)

    def with_radii(self, k: int) -> "Record":
        """With the distances of the n features to their k nearest, the costly third of comparing sets."""
        if self.squared_radii is not None and self.squared_radii.shape[1] >= k:
            return self
        return self._replace(squared_radii=Balls.around(self.features, k=k).squared_radii)

    def balls(self) -> Balls:
        """For as many neighbours as `with_radii` searched."""
        return Balls(self.features, self.squared_radii)


class Collector(nn.Module):
    """Makes the record of a set whose images come in batches, on each rank some of them.

    Args:
        seen: what the network sees in any image.
        size: N, positions of the set.
        keep: int64 positions whose features are kept; of the others only moments. None keeps all. Memory
            grows with what is kept alone: (4 D + 4 K) bytes an image.
    """

    def __init__(self, seen: Features, *, size: int, keep: Tensor | None = None) -> None:
        super().__init__()
        num_features = seen.features.shape[1]
        everything = keep is None or len(keep) == size
        kept = torch.full((size,), everything)
        if not everything:
            kept[keep] = True
        self.register_buffer("kept", kept, persistent=False)
        self.features = FeatureSet(num_features)
        self.logits = None if seen.logits is None else FeatureSet(seen.logits.shape[1])
        self.moments = None if everything else FeatureMoments(num_features)

    def update(self, seen: Features, index: Tensor) -> None:
        """Adds what was seen in the images at the positions [B]."""
        if self.moments is not None:
            self.moments.update(seen.features)
        kept = self.kept[index]
        self.features.update(seen.features[kept], index[kept])
        if self.logits is not None:
            self.logits.update(seen.logits[kept], index[kept])

    def record(self) -> Record:
        """Of all ranks together; each must call this."""
        index, features = self.features.gather_with_index()
        logits = None if self.logits is None else self.logits.gather()
        if self.moments is None:
            return Record(len(features), index, features, logits, None)
        moments = self.moments.compute()
        return Record(int(moments.count), index, features, logits, moments)
