"""The prior over paths: a distribution over leaf grids; which level sees what; the leaf prior beside it."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from tests.nn.ends import WIDTHS
from vqvae2.nn.path_prior import PathPrior
from vqvae2.nn.pixelsnail import PixelSNAIL
from vqvae2.storage.checkpoint import load_network, save_network

SHAPE = {"condition_grids": [], "condition_codes": []}
BELOW = {"condition_grids": [(1, 2)], "condition_codes": [5]}


def options(grid=(1, 2), branch=2, depth=2, num_classes=3, **changes):
    shape = {"grid": grid, "num_codes": branch**depth, "num_classes": num_classes, "depth": depth}
    return {**shape, **SHAPE, **WIDTHS, **changes}


def make(*args, **changes) -> PathPrior:
    """In float64, with logits that are not all zero."""
    torch.manual_seed(0)
    prior = PathPrior(**options(*args, **changes)).double().eval()
    for level in prior.levels:
        torch.nn.init.normal_(level.to_logits.weight)
        torch.nn.init.normal_(level.to_logits.bias)
    return prior


def exact(prior, codes, conditions, labels):
    """Log-probabilities of leaf grids by the chain rule in float64, from the level networks' logits."""
    total = torch.zeros(codes.shape).double()
    depth, above = len(prior.levels), []
    for level, network in enumerate(prior.levels):
        nodes = codes // prior.branch ** (depth - 1 - level)
        scores = network(nodes, [*conditions, *above], labels)
        log = scores - scores.logsumexp(1, keepdim=True)
        for at in itertools.product(*map(range, codes.shape)):
            child = int(nodes[at]) % prior.branch
            total[at] += log[at[0], child, at[1], at[2]]
        above.append(nodes)
    return total


