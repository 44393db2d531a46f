"""Incremental logits are those of the full pass, and an image depends on its own noise alone."""

import math

import numpy as np
import pytest
import torch

from tests.nn.test_prior import KINDS, inputs, make
from vqvae2.sampling.ancestral import draw, sample_codes, sample_level, uniform_noise
from vqvae2.sampling.incremental import IncrementalPrior


def naive_codes(prior, above, labels, noise):
    """A full pass for every single code."""
    codes = torch.zeros(len(labels), *prior.grid, dtype=torch.int64)
    for position in range(math.prod(prior.grid)):
        logits = prior(codes, above, labels).flatten(2)[:, :, position]
        codes.view(len(labels), -1)[:, position] = draw(logits, noise[:, position])
    return codes


@pytest.mark.parametrize("num_classes", [3, 0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@torch.inference_mode()
def test_incremental_logits_are_those_of_the_full_pass(kind, num_classes, dtype, tolerance):
    prior = make(kind, num_classes=num_classes).to(dtype)
    codes, above, labels = inputs(prior, batch=3)
    full = prior(codes, above, labels).flatten(2)
    incremental = IncrementalPrior(prior, above, labels)
    for position, code in enumerate(codes.flatten(1).T):
        assert (incremental.logits() - full[:, :, position]).abs().max() < tolerance
        incremental.append(code)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_sampled_codes_are_those_of_naive_sampling(kind):
    prior = make(kind)
    _, above, labels = inputs(prior, batch=2)
    noise = uniform_noise(0, [4, 9], 0, math.prod(prior.grid))
    sampled = sample_level(prior, above, labels, noise)
    assert torch.equal(sampled.codes, naive_codes(prior, above, labels, noise))
    logits = prior(sampled.codes, above, labels)
    nll = torch.nn.functional.cross_entropy(logits, sampled.codes, reduction="none").sum((1, 2))
    torch.testing.assert_close(sampled.nll_nats, nll)


def test_an_image_depends_on_neither_its_batch_nor_its_place_in_it():
    priors = [make("top", grid=(4, 8)), make("mid", grid=(8, 16)).eval()]
    priors[1].condition_embeddings[0] = torch.nn.Embedding(11, 8).double()
    labels = torch.tensor([0, 1, 2, 0, 1])
    together = sample_codes(priors, labels, seed=7, images=range(5), temperatures=[1.0, 0.9])
    alone = sample_codes(priors, labels[[3, 1]], seed=7, images=[3, 1], temperatures=[1.0, 0.9])
    for all_of_them, two in zip(together, alone, strict=True):
        assert torch.equal(all_of_them.codes[[3, 1]], two.codes)
    other_seed = sample_codes(priors, labels, seed=8, images=range(5), temperatures=[1.0, 0.9])
    assert not torch.equal(together[0].codes, other_seed[0].codes)


def test_noise_is_one_generator_an_image_and_level():
    noise = uniform_noise(0, [0, 1, 17], 1, 50)
    assert torch.equal(noise[2:], uniform_noise(0, [17], 1, 50))
    others = [uniform_noise(0, [17], 0, 50), uniform_noise(1, [17], 1, 50), noise[:1]]
    assert all(not torch.equal(noise[2:], other) for other in others)
    assert ((noise >= 0) & (noise < 1)).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_follow_the_tempered_distribution(temperature):
    logits = torch.tensor([2.0, -1.0, 0.5, 0.0, -200.0])
    uniforms = torch.from_numpy((np.arange(20000) + 0.5) / 20000)
    codes = draw(logits.expand(20000, -1), uniforms, temperature)
    frequencies = torch.bincount(codes, minlength=5) / 20000
    expected = torch.softmax(logits.double() / temperature, 0)
    torch.testing.assert_close(frequencies.double(), expected, atol=1e-4, rtol=0)


def test_draws_at_the_ends_stay_in_range_and_never_pick_the_impossible():
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]]).expand(3, -1)
    uniforms = torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    assert draw(logits, uniforms).tolist() == [1, 2, 2]
