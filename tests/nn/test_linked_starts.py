"""How families of linked codes start from data and are revived; candidates of several batches and ranks."""

import pytest
import torch

from tests.nn.linked_reference import make, path, rows_of, tables_of
from tests.ranks import run_ranks
from vqvae2.nn.quantizer import update_codebooks

DATA = {"init": "data", "eps": 1e-9}


def learn(quantizer, *grids):
    """One step from micro-batches."""
    pending = None
    for z in grids:
        statistics = quantizer(z).statistics
        pending = statistics if pending is None else quantizer.accumulate(pending, statistics)
    return quantizer.update(pending)


def left_by_cell(quantizer, z, level):
    """What the levels above leave of the vectors, by the cell in which they look, before a step."""
    found: dict[int, list] = {}
    for row in rows_of(z):
        steps = path(tables_of(quantizer), row, quantizer.branch, quantizer.linked)
        cell = steps[level - 1][0] if level and quantizer.linked else 0
        found.setdefault(cell, []).append(steps[level][1])
    return {cell: torch.stack(rows) for cell, rows in found.items()}


def nearest_of(code, rows):
    return torch.cdist(code.double()[None], rows).min().item()


def separate(*centres, count=6, spread=0.3):
    """A grid [1, 5, count, groups] of groups of vectors."""
    groups = [torch.full((count, 1, 5), float(centre)) for centre in centres]
    rows = torch.cat(groups, 1) + spread * torch.randn(count, len(groups), 5)
    return rows.permute(2, 0, 1)[None]


