"""The linked quantiser against a float64 reference in plain loops: codes, learning, search, gradients."""

import pytest
import torch

from tests.nn.linked_reference import Reference, leaf_of, make, path, rows_of, tables_of
from tests.precision import assert_autocast_changes_nothing, tf32, watched
from tests.ranks import run_ranks
from vqvae2.nn import linked_quantizer as implementation
from vqvae2.nn.linked_quantizer import Level
from vqvae2.nn.quantizer import update_codebooks

MODES = ["stop", "none", "full"]
WAYS = ["among_all", "among_fetched", "cell_by_cell"]  # to search the children


@pytest.mark.parametrize("eps", [1e-5, 0.1])
@pytest.mark.parametrize(
    ("linked", "residual_gradient"), [(True, "stop"), (True, "none"), (True, "full"), (False, "full")]
)
def test_fifty_steps_equal_the_reference_with_nodes_that_are_seldom_or_never_visited(
    linked, residual_gradient, eps
):
    torch.manual_seed(0)
    quantizer = make(linked=linked, residual_gradient=residual_gradient, eps=eps)
    levels = quantizer.levels
    levels[0].codebook[2] = 3.0  # and with it nine leaves: reached in every third step from the tenth on
    levels[-2].codebook[1] = 50.0  # never reached
    levels[-1].codebook[-1] = -50.0
    reference = Reference(quantizer)
    start = tables_of(quantizer)
    visits = [torch.zeros(level.num_codes) for level in levels]
    for step in range(50):
        z = torch.randn(2, 5, 3, 5) + (3.0 if step >= 10 and step % 3 == 0 else 0.0)
        out = quantizer(z)
        assert out.codes.flatten().tolist() == reference.step(z), f"other codes at step {step}"
        counts = quantizer.update(out.statistics)
        for level, mine, expected in zip(levels, counts, reference.tables, strict=True):
            torch.testing.assert_close(level.codebook.double(), expected, rtol=1e-6, atol=1e-6)
            assert mine.sum() == 30
        visits = [seen + (mine > 0) for seen, mine in zip(visits, counts, strict=True)]
    for seen, level, first in zip(visits, levels, start, strict=True):
        never = seen == 0
        assert torch.equal(level.codebook[never].double(), first[never])
        assert torch.equal(level.visited, ~never)
    if linked:
        seldom = torch.cat([seen <= 15 for seen in visits])
        assert seldom.float().mean() > 0.1
    assert sum(int((seen == 0).sum()) for seen in visits) >= 2


def test_smoothing_is_over_all_nodes_of_a_level():
    """Two of nine nodes are visited, by 3 and by 5 of 8 vectors, and eps is large."""
    quantizer = make(depth=2, dim=1, eps=2.0, decay=0.0)
    quantizer.levels[0].codebook.copy_(torch.tensor([[0.0], [10.0], [20.0]]))
    quantizer.levels[1].codebook.copy_(torch.tensor([0.0, 5, 9, 0, 5, 9, 0, 5, 9])[:, None])
    z = torch.tensor([0.1, 0.2, 0.3, 10.4, 10.4, 10.4, 10.4, 10.9]).view(1, 1, 2, 4)
    quantizer.update(quantizer(z).statistics)
    top, below = (level.codebook[:, 0].double() for level in quantizer.levels)
    weight = {(n, k): (n + 2.0) / (8 + k * 2.0) * 8 for n in (3, 5) for k in (3, 9)}
    expected = torch.tensor([0.6 / weight[3, 3], 52.5 / weight[5, 3], 20.0]).double()
    torch.testing.assert_close(top, expected, rtol=1e-6, atol=0)
    expected = torch.tensor([0.6 / weight[3, 9], 5, 9, 2.5 / weight[5, 9], 5, 9, 0, 5, 9]).double()
    torch.testing.assert_close(below, expected, rtol=1e-5, atol=0)


def test_codes_are_nodes_on_the_way_to_a_leaf():
    quantizer = make(branch=3, depth=3)
    leaves = torch.arange(27).view(1, 3, 9)
    paths = [(a, 3 * a + b, 9 * a + 3 * b + c) for a in range(3) for b in range(3) for c in range(3)]
    found = torch.stack(quantizer.nodes(leaves), -1).flatten(0, 2)
    assert found.tolist() == [list(nodes) for nodes in paths]
    apart = torch.stack(make(linked=False).nodes(leaves), -1).flatten(0, 2)
    assert apart.tolist() == [[node % 3 for node in nodes] for nodes in paths]


@pytest.mark.parametrize("linked", [True, False])
def test_lookup_is_the_sum_of_the_codes_down_to_a_level(linked):
    torch.manual_seed(0)
    quantizer = make(linked=linked)
    z = torch.randn(2, 5, 3, 5)
    codes = quantizer.encode(z)
    paths = [path(tables_of(quantizer), row, 3, linked) for row in rows_of(z)]
    assert codes.flatten().tolist() == [leaf_of(steps, 3) for steps in paths]
    for depth in (1, 2, 3, None):
        expected = torch.stack([sum(code for _, _, code in steps[:depth]) for steps in paths])
        torch.testing.assert_close(rows_of(quantizer.lookup(codes, depth)), expected)


