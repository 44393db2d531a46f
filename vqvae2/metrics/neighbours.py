"""Nearest neighbours and membership in balls: float64's answers at the price of float32 matrix products.

A block of squared distances comes from one matrix product, ‖a‖² + ‖b‖² − 2ab, with bounds that hold however
it was rounded. They decide most pairs; the few that they leave open are computed from differences in float64.
So what is found is what float64 finds, ties included, and depends neither on blocks nor on ranks.

Shape legend: N rows, M columns, D features; within a block R rows, C columns; P pairs of a row and a column.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from vqvae2 import distributed
from vqvae2.nn.precision import exact_float32_matmul

BLOCK = 2048  # rows and columns of a block: a few matrices of this size are all the memory beyond features
CHUNK_NUMBERS = {"cpu": 2**17, "cuda": 2**24}  # of pairs in a row: fits a processor's cache, fills a GPU
OPEN_SHARE = 0.02  # of a block's pairs; so many differences cost what a float64 product does
NOBODY = torch.iinfo(torch.int64).max  # index of a neighbour that is still to be found


@contextmanager
def full_precision() -> Iterator[None]:
    """No gradients, and products without TF32 or bf16: the bounds are those of float32."""
    with torch.no_grad(), exact_float32_matmul():
        yield


class Distances:
    """Squared Euclidean distances of rows [N, D] to columns [M, D], both float32 and finite."""

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns = rows, columns
        # Distances stay when all is moved, but the roundings of a product are as large as the norms.
        self.centre = columns.mean(0, dtype=torch.float64).float()
        largest = torch.stack([tensor.abs().amax() for tensor in (rows, columns, self.centre)]).max().item()
        fits = 1e-12 < largest < 1e12 and _width(rows.shape[1], torch.float32) < 0.1
        self.dtype = torch.float32 if fits else torch.float64
        self.norms: dict[torch.dtype, list[Tensor]] = {}

    def block(self, i: slice, j: slice, dtype: torch.dtype | None = None) -> "Block":
        """Bounds on the distances of rows i to columns j from a product in `dtype`, float32 where that fits.

        The product's error is at most γ(‖a‖² + ‖b‖² + 2|a||b|) where γ = D ε / (2 − D ε) (Higham, 2002,
        section 3.1), also when it starts from the norms; centring, norms and sums add less than 8 ε (‖a‖² +
        ‖b‖²), and numbers too small for `dtype` less than D of its smallest.
        """
        dtype = dtype or self.dtype
        a, b = self._centred(self.rows[i], dtype), self._centred(self.columns[j], dtype)
        num_features = a.shape[1]
        width, least = _width(num_features, dtype), num_features * torch.finfo(dtype).tiny
        if dtype not in self.norms:
            self.norms[dtype] = [self._squared_norms(part, dtype) for part in (self.rows, self.columns)]
        norms = self.norms[dtype][0][i], self.norms[dtype][1][j]
        below = [(norm * (1 - width) - least).to(dtype) for norm in norms]
        lower = (below[0][:, None] + below[1]).addmm_(a, b.T, alpha=-2)
        above = [(2 * width * norm + 2 * least).to(dtype) for norm in norms]
        return Block(self, i, j, lower, above[0], above[1])

    def _centred(self, features: Tensor, dtype: torch.dtype) -> Tensor:
        return features.to(dtype) - self.centre.to(dtype)

    def _squared_norms(self, features: Tensor, dtype: torch.dtype) -> Tensor:
        parts = (self._centred(part, dtype) for part in features.split(BLOCK))
        norms = [torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in parts]
        return torch.cat(norms).square_()

    def exact(self, row: Tensor, column: Tensor) -> Tensor:
        """float64 [P] of the pairs of row [P] and column [P].

        In chunks of one size, because the order of a sum may depend on the shape: so a pair's distance is the
        same to the last bit whatever it is computed with, and ties are ties.
        """
        size = max(2, CHUNK_NUMBERS.get(self.rows.device.type, 2**17) // self.rows.shape[1])
        found = [self.rows.new_empty(0, dtype=torch.float64)]
        for i, j in zip(row.split(size), column.split(size), strict=True):
            i, j = (F.pad(part, (0, size - len(part))) for part in (i, j))
            found.append((self.rows[i].double() - self.columns[j].double()).square_().sum(1))
        return torch.cat(found)[: len(row)]


@dataclass
class Block:
    """Bounds on some of the squared distances; float64's own on demand."""

    distances: Distances
    i: slice
    j: slice
    lower: Tensor  # [R, C]
    above_rows: Tensor  # [R], what the upper bound is above the lower one: this and
    above_columns: Tensor  # [C] together

    @cached_property
    def upper(self) -> Tensor:
        return (self.lower + self.above_rows[:, None]).add_(self.above_columns)

    @cached_property
    def refined(self) -> "Block":
        """The same from a float64 product."""
        return self.distances.block(self.i, self.j, torch.float64)

    def mirrored(self) -> "Block":
        """Columns to rows, of the distances of a set to itself."""
        assert self.distances.rows is self.distances.columns
        return Block(self.distances, self.j, self.i, self.lower.T, self.above_columns, self.above_rows)

    def exact(self, row: Tensor, column: Tensor) -> Tensor:
        """float64 [P] of the pairs of row [P] and column [P], both counted within the block."""
        return self.distances.exact(row + self.i.start, column + self.j.start)

    def leaves_too_much(self, is_open: Tensor) -> bool:
        """Whether so many of the pairs are open [R, C] that a finer product costs less than they do."""
        few = OPEN_SHARE * is_open.numel()
        return self.lower.dtype != torch.float64 and is_open.count_nonzero().item() > few

    def inside(self, squared_radii: Tensor, *, strict: bool) -> Tensor:
        """bool [R, C]: which distances are at most the radii, or where `strict` below them.

        Args:
            squared_radii: float64 [R, 1] or [1, C].
        """
        floor, ceiling = _neighbouring(squared_radii, self.lower.dtype)
        within = self.upper < floor
        is_open = (self.lower <= ceiling).logical_xor_(within)
        if self.leaves_too_much(is_open):
            return self.refined.inside(squared_radii, strict=strict)
        row, column = is_open.nonzero(as_tuple=True)
        squared, limit = self.exact(row, column), squared_radii.expand_as(within)[row, column]
        within[row, column] = squared < limit if strict else squared <= limit
        return within


