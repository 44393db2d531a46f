"""SUNDAE's sampler, image by image: what it depends on, what stays, what it costs, and its options."""

import math

import pytest
import torch
from torch import Tensor

from tests.nn.test_pixelsnail import make as make_pixelsnail
from vqvae2.nn.sundae import SUNDAE
from vqvae2.sampling.chain import ChainSampler
from vqvae2.sampling.draw import Draw, Noise, Steps, draw
from vqvae2.sampling.sundae import DenoisingSampler

SIZES = {"width": 8, "heads": 2, "head_width": 8, "depth": [1, 1, 1], "dropout": 0.0, "unroll": 2}
GRID = (3, 4)


def make(*, grid=GRID, above=((1, 2),), **changes) -> SUNDAE:
    """In float64, sure of some of its codes, and of others where their neighbours are others."""
    torch.manual_seed(0)
    options = {"grid": grid, "num_codes": 5, "num_classes": 3, "class_dropout": 0.1, **SIZES, **changes}
    prior = SUNDAE(condition_grids=above, condition_codes=[7] * len(above), **options).double().eval()
    torch.nn.init.normal_(prior.to_logits.weight, std=2.0)
    return prior


def given(batch: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Codes above that differ, labels, nothing kept."""
    above = torch.arange(batch * 2).view(batch, 1, 2) % 7
    return [above], torch.arange(batch) % 3, torch.full((batch, *GRID), -1)


def counted(prior: SUNDAE) -> list[int]:
    """How many images the network is called with, call by call, from now on."""
    rows, network = [], prior.logits

    def logits(codes, context):
        rows.append(len(codes))
        return network(codes, context)

    prior.logits = logits
    return rows


def between(ends: tuple[float, float], step: int, steps: int) -> float:
    return ends[0] if steps == 1 else ends[0] + (ends[1] - ends[0]) * step / (steps - 1)


@torch.no_grad()
def one_image(prior, how: Draw, above: Tensor, label: Tensor, noise: Noise, kept: Tensor) -> list[Tensor]:
    """The codes [H, W] at the start and after each step, position by position; it may end early."""
    steps, size = how.steps, math.prod(GRID)
    start = noise.uniforms(size)[0]
    given = kept.flatten().tolist()
    free = [i for i in range(size) if given[i] < 0]
    codes = [given[i] if given[i] >= 0 else int(start[i] * prior.num_codes) for i in range(size)]
    states, before = [codes], None
    for step in range(steps.steps if free else 0):
        uniforms = noise._replace(step=step).uniforms(2 * size)[0]
        grid = torch.tensor(codes).view(1, *GRID)
        logits, without = (
            prior.logits(grid, prior.context([above[None]], seen[None], GRID)).flatten(0, 2)
            for seen in (label, torch.tensor(prior.num_classes))
        )
        logits = without + (1 + between((0, steps.guidance), step, steps.steps)) * (logits - without)
        temperature = how.temperature * between(steps.temperature, step, steps.steps)
        proportion = between(steps.proportion, step, steps.steps)
        proposed = draw(logits, uniforms[:size], how._replace(temperature=temperature)).tolist()
        taken = [i for i in free if uniforms[size + i] < proportion]
        if steps.argmax:  # all are drawn; then, in turns, the likeliest of all, and again of the least sure
            taken = free
            if step:
                proposed = logits.argmax(-1).tolist()
            if step and step % 2 == 0:
                sure = before.softmax(-1).amax(-1)
                limit = sure[free].quantile(proportion)
                taken = [i for i in free if sure[i] <= limit]
        before, old = logits, codes
        codes = [proposed[i] if i in taken else old[i] for i in range(size)]
        states.append(codes)
        looked_at = taken if steps.stop == "accepted" else free
        stays = all(proposed[i] == old[i] for i in looked_at)
        if stays and steps.stop != "never" and step + 1 >= steps.min_steps:
            break
    return [torch.tensor(codes).view(GRID) for codes in states]


HOWS = {
    "the usual": Draw(steps=Steps()),
    "all codes": Draw(0.9, steps=Steps(6, (1.0, 1.0), (1.0, 0.3), min_steps=2)),
    "few codes": Draw(top_k=3, steps=Steps(8, (0.8, 0.2), (1.0, 0.2), "accepted", 1)),
    "proposed": Draw(top_p=0.9, steps=Steps(12, (0.6, 0.9), (0.5, 0.1), "proposed", 3)),
    "never": Draw(steps=Steps(5, (0.3, 0.3), (0.7, 0.1), "never", 1)),
    "guidance": Draw(steps=Steps(5, (0.9, 0.6), (0.8, 0.5), "accepted", 2, guidance=1.5)),
    "one step": Draw(steps=Steps(1, (0.5, 0.9), (0.7, 0.1), guidance=3.0)),
    "argmax": Draw(steps=Steps(8, (0.5, 0.2), (1.0, 0.6), "proposed", 1, argmax=True)),
    "argmax, guidance": Draw(steps=Steps(6, (0.2, 0.7), stop="never", guidance=1.0, argmax=True)),
}
BATCH = 12


@pytest.mark.parametrize("keep", [False, True], ids=["all drawn", "some kept"])
@pytest.mark.parametrize("name", HOWS)
def test_states_are_those_of_each_image_alone(name, keep):
    """After each step; an image that has stopped stays as it is, and costs nothing: not a row."""
    prior, how = make(), HOWS[name]
    above, labels, kept = given(BATCH)
    if keep:
        kept[:, 0] = torch.arange(BATCH)[:, None] % 5
        kept[3] = 2  # all of it
    noise = Noise(4, range(20, 20 + BATCH), 1)
    alone = [
        one_image(prior, how, above[0][i], labels[i], Noise(4, [20 + i], 1), kept[i]) for i in range(BATCH)
    ]
    rows = counted(prior)
    states = list(DenoisingSampler(prior, how).states(above, labels, noise, kept))
    for number, state in enumerate(states):
        expected = [image[min(number, len(image) - 1)] for image in alone]
        assert torch.equal(state, torch.stack(expected))
        assert torch.equal(state[kept >= 0], kept[kept >= 0])
    assert len(states) == max(len(image) for image in alone)
    going = [sum(len(image) > step + 1 for image in alone) for step in range(len(states) - 1)]
    guided = [2 if how.steps.guidance and step else 1 for step in range(len(going))]
    assert rows == [count for count, calls in zip(going, guided, strict=True) for _ in range(calls)]
    if name in ("few codes", "proposed", "argmax"):
        assert len(set(going)) > 1  # or nothing was seen to stop
    sampled = DenoisingSampler(prior, how)(above, labels, noise, kept)
    assert torch.equal(sampled.codes, states[-1])
    assert sampled.nll_nats is None


@pytest.mark.parametrize("name", ["few codes", "guidance", "argmax"])
def test_an_image_depends_on_neither_its_batch_nor_its_place_in_it(name):
    prior = make()
    sampler = DenoisingSampler(prior, HOWS[name])
    above, labels, kept = given(8)

    def codes(rows: list[int], seed=7, level=0):
        inputs = [above[0][rows]], labels[rows], Noise(seed, rows, level), kept[rows]
        return sampler(*inputs).codes

    together = codes(list(range(8)))
    for rows in ([3], [5, 1], [7, 6, 5, 4, 3, 2, 1, 0]):
        assert torch.equal(codes(rows), together[rows])
    assert not torch.equal(codes(list(range(8)), seed=8), together)
    assert not torch.equal(codes(list(range(8)), level=1), together)


def test_what_is_wholly_kept_is_returned_without_the_network():
    prior = make()
    rows = counted(prior)
    above, labels, _ = given(3)
    kept = torch.randint(5, (3, *GRID))
    sampled = DenoisingSampler(prior, Draw())(above, labels, Noise(0, [0, 1, 2], 0), kept)
    assert torch.equal(sampled.codes, kept)
    assert rows == []


def test_kept_codes_are_seen_by_the_others():
    prior = make()
    above, labels, kept = given(4)
    sampler = DenoisingSampler(prior, Draw(steps=Steps(8, (1.0, 1.0), (0.3, 0.1))))
    results = []
    for code in (0, 1):
        kept[:, 1, 1] = code
        results.append(sampler(above, labels, Noise(0, range(4), 0), kept).codes)
    free = kept < 0
    assert not torch.equal(results[0][free], results[1][free])


def test_without_steps_the_usual_ones_are_taken():
    prior = make(class_dropout=0.0)
    above, labels, kept = given(3)
    found = [
        DenoisingSampler(prior, how)(above, labels, Noise(0, range(3), 0), kept).codes
        for how in (
            Draw(),
            Draw(steps=Steps()),
            Draw(steps=Steps(20, (0.5, 0.5), (1, 0.6), "accepted", 10)),
        )
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_the_likeliest_codes_alone_are_drawn_where_asked():
    """With one code to choose from, one step over all positions is the network's argmax at the start."""
    prior = make()
    above, labels, kept = given(4)
    how = Draw(top_k=1, steps=Steps(1, (1.0, 1.0)))
    start, end = DenoisingSampler(prior, how).states(above, labels, Noise(0, range(4), 0), kept)
    with torch.no_grad():
        logits = prior.logits(start, prior.context(above, labels, GRID))
    assert torch.equal(end, logits.argmax(-1))


def test_a_prior_without_classes_or_conditions():
    prior = make(num_classes=0, class_dropout=0.0, above=())
    sampled = DenoisingSampler(prior, Draw())([], torch.full((3,), -1), Noise(0, range(3), 0), given(3)[2])
    assert len({tuple(image.flatten().tolist()) for image in sampled.codes}) == 3


def test_a_chain_may_mix_priors_of_both_kinds():
    """SUNDAE above PixelSNAIL and below it; each level sees the one above, and images stand alone."""
    top_grid, bottom_grid = (2, 4), (4, 8)
    snail = {"num_codes": 7, "num_classes": 3}
    chains = [
        [
            make(grid=top_grid, above=(), num_codes=7),
            make_pixelsnail("mid", grid=bottom_grid, condition_grids=[top_grid], **snail),
        ],
        [
            make_pixelsnail("top without attention", grid=top_grid, **snail),
            make(grid=bottom_grid, above=(top_grid,), num_codes=7),
        ],
    ]
    labels = torch.tensor([0, 1, 2, 0])
    for priors in chains:
        sampler = ChainSampler(priors, [Draw(steps=Steps(4))] * 2)
        together = sampler(labels, seed=1, images=range(4))
        alone = sampler(labels[[2]], seed=1, images=[2])
        for level, prior in enumerate(priors):
            assert together[level].codes.shape == (4, *prior.grid)
            assert torch.equal(alone[level].codes[0], together[level].codes[2])
            assert (together[level].nll_nats is None) == isinstance(prior, SUNDAE)
        kept = [together[0].codes, torch.full((4, *bottom_grid), -1)]
        again = sampler(labels, seed=2, images=range(4), kept=kept)
        assert torch.equal(again[0].codes, together[0].codes)
        assert not torch.equal(again[1].codes, together[1].codes)
        kept = [together[0].codes.roll(1, 0), torch.full((4, *bottom_grid), -1)]
        assert not torch.equal(sampler(labels, seed=2, images=range(4), kept=kept)[1].codes, again[1].codes)


def test_guidance_of_a_prior_that_knows_no_image_without_a_class_is_refused():
    with pytest.raises(ValueError, match=r"guidance is 1\.5, but this prior knows no image without a class"):
        DenoisingSampler(make(class_dropout=0.0), HOWS["guidance"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0, wanted at least 1"),
        ({"min_steps": 0}, "min_steps is 0, wanted at least 1"),
        ({"proportion": (0.0, 0.5)}, r"proportion is \(0.0, 0.5\), wanted two numbers above 0, up to 1"),
        ({"proportion": (0.5, 1.1)}, "proportion is"),
        ({"proportion": (0.5,)}, "proportion is"),
        ({"proportion": (0.5, math.nan)}, "proportion is"),
        ({"temperature": (1.0, 0.0)}, r"temperature is \(1.0, 0.0\), wanted two finite numbers above 0"),
        ({"temperature": (math.inf, 1.0)}, "temperature is"),
        ({"stop": "always"}, "stop is always, wanted accepted, proposed or never"),
        ({"guidance": -1.0}, "guidance is -1.0, wanted a finite number, 0 or more"),
        ({"guidance": math.nan}, "guidance is nan"),
    ],
)
def test_impossible_steps_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Draw(steps=Steps(**changes)).check(5)


def test_steps_at_the_ends_of_their_ranges_draw():
    prior = make()
    above, labels, kept = given(2)
    ends = {"temperature": (5e-324, 1e300), "proportion": (5e-324, 1.0), "guidance": 1e5}
    how = Draw(steps=Steps(3, stop="proposed", min_steps=10**9, **ends))
    how.check(5)
    codes = DenoisingSampler(prior, how)(above, labels, Noise(0, range(2), 0), kept).codes
    assert 0 <= codes.min() <= codes.max() < 5