def whole_numbers(*shape):
    """Their products are exact: many real ties."""
    return torch.randint(-2, 3, shape).float()


def test_a_processor_searches_cell_by_cell_where_cells_have_many_vectors():
    options = {"decay": 0.9, "eps": 1e-5, "init": "normal", "revive_below": 0.0}
    level = Level(branch=2, num_codes=8, families=4, dim=3, **options)
    few, many = (level.search_for(torch.zeros(count, 3)) for count in (63, 64))
    assert (few, many) == (level.among_fetched, level.cell_by_cell)


@pytest.mark.parametrize("way", WAYS)
def test_every_search_takes_the_lowest_of_the_nearest_children_across_chunks(way, monkeypatch):
    torch.manual_seed(0)
    branch, families, dim = 3, 9, 7
    options = {"decay": 0.9, "eps": 1e-5, "init": "normal", "revive_below": 0.0}
    level = Level(branch=branch, num_codes=families * branch, families=families, dim=dim, **options)
    level.codebook.copy_(whole_numbers(families * branch, dim))
    level.codebook[::2] = level.codebook[0]  # twins among siblings and cousins
    residuals, cells = whole_numbers(1001, dim), torch.randint(families, (1001,))
    monkeypatch.setattr(implementation, "_CHILDREN_AT_ONCE", branch * dim * 13 + 5)
    monkeypatch.setattr(implementation, "_DISTANCES_AT_ONCE", families * branch * 17 + 5)
    monkeypatch.setattr(Level, "search_for", lambda level, _: getattr(level, way))
    expected, ties = [], 0
    for residual, cell in zip(residuals, cells.tolist(), strict=True):
        distances = [
            float((residual - level.codebook[cell * branch + child]).square().sum())
            for child in range(branch)
        ]
        expected.append(distances.index(min(distances)))
        ties += distances.count(min(distances)) > 1
    assert ties > 100
    assert getattr(level, way)(residuals, cells).tolist() == expected
    nodes = level.nearest(residuals, cells)
    assert nodes.tolist() == [int(cell) * branch + child for cell, child in zip(cells, expected, strict=True)]


@pytest.mark.parametrize("way", WAYS)
def test_chunks_change_no_code(way, monkeypatch):
    torch.manual_seed(0)
    quantizer, z = make(branch=5, dim=7), torch.randn(3, 7, 9, 11)
    monkeypatch.setattr(Level, "search_for", lambda level, _: getattr(level, way))
    whole = quantizer.encode(z)
    paths = [path(tables_of(quantizer), row, 5, True) for row in rows_of(z)]
    assert whole.flatten().tolist() == [leaf_of(steps, 5) for steps in paths]
    monkeypatch.setattr(implementation, "_CHILDREN_AT_ONCE", 5 * 7 * 4)
    monkeypatch.setattr(implementation, "_DISTANCES_AT_ONCE", 125 * 2)
    assert torch.equal(quantizer.encode(z), whole)
    assert torch.equal(quantizer(z).codes, whole)


