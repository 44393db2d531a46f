"""The check of the evaluation: that it would notice a metric that moves the wrong way."""

import numpy as np
import pytest

from tests.experiments.real_run import like, real_evaluation

FIGURES = {
    "half": (0.1, 0.0, 0.001, 5.0, 0.9, 0.9, 1.0, 0.6, 0.01),
    "blurred": (9.0, 9.0, 1.0, 4.0, 0.5, 0.2, 0.3, 0.1, 0.01),
    "dropped": (2.0, 2.0, 0.3, 3.0, 0.9, 0.7, 1.0, 0.4, 0.01),
    "noisy": (8.0, 8.0, 0.9, 3.0, 0.4, 0.3, 0.3, 0.1, 0.01),
    "noise": (90.0, 90.0, 9.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.01),
    "samples": (1.0, 1.0, 0.1, 4.5, 0.7, 0.8, 0.6, 0.5, 0.01),
}
METRICS = ("fid", "fid_infinity", "kid", "is", "precision", "recall", "density", "coverage", "kid_std")
KEYS = [f"{metric}_net" for metric in METRICS]


@pytest.fixture
def check(experiment):
    return experiment("check_metrics")


@pytest.fixture
def evaluation():
    """Made-up figures of made-up sets in the fields of a real evaluation."""
    real = real_evaluation()
    named = {key: dict(zip(KEYS, values, strict=True)) for key, values in FIGURES.items()}
    manifold, kid = {"k_precision": 3, "k_density": 5}, {"subsets": 100, "subset_size": 1000}
    return like(
        real,
        sets=[like(real["sets"][0], key=key, figures=figures) for key, figures in named.items()],
        legend={f"{metric}_net": like(real["legend"]["mse_train"], metric=metric) for metric in METRICS},
        counts={"real": 25000, "half": 5000},
        settings=like(real["settings"], manifold=manifold, kid=kid),
    )


def failing(check, evaluation):
    return [claim for claim, holds in check.claims(evaluation) if not holds]


def test_figures_that_move_as_they_should(check, evaluation):
    assert failing(check, evaluation) == []


@pytest.mark.parametrize(
    ("key", "metric", "value", "claim"),
    [
        ("half", "density", 1.3, "half: density is 1"),
        ("half", "coverage", 0.9, "half: coverage is 0.598, its expectation"),
        ("half", "kid", 0.05, "half: KID is 0, within three deviations of a subset's"),
        ("dropped", "recall", 0.95, "dropped: recall is worse than of half"),
        ("dropped", "precision", 0.5, "dropped: precision is that of half"),
        ("noisy", "precision", 0.95, "noisy: precision is worse than of half"),
        ("blurred", "fid", 0.05, "blurred: fid is worse than of half"),
        ("samples", "is", 5.5, "samples: is is between that of noise and of half"),
    ],
)
def test_one_that_does_not_is_named(check, evaluation, key, metric, value, claim):
    row = next(found for found in evaluation["sets"] if found["key"] == key)
    row["figures"][f"{metric}_net"] = value
    assert failing(check, evaluation) == [claim]


def test_blur_keeps_the_mean_and_takes_the_edges(check):
    image = np.zeros((16, 16, 1), np.uint8)
    image[:, 8:] = 200
    found = check.blurred(image, 1.5)
    assert found.shape == image.shape
    assert abs(found.astype(float).mean() - 100) < 2
    assert np.abs(np.diff(found[8, :, 0].astype(int))).max() < 100
