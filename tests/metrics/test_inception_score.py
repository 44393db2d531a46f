"""The Inception score against closed forms and torch-fidelity."""

import math

import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from tests.ranks import run_ranks
from vqvae2 import distributed
from vqvae2.metrics.inception_score import InceptionScore

LOGITS = 3 * torch.randn(103, 12, generator=torch.Generator().manual_seed(0))


def score(logits, splits, order=None, pieces=1):
    metric = InceptionScore(splits)
    order = torch.arange(len(logits)) if order is None else order
    for index in order.tensor_split(pieces):
        metric.update(logits[index], index)
    return metric.compute()


def test_equals_torch_fidelity_whatever_the_order_of_the_batches():
    expected = isc_features_to_metric(LOGITS, splits=10)
    shuffled = torch.randperm(len(LOGITS), generator=torch.Generator().manual_seed(1))
    for found in (score(LOGITS, 10), score(LOGITS, 10, order=shuffled, pieces=7)):
        assert found.mean == pytest.approx(expected["inception_score_mean"], rel=1e-12)
        assert found.std == pytest.approx(expected["inception_score_std"], rel=1e-12)


def test_uniform_predictions_score_one():
    found = score(torch.zeros(50, 8), splits=5)
    assert found.mean == pytest.approx(1, abs=1e-12)
    assert found.std == pytest.approx(0, abs=1e-12)


def test_certain_and_balanced_predictions_score_the_number_of_classes():
    logits = 1000 * torch.eye(8).repeat(6, 1)
    assert score(logits, splits=1).mean == pytest.approx(8, rel=1e-12)


def test_two_predictions_have_the_closed_form():
    """p and 1 − p in turns: exp(ln 2 − H(p))."""
    p = 0.8
    logits = torch.tensor([[p, 1 - p], [1 - p, p]], dtype=torch.float64).log().repeat(5, 1)
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert score(logits, splits=1).mean == pytest.approx(math.exp(math.log(2) - entropy), rel=1e-12)


def test_two_ranks_with_an_uneven_split_equal_one():
    def on_a_rank():
        index = (torch.arange(0, 103, 3), torch.tensor([i for i in range(103) if i % 3]))[distributed.rank()]
        return score(LOGITS, 10, order=index, pieces=4)

    expected = score(LOGITS, 10)
    for found in run_ranks(on_a_rank, 2):
        assert found == pytest.approx(expected, rel=1e-9)


def test_fewer_samples_than_splits_is_an_error():
    with pytest.raises(ValueError, match=r"10 splits .* found 9 samples"):
        score(LOGITS[:9], splits=10)
