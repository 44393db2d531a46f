"""The Inception score against closed forms and torch-fidelity."""

import math

import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from vqvae2.metrics.inception_score import inception_score

LOGITS = 3 * torch.randn(103, 12, generator=torch.Generator().manual_seed(0))


def test_equals_torch_fidelity():
    expected = isc_features_to_metric(LOGITS, splits=10)
    found = inception_score(LOGITS, splits=10)
    assert found.mean == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert found.std == pytest.approx(expected["inception_score_std"], rel=1e-12)


def test_equals_its_definition_in_one_split():
    p = LOGITS.double().softmax(1)
    divergence = (p * (p.log() - p.mean(0).log())).sum(1)
    assert inception_score(LOGITS, splits=1).mean == pytest.approx(divergence.mean().exp().item(), rel=1e-9)


def test_uniform_predictions_score_one():
    found = inception_score(torch.zeros(50, 8), splits=5)
    assert found.mean == pytest.approx(1, abs=1e-12)
    assert found.std == pytest.approx(0, abs=1e-12)


def test_certain_and_balanced_predictions_score_the_number_of_classes():
    logits = 1000 * torch.eye(8).repeat(6, 1)
    assert inception_score(logits, splits=1).mean == pytest.approx(8, rel=1e-12)


def test_two_predictions_have_the_closed_form():
    """p and 1 − p in turns: exp(ln 2 − H(p))."""
    p = 0.8
    logits = torch.tensor([[p, 1 - p], [1 - p, p]], dtype=torch.float64).log().repeat(5, 1)
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert inception_score(logits, splits=1).mean == pytest.approx(math.exp(math.log(2) - entropy), rel=1e-12)


def test_fewer_samples_than_splits_is_an_error():
    with pytest.raises(ValueError, match=r"10 splits .* found 9 samples"):
        inception_score(LOGITS[:9], splits=10)
