"""Classifier-based rejection sampling: keep the samples that a classifier recognises best.

VQ-VAE-2, section 3.3: trades diversity for quality. Legend: M samples, B batch, C H W images, K classes.
"""

from fractions import Fraction
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqvae2.pixels import from_uint8


@torch.no_grad()
def log_scores(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """log softmax(classifier(x))_y of images that were asked to be of class y.

    Float64 from the logits on, as −log(1 + Σ_{k≠y} exp(l_k − l_y)): the best differ by less than rounding
    leaves of their probability, 1, or of the sum in a softmax.

    Args:
        classifier: gives logits [B, K] of images in [-1, 1]; in eval mode.
        images: uint8 [B, C, H, W], as a reader of the stored samples would see them.
        labels: int64 [B], y, from 0 up to K - 1.

    Returns:
        float64 [B], below 0.

    Raises:
        ValueError: a label is not one of the classifier's classes.
    """
    with torch.autocast(images.device.type, enabled=False):
        logits = classifier(from_uint8(images)).double()
    num_classes = logits.shape[1]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"A classifier of {num_classes} classes cannot score samples with labels from "
            f"{int(labels.min())} to {int(labels.max())}. Take a classifier that was trained on the samples' "
            "classes."
        )
    asked = labels[:, None]
    others = logits.scatter(1, asked, -torch.inf).logsumexp(1)
    return -F.softplus(others - logits.gather(1, asked).squeeze(1))


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Each sample's place among those of its class, int64 [M]; 0 has the highest score.

    Args:
        scores: [M].
        labels: int64 [M]. Of equal scores of a class, the first in the order given comes first.

    Raises:
        ValueError: a score is not a number.
    """
    unknown = int(scores.isnan().sum())
    if unknown:
        raise ValueError(f"{unknown} of {len(scores)} scores are not a number: score the samples again.")
    order = scores.argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]  # class by class, each from its best
    grouped = labels[order]
    place = torch.arange(len(labels), device=labels.device) - torch.searchsorted(grouped, grouped)
    return torch.empty_like(order).scatter_(0, order, place)


def keep_best(scores: Tensor, labels: Tensor, fraction: float) -> Tensor:
    """Which samples are the best `fraction` of their class, bool [M].

    ⌈f·M_y⌉ of each class y are kept, so every class keeps its share, and a smaller fraction's samples are
    among those of a larger one. The paper does not say whether it balanced the classes.

    Args:
        scores: [M].
        labels: int64 [M].
        fraction: above 0, up to 1, which keeps all.

    Raises:
        ValueError: such a fraction cannot be kept, or a score is not a number.
    """
    check_fraction(fraction)
    _, members, counts = labels.unique(return_inverse=True, return_counts=True)
    quotas = torch.tensor([num_kept(count, fraction) for count in counts.tolist()], device=labels.device)
    return ranks(scores, labels) < quotas[members]


def num_kept(num_samples: int, fraction: float) -> int:
    """⌈f·M⌉ for the number that is written as `fraction`: 0.07 of 100 is 7, where 0.07 * 100 exceeds it."""
    return ceil(Fraction(str(float(fraction))) * num_samples)


def num_enough(num_samples: int, fraction: float) -> int:
    """Of how many samples the `fraction` is at least `num_samples`."""
    return ceil(num_samples / Fraction(str(float(fraction))))


def check_fraction(fraction: float) -> None:
    """Raises ValueError for a fraction that cannot be kept."""
    if not 0 < fraction <= 1:
        raise ValueError(f"The fraction of samples to keep is {fraction}, wanted above 0, up to 1 (all).")


def mean_score(scores: Tensor, labels: Tensor, kept: Tensor) -> float:
    """Mean score of the kept samples of each class, averaged over the classes that have samples.

    It never falls as the fraction does. A mean over samples could, where rounding up changes what share of
    the kept samples a difficult class has.

    Args:
        scores: [M].
        labels: int64 [M].
        kept: bool [M], as `keep_best` returns it.
    """
    classes, members = labels.unique(return_inverse=True)
    sums, counts = scores.new_zeros(2, len(classes), dtype=torch.float64)
    sums.index_add_(0, members[kept], scores[kept].double())
    counts.index_add_(0, members[kept], torch.ones_like(scores[kept], dtype=torch.float64))
    return (sums / counts).mean().item()


def even_part(labels: Tensor, kept: Tensor, count: int) -> Tensor:
    """The first `count` of the kept samples, evenly from all classes, bool [M]; all if there are not as many.

    The order of the samples tells nothing of their quality, so this is a uniform draw among the kept.

    Args:
        labels: int64 [M].
        kept: bool [M].
        count: at least 1.
    """
    indices = kept.nonzero().squeeze(1)
    turn = ranks(-indices.double(), labels[indices])  # how many of the class come before
    chosen = indices[turn.argsort(stable=True)[:count]]
    return torch.zeros_like(kept).index_fill_(0, chosen, True)
