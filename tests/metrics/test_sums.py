"""Likelihood, reconstruction error and codebook use against values by hand or NumPy."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.ranks import run_ranks
from vqvae2 import distributed
from vqvae2.metrics.sums import CodebookUse, Likelihood, ReconstructionError
from vqvae2.nn.pixelsnail import PixelSNAIL

GENERATOR = torch.Generator().manual_seed(0)
NLL = torch.rand(37, 4, 6, generator=GENERATOR) * 9
IMAGES = torch.rand(37, 3, 8, 8, generator=GENERATOR) * 2 - 1
OTHERS = torch.rand(37, 3, 8, 8, generator=GENERATOR) * 2 - 1
CODES = torch.randint(4, (37,), generator=GENERATOR)


def all_figures(part):
    """Everything on some of the samples, in uneven batches."""
    metrics = (Likelihood(), ReconstructionError(), CodebookUse(6))
    for i in part.split(5):
        batches = ((NLL[i],), (IMAGES[i], OTHERS[i]), (CODES[i],))
        for metric, batch in zip(metrics, batches, strict=True):
            metric.update(*batch)
    return [tuple(metric.compute()) for metric in metrics]


def test_an_untrained_uniform_prior_takes_the_log_of_its_codebook():
    torch.manual_seed(0)
    prior = PixelSNAIL(
        grid=(4, 6),
        num_codes=20,
        condition_grids=(),
        condition_codes=(),
        num_classes=0,
        hidden=8,
        residual=8,
        layers=2,
        attention_layers=0,
        kernel=3,
        dropout=0.0,
        output_layers=1,
    ).eval()
    metric = Likelihood()
    for _ in range(3):
        codes = torch.randint(20, (7, 4, 6))
        metric.update(F.cross_entropy(prior(codes), codes, reduction="none"))
    rate = metric.compute()
    assert rate.nats_per_code == pytest.approx(math.log(20), rel=1e-6)
    assert rate.bits_per_image == pytest.approx(24 * math.log2(20), rel=1e-6)


def test_figures_equal_numpy_on_everything_at_once():
    likelihood, error, use = all_figures(torch.arange(37))
    nll = NLL.double().numpy()
    assert likelihood == pytest.approx((nll.mean(), nll.sum() / 37 / math.log(2)), rel=1e-12)
    mse = np.mean((IMAGES.double().numpy() - OTHERS.double().numpy()) ** 2)
    assert error == pytest.approx((mse, 10 * math.log10(4 / mse)), rel=1e-12)
    p = np.bincount(CODES.numpy()) / 37
    assert use == pytest.approx((4 / 6, math.exp(-(p * np.log(p)).sum())), rel=1e-12)


def test_two_ranks_with_an_uneven_split_equal_one():
    def on_a_rank():
        return all_figures((torch.arange(4), torch.arange(4, 37))[distributed.rank()])

    expected = all_figures(torch.arange(37))
    for found in run_ranks(on_a_rank, 2):
        for mine, theirs in zip(found, expected, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-9)


def test_sums_keep_what_float32_would_drop():
    metric = Likelihood()
    metric.update(torch.full((1, 1, 1), 2.0**25))
    for _ in range(100):
        metric.update(torch.ones(1, 1, 1))
    assert metric.compute().nats_per_code == (2.0**25 + 100) / 101


def test_perfect_reconstruction_has_infinite_psnr():
    metric = ReconstructionError()
    metric.update(IMAGES, IMAGES)
    assert metric.compute() == (0, math.inf)


def test_uniform_use_counts_every_code():
    metric = CodebookUse(16)
    metric.update(torch.arange(16).repeat(3).view(4, 3, 4))
    assert metric.compute() == pytest.approx((1, 16))
