"""The Inception score of a set of logits."""

from typing import NamedTuple

from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric


class Score(NamedTuple):
    """Mean and standard deviation over the splits."""

    mean: float
    std: float


def inception_score(logits: Tensor, *, splits: int) -> Score:
    """exp of the mean KL(p(y|x) ‖ p(y)) (Salimans et al., 2016), in float64, by torch-fidelity.

    Args:
        logits: [N, K] in the order of the data, which torch-fidelity shuffles with a seed of its own.
        splits: parts that are scored each for itself; papers take 10.

    Raises:
        ValueError: there are fewer samples than splits.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(
            f"An Inception score in {splits} splits needs at least one split, and a sample in each, found "
            f"{len(logits)} samples. Give more samples or set model.init_args.splits."
        )
    found = isc_features_to_metric(logits.cpu(), splits=splits, shuffle=True)
    return Score(found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD])
