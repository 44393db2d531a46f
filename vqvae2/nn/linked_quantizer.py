"""Residual quantisation in levels, whose codebooks are linked: a code decides which codes may follow it.

Source: HR-VQVAE (Adiban, Stefanov, Siniscalchi, Salvi, 2022), appendix A.2, figure 10. It does not say how
the codebooks learn: here by the moving averages of VQ-VAE-2.

The codes form a tree. Level i has m^i nodes; the node that a vector chose on the level above has m children,
and only these are searched. What is left of the vector goes on to the next level. A leaf index holds the
whole path: the node of level i is leaf // m^(L−i).

Shape legend: B batch, D code dimension, H W grid, m branch, L depth, K nodes of a level, N = B·H·W vectors.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from vqvae2 import distributed
from vqvae2.nn.checks import require
from vqvae2.nn.precision import exact_float32_matmul, without_autocast
from vqvae2.nn.quantizer import Codebook, nearest

# How many numbers exist at once: they fit a processor's cache.
_CHILDREN_AT_ONCE = 2**18
_DISTANCES_AT_ONCE = 2**20
# How a level is searched: on a processor cell by cell, from so many vectors a cell on (measured by
# experiments/bench_quantizer.py); elsewhere by all distances, up to so many families (an estimate).
_CELL_BY_CELL_FROM = 16
_ALL_DISTANCES_UP_TO = 1024


class LinkedQuantized(NamedTuple):
    """What `LinkedQuantizer` returns."""

    vectors: Tensor  # [B, D, H, W] float32, Σ e^i; the gradient passes straight through to the input
    codes: Tensor  # [B, H, W] int64, leaf indices
    commitments: tuple[Tensor, ...]  # scalars, mean (sg[e^i] − ξ^(i−1))² of each level
    commitment: Tensor  # scalar, mean (sg[Σ e^i] − z)²
    statistics: Tensor  # in training, [Σ K, D + 1] (may be wider) for `update`; else empty


class Level(Codebook):
    """The codes of one residual level, in families of m: the children of each node above.

    Nodes without a visit in a step keep their value. With `init="data"` a family starts from vectors of its
    own cell, once the node above it has started.
    """

    def __init__(self, *, branch: int, **options: object) -> None:
        super().__init__(**options)
        self.branch = branch
        self.register_buffer("started", torch.full((self.num_codes,), self.init != "data"))
        self.register_buffer("visited", torch.zeros(self.num_codes, dtype=torch.bool))
        if self.init == "data":
            self.codebook.zero_()  # until it starts, a level adds nothing

    def nearest(self, residuals: Tensor, cells: Tensor) -> Tensor:
        """Nodes [N] nearest to residuals [N, D] among the m children of each one's cell [N]."""
        if self.families == 1:
            return nearest(residuals, self.codebook)
        return cells * self.branch + self.search_for(residuals)(residuals, cells)

    def search_for(self, residuals: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The fastest of the ways to search; all find the same."""
        if residuals.device.type == "cpu":
            many = len(residuals) >= _CELL_BY_CELL_FROM * self.families
            return self.cell_by_cell if many else self.among_fetched
        return self.among_all if self.families <= _ALL_DISTANCES_UP_TO else self.among_fetched

    def among_fetched(self, residuals: Tensor, cells: Tensor) -> Tensor:
        """Which child [N]; the vectors of the m children are fetched, m·D numbers for each residual."""
        table = self.codebook.view(self.families, -1)
        squares = self.codebook.square().sum(1).view(self.families, -1)
        found = torch.empty_like(cells)
        at_once = max(1, _CHILDREN_AT_ONCE // table.shape[1])
        chunks = zip(residuals.split(at_once), cells.split(at_once), found.split(at_once), strict=True)
        for rows, parents, out in chunks:
            children = table.index_select(0, parents).view(-1, self.branch, self.dim)
            products = torch.bmm(children, rows[:, :, None])[:, :, 0]
            out.copy_(_first_least(torch.sub(squares.index_select(0, parents), products, alpha=2)))
        return found

    def cell_by_cell(self, residuals: Tensor, cells: Tensor) -> Tensor:
        """Which child [N]; the vectors are sorted by cell, and each cell is one product with its children."""
        order = cells.argsort()
        counts = torch.bincount(cells, minlength=self.families).tolist()
        squares = self.codebook.square().sum(1).view(self.families, -1)
        children = self.codebook.view(self.families, self.branch, -1).mT
        parts = residuals.index_select(0, order).split(counts)
        distances = residuals.new_empty(len(residuals), self.branch)
        for cell, (part, out) in enumerate(zip(parts, distances.split(counts), strict=True)):
            if len(part):
                torch.addmm(squares[cell], part, children[cell], alpha=-2, out=out)
        return torch.empty_like(cells).index_copy_(0, order, _first_least(distances))

    def among_all(self, residuals: Tensor, cells: Tensor) -> Tensor:
        """Which child [N]; the distances to all nodes are computed, and those of the m children looked at."""
        squares = self.codebook.square().sum(1)
        found = torch.empty_like(cells)
        at_once = max(1, _DISTANCES_AT_ONCE // self.num_codes)
        chunks = zip(residuals.split(at_once), cells.split(at_once), found.split(at_once), strict=True)
        for rows, parents, out in chunks:
            distances = torch.addmm(squares, rows, self.codebook.T, alpha=-2)
            own = distances.view(-1, self.branch)
            first = torch.arange(0, len(own), self.families, device=rows.device)
            out.copy_(_first_least(own.index_select(0, first + parents)))
        return found


def _first_least(distances: Tensor) -> Tensor:
    """Index of the least of each row of [N, m], the first of equal ones, by the faster way of a processor."""
    return distances.min(1).indices if distances.device.type == "cpu" else distances.argmin(1)


class LinkedQuantizer(nn.Module):
    """Replaces each vector by the sum of L codes, one a level, each nearest to what the ones above leave.

    Args:
        branch: m, codes among which a level chooses.
        depth: L, levels.
        dim: D.
        linked: whether each node has m children of its own (HR-VQVAE), or each level m codes for all (plain
            residual quantisation, which is what the authors' public code does).
        residual_gradient: what the commitments of level 2 and below move. `stop`: the encoder, through
            ξ^i = z − sg(e^1 + … + e^i). `none`: nothing, as in the authors' code, whose residual is taken
            from the straight-through value. `full`: the encoder, and the codes above as well; for moving
            averages, a code's target is the weighted mean of what these terms ask of it.
        beta: weight of the commitments, for `full`.
        decay: see `Codebook`.
        eps: see `Codebook`; the smoothing is over all nodes of a level (within a family without visits it
            would divide 0 by 0).
        init: see `Codebook`; `data` starts a family from vectors of its own cell.
        revive_below: see `Codebook`; the candidates come from the node's own cell.
    """

    def __init__(
        self,
        *,
        branch: int,
        depth: int,
        dim: int,
        linked: bool,
        residual_gradient: Literal["stop", "full", "none"],
        beta: float,
        decay: float,
        eps: float,
        init: Literal["normal", "uniform", "data"],
        revive_below: float,
    ) -> None:
        super().__init__()
        require(branch >= 2, "branch", branch, "at least 2")
        require(depth >= 1, "depth", depth, "at least 1")
        require(branch**depth <= 2**24, "branch ** depth", branch**depth, "at most 16,777,216 leaves")
        known = residual_gradient in ("stop", "full", "none")
        require(known, "residual_gradient", residual_gradient, "stop, full or none")
        self.branch = branch
        self.depth = depth
        self.linked = linked
        self.residual_gradient = residual_gradient
        self.beta = beta
        learning = {"dim": dim, "decay": decay, "eps": eps, "init": init, "revive_below": revive_below}
        families = [branch**above if linked else 1 for above in range(depth)]
        self.levels = nn.ModuleList(
            Level(branch=branch, num_codes=count * branch, families=count, **learning) for count in families
        )

    @property
    def dim(self) -> int:
        return self.levels[0].dim

    @property
    def num_codes(self) -> int:
        """m^L leaves."""
        return self.branch**self.depth

    @property
    def sizes(self) -> list[int]:
        """Nodes of each level."""
        return [level.num_codes for level in self.levels]

    @torch.compiler.disable
    def forward(self, vectors: Tensor) -> LinkedQuantized:
        """Quantises `vectors` [B, D, H, W] with the codebooks as they stand; writes nothing."""
        with without_autocast(vectors.device), exact_float32_matmul():
            b, d, h, w = vectors.shape
            rows = rearrange(vectors, "b d h w -> (b h w) d").float()
            steps = list(self._descend(rows.detach()))
            sums = list(accumulate(step.found for step in steps))  # [N, D] each, e^1 + … + e^i
            pulled = [rows if self._pulls(level) else rows.detach() for level in range(self.depth)]
            commitments = tuple(map(_Commitment.apply, pulled, sums))
            found, commitment = _StraightThrough.apply(rows, sums[-1]), _Commitment.apply(rows, sums[-1])
            statistics = self._statistics(steps) if self.training else rows.new_zeros(0, d + 1)
            found = rearrange(found, "(b h w) d -> b d h w", b=b, h=h)
            codes = self._leaf(steps).view(b, h, w)
            return LinkedQuantized(found, codes, commitments, commitment, statistics)

    @torch.no_grad()
    @torch.compiler.disable
    def encode(self, vectors: Tensor) -> Tensor:
        """Only the leaf indices [B, H, W] of `vectors` [B, D, H, W]."""
        with without_autocast(vectors.device), exact_float32_matmul():
            rows = rearrange(vectors, "b d h w -> (b h w) d").float()
            return self._leaf(list(self._descend(rows))).view(len(vectors), *vectors.shape[2:])

    def lookup(self, codes: Tensor, depth: int | None = None) -> Tensor:
        """The vectors [B, D, H, W] of leaf indices [B, H, W]; with `depth`, of so many upper levels."""
        levels = list(zip(self.levels, self.nodes(codes), strict=True))[:depth]
        *_, found = accumulate(level.codebook[nodes] for level, nodes in levels)
        return rearrange(found, "b h w d -> b d h w")

    def nodes(self, codes: Tensor) -> tuple[Tensor, ...]:
        """The node of each level on the way to leaf indices of any shape."""
        paths = [codes // self.branch**below for below in reversed(range(self.depth))]
        return tuple(paths if self.linked else [path % self.branch for path in paths])

    @torch.no_grad()
    def update(self, statistics: Tensor) -> tuple[Tensor, ...]:
        """Learns from the statistics of one step, already summed over micro-batches and ranks.

        Returns:
            How often each node was used, [K] of each level.
        """
        started = [level.started.clone() for level in self.levels]
        for i, (level, own) in enumerate(zip(self.levels, statistics.split(self.sizes), strict=True)):
            sums, counts, candidates, offered = own.tensor_split((d := self.dim, d + 1, 2 * d + 1), 1)
            # A residual tells nothing until the codes above are where their vectors are.
            above = started[i - 1] if i else started[0].new_ones(1)
            if i and not self.linked:
                above = above.all()[None]
            may = above.repeat_interleave(self.branch)
            if level.needs_candidates:
                may = may & (offered[:, 0] > 0)
            # A family that cannot start yet stays zero: what finds it is not what will be left for it.
            waiting = ~(level.started | may).view(level.families, -1).any(1)
            waiting = waiting.repeat_interleave(level.num_codes // level.families)[:, None]
            sums, counts = sums.masked_fill(waiting, 0), counts.masked_fill(waiting, 0)
            before = level.codebook.clone()
            taken = level.learn(sums, counts[:, 0], candidates, start=~level.started, may=may)
            idle = (counts[:, 0] == 0) & ~taken
            level.codebook.copy_(torch.where(idle[:, None], before, level.codebook))
            level.started |= taken
            level.visited |= counts[:, 0] > 0
        return statistics[:, self.dim].split(self.sizes)

    def accumulate(self, pending: Tensor, statistics: Tensor) -> Tensor:
        """Statistics of two micro-batches as of one: sums and counts add up, the last candidates stay."""
        counted = pending[:, : self.dim + 1] + statistics[:, : self.dim + 1]
        older, newer = pending[:, self.dim + 1 :], statistics[:, self.dim + 1 :]
        return torch.cat([counted, torch.where(newer[:, -1:] > 0, newer, older)], 1)

    def _descend(self, rows: Tensor) -> Iterator["_Step"]:
        """The nearest child on each level, for vectors [N, D]."""
        residuals = rows
        cells = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        for level in self.levels:
            nodes = level.nearest(residuals, cells)
            found = level.codebook.index_select(0, nodes)
            yield _Step(residuals, cells, nodes, found)
            residuals = residuals - found
            cells = nodes if self.linked else cells

    def _leaf(self, steps: list["_Step"]) -> Tensor:
        leaf = torch.zeros_like(steps[0].nodes)
        for step in steps:
            leaf = leaf * self.branch + step.nodes % self.branch
        return leaf

    def _pulls(self, level: int) -> bool:
        return level == 0 or self.residual_gradient != "none"

    def _statistics(self, steps: list["_Step"]) -> Tensor:
        """Per node: sum and number of its vectors, D + 1; if needed, a candidate and whether there is one."""
        tables = []
        for i, (level, step) in enumerate(zip(self.levels, steps, strict=True)):
            sums, counts = torch.zeros_like(level.codebook), step.found.new_zeros(level.num_codes, 1)
            sums.index_add_(0, step.nodes, self._target(steps, i))
            counts.index_add_(0, step.nodes, step.found.new_ones(len(step.found), 1))
            tables.append(torch.cat([sums, counts], 1))
        if not self.levels[0].needs_candidates:
            return torch.cat(tables)
        order = self._leaf(steps).argsort()  # the vectors of a cell follow each other, on every level
        offers = [_offers(level, step, order) for level, step in zip(self.levels, steps, strict=True)]
        return torch.cat([torch.cat(tables), torch.cat(offers)], 1)

    def _target(self, steps: list["_Step"], level: int) -> Tensor:
        """What the nodes of a level should be the means of, [N, D].

        Its residuals; with `full` also what the commitment of each level below asks, with weight beta: the
        residual less the codes down to there.
        """
        residuals = steps[level].residuals
        if self.residual_gradient != "full":
            return residuals
        below = torch.zeros_like(residuals)
        asked = torch.zeros_like(residuals)
        for step in steps[level + 1 :]:
            below = below + step.found
            asked = asked + below
        return residuals - self.beta / (1 + self.beta * (self.depth - 1 - level)) * asked


class _Commitment(torch.autograd.Function):
    """mean (sg[e] − z)² of vectors z and sums of codes e [N, D].

    Autograd would give the same, and make more copies of the vectors than the search takes time.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, known: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(vectors, known)
        return (vectors - known).square_().mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        vectors, known = ctx.saved_tensors
        return (vectors - known).mul_(grad * (2 / max(vectors.numel(), 1))), None


class _StraightThrough(torch.autograd.Function):
    """Sums of codes [N, D]; the gradient passes to the vectors."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, known: Tensor) -> Tensor:  # type: ignore[override]
        return known.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return grad, None


class _Step(NamedTuple):
    """What happens to vectors on one level."""

    residuals: Tensor  # [N, D], what the levels above have left
    cells: Tensor  # [N], in which family they look
    nodes: Tensor  # [N], what they find
    found: Tensor  # [N, D], its vector


def _offers(level: Level, step: _Step, order: Tensor) -> Tensor:
    """For each node a random vector of its cell and a 1, or zeros where the cell is empty: [K, D + 1].

    Args:
        level: its nodes.
        step: of a batch.
        order: [N] numbers of its vectors, those of each cell one after the other.
    """
    offers = step.residuals.new_zeros(level.num_codes, level.dim + 1)
    if not len(order):
        return offers
    # Rank r offers to node r, r + world, ..., so that one sum both adds and collects.
    mine = torch.arange(distributed.rank(), level.num_codes, distributed.world_size(), device=order.device)
    counts = step.cells.new_zeros(level.families).index_add_(0, step.cells, torch.ones_like(step.cells))
    cells = mine // level.branch
    drawn = (torch.rand(len(mine), device=order.device) * counts[cells]).long()
    place = (counts.cumsum(0) - counts)[cells] + torch.minimum(drawn, counts[cells] - 1)
    vectors = step.residuals[order[place.clamp(0, len(order) - 1)]]
    there = (counts[cells] > 0).to(vectors.dtype)[:, None]
    offers[mine] = torch.cat([vectors, torch.ones_like(there)], 1) * there
    return offers
