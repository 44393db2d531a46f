"""The features of all images of a set, for metrics that compare every image with every other.

Shape legend: B batch, N images over all ranks, D features.
"""

import torch
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from vqvae2 import distributed


class FeatureSet(nn.Module):
    """Features collected batch by batch, 4 D bytes an image: 410 MB for 50,000 images and 2,048 features.

    While `gather` works, a rank holds its own and twice those of all ranks.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("no_features", torch.empty(0, num_features), persistent=False)
        self.register_buffer("no_index", torch.empty(0, dtype=torch.int64), persistent=False)
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.features = [self.no_features]
        self.index = [self.no_index]

    def update(self, features: Tensor, index: Tensor) -> None:
        """Adds features [B, D] of the images with the positions [B] in the data."""
        self.features.append(features.detach().to(self.no_features))
        self.index.append(index.to(self.no_index))

    def __len__(self) -> int:
        """Images on this rank, those that came twice counted twice."""
        return sum(map(len, self.index))

    def gather(self) -> Tensor:
        """float32 [N, D] on every rank, in the order of the data: neither batches nor ranks can be told.

        An image that was shown twice, as when an uneven split is padded, counts once.
        """
        return self.gather_with_index()[1]

    def gather_with_index(self) -> tuple[Tensor, Tensor]:
        """The positions int64 [N], ascending, and the features of `gather`."""
        index = _of_all_ranks(torch.cat(self.index))
        features = _of_all_ranks(torch.cat(self.features))
        order = index.argsort(stable=True)
        index = index[order]
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        return index[first], features[order[first]]


def _of_all_ranks(mine: Tensor) -> Tensor:
    """The ranks' tensors in rank order, joined along their first dimension, which may differ."""
    return mine if distributed.world_size() == 1 else torch.cat(gather_all_tensors(mine))


def check_comparable(samples: Tensor, real: Tensor, *, metric: str, least: int, cure: str) -> None:
    """Finds out whether a metric has what it needs.

    Args:
        samples: features [M, D].
        real: features [N, D].
        metric: what it is called.
        least: images that it needs on each side.
        cure: an option that would do with fewer images.

    Raises:
        ValueError: too few images, features of two networks, or some that are not finite.
    """
    if min(len(samples), len(real)) < least:
        raise ValueError(
            f"{metric} needs at least {least} images on each side, found {len(samples)} samples and "
            f"{len(real)} real images. Give more of them, or {cure}."
        )
    if samples.shape[1:] != real.shape[1:]:
        raise ValueError(
            f"{metric} compares features of one network, found {samples.shape[1]} features of each sample "
            f"and {real.shape[1]} of each real image. Compute both with the same network."
        )
    for name, features in (("samples", samples), ("real images", real)):
        check_finite(features, name)


def check_finite(features: Tensor, name: str) -> None:
    """Raises ValueError if there are NaN or infinite features [N, D]."""
    broken = (~features.isfinite().all(1)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"{len(broken)} of the {len(features)} {name} have features that are NaN or infinite, the first "
            f"is number {broken[0]} from 0. Look at it, and whether the network ran in half precision."
        )