class Neighbours:
    """The k nearest of what was searched so far, for each of N rows.

    Args:
        num_rows: N.
        k: how many.
        device: of the features.
        exclude_self: whether the rows are searched themselves. Then a row is no neighbour of its own, though
            its twin at distance 0 is, and only distances count, not whose they are. Otherwise of equals the
            one with the lower index is the nearer.

    Attributes:
        squared: float64 [N, k] distances, squared, from the nearest on; infinite where there is none yet.
        index: int64 [N, k] whose they are.
    """

    def __init__(self, num_rows: int, k: int, device: torch.device, *, exclude_self: bool = False) -> None:
        self.squared = torch.full((num_rows, k), math.inf, dtype=torch.float64, device=device)
        self.index = torch.full((num_rows, k), NOBODY, device=device)
        self.exclude_self = exclude_self

    def search(self, block: Block, index: Tensor) -> None:
        """Finds the nearest among the columns of a block, which are known as index [C]."""
        squared, last = self.squared[block.i], self.index[block.i]  # views: they follow what is inserted
        if squared[:, -1].isinf().any():  # the first few narrow down what may be nearer
            count = min(squared.shape[1] + self.exclude_self, len(index))
            column = block.upper.topk(count, dim=1, largest=False, sorted=False).indices
            row = torch.arange(len(column), device=column.device).repeat_interleave(count)
            self._offer(block, row, column.flatten(), index)
        is_open = block.lower <= _neighbouring(squared[:, -1:], block.lower.dtype)[1]
        full = squared[:, -1] == 0  # nothing is nearer, at most an equal with a lower index counts
        if full.any():
            is_open[full] &= False if self.exclude_self else index < last[full, -1:]
        if block.leaves_too_much(is_open):
            self.search(block.refined, index)
        else:
            self._offer(block, *is_open.nonzero(as_tuple=True), index)

    def _offer(self, block: Block, row: Tensor, column: Tensor, index: Tensor) -> None:
        if self.exclude_self:
            other = row + block.i.start != index[column]
            row, column = row[other], column[other]
        self.insert(row + block.i.start, block.exact(row, column), index[column])

    def insert(self, row: Tensor, squared: Tensor, index: Tensor) -> None:
        """Adds pairs [P]; one that was there already stays one."""
        k = self.squared.shape[1]
        rows = row.unique()
        row = torch.cat([rows.repeat_interleave(k), row])
        squared = torch.cat([self.squared[rows].flatten(), squared])
        index = torch.cat([self.index[rows].flatten(), index])
        order = torch.arange(len(row), device=row.device)
        for key in (index, squared, row):  # at last by row, in it by distance, in that by index
            order = order[key[order].argsort(stable=True)]
        row, squared, index = row[order], squared[order], index[order]
        new = torch.ones_like(row, dtype=torch.bool)
        new[1:] = (row[1:] != row[:-1]) | (index[1:] != index[:-1])
        row, squared, index = row[new], squared[new], index[new]
        place = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
        near = place < k
        self.squared[rows], self.index[rows] = math.inf, NOBODY
        self.squared[row[near], place[near]] = squared[near]
        self.index[row[near], place[near]] = index[near]

    def gather(self) -> None:
        """Adds what the other ranks found for the same rows."""
        if distributed.world_size() == 1:
            return
        everyone = []
        for mine in (self.squared, self.index):
            everyone.append([torch.empty_like(mine) for _ in range(distributed.world_size())])
            dist.all_gather(everyone[-1], mine)
        for squared, index in zip(*everyone, strict=True):
            row, place = (index != NOBODY).nonzero(as_tuple=True)
            self.insert(row, squared[row, place], index[row, place])


