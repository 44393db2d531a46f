"""Distances, bounds and neighbours against whole float64 matrices, on data that float32 cannot tell apart."""

import itertools

import pytest
import torch

from tests.metrics import brute_force
from tests.precision import tf32, watched
from vqvae2.metrics import neighbours
from vqvae2.metrics.neighbours import Neighbours, Pairs, blocks, squared_distances_to_neighbours


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def twins(seed=0):
    """Each row four times, the copies one rounding apart or equal."""
    rows = normal(40, 12, seed=seed)
    return torch.cat([rows, rows, rows.nextafter(rows + 1), rows.nextafter(rows - 1)])


SETS = {
    "normal": normal(150, 24),
    "far from zero": normal(150, 24) + 3e3,
    "twins": twins(),
    "one point": torch.ones(120, 8),
    "integers": torch.randint(0, 3, (160, 4), generator=torch.Generator().manual_seed(0)).float(),
    "clusters": normal(6, 16).repeat(25, 1) + 1e-5 * normal(150, 16, seed=1),
    "an outlier": torch.cat([normal(120, 8), torch.full((1, 8), 1e6)]),
    "tiny": 1e-25 * normal(100, 8),
    "huge": 1e25 * normal(100, 8),
    "one feature": normal(100, 1),
}


@pytest.fixture(params=[16, 64, 2048], ids="blocks of {}".format)
def block(request, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", request.param)
    return request.param


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("k", [1, 5])
def test_neighbours_are_those_of_float64(name, k, block):
    features = SETS[name]
    distances = brute_force.squared_distances(features, features).fill_diagonal_(torch.inf)
    expected = distances.sort(dim=1).values[:, :k]
    assert torch.equal(squared_distances_to_neighbours(features, k), expected)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("strict", [True, False])
def test_balls_hold_what_they_hold_in_float64(name, strict, block):
    features = SETS[name]
    samples, real = features[::2], features[10:]  # share points, so some pairs lie on the border
    radii = brute_force.squared_radii(real, 2)[None]
    exact = brute_force.squared_distances(samples, real)
    for i, j in itertools.product(blocks(samples), blocks(real)):
        limit = radii[:, j]
        found = Pairs(samples[i], real[j]).within(limit, strict=strict)
        assert torch.equal(found, exact[i, j] < limit if strict else exact[i, j] <= limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [name for name in SETS if name not in ("tiny", "huge")])
def test_errors_are_bounds(name, dtype):
    features = SETS[name]
    pairs, exact = Pairs(features, features, dtype), brute_force.squared_distances(features, features)
    assert (pairs.rough.double() - exact).abs().max() <= pairs.error


def test_errors_are_small_enough_to_decide_nearly_all():
    features = normal(400, 512)
    pairs = Pairs(features, features)
    radii = brute_force.squared_radii(features, 5)[None]
    num_open = ((pairs.rough - radii).abs() <= pairs.error).sum() - 400  # who is on the border must be
    assert num_open < 3e-4 * 400**2


def test_a_pair_has_the_same_distance_in_whatever_company(monkeypatch):
    features = normal(50, 5000)
    pairs = torch.tensor(list(itertools.combinations(range(50), 2)))
    together = Pairs(features, features).exact(*pairs.T)
    alone = [Pairs(features, features).exact(*pair.view(2, 1)) for pair in pairs[:40]]
    assert torch.equal(together[:40], torch.cat(alone))
    assert torch.equal(together, Pairs(features, features).exact(*pairs.flip(1).T))
    monkeypatch.setitem(neighbours.CHUNK_NUMBERS, "cpu", 1)
    torch.testing.assert_close(together, Pairs(features, features).exact(*pairs.T), rtol=1e-14, atol=0)


@pytest.fixture
def work(monkeypatch):
    """Counts pairs that are computed singly, and products by their dtype."""
    counts = {"pairs": 0, torch.float32: 0, torch.float64: 0}
    exact, build = Pairs.exact, Pairs.__init__

    def counted_exact(self, i, j):
        counts["pairs"] += len(i)
        return exact(self, i, j)

    def counted_build(self, *arguments):
        build(self, *arguments)
        counts[self.rough.dtype] += 1

    monkeypatch.setattr(Pairs, "exact", counted_exact)
    monkeypatch.setattr(Pairs, "__init__", counted_build)
    monkeypatch.setattr(neighbours, "BLOCK", 256)
    return counts


@pytest.mark.parametrize(
    ("features", "num_float64"),
    [
        (normal(1000, 64), 0),
        (normal(1000, 64) + 1e3, 0),
        (torch.ones(1000, 64), 0),
        (torch.ones(1000, 64) + 1e-6 * normal(1000, 64), 0),
        (normal(5, 64).repeat(200, 1) + 1e-4 * normal(1000, 64), 16),
    ],
    ids=["normal", "far from zero", "one point", "nearly one point", "clusters"],
)
def test_few_of_a_million_pairs_are_computed_singly(features, num_float64, work):
    radii = squared_distances_to_neighbours(features, 3)[:, -1:]
    assert work["pairs"] < 50 * len(features)
    assert work[torch.float32] == 16
    assert work[torch.float64] <= num_float64
    work["pairs"] = 0
    for i, j in itertools.product(blocks(features), blocks(features)):
        Pairs(features[i], features[j]).within(1.5 * radii[i] + 1e-9, strict=True)
    assert work["pairs"] < 50 * len(features)


def test_precision_outside_is_neither_used_nor_lost(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.Tensor, "addmm_", watched(torch.Tensor.addmm_, seen))
    features = normal(300, 64)
    expected = squared_distances_to_neighbours(features, 3)
    with tf32(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(squared_distances_to_neighbours(features, 3), expected)
    assert set(seen) == {"ieee"}


def test_a_pair_that_is_found_twice_counts_once():
    found = Neighbours(2, 3, torch.device("cpu"))
    squared = torch.tensor([[1.0, torch.inf, torch.inf], [4.0, 2.0, 2.0]], dtype=torch.float64)
    for _ in range(2):
        found.insert(squared, torch.tensor([[5, neighbours.NOBODY, neighbours.NOBODY], [7, 9, 3]]))
    assert found.index[1].tolist() == [3, 9, 7]
    assert found.squared[1].tolist() == [2, 2, 4]
    assert found.index[0, 0] == 5
    assert found.squared[0].tolist() == [1, torch.inf, torch.inf]