@pytest.mark.parametrize("linked", [True, False])
def test_levels_start_one_a_step_from_vectors_of_their_own_cell(linked):
    torch.manual_seed(0)
    quantizer = make(linked=linked, **DATA)
    assert all(not level.codebook.any() and not level.started.any() for level in quantizer.levels)
    for step in range(3):
        z = torch.randn(8, 5, 6, 6) + 1.0  # their mean is not zero
        left = left_by_cell(quantizer, z, step)
        learn(quantizer, z)
        started = quantizer.levels[step]
        assert left.keys() == set(range(started.families))
        assert started.started.all()
        for node, code in enumerate(started.codebook):
            own = left[node // 3 if linked else 0]
            assert nearest_of(code, own) < 1e-5
            others = [rows for cell, rows in left.items() if cell != node // 3]
            assert not linked or not others or nearest_of(code, torch.cat(others)) > 1e-4
        assert len(started.codebook.unique(dim=0)) > started.num_codes // 2  # and not all from the same one
        for below in quantizer.levels[step + 1 :]:
            assert not below.codebook.any()  # until it starts, a level adds nothing
            assert not below.started.any()
            assert not below.average_counts.any()


def test_a_family_without_a_vector_waits_at_zero_and_starts_later():
    torch.manual_seed(0)
    quantizer = make(**DATA)
    top, middle, bottom = quantizer.levels
    learn(quantizer, separate(-10, 0, 10))
    top.codebook.copy_(torch.tensor([-10.0, 0, 10])[:, None].expand(3, 5))
    own = torch.arange(9) // 3
    for _ in range(3):
        learn(quantizer, separate(-10, 0))
        assert torch.equal(middle.started, own < 2)
        assert not middle.codebook[own == 2].any()
        assert not bottom.codebook[18:].any()
        assert not bottom.started[18:].any()
    assert middle.codebook[own < 2].any(1).all()
    assert bottom.started[:18].any()
    codes = middle.codebook.clone()
    z = separate(10)
    left = left_by_cell(quantizer, z, 1)[2]
    learn(quantizer, z)
    assert middle.started.all()
    assert not bottom.started[18:].any()  # a step later
    assert all(nearest_of(code, left) < 1e-5 for code in middle.codebook[own == 2])
    assert torch.equal(middle.codebook[own < 2], codes[own < 2])
    left = left_by_cell(quantizer, z, 2)
    learn(quantizer, z)
    for cell in range(6, 9):
        assert bottom.started[3 * cell : 3 * cell + 3].all() == (cell in left)
        for code in bottom.codebook[3 * cell : 3 * cell + 3]:
            assert nearest_of(code, left[cell]) < 1e-5 if cell in left else not code.any()


@pytest.mark.parametrize("linked", [True, False])
def test_what_has_started_never_starts_again(linked):
    torch.manual_seed(0)
    quantizer = make(linked=linked, **DATA)
    for _ in range(4):
        learn(quantizer, torch.randn(4, 5, 6, 6))
    quantizer.eval()
    plain = make(linked=linked, eps=1e-9)
    plain.load_state_dict(quantizer.state_dict())
    for one in (quantizer.train(), plain):
        torch.manual_seed(1)
        learn(one, torch.randn(4, 5, 6, 6))
    assert all(
        torch.equal(a.codebook, b.codebook) for a, b in zip(quantizer.levels, plain.levels, strict=True)
    )


def revived_in(seed, counts, revive_below=0.1):
    """A step of 2 levels of 3 codes, at -10, 0 and 10, with average counts [9] of the lower level.

    Returns the lower level before and after, and what the vectors have left in each cell.
    """
    torch.manual_seed(seed)
    quantizer = make(depth=2, revive_below=revive_below, eps=1e-9)
    below = quantizer.levels[1]
    quantizer.levels[0].codebook.copy_(torch.tensor([-10.0, 0, 10])[:, None].expand(3, 5))
    quantizer.levels[0].average_counts.fill_(100.0)
    below.codebook[2::3] = 7.0  # the last child of each is never visited
    below.average_counts.copy_(torch.tensor(counts).float())
    below.average_sums.copy_(below.codebook * below.average_counts[:, None])
    below.num_updates.fill_(10**6)
    z = separate(-10, 0, 10, count=8, spread=0.5)
    before, left = below.codebook.clone(), left_by_cell(quantizer, z, 1)
    counts = learn(quantizer, z)
    return before, below, left, counts[1]


@pytest.mark.parametrize("seed", range(5))
def test_codes_are_revived_from_their_own_cell(seed):
    before, below, left, counts = revived_in(seed, [50, 50, 1] * 3)
    assert not counts[2::3].any()
    for cell in range(3):
        code = below.codebook[3 * cell + 2]
        assert nearest_of(code, left[cell]) < 1e-5
        others = torch.cat([rows for other, rows in left.items() if other != cell])
        assert nearest_of(code, others) > 1e-4
        mean = 0.99 * torch.tensor(101.0) / 3 + 0.01 * 8 / 3  # a new one counts as its family does on average
        torch.testing.assert_close(below.average_counts[3 * cell + 2], mean, rtol=1e-4, atol=0)
        assert torch.equal(below.codebook[3 * cell + 2], before[3 * cell + 2]) is False


def test_codes_are_judged_by_the_mean_of_their_siblings():
    """The level's mean is 34.9, a tenth of it 3.49: by that, the whole last family would be dead."""
    before, below, _, _ = revived_in(0, [150, 150, 7, 1, 1, 1, 1, 1, 1])
    assert not torch.equal(below.codebook[2], before[2])  # below a tenth of 102
    assert torch.equal(below.codebook[[5, 8]], before[[5, 8]])  # not visited, and not dead among its like
    before, below, _, _ = revived_in(0, [150, 150, 11, 1, 1, 0.05, 1, 1, 0.05])
    assert torch.equal(below.codebook[2], before[2])
    assert not (below.codebook[[5, 8]] == before[[5, 8]]).any()


def test_nothing_is_revived_where_the_cell_is_empty():
    torch.manual_seed(0)
    quantizer = make(depth=2, revive_below=0.5)
    quantizer.levels[0].codebook.copy_(torch.tensor([-10.0, 0, 10])[:, None].expand(3, 5))
    below = quantizer.levels[1]
    below.average_counts.copy_(torch.tensor([1.0, 1, 0] * 3))
    below.average_sums.copy_(below.codebook * below.average_counts[:, None])
    before = below.codebook.clone()
    learn(quantizer, separate(-10, 0))
    assert not torch.equal(below.codebook[2], before[2])
    assert torch.equal(below.codebook[6:], before[6:])


@pytest.mark.parametrize("residual_gradient", ["stop", "full"])
def test_accumulated_micro_batches_equal_one_batch(residual_gradient):
    torch.manual_seed(0)
    whole, parts = make(residual_gradient=residual_gradient), make(residual_gradient=residual_gradient)
    parts.load_state_dict(whole.state_dict())
    z = torch.randn(6, 5, 4, 4)
    for _ in range(3):
        counts = learn(whole, z)
        assert all(
            torch.equal(*pair) for pair in zip(counts, learn(parts, z[:1], z[1:3], z[3:]), strict=True)
        )
    torch.testing.assert_close(tables_of(parts), tables_of(whole), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_candidates_stay_where_a_later_micro_batch_has_none_and_are_whole_vectors(order):
    torch.manual_seed(0)
    quantizer = make(depth=2, **DATA)
    learn(quantizer, separate(-10, 0, 10))
    quantizer.levels[0].codebook.copy_(torch.tensor([-10.0, 0, 10])[:, None].expand(3, 5))
    grids = [separate(-10, 0), separate(0, 10)]
    first, last = [grids[i] for i in order]
    left = [left_by_cell(quantizer, z, 1) for z in (first, last)]
    learn(quantizer, first, last)
    assert quantizer.levels[1].started.all()
    for node, code in enumerate(quantizer.levels[1].codebook):
        cell = node // 3
        source = left[1] if cell in left[1] else left[0]  # the last that has any
        assert nearest_of(code, source[cell]) < 1e-5


def _start_on_rank():
    """A step with vectors of all cells, then one where both ranks have the cell at 0, one -10, one 10."""
    torch.manual_seed(3)
    rank = torch.distributed.get_rank()
    quantizer = make(depth=2, **DATA)
    grids = [separate(-10, 0, 10), separate(-10, 0, 10)]
    update_codebooks([quantizer], [quantizer(grids[rank]).statistics])
    top = quantizer.levels[0].codebook.clone()
    quantizer.levels[0].codebook.copy_(torch.tensor([-10.0, 0, 10])[:, None].expand(3, 5))
    second = [separate(-10, 0), separate(0, 10)][rank]
    left = left_by_cell(quantizer, second, 1)
    update_codebooks([quantizer], [quantizer(second).statistics])
    return rows_of(grids[rank]), top, left, quantizer.levels[1].codebook, quantizer.levels[1].started


def test_ranks_offer_different_candidates_and_agree_on_the_outcome():
    (rows, top, left, codes, started), (others, same_top, others_left, same, same_started) = run_ranks(
        _start_on_rank
    )
    assert torch.equal(top, same_top)
    assert torch.equal(codes, same)
    assert torch.equal(started, same_started)
    for node, code in enumerate(top):  # the first rank offers to nodes 0 and 2
        mine, theirs = (rows, others)[:: 1 if node % 2 == 0 else -1]
        assert nearest_of(code, mine) < 1e-5 < nearest_of(code, theirs)
    for node, code in enumerate(codes):
        mine = (left, others_left)[node % 2]
        cell = node // 3
        assert started[node] == (cell in mine)
        if cell in mine:
            assert nearest_of(code, mine[cell]) < 1e-5
        elif node == 6:  # all codes of the cell were zero: the first was found, and is where its vectors are
            torch.testing.assert_close(code.double(), others_left[2].mean(0), rtol=1e-5, atol=1e-5)
        else:
            assert not code.any()
