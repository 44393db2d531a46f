"""The kernel inception distance against torch-fidelity and sums over single pairs."""

import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from tests.ranks import run_ranks
from vqvae2.metrics.kernel import kernel_distance


def draw(num, seed, shift=0.0, dim=20):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)) + shift


X, Y = draw(130, 0, shift=0.05), draw(90, 1)


def theirs(x, y, subsets, size, **kernel):
    found = kid_features_to_metric(x, y, kid_subsets=subsets, kid_subset_size=size, verbose=False, **kernel)
    return found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"]


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_equals_torch_fidelity(scale):
    found = kernel_distance(scale * X, scale * Y, subsets=7, subset_size=60, seed=2020)
    assert found == pytest.approx(theirs((scale * X).double(), (scale * Y).double(), 7, 60), rel=1e-9)


def test_equals_torch_fidelity_with_another_seed_and_kernel():
    found = kernel_distance(X, Y, subsets=4, subset_size=50, seed=3, degree=2, gamma=0.3, coef0=0.5)
    kernel = {"kid_kernel_poly_degree": 2, "kid_kernel_poly_gamma": 0.3, "kid_kernel_poly_coef0": 0.5}
    assert found == pytest.approx(theirs(X.double(), Y.double(), 4, 50, rng_seed=3, **kernel), rel=1e-9)


def test_where_torch_fidelity_differs_in_float32_it_is_the_less_exact():
    x, y = draw(400, 2, shift=2), draw(400, 3, shift=2)
    exact = theirs(x.double(), y.double(), 5, 400)[0]
    found = kernel_distance(x, y, subsets=5, subset_size=400, seed=2020).mean
    assert abs(found - exact) < 1e-9 * abs(exact)
    assert abs(theirs(x, y, 5, 400)[0] - exact) > 1e-6 * abs(exact)


def test_equals_sums_over_pairs():
    x, y = X[:12].double(), Y[:12].double()

    def kernel(a, b):
        return ((a @ b).item() / 20 + 1) ** 3

    within = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(12) for j in range(12) if i != j) / 132
    between = sum(kernel(a, b) for a in x for b in y) / 144
    found = kernel_distance(X[:12], Y[:12], subsets=2, subset_size=12, seed=0)
    assert found == pytest.approx((within - 2 * between, 0), rel=1e-9, abs=1e-12)


def test_sets_alike_have_no_distance_on_average():
    found = [
        kernel_distance(draw(60, 2 * i), draw(60, 2 * i + 1), subsets=1, subset_size=60, seed=0)
        for i in range(60)
    ]
    means = torch.tensor([one.mean for one in found])
    assert abs(means.mean()) < 4 * means.std() / 60**0.5
    assert (
        kernel_distance(draw(60, 0, shift=1), draw(60, 1), subsets=1, subset_size=60, seed=0).mean
        > 10 * means.std()
    )


def test_two_ranks_equal_one():
    def figures():
        return kernel_distance(X, Y, subsets=5, subset_size=40, seed=1)

    expected = figures()
    for found in run_ranks(figures, 2):
        assert found == pytest.approx(expected, rel=1e-12)


def test_what_is_missing_is_said():
    with pytest.raises(
        ValueError, match=r"subsets of 100 needs at least 100 .* 130 samples and 90 .*subset_size"
    ):
        kernel_distance(X, Y, subsets=2, subset_size=100, seed=0)
    with pytest.raises(ValueError, match="found 20 features of each sample and 3"):
        kernel_distance(X, Y[:, :3], subsets=2, subset_size=50, seed=0)
    with pytest.raises(ValueError, match="1 of the 90 real images"):
        kernel_distance(X, torch.cat([Y[1:], Y[:1] / 0]), subsets=2, subset_size=50, seed=0)
    with pytest.raises(ValueError, match="at least 1 subset of at least 2 images, found 0 of 50"):
        kernel_distance(X, Y, subsets=0, subset_size=50, seed=0)
