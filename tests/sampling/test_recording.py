"""Passes are recorded as CUDA graphs once for each size of batch, never for previews, not if told so."""

from types import SimpleNamespace

import pytest
import torch

from tests.nn.test_pixelsnail import inputs, make
from vqvae2.data.latents import LatentBatch
from vqvae2.runs.previews import SampleGrid
from vqvae2.sampling import ancestral
from vqvae2.sampling.ancestral import SIZES_KEPT
from vqvae2.sampling.chain import ChainSampler
from vqvae2.sampling.draw import Draw


@pytest.fixture
def recorded(monkeypatch):
    """The sizes of batch whose passes were recorded; the weights say that they are on a GPU."""
    sizes = []

    def noted(function, restart):
        sizes.append(restart.__self__.row_bias.shape[2])
        return function

    monkeypatch.setattr(ancestral, "captured", noted)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(torch.nn.Parameter, "is_cuda", True, raising=False)
    return sizes


def sample(sampler, images):
    return sampler(torch.zeros(len(images), dtype=torch.int64), seed=0, images=images)[0].codes


def test_passes_are_recorded_once_for_each_size_when_sizes_alternate(recorded):
    prior = make("top without attention", grid=(2, 4))
    sampler = ChainSampler([prior], [Draw()])
    alternating = [sample(sampler, images) for images in (range(5), range(5, 7), range(5), range(5, 7))]
    assert recorded == [5, 5, 2, 2]  # a row pass and a pixel pass
    assert torch.equal(alternating[0], alternating[2])
    assert torch.equal(alternating[1], alternating[3])
    again = ChainSampler([prior], [Draw()], graphed=False)
    assert torch.equal(alternating[1], sample(again, range(5, 7)))
    assert recorded == [5, 5, 2, 2]


def test_few_sizes_are_kept_and_the_last_used_is_not_forgotten(recorded):
    sampler = ChainSampler([make("top without attention", grid=(2, 4))], [Draw()])
    for size in (4, 3, 4, 1, 4):  # 1 takes the place of 3
        sample(sampler, range(size))
    assert recorded == [4, 4, 3, 3, 1, 1]
    assert len(sampler.samplers[0]._passes) == SIZES_KEPT


def test_previews_are_never_recorded(recorded):
    prior = make("top", grid=(2, 4))
    codes, above, labels = inputs(prior, batch=2)
    grid = SampleGrid.__new__(SampleGrid)
    grid.num_samples = 2
    grid.autoencoder = SimpleNamespace(to=lambda _: None, decode=lambda *_: torch.zeros(2, 1, 4, 4))
    grid.draw(SimpleNamespace(index=0), prior, [LatentBatch((*above, codes), labels, torch.arange(2))])
    assert recorded == []


def test_on_a_processor_nothing_is_recorded_and_one_size_kept(monkeypatch):
    monkeypatch.setattr(ancestral, "captured", None)  # a call would fail
    sampler = ChainSampler([make("top without attention", grid=(2, 4))], [Draw()])
    for size in (4, 3):
        sample(sampler, range(size))
    assert list(sampler.samplers[0]._passes) == [3]
