"""The law that SUNDAE's sampler follows, summed over all states of a small grid, against what it draws."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.chi_square import ALPHA, p_value
from vqvae2.nn.sundae import SUNDAE
from vqvae2.sampling.draw import Draw, Noise, Steps
from vqvae2.sampling.sundae import DenoisingSampler

NUM_IMAGES = 120_000
LABEL = 1
SMALL, FLAT = ((2, 2), 3), ((2, 3), 2)  # 81 states; 64, of a grid that is padded


class Together(Noise):
    """Noise of many images at once: one generator a step, which has a row for each image."""

    def uniforms(self, count: int) -> Tensor:
        key = (self.seed, self.level, 0 if self.step is None else self.step + 1)
        rows = np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random((NUM_IMAGES, count))
        return torch.from_numpy(rows[np.asarray(self.images)])


def make(grid: tuple[int, int], num_codes: int) -> SUNDAE:
    """A network that is sure of some codes, and of others where their neighbours are others."""
    torch.manual_seed(0)
    sizes = {"width": 8, "heads": 2, "head_width": 4, "depth": [1, 1, 1], "dropout": 0.0, "unroll": 2}
    above = {"condition_grids": [], "condition_codes": [], "num_classes": 2, "class_dropout": 0.5}
    prior = SUNDAE(grid=grid, num_codes=num_codes, **above, **sizes).double().eval()
    torch.nn.init.normal_(prior.to_logits.weight)
    return prior


def all_states(grid: tuple[int, int], num_codes: int) -> Tensor:
    """[K^N, H, W], numbered as numbers of base K."""
    states = list(itertools.product(range(num_codes), repeat=grid[0] * grid[1]))
    return torch.tensor(states).view(-1, *grid)


def numbers(codes: Tensor, num_codes: int) -> Tensor:
    powers = num_codes ** torch.arange(codes[0].numel()).flip(0)
    return (codes.flatten(1) * powers).sum(1)


class Conditionals(NamedTuple):
    """What a step does in each state."""

    proposal: Tensor  # [S, N, K]
    proportion: float


def conditionals(prior: SUNDAE, how: Draw, states: Tensor, step: int) -> Conditionals:
    """Guidance, temperature and proportion of a step, each on its straight line."""
    steps = how.steps
    share = step / (steps.steps - 1) if steps.steps > 1 else 0.0
    logits, without = (
        prior.logits(states, prior.context([], torch.tensor([label]), prior.grid)).flatten(1, 2)
        for label in (LABEL, prior.num_classes)
    )
    logits = without + (1 + share * steps.guidance) * (logits - without)
    first, last = steps.temperature
    temperature = how.temperature * (first * (1 - share) + last * share)
    first, last = steps.proportion
    return Conditionals((logits / temperature).softmax(-1), first * (1 - share) + last * share)


@torch.no_grad()
def law(prior: SUNDAE, how: Draw, kept: Tensor) -> tuple[Tensor, float]:
    """How likely each state is at the end, and how likely an image has stopped before it."""
    states = all_states(prior.grid, prior.num_codes)
    flat, given = states.flatten(1), kept.flatten()
    count, size = flat.shape
    free = [i for i in range(size) if given[i] < 0]
    going = ((flat == given) | (given < 0)).all(1).double()
    going /= going.sum()
    done = torch.zeros(count, dtype=torch.float64)
    for step in range(how.steps.steps):
        proposal, proportion = conditionals(prior, how, states, step)
        likely = torch.stack([proposal[:, i, flat[:, i]] for i in range(size)])  # [N, S, S']
        same = torch.stack([flat[:, None, i] == flat[None, :, i] for i in range(size)]).double()
        moves = torch.zeros(count, count, dtype=torch.float64)
        for taken in itertools.product((False, True), repeat=len(free)):
            pattern = dict(zip(free, taken, strict=True))
            way = torch.ones(count, count, dtype=torch.float64)
            for i in range(size):
                way = way * (likely[i] if pattern.get(i) else same[i])
            moves += proportion ** sum(taken) * (1 - proportion) ** (len(free) - sum(taken)) * way
        torch.testing.assert_close(moves.sum(1), torch.ones(count, dtype=torch.float64))
        stops = torch.zeros(count, dtype=torch.float64)
        if how.steps.stop == "accepted" and step + 1 >= how.steps.min_steps:
            stops = moves.diagonal()
        elif how.steps.stop == "proposed" and step + 1 >= how.steps.min_steps:
            stops = torch.stack([likely[i].diagonal() for i in free]).prod(0)
        done += going * stops
        going = going @ moves - going * stops
    return done + going, done.sum().item()


@torch.no_grad()
def drawn(prior: SUNDAE, how: Draw, kept: Tensor) -> tuple[Tensor, list[int]]:
    """How many images end in each state, and how many the network is called with in each step.

    The network sees each state once.
    """
    network, rows = prior.logits, []
    states = all_states(prior.grid, prior.num_codes)

    def logits(codes, context):
        rows.append(len(codes))
        return network(states, context[:1])[numbers(codes, prior.num_codes)]

    prior.logits = logits
    noise = Together(0, range(NUM_IMAGES), 0)
    labels = torch.full((NUM_IMAGES,), LABEL)
    sampled = DenoisingSampler(prior, how)([], labels, noise, kept.expand(NUM_IMAGES, -1, -1))
    del prior.logits
    found = torch.bincount(numbers(sampled.codes, prior.num_codes), minlength=len(states))
    return found, rows


FREEZES = {"min_steps": 1, "temperature": (1.0, 0.4)}
CASES = {
    "one step": (SMALL, Draw(steps=Steps(1, (1.0, 1.0)))),
    "two steps": (SMALL, Draw(steps=Steps(2, (1.0, 1.0), (1.0, 0.6)))),
    "a share": (FLAT, Draw(steps=Steps(3, (0.5, 0.5), (1.0, 1.0), "never"))),
    "changing shares": (SMALL, Draw(0.8, steps=Steps(4, (0.9, 0.2), (1.2, 0.5), "never"))),
    "accepted": (SMALL, Draw(steps=Steps(4, (0.5, 0.3), stop="accepted", **FREEZES))),
    "accepted, flat": (FLAT, Draw(steps=Steps(5, (0.4, 0.8), stop="accepted", **FREEZES))),
    "proposed": (SMALL, Draw(steps=Steps(4, (0.5, 0.3), stop="proposed", **FREEZES))),
    "proposed, late": (FLAT, Draw(steps=Steps(4, (0.3, 0.3), stop="proposed", min_steps=3))),
    "guidance": (SMALL, Draw(steps=Steps(3, (0.7, 0.7), (1.0, 1.0), "accepted", 2, guidance=2.0))),
}


@pytest.mark.parametrize("given", [(), (2,)], ids=["all drawn", "one kept"])
@pytest.mark.parametrize("case", CASES)
def test_samples_follow_the_law_of_the_steps(case, given):
    (grid, num_codes), how = CASES[case]
    prior = make(grid, num_codes)
    kept = torch.full(grid, -1)
    kept.view(-1)[list(given)] = 1
    expected, stopped = law(prior, how, kept)
    found, rows = drawn(prior, how, kept)
    assert found.sum() == NUM_IMAGES
    assert p_value(found, expected) > ALPHA
    assert rows[0] == NUM_IMAGES
    if how.steps.stop != "never" and how.steps.min_steps < how.steps.steps:
        assert rows[-1] < NUM_IMAGES
        assert stopped > 0.01


def test_one_step_of_all_codes_is_the_networks_own_product():
    """By the network itself, from its logits at each start."""
    prior = make(*SMALL)
    states = all_states(*SMALL)
    with torch.no_grad():
        found = prior.logits(states, prior.context([], torch.tensor([LABEL]), prior.grid)).softmax(-1)
    product = torch.ones(81, 81, dtype=torch.float64)
    for row, column in itertools.product(range(2), range(2)):
        product *= found[:, row, column][:, states[:, row, column]]
    counts, rows = drawn(prior, Draw(steps=Steps(1, (1.0, 1.0))), torch.full((2, 2), -1))
    assert rows == [NUM_IMAGES]
    assert p_value(counts, product.mean(0)) > ALPHA


@pytest.mark.parametrize(
    "wrong",
    [
        Steps(4, (0.3, 0.5), stop="accepted", **FREEZES),
        Steps(4, (0.5, 0.3), stop="proposed", **FREEZES),
        Steps(4, (0.5, 0.3), stop="accepted", min_steps=2, temperature=(1.0, 0.4)),
        Steps(4, (0.5, 0.3), stop="accepted", min_steps=1, temperature=(0.4, 1.0)),
    ],
)
def test_another_law_is_told_from_the_right_one(wrong):
    prior, kept = make(*SMALL), torch.full((2, 2), -1)
    counts, _ = drawn(prior, CASES["accepted"][1], kept)
    assert p_value(counts, law(prior, Draw(steps=wrong), kept)[0]) < 1e-9