def by_autograd(quantizer, z, upstream, weights):
    """The equations in float64, with the codes as leaves.

    The gradients that the encoder and the codes get, the commitments of the levels and that of their sum;
    the codes' is of their own terms and of what `full` lets through, with weight beta.
    """
    z = z.double().requires_grad_()
    tables = [table.requires_grad_() for table in tables_of(quantizer)]
    rows = z.permute(0, 2, 3, 1).flatten(0, 2)
    nodes = quantizer.nodes(quantizer.encode(z.detach().float()).flatten())
    residual, total, commitments, own = rows, 0, [], 0
    for table, node in zip(tables, nodes, strict=True):
        code = table[node]
        commitments.append((code.detach() - residual).square().mean())
        own = own + (residual.detach() - code).square().mean()
        total = total + code.detach()
        if quantizer.residual_gradient == "none":  # as the authors' code: less the straight-through value
            residual = residual - (residual + (code - residual).detach())
        else:
            residual = residual - (code if quantizer.residual_gradient == "full" else code.detach())
    of_sum = (total - rows).square().mean()
    straight = (rows + (total - rows).detach()).view_as(z.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    loss = (straight * upstream.double()).sum() + weights[0] * of_sum
    loss = loss + sum(weight * one for weight, one in zip(weights[1:], commitments, strict=True))
    (pull,) = torch.autograd.grad(loss, z, retain_graph=True)
    pulls = torch.autograd.grad(own + quantizer.beta * sum(commitments), tables)
    return straight, commitments, of_sum, pull, pulls


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradients_equal_the_equations_in_float64(mode, linked, precision):
    torch.manual_seed(0)
    quantizer = make(residual_gradient=mode, linked=linked)
    z, upstream = torch.randn(2, 5, 3, 5).to(precision), torch.randn(2, 5, 3, 5)
    weights = (30.0, 20.0, 50.0, 70.0)
    straight, commitments, of_sum, pull, pulls = by_autograd(quantizer, z, upstream, weights)
    z.requires_grad_()
    out = quantizer(z)
    loss = (out.vectors * upstream).sum() + weights[0] * out.commitment
    loss = loss + sum(weight * one for weight, one in zip(weights[1:], out.commitments, strict=True))
    loss.backward()
    assert out.vectors.dtype == torch.float32
    assert not out.statistics.requires_grad  # or it would keep the whole graph until the update
    assert torch.equal(out.vectors, quantizer.lookup(out.codes))  # exactly the sum, not z + (e - z)
    torch.testing.assert_close(out.vectors.double(), straight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.commitment.double(), of_sum, rtol=1e-6, atol=0)
    for found, expected in zip(out.commitments, commitments, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[precision]
    torch.testing.assert_close(z.grad.double(), pull, rtol=rounding, atol=1e-5)
    # A code is where its gradient is zero: at the mean of what the terms ask, each with its weight.
    for i, (level, own, mine) in enumerate(
        zip(quantizer.levels, out.statistics.split(quantizer.sizes), pulls, strict=True)
    ):
        weight = 1 + (quantizer.beta * (2 - i) if mode == "full" else 0)
        counts = own[:, 5].double()
        sums = counts[:, None] * level.codebook.double() - mine * z.numel() / 2 / weight
        torch.testing.assert_close(own[:, :5].double(), sums, rtol=1e-5, atol=1e-5)
        assert level.codebook.grad is None
        assert not level.codebook.requires_grad
    assert not list(quantizer.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_the_commitments_pull_as_their_closed_forms_say(mode):
    torch.manual_seed(0)
    quantizer = make(residual_gradient=mode)
    z = torch.randn(2, 5, 3, 5, requires_grad=True)
    out = quantizer(z)
    for depth, commitment in enumerate(out.commitments, start=1):
        if depth > 1 and mode == "none":
            assert not commitment.requires_grad
            continue
        (gradient,) = torch.autograd.grad(commitment, z)
        left = (z - quantizer.lookup(out.codes, depth)).detach()
        torch.testing.assert_close(gradient, 2 * left / z.numel(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_distances_are_float32_under_autocast(precision, way, monkeypatch):
    monkeypatch.setattr(Level, "search_for", lambda level, _: getattr(level, way))
    torch.manual_seed(0)
    quantizer = make(branch=8, dim=64)
    assert_autocast_changes_nothing(quantizer, torch.randn(1, 64, 16, 16), precision)


def test_reduced_precision_products_are_off_on_every_level(monkeypatch):
    seen = []
    monkeypatch.setattr(Level, "nearest", watched(Level.nearest, seen))
    with tf32():
        make()(torch.randn(1, 5, 2, 2))
        make().encode(torch.randn(1, 5, 2, 2))
    assert seen == ["ieee"] * 12


@pytest.mark.parametrize("changes", [{}, {"init": "data"}, {"revive_below": 0.5}, {"linked": False}])
def test_forward_writes_no_buffer(changes):
    quantizer = make(**changes)
    before = {name: buffer.clone() for name, buffer in quantizer.named_buffers()}
    for mode in (True, False):
        out = quantizer.train(mode)(torch.randn(2, 5, 4, 4))
    assert len(out.statistics) == 0
    quantizer.encode(torch.randn(2, 5, 4, 4))
    assert all(torch.equal(buffer, before[name]) for name, buffer in quantizer.named_buffers())


@pytest.mark.parametrize("narrow", [torch.nn.Module.half, torch.nn.Module.bfloat16])
def test_codebooks_of_half_precision_modules_stay_as_they_are(narrow):
    quantizer = make()
    before = {name: buffer.clone() for name, buffer in quantizer.named_buffers()}
    narrow(quantizer)
    for name, buffer in quantizer.named_buffers():
        assert buffer.dtype == before[name].dtype, name
        assert torch.equal(buffer, before[name]), name


def _train(rank, world_size):
    torch.manual_seed(1)
    quantizers = [make(residual_gradient="full"), make(linked=False)]
    torch.manual_seed(2)
    for _ in range(20):
        z = torch.randn(4, 5, 4, 4).chunk(world_size)[rank]
        counts = update_codebooks(quantizers, [one(z).statistics for one in quantizers])
    return [tables_of(quantizer) for quantizer in quantizers], counts


def _train_on_rank():
    return _train(torch.distributed.get_rank(), torch.distributed.get_world_size())


def test_two_ranks_with_half_the_batch_equal_one():
    alone, alone_counts = _train(0, 1)
    for tables, counts in run_ranks(_train_on_rank, 2):
        assert [len(one) for one in counts] == [3, 9, 27, 3, 3, 3]
        assert all(torch.equal(a, b) for a, b in zip(counts, alone_counts, strict=True))
        torch.testing.assert_close(tables, alone, rtol=1e-6, atol=1e-6)
