"""The Fréchet distance against closed forms, torch-fidelity and a form that never builds a covariance."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from tests.metrics.reference import nuclear_norm_form
from tests.ranks import run_ranks
from vqvae2 import distributed
from vqvae2.metrics.frechet import FeatureMoments, Gaussian, Moments, frechet_distance, frechet_infinity

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


@pytest.mark.parametrize("num_samples", [500, DIM + 1, DIM, 7])
def test_scaled_and_shifted_copy_has_the_closed_form(num_samples):
    x, a, c = draw(num_samples, 2), 1.7, torch.linspace(-1, 1, DIM, dtype=torch.float64)
    covariance = torch.cov(x.T)
    expected = (1 - a) ** 2 * covariance.trace() + ((a - 1) * x.mean(0) + c).square().sum()
    assert frechet_distance(moments(x), moments(a * x + c)) == pytest.approx(expected.item(), rel=1e-11)


@pytest.mark.parametrize("rank", [2, DIM // 2, DIM])
def test_known_gaussians_that_share_their_axes_have_the_closed_form(rank):
    """Σ (√λ₁ − √λ₂)² + ‖Δμ‖², also where either is flat in some directions."""
    axes = torch.linalg.qr(draw(DIM, 10)).Q
    first, second = (
        torch.logspace(1, -5, DIM, dtype=torch.float64),
        torch.logspace(-3, 1, DIM, dtype=torch.float64),
    )
    first[rank:], second[: DIM - rank] = 0, 0
    means = draw(2, 11)
    known = [
        Moments(torch.tensor(1e4), mean, axes @ torch.diag(values * (1e4 - 1)) @ axes.T)
        for mean, values in zip(means, (first, second), strict=True)
    ]
    expected = (first.sqrt() - second.sqrt()).square().sum() + (means[0] - means[1]).square().sum()
    assert frechet_distance(*known) == pytest.approx(expected.item(), rel=1e-11)


def test_two_features_have_the_closed_form():
    """Of 2 x 2 matrices tr √M = √(tr M + 2 √det M)."""
    x, y = draw(40, 12, dim=2), draw(50, 13, dim=2)
    first, second = torch.cov(x.T), torch.cov(y.T)
    product = first @ second
    root = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = first.trace() + second.trace() - 2 * root + (x.mean(0) - y.mean(0)).square().sum()
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(expected.item(), rel=1e-11)


@pytest.mark.parametrize("num_samples", [2000, 400, 200, 60, 2])
@pytest.mark.parametrize("decades", [0, 4, 12])
def test_same_set_twice_is_zero(num_samples, decades):
    """Of 200 features whose deviations span some decades, as a network's do."""
    deviations = 10 * torch.logspace(0, -decades, 200, dtype=torch.float64)
    mix = torch.linalg.qr(draw(200, 14, dim=200)).Q
    x = torch.randn(num_samples, 200, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = x * deviations @ mix + 0.5
    assert frechet_distance(moments(x), moments(x.flip(0), pieces=min(7, num_samples))) <= 1e-8


@pytest.mark.parametrize(("n", "m"), [(10, 12), (5, 300), (2, 2), (64, 65), (300, 40), (300, 301)])
def test_fewer_samples_than_features(n, m):
    x, y = draw(n, 4, dim=64), draw(m, 5, dim=64)
    assert frechet_distance(moments(x), moments(y, pieces=2)) == pytest.approx(
        nuclear_norm_form(x, y), rel=1e-11
    )


def test_features_that_never_vary():
    x, y = draw(100, 15), draw(100, 16)
    x[:, 3], x[:, 5], y[:, 3] = 0.1, x[:, 6], 0.7
    assert frechet_distance(moments(x, 6), moments(y)) == pytest.approx(nuclear_norm_form(x, y), rel=1e-11)
    still = torch.full((9, DIM), 0.1, dtype=torch.float64)
    assert frechet_distance(moments(still), moments(still + 1)) == pytest.approx(DIM, rel=1e-11)


@pytest.mark.parametrize("pieces", [2, 9, 150])
def test_moments_do_not_depend_on_the_batches(pieces):
    x = draw(150, 6) + 1e6  # a sum of raw squares would lose the covariance here
    whole, streamed = moments(x), moments(x, pieces)
    covariance = np.cov(x.numpy(), rowvar=False)
    for found in (whole, streamed):
        assert found.count == 150
        np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-14)
        np.testing.assert_allclose(found.covariance(), covariance, rtol=1e-9, atol=1e-9)


def test_empty_batch_counts_nothing():
    metric = FeatureMoments(DIM)
    x = draw(20, 7)
    for batch in (x[:0], x, x[:0]):
        metric.update(batch)
    assert metric.compute().count == 20
    np.testing.assert_allclose(metric.compute().covariance(), np.cov(x.numpy(), rowvar=False))


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


def test_features_of_two_networks_or_none_are_an_error():
    with pytest.raises(ValueError, match="found 24 features on one side and 8 on the other"):
        frechet_distance(moments(draw(9, 0)), moments(draw(9, 1, dim=8)))
    broken = draw(9, 1)
    broken[4, 2] = torch.inf
    with pytest.raises(ValueError, match="finite features"):
        frechet_distance(moments(draw(9, 0)), moments(broken))


def standard(dim):
    return Gaussian(torch.zeros(dim).double(), torch.tensor(dim).double(), torch.eye(dim).double())


def test_infinitely_many_samples_of_a_gaussian_have_no_distance_from_it():
    samples = torch.randn(4000, 12, generator=torch.Generator().manual_seed(20))
    sizes = [round(size) for size in np.linspace(400, 4000, 15)]
    assert moments(samples[:400]).gaussian().distance(standard(12)) > 0.1
    assert abs(frechet_infinity(samples, standard(12), sizes=sizes, seed=0)) < 0.02


def test_distance_at_infinity_is_the_intercept_and_two_ranks_find_it():
    samples, sizes = draw(90, 21), [30, 45, 90]

    def on_a_rank():
        return frechet_infinity(samples, standard(DIM), sizes=sizes, seed=4)

    orders = [torch.randperm(90, generator=torch.Generator().manual_seed(4 + i)) for i in range(3)]
    drawn = [samples[order[:size]] for order, size in zip(orders, sizes, strict=True)]
    distances = [moments(some).gaussian().distance(standard(DIM)) for some in drawn]
    expected = np.polyfit(1 / np.array(sizes), distances, 1)[1]
    assert [on_a_rank(), *run_ranks(on_a_rank, 2)] == pytest.approx([expected] * 3, rel=1e-9)


def test_distance_at_infinity_needs_a_line_and_its_samples():
    with pytest.raises(ValueError, match="at least two sizes"):
        frechet_infinity(draw(90, 0), standard(DIM), sizes=[50, 50], seed=0)
    with pytest.raises(ValueError, match="largest size is 100, but there are 90 samples"):
        frechet_infinity(draw(90, 0), standard(DIM), sizes=[50, 100], seed=0)
