"""Nearest neighbours and membership in balls: float64's answers at the price of float32 matrix products.

One product, ‖a‖² + ‖b‖² − 2ab, gives the squared distances of a block up to a known error. Pairs that are
nearer to a limit than the error are computed again from differences in float64. So the answers are those of
float64, ties included, and depend neither on blocks nor on ranks. By hand, because a product alone confuses
near points, and `torch.cdist` in float64 without products takes ten times as long.

Shape legend: D features; within a block R rows, C columns; P pairs of a row and a column.
"""

import math
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from vqvae2 import distributed
from vqvae2.nn.precision import exact_float32_matmul

BLOCK = 2048  # rows and columns of a block: a few matrices of this size are all the memory beyond features
CHUNK_NUMBERS = {"cpu": 2**17, "cuda": 2**24}  # of pairs in a row: fits a processor's cache, fills a GPU
OPEN_SHARE = 0.02  # of a block's pairs; so many differences cost what a float64 product does
NOBODY = torch.iinfo(torch.int64).max  # index of a neighbour that is still to be found


class Pairs:
    """Squared Euclidean distances of a block of rows [R, D] to columns [C, D], both float32 and finite.

    Attributes:
        rough: [R, C] distances from one product in float32, or in float64 where float32 does not fit.
        error: by how much any of them is off at most.
    """

    def __init__(self, rows: Tensor, columns: Tensor, dtype: torch.dtype | None = None) -> None:
        self.rows, self.columns = rows, columns
        if dtype is None:
            largest = max(side.abs().amax().item() for side in (rows, columns))
            dtype = torch.float32 if 1e-12 < largest < 1e12 else torch.float64
        centre = columns.mean(0, dtype=torch.float64).to(dtype)  # rounding grows with the norms
        a, b = rows.to(dtype) - centre, columns.to(dtype) - centre
        norms = [torch.linalg.vector_norm(side, dim=1, dtype=torch.float64).square() for side in (a, b)]
        with torch.no_grad(), torch.autocast(a.device.type, enabled=False), exact_float32_matmul():
            self.rough = (norms[0].to(dtype)[:, None] + norms[1].to(dtype)).addmm_(a, b.T, alpha=-2)
        # Higham (2002), section 3.1, in which |2ab| ≤ ‖a‖² + ‖b‖²; 32 for centring, norms, sums and limits.
        least = rows.shape[1] * torch.finfo(dtype).tiny  # of numbers too small for `dtype`
        width = (rows.shape[1] + 32) * torch.finfo(dtype).eps
        self.error = 2 * width * sum(norm.max().item() for norm in norms) + least

    @cached_property
    def refined(self) -> "Pairs":
        """The same from a float64 product."""
        return Pairs(self.rows, self.columns, torch.float64)

    def leave_too_much(self, is_open: Tensor) -> bool:
        """Whether so many pairs are open [R, C] that a finer product costs less than they do."""
        return self.rough.dtype != torch.float64 and is_open.double().mean().item() > OPEN_SHARE

    def within(self, squared_radii: Tensor, *, strict: bool) -> Tensor:
        """bool [R, C]: which distances are at most the radii, or where `strict` below them.

        Args:
            squared_radii: float64 [R, 1] or [1, C].
        """
        inside = self.rough < (squared_radii - self.error).to(self.rough)
        is_open = (self.rough <= (squared_radii + self.error).to(self.rough)).logical_xor_(inside)
        if self.leave_too_much(is_open):
            return self.refined.within(squared_radii, strict=strict)
        row, column = is_open.nonzero(as_tuple=True)
        squared, limit = self.exact(row, column), squared_radii.expand_as(inside)[row, column]
        inside[row, column] = squared < limit if strict else squared <= limit
        return inside

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


