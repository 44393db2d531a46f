"""The hourglass against a reference of loops; what each position sees, by gradients."""

import pytest
import torch

from tests.nn import reference_hourglass
from vqvae2.nn import hourglass
from vqvae2.nn.hourglass import Attention, Hourglass, angles, turned, waves

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64; the order of sums differs
SIZES = {"width": 6, "heads": 3, "head_width": 8}
CPU = torch.device("cpu")
GRIDS = [(4, 4), (2, 6), (6, 2), (3, 4), (4, 5), (5, 3), (1, 1), (1, 4), (3, 1), (2, 2)]


def redrawn(network: torch.nn.Module) -> torch.nn.Module:
    """In float64 and eval mode; every weight and bias drawn anew, so that none is 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    for tensor in network.double().eval().state_dict().values():
        scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.5
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * scale + 0.1)
    return network


def make(depth=(1, 2, 1), **changes) -> Hourglass:
    return redrawn(Hourglass(**{**SIZES, "depth": depth, "dropout": 0.0, **changes}))


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("grid", [*GRIDS, (16, 16), (7, 9)])
@pytest.mark.parametrize("head_width", [4, 8, 20])
def test_angles(grid, head_width):
    found = angles(*grid, head_width, CPU)
    for place, expected in reference_hourglass.angles(*grid, head_width).items():
        torch.testing.assert_close(found[place], expected, **CLOSE)


@pytest.mark.parametrize(
    ("grid", "head_width"),
    [((2, 2), 64), ((4, 4), 8), ((8, 8), 16), ((16, 16), 64), ((28, 28), 64), ((32, 32), 64), ((32, 64), 64)],
)
def test_positions_of_a_grid_are_told_apart(grid, head_width):
    turns = angles(*grid, head_width, CPU).flatten(0, 1)
    turns = torch.cat([turns.cos(), turns.sin()], 1)
    assert torch.cdist(turns, turns).fill_diagonal_(9).min() > 0.1


def test_angles_are_exact_whatever_the_default_precision():
    expected = angles(32, 32, 64, CPU)
    torch.set_default_dtype(torch.bfloat16)  # as Lightning's bf16-true has it
    try:
        assert torch.equal(angles(32, 32, 64, CPU), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_turning_keeps_lengths_and_leaves_only_differences_of_angles():
    query, key = draw(3, 1, 8), draw(3, 1, 8).flip(0)
    for shift in (0.0, 0.7, -40.0):
        angle = torch.tensor([[0.3, -2.0, 5.0, 1.0]]).double() + shift
        first, second = (waves(angle + by, torch.float64) for by in (0.0, 0.4))
        product = (turned(query, first) * turned(key, second)).sum(-1)
        expected = (
            query * turned(key, waves(torch.full((1, 4), 0.4, dtype=torch.float64), torch.float64))
        ).sum(-1)
        torch.testing.assert_close(product, expected, **CLOSE)
        torch.testing.assert_close(turned(query, first).norm(dim=-1), query.norm(dim=-1), **CLOSE)
    assert torch.equal(turned(query, waves(torch.zeros(1, 4), torch.float64)), query)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_that_of_loops(masked):
    attention = redrawn(Attention(6, 3, 8))
    x, over, at, over_at = draw(2, 5, 6), draw(2, 4, 6).flip(1), draw(5, 4), 2 * draw(4, 4)
    seen = torch.tensor([True, False, True, True]) if masked else torch.ones(4, dtype=torch.bool)
    there = seen if masked else None
    found = attention(x, waves(at, x.dtype), over, waves(over_at, x.dtype), there)
    state = {f"it.{name}": value for name, value in attention.state_dict().items()}
    for image in range(2):
        queries = {(0, i): x[image, i] for i in range(5)}
        keys = {(0, i): over[image, i] for i in range(4) if seen[i]}
        turns, key_turns = ({(0, i): turn for i, turn in enumerate(turns)} for turns in (at, over_at))
        expected = reference_hourglass.attention(state, "it", queries, turns, keys, key_turns, 3)
        torch.testing.assert_close(found[image], torch.stack(list(expected.values())), **CLOSE)


def test_every_head_sees_positions():
    """Not the first alone: what each of them finds is another thing once the keys change places."""
    attention, heads = redrawn(Attention(6, 3, 8)), []
    attention.out.register_forward_pre_hook(lambda _, inputs: heads.append(inputs[0].unflatten(-1, (3, 8))))
    x, at = draw(1, 12, 6), waves(angles(3, 4, 8, CPU).flatten(0, 1), torch.float64)
    attention(x, at, x, at, None)
    attention(x, at, x, at.roll(1, 1), None)
    attention(x, at.roll(1, 1), x, at, None)
    for moved in heads[1:]:
        assert ((moved - heads[0]).abs().amax((0, 1, 3)) > 1e-3).all()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("depth", [(1, 2, 1), (0, 0, 0), (0, 1, 2)])
def test_the_whole_is_that_of_loops(grid, depth):
    """With the gradient for every weight and for the input."""
    network, x = make(depth), draw(2, *grid, 6).requires_grad_()
    weights = dict(network.named_parameters())
    found = network(x)
    one = [reference_hourglass.hourglass(weights, image, heads=3, head_width=8) for image in x]
    torch.testing.assert_close(found, torch.stack(one), **CLOSE)
    leaves = [x, *weights.values()]
    expected = torch.autograd.grad(torch.stack(one).square().sum(), leaves, allow_unused=True)
    gradients = torch.autograd.grad(found.square().sum(), leaves, allow_unused=True)
    for mine, theirs in zip(gradients, expected, strict=True):
        mine, theirs = (torch.zeros(1) if g is None else g for g in (mine, theirs))
        torch.testing.assert_close(mine, theirs.to(mine), rtol=1e-7, atol=1e-7, check_stride=False)


def influence(network: Hourglass, grid: tuple[int, int]) -> torch.Tensor:
    """bool [H·W, H·W]: whether each output depends on each input, by gradients."""
    x = draw(1, *grid, 6)
    jacobian = torch.autograd.functional.jacobian(network, x)[0, :, :, :, 0]
    return jacobian.abs().amax((2, 5)).flatten(2).flatten(0, 1) > 1e-9


@pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 4)])
@pytest.mark.parametrize("depth", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_one_layer_anywhere_shows_every_position_every_other(grid, depth):
    assert influence(make(depth), grid).all()


@pytest.mark.parametrize("grid", [(4, 6), (3, 5)])
def test_without_layers_a_position_sees_its_own_patch_of_two_by_two(grid):
    rows, columns = torch.meshgrid(*(torch.arange(size) // 2 for size in grid), indexing="ij")
    patch = (rows * 100 + columns).flatten()
    assert torch.equal(influence(make((0, 0, 0)), grid), patch[:, None] == patch)


@pytest.mark.parametrize("grid", [(3, 4), (4, 3), (3, 5), (1, 1)])
def test_what_is_padded_is_never_seen(grid, monkeypatch):
    network, x = make(), draw(2, *grid, 6)
    expected = network(x)
    pad = hourglass.F.pad
    monkeypatch.setattr(hourglass.F, "pad", lambda x, sizes: pad(x, sizes, value=50.0))
    torch.testing.assert_close(network(x), expected, **CLOSE)


def test_an_image_does_not_see_another():
    network, x = make(), draw(3, 3, 4, 6)
    for image in range(3):
        torch.testing.assert_close(network(x[image : image + 1])[0], network(x)[image], **CLOSE)


def test_positions_matter():
    """A layer over codes that are alike but in another order is no set function."""
    network, x = make(), draw(1, 4, 4, 6)
    assert (network(x.flip(1)).flip(1) - network(x)).abs().max() > 1e-3
    assert (network(x.transpose(1, 2)).transpose(1, 2) - network(x)).abs().max() > 1e-3


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_layers_that_run_again_have_the_same_gradients(grid):
    network, x, runs = make(dropout=0.4).train(), draw(2, *grid, 6), []
    network.middle[0].dense.register_forward_pre_hook(lambda *_: runs.append(0))
    found = []
    for recompute in (False, True):
        torch.manual_seed(3)
        network.zero_grad()
        network(x, recompute=recompute).square().sum().backward()
        found.append([weights.grad for weights in network.parameters()])
    assert len(runs) == 3  # or nothing was computed again
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width is 0, wanted at least 1"),
        ({"heads": 0}, "heads is 0, wanted at least 1"),
        ({"head_width": 6}, "head_width is 6, wanted a multiple of 4"),
        ({"head_width": 0}, "head_width is 0"),
        ({"depth": (1, 2)}, r"depth is \(1, 2\), wanted three numbers"),
        ({"depth": (1, -1, 1)}, "depth is"),
        ({"dropout": 1.0}, "dropout is 1.0, wanted 0 up to"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)
