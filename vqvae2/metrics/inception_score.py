"""The Inception score of a set of logits."""

from typing import NamedTuple

from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


class Score(NamedTuple):
    """Mean and standard deviation over the splits."""

    mean: float
    std: float


class InceptionScore(Metric):
    """exp of the mean KL(p(y|x) ‖ p(y)) (Salimans et al., 2016), over all batches and ranks.

    The splits are drawn after the logits were put in the order of the data, so they depend neither on batches
    nor on ranks. It keeps all logits: 200 MB for 50,000 samples and 1,008 classes.

    Args:
        splits: parts that are scored each for itself.
    """

    full_state_update = False

    def __init__(self, splits: int) -> None:
        super().__init__()
        self.splits = splits
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("index", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, index: Tensor) -> None:
        """Adds logits [B, K] of the samples with the positions [B] in the data."""
        self.logits.append(logits)
        self.index.append(index)

    def compute(self) -> Score:
        """Raises:
        ValueError: there are fewer samples than splits.
        """
        logits, index = dim_zero_cat(self.logits), dim_zero_cat(self.index)
        check_splits(len(logits), self.splits)
        found = isc_features_to_metric(logits[index.argsort()].cpu(), splits=self.splits, shuffle=True)
        return Score(found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD])


def check_splits(num_samples: int, splits: int) -> None:
    """Raises ValueError unless every split can have a sample."""
    if not 1 <= splits <= num_samples:
        raise ValueError(
            f"An Inception score in {splits} splits needs at least one split, and a sample in each, found "
            f"{num_samples} samples. Give more samples or set model.init_args.splits."
        )
