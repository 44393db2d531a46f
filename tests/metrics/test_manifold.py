"""Precision, recall, density and coverage against whole matrices, two packages, and what they must do."""

import itertools
import math

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from torch_fidelity.metric_prc import prc_features_to_metric

from tests.metrics import brute_force
from tests.ranks import run_ranks
from vqvae2.metrics import neighbours
from vqvae2.metrics.manifold import Balls, manifold_figures


def figures(samples, real, k):
    return manifold_figures(Balls.around(samples, k=k), Balls.around(real, k=k), k_precision=k, k_density=k)


def precision_recall(samples, real, *, k):
    return figures(samples, real, k)[:2]


def density_coverage(samples, real, *, k):
    return figures(samples, real, k)[2:]


def draw(num, dim=16, seed=0, shift=0.0, scale=1.0):
    return scale * torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)) + shift


def modes(num, kept, seed):
    """Points around the first `kept` of ten centres."""
    centres = 10 * draw(10, seed=99)
    which = torch.arange(num) % kept
    return centres[which] + draw(num, seed=seed)


def integers(num, seed):
    """Points of a coarse grid, so that most distances are ties and some points are twins."""
    return torch.randint(0, 4, (num, 5), generator=torch.Generator().manual_seed(seed)).float()


PAIRS = {
    "alike": (draw(300, seed=1), draw(220, seed=2)),
    "shifted": (draw(150, seed=3, shift=0.4), draw(260, seed=4)),
    "wide": (draw(200, seed=5, scale=1.6), draw(150, seed=6)),
    "far from zero": (draw(200, seed=7, shift=500), draw(150, seed=8, shift=500)),
    "ties": (integers(240, 9), integers(180, 10)),
}


@pytest.fixture(params=[50, 2048], ids="blocks of {}".format)
def block(request, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", request.param)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("name", PAIRS)
def test_equals_whole_matrices(name, k, block):
    samples, real = PAIRS[name]
    assert precision_recall(samples, real, k=k) == brute_force.precision_recall(samples, real, k)
    assert density_coverage(samples, real, k=k) == brute_force.density_coverage(samples, real, k)


@pytest.mark.parametrize("name", PAIRS)
def test_precision_and_recall_equal_torch_fidelity(name):
    """Its own distances need float64: in float32 it misjudges pairs near the border of a ball."""
    samples, real = PAIRS[name]
    expected = prc_features_to_metric(samples.double(), real.double(), prc_neighborhood=3, verbose=False)
    found = precision_recall(samples, real, k=3)
    assert found[0] == pytest.approx(expected["precision"], rel=1e-7)  # it averages in float32
    assert found[1] == pytest.approx(expected["recall"], rel=1e-7)


def test_where_torch_fidelity_differs_in_float32_it_is_wrong():
    samples, real = draw(400, seed=11, shift=3e3), draw(400, seed=12, shift=3e3)
    expected = brute_force.precision_recall(samples, real, 3)
    theirs = prc_features_to_metric(samples, real, prc_neighborhood=3, verbose=False)
    assert abs(theirs["precision"] - expected[0]) > 1e-3
    assert precision_recall(samples, real, k=3) == expected


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("name", PAIRS)
def test_density_and_coverage_equal_prdc_exactly(name, k):
    samples, real = PAIRS[name]
    expected = compute_prdc(real.double().numpy(), samples.double().numpy(), k)
    found = density_coverage(samples, real, k=k)
    assert found[1] == expected["coverage"]
    assert round(found[0] * k * len(samples), 6) == round(expected["density"] * k * len(samples), 6)  # pairs


def test_one_pass_for_all_equals_each_alone():
    samples, real = PAIRS["shifted"]
    found = manifold_figures(Balls.around(samples, k=3), Balls.around(real, k=6), k_precision=3, k_density=5)
    assert found == (*precision_recall(samples, real, k=3), *density_coverage(samples, real, k=5))


def test_same_set_twice_is_perfect():
    """Every ball of [N] has the k - 1 nearer neighbours and its centre in it, and the k-th on its border."""
    x = draw(500, seed=13, shift=100)
    assert precision_recall(x, x.clone(), k=3) == (1, 1)
    assert density_coverage(x.flip(0), x, k=5) == (1, 1)


def test_twins_are_inside_a_ball_without_extent_and_not_strictly_so():
    x = torch.tensor([[0.0], [0.0], [5.0], [5.0]])
    assert precision_recall(x, x, k=1) == (1, 1)
    assert density_coverage(x, x, k=1) == (0, 0)


def test_sets_alike_have_density_one_and_the_closed_form_of_coverage():
    """A real image is covered unless all of its k nearest of both sets are real: exchangeability."""
    k, num_real, num_samples, draws = 5, 150, 90, 60
    found = [
        density_coverage(draw(num_samples, 4, seed=2 * i), draw(num_real, 4, seed=2 * i + 1), k=k)
        for i in range(draws)
    ]
    density, coverage = np.mean(found, axis=0)
    missed = math.prod((num_real - i) / (num_real + num_samples - i) for i in range(1, k + 1))
    spread = np.std(found, axis=0) / draws**0.5
    assert abs(density - 1) < 4 * spread[0]
    assert abs(coverage - (1 - missed)) < 4 * spread[1]
    assert (spread < 0.01).all()


def test_dropped_modes_lower_recall_and_coverage_only():
    real = modes(400, 10, seed=14)
    whole, half = modes(400, 10, seed=15), modes(400, 5, seed=15)
    before = (*precision_recall(whole, real, k=3), *density_coverage(whole, real, k=5))
    after = (*precision_recall(half, real, k=3), *density_coverage(half, real, k=5))
    assert after[0] == pytest.approx(before[0], abs=0.05)
    assert after[1] == pytest.approx(before[1] / 2, abs=0.05)
    assert after[2] == pytest.approx(before[2], abs=0.15)
    assert after[3] == pytest.approx(before[3] / 2, abs=0.05)


def test_noise_lowers_precision_and_density():
    real, samples = modes(400, 10, seed=16), modes(400, 10, seed=17)
    figures = [
        (
            precision_recall(samples + noise, real, k=3)[0],
            density_coverage(samples + noise, real, k=5)[0],
        )
        for noise in (0, draw(400, seed=18), 4 * draw(400, seed=18))
    ]
    for before, after in itertools.pairwise(figures):
        assert after[0] < before[0]
        assert after[1] < before[1]


def test_two_ranks_equal_one(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 64)
    samples, real = PAIRS["ties"]

    def figures():
        balls = Balls.around(samples, k=5), Balls.around(real, k=5)
        return manifold_figures(*balls, k_precision=3, k_density=5)

    assert run_ranks(figures, 2) == [figures()] * 2
    assert run_ranks(figures, 5)[4] == figures()


def test_what_is_missing_is_said():
    x, y = draw(3), draw(50)
    with pytest.raises(ValueError, match=r"neighbour k=3 .* 4 images, found 3"):
        Balls.around(x, k=3)
    with pytest.raises(ValueError, match=r"neighbour k=0 need k of at least 1"):
        Balls.around(y, k=0)
    broken = y.clone()
    broken[[7, 9], 2] = torch.nan
    with pytest.raises(ValueError, match=r"2 of the 50 images have .* NaN or infinite.* number 7"):
        Balls.around(broken, k=3)
    with pytest.raises(ValueError, match="found 16 features of each sample and 8 of each real image"):
        figures(y, draw(50, 8), 3)
    with pytest.raises(ValueError, match="know 3 neighbours, wanted k=5"):
        manifold_figures(Balls.around(y, k=3), Balls.around(y, k=3), k_precision=3, k_density=5)
