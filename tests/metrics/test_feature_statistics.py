"""What is collected of a set, over batches and ranks, and every figure that is computed from it."""

import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from tests.ranks import run_ranks
from vqvae2 import distributed
from vqvae2.metrics.feature_statistics import Collector
from vqvae2.metrics.features import Features
from vqvae2.metrics.quality import (
    InfinitySizes,
    KernelSubsets,
    Neighbourhoods,
    Reference,
    Wanted,
    quality,
)

DRAW = torch.Generator().manual_seed(0)
SAMPLES = torch.randn(103, 6, generator=DRAW) * 1.1 + 0.2
LOGITS = torch.randn(103, 5, generator=DRAW) * 3
REAL = torch.randn(151, 6, generator=DRAW)
WANTED = Wanted(
    splits=10,
    kid=KernelSubsets(subsets=7, subset_size=50),
    fid_infinity=InfinitySizes(points=5, smallest=40, largest=100),
    manifold=Neighbourhoods(k_precision=3, k_density=5),
)


def collected(features, logits, order, *, keep=None, pieces=4):
    seen = Features(features[:1], None if logits is None else logits[:1])
    collector = Collector(seen, size=len(features), keep=keep)
    for index in order.tensor_split(pieces):
        collector.update(Features(features[index], None if logits is None else logits[index]), index)
    return collector.record()


def figures(order_of_samples, order_of_real, *, keep=None):
    samples = collected(SAMPLES, LOGITS, order_of_samples)
    real = collected(REAL, None, order_of_real, keep=keep).with_radii(5)
    reference = Reference(real.gaussian(), real.features, real.balls(), None)
    return quality(samples, samples, reference, WANTED)


def test_every_figure_is_torch_fidelitys():
    found = figures(torch.arange(103), torch.arange(151))
    statistics = [fid_features_to_statistics(side.double()) for side in (SAMPLES, REAL)]
    fid = fid_statistics_to_metric(*statistics, verbose=False)
    assert found["fid"] == pytest.approx(fid["frechet_inception_distance"], rel=1e-6)
    score = isc_features_to_metric(LOGITS, splits=10)
    assert found["is"] == pytest.approx(score["inception_score_mean"], rel=1e-6)
    kid = kid_features_to_metric(SAMPLES.double(), REAL.double(), kid_subsets=7, kid_subset_size=50)
    assert found["kid"] == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-6)
    assert found["kid_std"] == pytest.approx(kid["kernel_inception_distance_std"], rel=1e-6)
    manifold = prc_features_to_metric(SAMPLES, REAL, prc_neighborhood=3)
    assert found["precision"] == pytest.approx(manifold["precision"], rel=1e-6)
    assert found["recall"] == pytest.approx(manifold["recall"], rel=1e-6)


def test_the_same_set_twice():
    record = collected(REAL, None, torch.arange(151)).with_radii(5)
    reference = Reference(record.gaussian(), record.features, record.balls(), record.gaussian())
    found = quality(record, record, reference, WANTED)
    assert found["fid"] == pytest.approx(0, abs=1e-8)
    assert found["fid_star"] == pytest.approx(0, abs=1e-8)
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)
    assert found["density"] == 1  # each is in five balls, its own among them, and on a border
    assert "is" not in found  # without logits


@pytest.mark.parametrize("keep", [None, torch.arange(0, 151, 2)])
def test_two_ranks_with_an_uneven_split_equal_one(keep):
    """The larger share goes to the second rank, and one image comes twice, as in a padded split."""

    def on_a_rank():
        rank = distributed.rank()
        shares = (torch.arange(0, 103, 4), torch.tensor([i for i in range(103) if i % 4] + [0]))
        real = (torch.arange(151)[:40], torch.arange(151)[40:])
        return figures(shares[rank], real[rank], keep=keep)

    expected = figures(torch.arange(103), torch.arange(151), keep=keep)
    for found in run_ranks(on_a_rank, 2):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_moments_are_of_all_where_features_are_of_some():
    whole = collected(REAL, None, torch.arange(151))
    keep = torch.arange(3, 151, 7)
    some = collected(REAL, None, torch.randperm(151, generator=DRAW), keep=keep)
    assert (whole.count, some.count) == (151, 151)
    assert some.gaussian().distance(whole.gaussian()) == pytest.approx(0, abs=1e-10)
    torch.testing.assert_close(some.features, REAL[keep], rtol=0, atol=0)


def test_some_of_a_set_are_those_alone():
    rows = torch.tensor([3, 50, 101])
    part = collected(SAMPLES, LOGITS, torch.randperm(103, generator=DRAW)).take(rows)
    assert part.index.tolist() == rows.tolist()
    torch.testing.assert_close(part.features, SAMPLES[rows], rtol=0, atol=0)
    torch.testing.assert_close(part.logits, LOGITS[rows], rtol=0, atol=0)


def test_what_there_are_too_few_images_for_is_absent():
    part = collected(SAMPLES, LOGITS, torch.arange(103)).take(torch.arange(45))
    real = collected(REAL, None, torch.arange(151)).with_radii(5)
    reference = Reference(real.gaussian(), real.features, real.balls(), None)
    found = quality(part, part, reference, WANTED)
    assert "kid" not in found
    assert "fid_infinity" not in found
    assert {"fid", "is", "precision", "coverage"} <= set(found)