def all_grids(num_codes, grid):
    cells = math.prod(grid)
    return torch.tensor(list(itertools.product(range(num_codes), repeat=cells))).view(-1, *grid)


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        (((1, 2), 2, 2), {}),
        (((2, 2), 2, 2), {}),
        (((2, 1), 3, 2), {"attention_layers": 0}),
        (((1, 2), 2, 3), {}),
        (((1, 2), 2, 2), BELOW),
    ],
    ids=str,
)
@torch.no_grad()
def test_the_probabilities_of_all_leaf_grids_sum_to_one_and_are_the_chain_rule(shape, changes):
    grid, branch, depth = shape
    prior = make(*shape, **changes)
    codes = all_grids(branch**depth, grid)
    above = [torch.randint(5, (1, 1, 2)).expand(len(codes), -1, -1)] if changes is BELOW else []
    sums = []
    for label in (0, 2):
        labels = torch.full((len(codes),), label)
        nll = prior.nll(codes, above, labels)
        assert nll.shape == codes.shape
        probabilities = (-nll.double().sum((1, 2))).exp()
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-6)
        sums.append(probabilities)
        torch.testing.assert_close(nll.double(), -exact(prior, codes, above, labels), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(prior.loss(codes, above, labels), nll.mean())
    assert (sums[0] - sums[1]).abs().max() > 1e-3  # the class counts
    assert sums[0].max() > 2 / len(codes)  # and it is far from uniform


@torch.no_grad()
def test_only_children_of_the_node_above_are_possible():
    """The logits are of m children, and a level's sum to 1 over them alone, whatever the parent is."""
    prior = make((2, 2), 3, 2)
    codes = torch.randint(9, (4, 2, 2))
    labels = torch.arange(4) % 3
    logits = prior.levels[1](codes, [codes // 3], labels)
    assert logits.shape[1] == 3
    last = codes.clone()
    total = torch.zeros(4).double()
    for child in range(3):  # of the last position
        last[:, 1, 1] = codes[:, 1, 1] // 3 * 3 + child
        below = prior.levels[1].nll(last, [codes // 3], labels)[:, 1, 1]
        total += (-below.double()).exp()
    torch.testing.assert_close(total, torch.ones(4).double(), rtol=1e-6, atol=0)


@torch.no_grad()
def test_the_own_level_is_causal_and_the_levels_below_see_all_of_it():
    prior = make((3, 4), 2, 3, kernel=5, conditioning_hidden=32)
    codes = torch.randint(8, (6, 3, 4))  # what one grid's units are off for, another's are on
    labels = torch.arange(6) % 3
    depth = len(prior.levels)

    def per_level(leaves):
        nodes = prior.nodes(leaves)
        return [
            level.nll(own, nodes[:i], labels).flatten(1)
            for i, (level, own) in enumerate(zip(prior.levels, nodes, strict=True))
        ]

    before = per_level(codes)
    for level, position in itertools.product(range(depth), range(12)):
        changed = codes.clone()
        bit = 2 ** (depth - 1 - level)
        changed.flatten(1)[:, position] ^= bit  # the child on that level
        differs = [((a - b).abs() > 1e-9).any(0) for a, b in zip(per_level(changed), before, strict=True)]
        assert not any(above.any() for above in differs[:level])
        assert not differs[level][:position].any()
        assert differs[level][position:].all()
        for below in differs[level + 1 :]:
            assert below.all(), f"a node of level {level} at {position} is not seen from everywhere below"


@torch.no_grad()
def test_what_is_embedded_is_the_node_and_not_the_child():
    """An earlier position with the same child of another parent counts as another code."""
    prior = make((1, 4), 2, 2)
    labels = torch.tensor([0])
    codes, cousin = torch.tensor([[[0, 1, 2, 3]]]), torch.tensor([[[2, 1, 2, 3]]])
    first = prior.levels[1](codes, [codes // 2], labels)
    assert not torch.equal(prior.levels[1](cousin, [codes // 2], labels), first)


def test_nodes_of_codes_that_are_not_drawn_yet_are_not_drawn_yet():
    prior = make((1, 2), 3, 3)
    codes = torch.tensor([[[-1, 26]], [[5, -1]]])
    assert [nodes.tolist() for nodes in prior.nodes(codes)] == [
        [[[-1, 2]], [[0, -1]]],
        [[[-1, 8]], [[1, -1]]],
        [[[-1, 26]], [[5, -1]]],
    ]


@pytest.mark.parametrize(("branch", "depth"), [(2, 3), (5, 3), (8, 3), (7, 2), (3, 1)])
@torch.no_grad()
def test_leaf_and_path_priors_report_the_same_nats_a_position_untrained(branch, depth):
    codes = torch.randint(branch**depth, (2, 2, 3))
    labels = torch.tensor([0, 1])
    path = PathPrior(**options((2, 3), branch, depth)).eval()
    leaf_options = options((2, 3), branch, depth)
    del leaf_options["depth"]
    leaf = PixelSNAIL(**leaf_options).eval()
    for prior in (path, leaf):
        nll = prior.nll(codes, [], labels)
        torch.testing.assert_close(nll, torch.full(codes.shape, depth * math.log(branch)), rtol=1e-6, atol=0)
        assert prior.loss(codes, [], labels).item() == pytest.approx(depth * math.log(branch), rel=1e-6)
        assert prior.has_likelihood
    assert [level.num_codes for level in path.levels] == [branch**i for i in range(1, depth + 1)]


def test_training_learns_what_a_leaf_prior_learns():
    """The class and the left neighbour tell the parent, the parent of the row above tells the child."""
    torch.manual_seed(0)
    path = PathPrior(**options((2, 4), 3, 2, dropout=0.0, attention_layers=0))
    optimizer = torch.optim.Adam(path.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    last = []
    for step in range(120):
        labels = torch.randint(3, (16,), generator=generator)
        parents = torch.randint(3, (16, 2, 4), generator=generator)
        parents[:, 0, 0] = labels
        parents[:, :, 1::2] = parents[:, :, ::2]
        children = torch.randint(3, (16, 2, 4), generator=generator)
        children[:, 1] = parents[:, 0]  # of the row above
        nll = path.nll(parents * 3 + children, [], labels)
        optimizer.zero_grad()
        nll.mean().backward()
        optimizer.step()
        last += [nll.detach().mean(0)] if step >= 110 else []
    nll = torch.stack(last).mean(0)
    unknown = torch.tensor([[0, 0, 1, 0], [1, 0, 1, 0]]) + torch.tensor([[1], [0]])  # drawn parents, children
    assert (nll > 0.95 * math.log(3) * unknown).all()
    assert (nll < math.log(3) * unknown + 0.4).all(), nll


def test_every_level_gets_its_gradient():
    prior = make().float().train()
    prior.loss(torch.randint(4, (2, 1, 2)), [], torch.tensor([0, 1])).backward()
    for level in prior.levels:
        assert level.to_logits.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_a_prior_is_written_and_read_to_the_bit(tmp_path):
    prior = make(**BELOW).float()
    save_network(tmp_path / "x.ckpt", prior, options(**BELOW))
    loaded, facts = load_network(tmp_path / "x.ckpt", "prior")
    assert facts["architecture"] == "path"
    inputs = torch.randint(4, (2, 1, 2)), [torch.randint(5, (2, 1, 2))], torch.tensor([0, 2])
    assert torch.equal(loaded.nll(*inputs), prior.nll(*inputs))


def test_half_precision_ends_in_float32():
    prior = make((2, 4), 3, 2).float()
    inputs = torch.randint(9, (2, 2, 4)), [], torch.tensor([0, 2])
    expected = prior.nll(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = prior.nll(*inputs)
    for found in (autocast, prior.bfloat16().nll(*inputs)):
        assert found.dtype == torch.float32
        assert 0 < (found - expected).abs().max() < 0.05 * F.relu(expected).max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_codes": 5}, "5 codes are no whole number to the power of 2"),
        ({"num_codes": 511, "depth": 3}, "511 codes are no whole number"),
        ({"depth": 0}, "depth is 0, wanted at least 1"),
        ({"kernel": 4}, "kernel is 4"),
        ({"conditioning_hidden": 0}, "conditioning_hidden is 0"),
    ],
)
def test_impossible_priors_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PathPrior(**options(**changes) | changes)


def test_of_512_leaves_the_third_root_is_8_exactly():
    """512 ** (1 / 3) is 7.999999999999999 in floating point."""
    with torch.device("meta"):
        for branch, depth in ((8, 3), (5, 3), (10, 3), (12, 2)):
            assert PathPrior(**options(branch=branch, depth=depth, layers=1)).branch == branch
