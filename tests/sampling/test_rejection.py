"""Scores, ranks and what is kept, against definitions written out."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from vqvae2.sampling.rejection import (
    even_part,
    keep_best,
    log_scores,
    mean_score,
    num_enough,
    num_kept,
    ranks,
)

FRACTIONS = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01)


class Means(nn.Module):
    """Logits that are the images' channel means, times a factor."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def forward(self, images):
        return self.factor * images.mean((2, 3))


def samples(num, num_classes=4, seed=0, levels=None):
    """Scores (of few levels, if ties are wanted) and labels of classes of different sizes."""
    draw = np.random.default_rng(seed)
    labels = draw.choice(num_classes, num, p=np.arange(1, num_classes + 1) / sum(range(num_classes + 1)))
    scores = draw.standard_normal(num) - 2 * labels
    return torch.from_numpy(scores if levels is None else np.round(scores * levels)), torch.from_numpy(labels)


def test_scores_are_the_log_probabilities_of_the_asked_classes():
    images = torch.randint(0, 256, (9, 5, 4, 4), dtype=torch.uint8)
    labels = torch.arange(9) % 5
    logits = 3 * (images.double().mean((2, 3)) / 127.5 - 1).numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = np.log(probabilities[np.arange(9), labels])
    scores = log_scores(Means(3), images, labels)
    assert scores.dtype == torch.float64
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    one_by_one = [log_scores(Means(3), images[i : i + 1], labels[i : i + 1]) for i in range(9)]
    torch.testing.assert_close(torch.cat(one_by_one), scores, rtol=1e-6, atol=0)


def test_the_surest_are_told_apart_where_their_probability_is_1():
    margins = torch.tensor([40.0, 80.0, 300.0])
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        classifier[1].weight[:, 0] = torch.tensor([0.0, 300.0])
    images = ((margins / 300 + 1) * 127.5).round().to(torch.uint8).view(3, 1, 1, 1)
    scores = log_scores(classifier, images, torch.ones(3, dtype=torch.int64))
    exact = 300 * (images.view(3).double() / 127.5 - 1)
    assert scores.tolist() == pytest.approx([-math.exp(-margin) for margin in exact], rel=1e-4)
    assert torch.equal(ranks(scores, torch.zeros(3, dtype=torch.int64)), torch.tensor([2, 1, 0]))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_the_classifier_does_not_know(label):
    with pytest.raises(
        ValueError, match=f"classifier of 3 classes .* labels from {min(label, 0)} to {max(label, 0)}"
    ):
        log_scores(Means(), torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, label]))


@pytest.mark.parametrize("levels", [None, 2])
def test_rank_counts_the_better_ones_of_the_class_and_the_earlier_equals(levels):
    scores, labels = samples(200, levels=levels)
    for i, rank in enumerate(ranks(scores, labels).tolist()):
        mine = labels == labels[i]
        earlier = mine & (scores == scores[i]) & (torch.arange(200) < i)
        assert rank == ((mine & (scores > scores[i])) | earlier).sum()


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_the_best_of_each_class_are_kept(fraction, levels):
    scores, labels = samples(500, levels=levels)
    kept = keep_best(scores, labels, fraction)
    for label in range(4):
        mine = labels == label
        assert kept[mine].sum() == math.ceil(round(fraction * 100) * int(mine.sum()) / 100)
        if fraction < 1:
            assert scores[mine & kept].min() >= scores[mine & ~kept].max()


def test_all_are_kept_of_everything_and_smaller_fractions_are_nested():
    scores, labels = samples(500, levels=1)
    before = torch.ones(500, dtype=torch.bool)
    assert torch.equal(keep_best(scores, labels, 1), before)
    for fraction in FRACTIONS:
        kept = keep_best(scores, labels, fraction)
        assert not (kept & ~before).any()
        before = kept


def test_what_is_kept_does_not_depend_on_the_order_of_the_samples():
    scores, labels = samples(300)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    kept = keep_best(scores, labels, 0.3)
    assert torch.equal(keep_best(scores[order], labels[order], 0.3), kept[order])


def test_a_fraction_means_the_number_that_is_written():
    assert 0.07 * 100 > 7
    assert num_kept(100, 0.07) == 7
    assert num_kept(101, 0.07) == 8
    assert num_kept(1, 0.01) == 1
    assert num_enough(7, 0.07) == 100
    assert num_enough(8, 0.07) == 115  # 0.07 of 114 is 7.98


@pytest.mark.parametrize("seed", range(20))
def test_the_mean_score_never_falls_with_the_fraction(seed):
    """Not even where rounding up lets the classes' shares of the kept samples change, as here."""
    scores, labels = samples(60, seed=seed)
    means = [mean_score(scores, labels, keep_best(scores, labels, fraction)) for fraction in FRACTIONS]
    assert means == sorted(means)
    by_class = [scores[labels == label].mean() for label in labels.unique()]
    assert means[0] == pytest.approx(np.mean(by_class))


def test_an_even_part_takes_the_first_of_all_classes_alike():
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 2])
    kept = torch.tensor([0, 1, 1, 1, 1, 1, 1, 1, 1, 0], dtype=torch.bool)
    assert even_part(labels, kept, 6).nonzero().flatten().tolist() == [1, 2, 3, 4, 5, 6]
    assert torch.equal(even_part(labels, kept, 8), kept)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, math.nan])
def test_a_fraction_that_keeps_nothing_or_too_much(fraction):
    scores, labels = samples(10)
    with pytest.raises(ValueError, match=r"fraction of samples to keep is .*, wanted above 0, up to 1"):
        keep_best(scores, labels, fraction)


def test_a_score_that_is_not_a_number():
    scores, labels = samples(10)
    scores[3] = math.nan
    with pytest.raises(ValueError, match="1 of 10 scores are not a number"):
        keep_best(scores, labels, 0.5)
