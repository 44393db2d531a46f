"""The Fréchet distance against closed forms, torch-fidelity and a form that never builds a covariance."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from tests.metrics.reference import nuclear_norm_form
from tests.ranks import run_ranks
from vqvae2 import distributed
from vqvae2.metrics.frechet import FeatureMoments, frechet_distance

DIM = 24


def draw(num_samples, seed, dim=DIM):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(num_samples, dim, generator=generator, dtype=torch.float64) @ mix + 3


def moments(features, pieces=1):
    metric = FeatureMoments(features.shape[1])
    for piece in features.tensor_split(pieces):
        metric.update(piece)
    return metric.compute()


def test_equals_torch_fidelity_on_the_same_features():
    x, y = draw(300, 0), draw(200, 1)
    expected = fid_statistics_to_metric(
        fid_features_to_statistics(x), fid_features_to_statistics(y), verbose=False
    )
    found = frechet_distance(moments(x, pieces=7), moments(y, pieces=3))
    assert found == pytest.approx(expected["frechet_inception_distance"], rel=1e-9)


def test_scaled_and_shifted_copy_has_the_closed_form():
    x, a, c = draw(500, 2), 1.7, torch.linspace(-1, 1, DIM, dtype=torch.float64)
    covariance = torch.cov(x.T)
    expected = (1 - a) ** 2 * covariance.trace() + ((a - 1) * x.mean(0) + c).square().sum()
    assert frechet_distance(moments(x), moments(a * x + c)) == pytest.approx(expected.item(), rel=1e-9)


def test_same_set_twice_is_zero():
    x = draw(400, 3)
    assert frechet_distance(moments(x), moments(x.flip(0), pieces=5)) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize(("n", "m"), [(10, 12), (5, 300), (2, 2)])
def test_fewer_samples_than_features(n, m):
    x, y = draw(n, 4, dim=64), draw(m, 5, dim=64)
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(nuclear_norm_form(x, y), rel=1e-6)


@pytest.mark.parametrize("pieces", [2, 9, 150])
def test_moments_do_not_depend_on_the_batches(pieces):
    x = draw(150, 6) + 1e6  # a sum of raw squares would lose the covariance here
    whole, streamed = moments(x), moments(x, pieces)
    covariance = np.cov(x.numpy(), rowvar=False)
    for found in (whole, streamed):
        assert found.count == 150
        np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-14)
        np.testing.assert_allclose(found.statistics()["sigma"], covariance, rtol=1e-9, atol=1e-9)


def test_empty_batch_counts_nothing():
    metric = FeatureMoments(DIM)
    x = draw(20, 7)
    for batch in (x[:0], x, x[:0]):
        metric.update(batch)
    assert metric.compute().count == 20
    np.testing.assert_allclose(metric.compute().statistics()["sigma"], np.cov(x.numpy(), rowvar=False))


def test_two_ranks_with_an_uneven_split_equal_one():
    x, y = draw(101, 8) + 100, draw(57, 9)

    def on_a_rank():
        parts = []
        for features, cut in ((x, 70), (y, 5)):
            metric = FeatureMoments(DIM)
            for piece in (features[:cut], features[cut:])[distributed.rank()].split(16):
                metric.update(piece)
            parts.append(metric.compute())
        return frechet_distance(*parts), parts[0].count.item()

    expected = frechet_distance(moments(x), moments(y))
    for found, count in run_ranks(on_a_rank, 2):
        assert count == 101
        assert found == pytest.approx(expected, rel=1e-9)


def test_one_sample_is_an_error():
    with pytest.raises(ValueError, match="at least 2 images on each side, found 1"):
        frechet_distance(moments(draw(1, 0)), moments(draw(9, 1)))