class Neighbours:
    """The k nearest of what was searched so far, for each of R rows. Of equals the lower index is nearer.

    Args:
        num_rows: R.
        k: how many.
        device: of the features.

    Attributes:
        squared: float64 [R, k] distances, squared, from the nearest on; infinite where there is none yet.
        index: int64 [R, k] whose they are.
    """

    def __init__(self, num_rows: int, k: int, device: torch.device) -> None:
        self.squared = torch.full((num_rows, k), math.inf, dtype=torch.float64, device=device)
        self.index = torch.full((num_rows, k), NOBODY, device=device)

    def search(self, pairs: Pairs, index: Tensor, own: Tensor | None = None) -> None:
        """Finds the nearest among the columns of a block.

        Args:
            pairs: of all R rows and C columns.
            index: int64 [C], whose the columns are.
            own: int64 [R], whose the rows are, where they are searched themselves. A row is no neighbour of
                its own, though its twin at distance 0 is; and only distances count, not whose they are.
        """
        if self.squared[:, -1].isinf().any():  # the first few narrow down what may be nearer
            count = min(self.squared.shape[1] + (own is not None), len(index))
            nearest = pairs.rough.topk(count, dim=1, largest=False).indices
            first = torch.zeros_like(pairs.rough, dtype=torch.bool).scatter_(1, nearest, True)
            self._offer(pairs, first, index, own)
        is_open = pairs.rough <= (self.squared[:, -1:] + pairs.error).to(pairs.rough)
        if own is not None:
            is_open &= self.squared[:, -1:] > 0  # nothing is nearer
        if pairs.leave_too_much(is_open):
            self.search(pairs.refined, index, own)
        else:
            self._offer(pairs, is_open, index, own)

    def _offer(self, pairs: Pairs, is_open: Tensor, index: Tensor, own: Tensor | None) -> None:
        if own is not None:
            is_open &= own[:, None] != index
        row, column = is_open.nonzero(as_tuple=True)
        num_open = is_open.sum(1)
        place = torch.arange(len(row), device=row.device) - (num_open.cumsum(0) - num_open)[row]
        squared = self.squared.new_full((len(is_open), int(num_open.max())), math.inf)
        found = self.index.new_full(squared.shape, NOBODY)
        squared[row, place], found[row, place] = pairs.exact(row, column), index[column]
        self.insert(squared, found)

    def insert(self, squared: Tensor, index: Tensor) -> None:
        """Adds candidates [R, C] for each row; one that was there already stays one."""
        k = self.squared.shape[1]
        index, order = torch.cat([self.index, index], 1).sort(1)
        squared = torch.cat([self.squared, squared], 1).gather(1, order)
        squared[:, 1:][index[:, 1:] == index[:, :-1]] = math.inf
        squared, order = squared.sort(dim=1, stable=True)
        self.squared, self.index = squared[:, :k], index.gather(1, order)[:, :k]

    def gather(self) -> None:
        """Adds what the other ranks found for the same rows."""
        for squared, index in distributed.all_gather_objects((self.squared.cpu(), self.index.cpu())):
            self.insert(squared.to(self.squared), index.to(self.index))


def squared_distances_to_neighbours(features: Tensor, k: int) -> Tensor:
    """float64 [N, k]: from each of the features [N, D] to its nearest among the others, N > k.

    With several ranks, which all hold all features, each does a part of the work and all have the result.
    """
    squared = features.new_zeros(len(features), k, dtype=torch.float64)
    index = torch.arange(len(features), device=features.device)
    for i in own_share(blocks(features)):
        found = Neighbours(len(index[i]), k, features.device)
        for j in blocks(features):
            found.search(Pairs(features[i], features[j]), index[j], own=index[i])
        squared[i] = found.squared
    return distributed.all_reduce_sum(squared)


def blocks(features: Tensor) -> list[slice]:
    """Blocks of features [N, D] that together are all of them."""
    return [slice(start, start + BLOCK) for start in range(0, len(features), BLOCK)]


def own_share(work: list) -> list:
    """What this rank does of work that all ranks list alike."""
    return work[distributed.rank() :: distributed.world_size()]
