"""Sampling paths: the codes of naive sampling, likelihoods, what an image depends on, and the exact law."""

import math

import pytest
import torch

from tests.nn.test_path_prior import BELOW, all_grids, make
from tests.sampling.test_ancestral import chain
from vqvae2.sampling import ancestral
from vqvae2.sampling.chain import ChainSampler
from vqvae2.sampling.draw import Draw, Noise, draw, level_sampler
from vqvae2.sampling.path import PathSampler

CASES = {
    "two levels": (((2, 4), 3, 2), {}),
    "three levels": (((2, 4), 2, 3), {"attention_layers": 0}),
    "one level": (((2, 4), 3, 1), {}),
    "below a grid": (((2, 4), 3, 2), BELOW),
}


def build(case, **changes):
    """A prior, the codes of the levels above it, and labels."""
    shape, options = CASES[case]
    prior = make(*shape, **options | changes)
    torch.manual_seed(1)
    above = [torch.randint(5, (2, 1, 2))] if options is BELOW else []
    return prior, above, torch.tensor([1, 2])


def naive(prior, above, labels, noise, given, how):
    """A full pass of a level's network for every single code."""
    depth, count = len(prior.levels), math.prod(prior.grid)
    parents = None
    conditions = list(above)
    for level, network in enumerate(prior.levels):
        uniforms = noise._replace(step=level).uniforms(count)
        nodes = torch.where(given >= 0, given // prior.branch ** (depth - 1 - level), torch.tensor(-1))
        for position in range(count):
            at = divmod(position, prior.grid[1])
            logits = network(nodes.clamp(min=0), conditions, labels)[:, :, at[0], at[1]]
            drawn = draw(logits.double(), uniforms[:, position], how)
            if level:
                drawn = parents[:, at[0], at[1]] * prior.branch + drawn
            here = nodes[:, at[0], at[1]]
            nodes[:, at[0], at[1]] = torch.where(here < 0, drawn, here)
        parents = nodes
        conditions.append(nodes)
    return nodes


@pytest.mark.parametrize("how", [Draw(), Draw(0.7, top_k=2, top_p=0.9)], ids=str)
@pytest.mark.parametrize("num_classes", [3, 0])
@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_codes_are_those_of_naive_sampling_and_likelihoods_the_priors_own(case, num_classes, how):
    prior, above, labels = build(case, num_classes=num_classes)
    sampler = level_sampler(prior, how)
    assert isinstance(sampler, PathSampler)
    none = torch.full((2, *prior.grid), -1)
    for images in ([4, 9], [5, 6]):  # the second on used buffers
        noise = Noise(0, images, 1)
        sampled = sampler(above, labels, noise, none)
        assert torch.equal(sampled.codes, naive(prior, above, labels, noise, none, how))
        assert (sampled.codes // prior.branch ** (len(prior.levels) - 1)).max() < prior.branch
        nll = (
            prior.nll(sampled.codes, above, labels).double().sum((1, 2))
        )  # at temperature 1 whatever the draw
        torch.testing.assert_close(sampled.nll_nats, nll, rtol=1e-5, atol=1e-5)
    assert (none == -1).all()


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_kept_codes_stay_and_the_others_follow_from_them(case):
    prior, above, labels = build(case)
    given = torch.full((2, *prior.grid), -1)
    given[0, 0, ::2] = prior.num_codes - 1
    given[1, 1] = torch.tensor([0, 1, 2, 3]) % prior.num_codes
    how, noise = Draw(0.5, top_k=1), Noise(0, [4, 9], 0)  # also codes that would never be drawn
    sampled = level_sampler(prior, how)(above, labels, noise, given)
    assert torch.equal(sampled.codes[given >= 0], given[given >= 0])
    assert torch.equal(sampled.codes, naive(prior, above, labels, noise, given, how))
    nll = prior.nll(sampled.codes, above, labels).double().sum((1, 2))
    torch.testing.assert_close(sampled.nll_nats, nll, rtol=1e-5, atol=1e-5)
    again = level_sampler(prior, how)(above, labels, noise, sampled.codes)  # nothing is to be drawn
    assert torch.equal(again.codes, sampled.codes)
    torch.testing.assert_close(again.nll_nats, sampled.nll_nats, rtol=1e-9, atol=0)


def test_an_image_depends_on_neither_its_batch_nor_its_place_in_it():
    path = make((4, 8), 3, 2, condition_grids=[(4, 8)], condition_codes=[7])
    sampler = ChainSampler([*chain(1), path], [Draw(), Draw(0.9, top_k=2)])
    labels = torch.tensor([0, 1, 2, 0, 1])
    together = sampler(labels, seed=7, images=range(5))
    alone = sampler(labels[[3, 1]], seed=7, images=[3, 1])
    again = sampler(labels.flip(0), seed=7, images=range(4, -1, -1))
    other_seed = sampler(labels, seed=8, images=range(5))
    other_images = sampler(labels, seed=7, images=range(5, 10))
    for level in range(2):
        assert torch.equal(together[level].codes[[3, 1]], alone[level].codes)
        assert torch.equal(together[level].codes.flip(0), again[level].codes)
        for other in (other_seed, other_images):
            assert not torch.equal(together[level].codes, other[level].codes)


def test_every_residual_level_has_its_own_noise(monkeypatch):
    """Or a vector that is likely on one level would be so on all."""
    seen = []
    uniforms = Noise.uniforms

    def spy(noise, count):
        seen.append((noise.seed, noise.images, noise.level, noise.step))
        return uniforms(noise, count)

    monkeypatch.setattr(Noise, "uniforms", spy)
    prior, _, labels = build("three levels")
    PathSampler(prior, Draw())([], labels, Noise(5, [7, 8], 2), torch.full((2, 2, 4), -1))
    assert seen == [(5, [7, 8], 2, step) for step in (0, 1, 2)]


class Even(Noise):
    """The same uniforms with one generator for all: a test of the law needs no number of an image."""

    def uniforms(self, count):
        generator = torch.Generator().manual_seed(1000 * self.seed + self.step)
        return torch.rand(len(self.images), count, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("how", [Draw(), Draw(1.5)], ids=str)
@torch.inference_mode()
def test_twenty_thousand_samples_follow_the_exact_law(how):
    """Two positions of four leaves: 16 grids. Chi-square with 15 degrees of freedom exceeds 37.7 in 0.1 %."""
    prior = make((1, 2), 2, 2)
    for level in prior.levels:  # no grid is so unlikely that it is hardly ever drawn
        level.to_logits.weight.mul_(0.3)
        level.to_logits.bias.mul_(0.3)
    count = 20_000
    grids = all_grids(4, (1, 2))
    labels = torch.full((16,), 2)
    log = torch.zeros(16).double()
    for level, network in enumerate(prior.levels):
        nodes = prior.nodes(grids)
        scores = (network(nodes[level], nodes[:level], labels).double() / how.temperature).log_softmax(1)
        log += scores.gather(1, (nodes[level] % 2)[:, None]).sum((1, 2, 3))
    assert log.exp().sum().item() == pytest.approx(1, abs=1e-9)
    if how.exact:
        assert torch.equal(log.argsort(), prior.nll(grids, [], labels).double().sum((1, 2)).neg().argsort())
    labels = torch.full((count,), 2)
    drawn = PathSampler(prior, how)([], labels, Even(3, range(count), 0), torch.full((count, 1, 2), -1))
    found = torch.bincount(drawn.codes.flatten(1) @ torch.tensor([4, 1]), minlength=16).double()
    expected = count * log.exp()
    assert expected.min() > 5
    assert ((found - expected).square() / expected).sum() < 37.7
    entropy = -(log.exp() * log).sum()
    if how.exact:
        assert drawn.nll_nats.mean().item() == pytest.approx(entropy.item(), abs=0.03)


def test_top_k_is_of_the_children_of_a_node():
    prior = make((1, 2), 3, 2)
    how = Draw(top_k=1)
    sampled = PathSampler(prior, how)([], torch.tensor([0]), Noise(0, [0], 0), torch.full((1, 1, 2), -1))
    nodes = prior.nodes(sampled.codes)
    for level, network in enumerate(prior.levels):
        best = network(nodes[level], nodes[:level], torch.tensor([0])).argmax(1)
        assert torch.equal(nodes[level] % 3, best)


def test_recording_and_compiling_leave_no_trace_in_the_samples(monkeypatch):
    """As on a GPU, but for the GPU: passes run several times to warm up."""
    prior, above, labels = build("below a grid")
    given = torch.full((2, *prior.grid), -1)
    given[:, 0, :2] = 1
    expected = PathSampler(prior, Draw())(above, labels, Noise(2, [3, 4], 0), given).codes

    def warmed_up(function, restart):
        for _ in range(3):
            restart()
            function()
        return function

    monkeypatch.setattr(ancestral, "captured", warmed_up)
    recorded = PathSampler(prior, Draw())
    for sampler in recorded.samplers:
        sampler.graphed = True
    for images in ([8, 9], [3, 4]):
        found = recorded(above, labels, Noise(2, images, 0), given)
    assert torch.equal(found.codes, expected)
    traced = []

    def compiled(function, **options):
        traced.append(options)
        return torch_compile(function, backend="aot_eager", fullgraph=True, **options)

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", compiled)
    found = PathSampler(prior, Draw(), compiled=True)(above, labels, Noise(2, [3, 4], 0), given)
    assert torch.equal(found.codes, expected)
    assert len(traced) == 2 * len(prior.levels)
