"""Incremental logits are those of the full pass, and an image depends on its own noise alone."""

import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.nn.test_pixelsnail import KINDS, inputs, make
from vqvae2.sampling import ancestral
from vqvae2.sampling.ancestral import AncestralSampler
from vqvae2.sampling.chain import ChainSampler
from vqvae2.sampling.draw import Draw, Noise, draw
from vqvae2.sampling.incremental import IncrementalPrior


def naive_codes(prior, above, labels, noise, given=None):
    """A full pass for every single code."""
    uniforms = noise.uniforms(math.prod(prior.grid))
    codes = torch.full((len(labels), *prior.grid), -1) if given is None else given.clone()
    for position in range(math.prod(prior.grid)):
        logits = prior(codes.clamp(min=0), above, labels).flatten(2)[:, :, position]
        here = codes.view(len(labels), -1)[:, position]
        codes.view(len(labels), -1)[:, position] = torch.where(
            here < 0, draw(logits.double(), uniforms[:, position]), here
        )
    return codes


@pytest.mark.parametrize("num_classes", [3, 0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@torch.inference_mode()
def test_incremental_logits_are_those_of_the_full_pass(kind, num_classes, dtype, tolerance):
    prior = make(kind, num_classes=num_classes).to(dtype)
    codes, above, labels = inputs(prior, batch=3)
    full = prior(codes, above, labels).flatten(2)
    incremental = IncrementalPrior(prior, batch_size=3)
    for _ in range(2):  # the second time on used buffers
        incremental.start(above, labels)
        for position, code in enumerate(codes.flatten(1).T):
            if position % prior.grid[1] == 0:
                incremental.start_row()
            found = incremental.logits(visible=full.shape[2])
            assert (found - full[:, :, position]).abs().max() < tolerance
            incremental.append(code)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_sampled_codes_are_those_of_naive_sampling(kind):
    prior = make(kind)
    _, above, labels = inputs(prior, batch=2)
    noise = Noise(0, [4, 9], 0)
    sampled = AncestralSampler(prior, Draw())(above, labels, noise, torch.full((2, *prior.grid), -1))
    assert torch.equal(sampled.codes, naive_codes(prior, above, labels, noise))
    logits = prior(sampled.codes, above, labels)
    nll = torch.nn.functional.cross_entropy(logits, sampled.codes, reduction="none").sum((1, 2))
    torch.testing.assert_close(sampled.nll_nats, nll)


@pytest.mark.parametrize("kind", ["top", "bottom"])
@torch.inference_mode()
def test_likelihoods_are_the_priors_own_however_codes_are_drawn(kind):
    """At temperature 1 over all codes, for each batch anew, and of given codes as well as of drawn ones."""
    prior = make(kind)
    _, above, labels = inputs(prior, batch=2)
    sampler = AncestralSampler(prior, Draw(0.6, top_k=5, top_p=0.9))
    given = torch.full((2, *prior.grid), -1)
    given[:, 1::2, ::3] = 4  # also codes that would never be drawn
    for images in ([4, 9], [5, 6]):
        sampled = sampler(above, labels, Noise(0, images, 0), given)
        logits = prior(sampled.codes, above, labels)
        nll = torch.nn.functional.cross_entropy(logits, sampled.codes, reduction="none").sum((1, 2))
        torch.testing.assert_close(sampled.nll_nats, nll)


def chain(num_levels):
    """Priors of one to three levels with grids 4x4, 8x8, 16x16 (4x8 and 8x16 for two)."""
    grids = {1: [(4, 8)], 2: [(4, 8), (8, 16)], 3: [(4, 4), (8, 8), (16, 16)]}[num_levels]
    kinds = ["top", "mid", "top without attention"][:num_levels]
    return [make(kind, grid=grids[i], condition_grids=grids[:i], num_codes=7) for i, kind in enumerate(kinds)]


@pytest.mark.parametrize("num_levels", [1, 2, 3])
def test_an_image_depends_on_neither_its_batch_nor_its_place_in_it(num_levels):
    draws = [Draw(), Draw(0.9, top_k=5), Draw(1.1, top_p=0.8)][:num_levels]
    sampler = ChainSampler(chain(num_levels), draws)
    labels = torch.tensor([0, 1, 2, 0, 1])
    together = sampler(labels, seed=7, images=range(5))
    alone = sampler(labels[[3, 1]], seed=7, images=[3, 1])
    again = sampler(labels.flip(0), seed=7, images=range(4, -1, -1))
    other_seed = sampler(labels, seed=8, images=range(5))
    for level in range(num_levels):
        assert torch.equal(together[level].codes[[3, 1]], alone[level].codes)
        assert torch.equal(together[level].codes.flip(0), again[level].codes)
        assert not torch.equal(together[level].codes, other_seed[level].codes)


@torch.inference_mode()
def test_kept_codes_stay_and_the_others_are_those_of_naive_sampling():
    priors = chain(2)
    labels = torch.tensor([0, 1])
    sampler = ChainSampler(priors, [Draw(), Draw()])
    source = sampler(labels, seed=1, images=[0, 1])
    rows = [level.codes.clone() for level in source]
    for codes in rows:
        codes[:, codes.shape[1] // 2 :] = -1
    completed = sampler(labels, seed=2, images=[5, 6], kept=rows)
    above: list = []
    for number, (prior, given, level) in enumerate(zip(priors, rows, completed, strict=True)):
        noise = Noise(2, [5, 6], number)
        assert torch.equal(level.codes, naive_codes(prior, above, labels, noise, given))
        above.append(level.codes)
    detail = sampler(labels, seed=3, images=[0, 1], kept=[source[0].codes, torch.full_like(rows[1], -1)])
    assert torch.equal(detail[0].codes, source[0].codes)
    torch.testing.assert_close(detail[0].nll_nats, source[0].nll_nats)
    assert not torch.equal(detail[1].codes, source[1].codes)


def test_noise_is_one_generator_an_image_and_level():
    noise = Noise(0, [0, 1, 17], 1).uniforms(50)
    own = Noise(0, [17], 1)
    assert torch.equal(noise[2:], own.uniforms(50))
    others = [Noise(0, [17], 0).uniforms(50), Noise(1, [17], 1).uniforms(50), noise[:1]]
    others += [own._replace(step=step).uniforms(50) for step in (0, 1)]
    assert not torch.equal(*others[-2:])
    assert all(not torch.equal(noise[2:], other) for other in others)
    assert ((noise >= 0) & (noise < 1)).all()


def frequencies(logits, how):
    """How often each code is drawn, over uniforms that lie evenly."""
    uniforms = torch.from_numpy((np.arange(20000) + 0.5) / 20000)
    codes = draw(logits.double().expand(20000, -1), uniforms, how)
    return torch.bincount(codes, minlength=len(logits)).double() / 20000


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_follow_the_tempered_distribution(temperature):
    logits = torch.tensor([2.0, -1.0, 0.5, 0.0, -200.0])
    expected = torch.softmax(logits.double() / temperature, 0)
    torch.testing.assert_close(frequencies(logits, Draw(temperature)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("how", "allowed"),
    [
        (Draw(top_k=2), [0, 2]),
        (Draw(top_k=5), [0, 1, 2, 3, 4]),
        (Draw(top_k=1), [0]),
        (Draw(top_p=0.69), [0]),  # probabilities .697, .035, .156, .094, .019
        (Draw(top_p=0.70), [0, 2]),
        (Draw(top_p=0.90), [0, 2, 3]),
        (Draw(top_p=1.0), [0, 1, 2, 3, 4]),
        (Draw(top_k=3, top_p=0.74), [0, 2]),  # of the three likeliest the first has .736
        (Draw(temperature=0.01, top_p=0.9), [0]),
    ],
)
def test_top_k_and_top_p_leave_only_the_likeliest_in_their_proportions(how, allowed):
    logits = torch.tensor([2.0, -1.0, 0.5, 0.0, -1.6])
    probabilities = torch.zeros(5, dtype=torch.float64)
    probabilities[allowed] = torch.softmax(logits.double() / how.temperature, 0)[allowed]
    expected = probabilities / probabilities.sum()
    torch.testing.assert_close(frequencies(logits, how), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (Draw(0.0), "temperature is 0.0, wanted above 0"),
        (Draw(-1.0), "temperature is -1.0"),
        (Draw(top_k=0), "top_k is 0, wanted 1 to 5"),
        (Draw(top_k=6), "top_k is 6, wanted 1 to 5"),
        (Draw(top_p=0.0), "top_p is 0.0, wanted above 0"),
        (Draw(top_p=1.1), "top_p is 1.1"),
    ],
)
def test_impossible_draws_are_refused(how, message):
    with pytest.raises(ValueError, match=message):
        how.check(5)


def test_draws_at_the_ends_stay_in_range_and_never_pick_the_impossible():
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]], dtype=torch.float64).expand(3, -1)
    uniforms = torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    assert draw(logits, uniforms).tolist() == [1, 2, 2]
    assert draw(logits + torch.tensor([9.0, 1, 0, 0]), uniforms, Draw(top_p=0.5)).tolist() == [1, 1, 1]