def squared_distances_to_neighbours(features: Tensor, k: int) -> Tensor:
    """float64 [N, k]: from each of the features [N, D] to its nearest among the others, N > k.

    With several ranks, which all hold all features, each does a part of the work and all have the result.
    """
    found = Neighbours(len(features), k, features.device, exclude_self=True)
    with full_precision():
        distances = Distances(features, features)
        index = torch.arange(len(features), device=features.device)
        for i, j in own_share([(i, j) for i, j in blocks(distances) if i.start <= j.start]):
            block = distances.block(i, j)
            found.search(block, index[j])
            if i != j:
                found.search(block.mirrored(), index[i])
        found.gather()
    return found.squared


def blocks(distances: Distances) -> list[tuple[slice, slice]]:
    """Rows and columns of blocks that together are all pairs."""
    i, j = (
        [slice(start, min(start + BLOCK, num)) for start in range(0, num, BLOCK)]
        for num in (len(distances.rows), len(distances.columns))
    )
    return list(product(i, j))


def own_share(work: list) -> list:
    """What this rank does of work that all ranks list alike."""
    return work[distributed.rank() :: distributed.world_size()]


def _width(num_features: int, dtype: torch.dtype) -> float:
    """Bound on the relative rounding of a squared distance, see `Distances.block`."""
    width = (num_features + 16) * torch.finfo(dtype).eps
    return width / (1 - width / 2) if width < 1 else math.inf


def _neighbouring(numbers: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The numbers of `dtype` next to float64 ones: the largest not above, the smallest not below."""
    nearest = numbers.to(dtype)
    infinity = torch.full_like(nearest, math.inf)
    floor = torch.where(nearest.double() > numbers, nearest.nextafter(-infinity), nearest)
    ceiling = torch.where(nearest.double() < numbers, nearest.nextafter(infinity), nearest)
    return floor, ceiling