def test_neither_pass_waits_for_the_device():
    """On tensors without values, as on a GPU in a CUDA graph, nothing can be read back."""
    for kind in KINDS:
        prior = make(kind)
        _, above, labels = inputs(prior, batch=2)
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            passes = AncestralSampler(prior, Draw(0.9, top_k=5, top_p=0.9))._passes_for(2)
            passes.state.start(above, labels)
            passes.row_pass()
            for pixel_pass in passes.pixel_passes.values():
                pixel_pass()
            with pytest.raises(DataDependentOutputException):  # this does read back
                passes.nll.sum().item()


def sample_twice(kind, **options):
    prior = make(kind)
    _, above, labels = inputs(prior, batch=2)
    noise = Noise(0, [4, 9], 0)
    sampler = AncestralSampler(prior, Draw(), **options)
    given = torch.full((2, *prior.grid), -1)
    sampler(above, labels, Noise(1, [4, 9], 0), given)  # leaves its traces in the buffers
    return sampler(above, labels, noise, given).codes


@pytest.mark.parametrize("kind", ["top", "bottom"])
def test_compiled_passes_are_whole_graphs_and_give_the_same_codes(kind, monkeypatch):
    compiled = []

    def traced(function, **options):
        compiled.append(function.__name__)
        return torch_compile(function, backend="aot_eager", fullgraph=True, **options)

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    monkeypatch.setattr(ancestral, "_KEY_STEPS", 2)  # each is traced
    assert torch.equal(sample_twice(kind, compiled=True), sample_twice(kind))
    assert compiled == ["start_row", "_pixel_pass"]


@pytest.mark.parametrize("kind", ["top", "mid", "bottom"])
def test_recording_leaves_no_trace_in_the_samples(kind, monkeypatch):
    """As on a GPU, but for the GPU: passes run several times to warm up, and look at keys in few steps."""
    recorded = []

    def warmed_up(function, restart):
        for _ in range(3):
            restart()
            function()
        recorded.append(function)
        return function

    expected = sample_twice(kind)
    monkeypatch.setattr(ancestral, "captured", warmed_up)
    init = AncestralSampler.__init__

    def on_a_gpu(self, *args, **options):
        init(self, *args, **options)
        self.graphed = True

    monkeypatch.setattr(AncestralSampler, "__init__", on_a_gpu)
    assert torch.equal(sample_twice(kind), expected)
    assert len(recorded) == (2 if kind == "bottom" else 5)  # a row pass, and pixel passes for few key lengths
