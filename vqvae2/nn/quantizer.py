"""Vector quantisation with a codebook learned by exponential moving averages.

Source: VQ-VAE-2 (Razavi et al., 2019), section 2.1, equations 1 and 2, and the Sonnet code it links.

Shape legend: B batch, D code dimension, H W grid, K codes, N = B·H·W vectors.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from vqvae2 import distributed
from vqvae2.nn.checks import require
from vqvae2.nn.precision import exact_float32_matmul, moving_only, without_autocast

# How many distances exist at once: few enough for a processor's cache, or many enough to keep a GPU busy.
# (Half as many take as long on an idle processor, but longer where its threads wait for other work.)
_DISTANCES_AT_ONCE = {"cpu": 2**20, "other": 2**23}
_ROWS_AT_ONCE = {"cpu": 2**14, "other": 2**18}  # vectors that are gathered, compared and counted together


class Quantized(NamedTuple):
    """What `VectorQuantizer` returns."""

    vectors: Tensor  # [B, D, H, W] float32; the gradient passes straight through to the input
    codes: Tensor  # [B, H, W] int64
    commitment: Tensor  # scalar, mean (sg[e] - z)^2, not yet times beta
    statistics: Tensor  # in training, sums and counts [K, D + 1] (may be wider) for `update`; else empty


class Codebook(nn.Module):
    """K vectors that moving averages teach. Families of equal size share the K: one, or one for each cell.

    Args:
        num_codes: K.
        dim: D.
        decay: gamma, decay of the moving averages of counts and sums; 0 takes the means of the last batch
            alone, and a code that it does not use becomes zero.
        eps: Laplace smoothing of the counts, over all K.
        init: first codebook. `normal` is N(0, 1) (Sonnet 1), `uniform` is U(±sqrt(3/D)) (Sonnet 2), `data`
            replaces every code by a random vector of the first batch at the first update.
        revive_below: a code whose average count falls below this fraction of its family's mean is replaced
            by a random vector of the batch; 0 never does. Departs from the paper where it is not 0.
        families: in how many families of neighbours the codes lie.

    The averages start at zero and are used bias-corrected. (Started at the codebook instead, as in several
    ports, every code that the first batch leaves unused is divided by a count near zero and never returns.)
    """

    def __init__(
        self,
        *,
        num_codes: int,
        dim: int,
        decay: float,
        eps: float,
        init: Literal["normal", "uniform", "data"],
        revive_below: float,
        families: int = 1,
    ) -> None:
        super().__init__()
        require(num_codes >= 1, "num_codes", num_codes, "at least 1")
        require(dim >= 1, "code_dim", dim, "at least 1")
        require(0 <= decay < 1, "decay", decay, "0 up to, not including, 1")
        require(1e-30 <= eps <= 1e6, "eps", eps, "above 0, from 1e-30 to 1e6 (in float32)")
        require(0 <= revive_below < 1, "revive_below", revive_below, "0 up to, not including, 1")
        require(init in ("normal", "uniform", "data"), "codebook_init", init, "normal, uniform or data")
        self.decay = decay
        self.eps = eps
        self.init = init
        self.revive_below = revive_below
        self.families = families
        codebook = torch.randn(num_codes, dim, dtype=torch.float32)
        if init == "uniform":
            codebook.uniform_(-((3 / dim) ** 0.5), (3 / dim) ** 0.5)
        self.register_buffer("codebook", codebook)
        self.register_buffer("average_counts", torch.zeros(num_codes, dtype=torch.float32))
        self.register_buffer("average_sums", torch.zeros(num_codes, dim, dtype=torch.float32))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @property
    def num_codes(self) -> int:
        return self.codebook.shape[0]

    @property
    def dim(self) -> int:
        return self.codebook.shape[1]

    @property
    def needs_candidates(self) -> bool:
        """Whether an update may put vectors of the batch in the place of codes."""
        return self.init == "data" or self.revive_below > 0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Codebook":
        """Moves, but never rounds: codebooks stay float32 in a module that is turned to half precision."""
        return super()._apply(moving_only(fn), recurse)

    @torch.no_grad()
    def learn(
        self, sums: Tensor, counts: Tensor, candidates: Tensor, *, start: Tensor, may: Tensor
    ) -> Tensor:
        """Moves the codes by the vectors of one step.

        N ← γN + (1−γ)n, m ← γm + (1−γ)Σz (section 2.1), both divided by 1−γ^t; e = m / Laplace(N).

        Args:
            sums: [K, D], of the vectors that chose each code.
            counts: [K], how many they are.
            candidates: [K, D], vectors of the batch that may take the codes' places; unused without `may`.
            start: bool [K] or [], whether a code takes its candidate whatever its count.
            may: bool [K] or [], whether it may take it at all.

        Returns:
            bool [K], which codes took their candidates.
        """
        self.num_updates += 1
        self.average_counts.lerp_(counts, 1 - self.decay)
        self.average_sums.lerp_(sums, 1 - self.decay)
        taken = (
            self._take(candidates, start, may) if self.needs_candidates else torch.zeros_like(counts).bool()
        )
        log_decay = math.log(self.decay) if self.decay else -math.inf
        unbias = -torch.expm1(self.num_updates * log_decay)  # 1 - decay^t
        counts, sums = self.average_counts / unbias, self.average_sums / unbias
        total = counts.sum()
        smoothed = (counts + self.eps) / (total + self.num_codes * self.eps) * total
        self.codebook.copy_(sums / smoothed[:, None])
        return taken

    def _take(self, candidates: Tensor, start: Tensor, may: Tensor) -> Tensor:
        means = self.average_counts.view(self.families, -1).mean(1)
        means = means.repeat_interleave(self.num_codes // self.families)
        taken = may & (start | (self.average_counts < self.revive_below * means))
        self.average_counts.copy_(torch.where(taken, means, self.average_counts))
        self.average_sums.copy_(torch.where(taken[:, None], candidates * means[:, None], self.average_sums))
        return taken


class VectorQuantizer(Codebook):
    """Replaces each vector by the nearest of K learned codes (equation 1); arguments as of `Codebook`."""

    @torch.compiler.disable  # its loop over chunks would be unrolled; the rest of a network compiles
    def forward(self, vectors: Tensor) -> Quantized:
        """Quantises `vectors` [B, D, H, W] with the codebook as it stands; writes nothing."""
        width = self._statistics_width if self.training else 0
        with without_autocast(vectors.device), exact_float32_matmul():
            found, codes, commitment, statistics = _Quantize.apply(vectors, self.codebook, width)
        if self.training and self.needs_candidates:
            self._offer_candidates(statistics, vectors.detach())
        return Quantized(found, codes, commitment, statistics)

    @torch.no_grad()
    @torch.compiler.disable
    def encode(self, vectors: Tensor) -> Tensor:
        """Only the codes [B, H, W] of `vectors` [B, D, H, W]: those that `forward` gives, sooner."""
        codes = vectors.new_empty(len(vectors), *vectors.shape[2:], dtype=torch.int64)
        with without_autocast(vectors.device), exact_float32_matmul():
            for rows, row_codes in zip(_row_chunks(vectors), _row_chunks(codes), strict=True):
                row_codes.copy_(nearest(rows, self.codebook))
        return codes

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors [B, D, H, W] of the codes [B, H, W]."""
        return rearrange(self.codebook[codes], "b h w d -> b d h w")

    def update(self, statistics: Tensor) -> tuple[Tensor]:
        """Learns from the statistics of one step, already summed over micro-batches and ranks.

        Returns:
            How often each code was used, [K].
        """
        sums, counts, candidates = statistics.tensor_split((self.dim, self.dim + 1), 1)
        first = (self.num_updates == 0) & (self.init == "data")
        self.learn(sums, counts[:, 0], candidates, start=first, may=torch.ones_like(first))
        return (counts[:, 0],)

    def accumulate(self, pending: Tensor, statistics: Tensor) -> Tensor:
        """Statistics of two micro-batches as of one: sums and counts add up, the last candidates stay."""
        counted = self.dim + 1
        return torch.cat([pending[:, :counted] + statistics[:, :counted], statistics[:, counted:]], 1)

    def _offer_candidates(self, statistics: Tensor, vectors: Tensor) -> None:
        """Writes random vectors of the batch [K, D] behind the sums and counts."""
        b, _, h, w = vectors.shape
        if not b * h * w:
            return
        # Rank r offers row r, r + world, ..., zero elsewhere, so that one sum both adds and collects.
        mine = slice(distributed.rank(), None, distributed.world_size())
        rows = statistics[mine, self.dim + 1 :]
        drawn = torch.randint(b * h * w, (len(rows),), device=vectors.device)
        rows.copy_(vectors.permute(0, 2, 3, 1)[torch.unravel_index(drawn, (b, h, w))])

    @property
    def _statistics_width(self) -> int:
        """Per code: sum and number of its vectors, D + 1; behind them, if needed, a candidate, D."""
        return self.dim + 1 + (self.dim if self.needs_candidates else 0)


class Learner(Protocol):
    """A quantizer that learns from the statistics [*, *] of its forward passes."""

    def accumulate(self, pending: Tensor, statistics: Tensor) -> Tensor: ...

    def update(self, statistics: Tensor) -> Sequence[Tensor]: ...


def update_codebooks(quantizers: Sequence[Learner], statistics: Sequence[Tensor]) -> list[Tensor]:
    """Updates all codebooks with one reduction over the ranks.

    Args:
        quantizers: of a network.
        statistics: what each returned for the step.

    Returns:
        How often each code was used over all ranks, [K] of each codebook.
    """
    flat = distributed.all_reduce_sum(torch.cat([tensor.flatten() for tensor in statistics]))
    summed = [
        part.view_as(tensor)
        for part, tensor in zip(flat.split([t.numel() for t in statistics]), statistics, strict=True)
    ]
    pairs = zip(quantizers, summed, strict=True)
    return [counts for quantizer, own in pairs for counts in quantizer.update(own)]


class _Quantize(torch.autograd.Function):
    """Nearest vectors, codes, commitment and statistics of vectors [B, D, H, W], some rows at a time.

    With o the loss, the gradient is ∂o/∂z = ∂o/∂e + ∂o/∂commitment · 2 (z − e) / (N·D): straight through, and
    drawn to the code. Autograd would give the same, and keep or make four copies of the vectors.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, vectors: Tensor, codebook: Tensor, statistics_width: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        b, d, h, w = vectors.shape
        found = codebook.new_empty(b, h, w, d).permute(0, 3, 1, 2)
        codes = vectors.new_empty(b, h, w, dtype=torch.int64)
        sums, counts = torch.zeros_like(codebook), codebook.new_zeros(len(codebook))
        errors = [codebook.new_zeros(())]
        for rows, row_codes, row_found in zip(
            _row_chunks(vectors), _row_chunks(codes), _row_chunks(found), strict=True
        ):
            row_codes.copy_(nearest(rows, codebook))
            torch.index_select(codebook, 0, row_codes, out=row_found)
            errors.append((rows - row_found).square_().sum())
            if statistics_width:
                sums.index_add_(0, row_codes, rows)
                counts.index_add_(0, row_codes, rows.new_ones(len(rows)))
        statistics = codebook.new_zeros(len(codebook) if statistics_width else 0, statistics_width)
        if statistics_width:
            statistics[:, :d], statistics[:, d] = sums, counts
        ctx.save_for_backward(vectors, found)
        ctx.mark_non_differentiable(codes, statistics)
        return found, codes, torch.stack(errors).sum() / vectors.numel(), statistics

    @staticmethod
    def backward(ctx: Any, grad_found: Tensor, _: Tensor, grad_commitment: Tensor, __: Tensor) -> tuple:
        vectors, found = ctx.saved_tensors
        difference = vectors - found
        scale = grad_commitment * (2 / vectors.numel())
        return torch.addcmul(grad_found, difference, scale, out=difference).to(vectors.dtype), None, None


def _row_chunks(grid: Tensor) -> Iterator[Tensor]:
    """The vectors of a grid [B, D, H, W], or the codes of one [B, H, W], as float32 or int64 rows.

    They are views where the grid is channels last and not narrower, else copies.
    """
    at_once = _ROWS_AT_ONCE.get(grid.device.type, _ROWS_AT_ONCE["other"])
    images = max(1, at_once // max(1, grid.shape[-2:].numel()))
    for part in grid.split(images) if len(grid) else ():
        yield part.flatten() if grid.ndim == 3 else part.permute(0, 2, 3, 1).flatten(0, 2).float()


@torch.no_grad()
def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code of each vector; of equally near ones the lowest.

    Args:
        vectors: [N, D] float32.
        codebook: [K, D] float32.

    Returns:
        int64 [N]: argmin_j ‖e_j‖² − 2 z·e_j; ‖z‖² is the same for every j.
    """
    squares = codebook.square().sum(1)
    at_once = _DISTANCES_AT_ONCE.get(vectors.device.type, _DISTANCES_AT_ONCE["other"])
    rows = max(1, at_once // len(codebook))
    codes = vectors.new_empty(len(vectors), dtype=torch.int64)
    distances = vectors.new_empty(min(rows, len(vectors)), len(codebook))
    for chunk, found in zip(vectors.split(rows), codes.split(rows), strict=True):
        part = torch.addmm(squares, chunk, codebook.T, alpha=-2, out=distances[: len(chunk)])
        found.copy_(_argmin(part))
    return codes


_GROUP = 32  # codes; twice as many take as long, half as many four times


def _argmin(distances: Tensor) -> Tensor:
    """`distances.argmin(1)` of [N, K], the lowest index of equal ones, in a third of the time on a processor.

    There argmin looks at one number at a time while a minimum is vectorised. So this takes the minimum of
    each group of codes, finds the first group with the least, and searches only that.
    """
    n, k = distances.shape
    if distances.device.type != "cpu" or k % _GROUP or k == _GROUP:
        return distances.argmin(1)
    groups = distances.view(n, k // _GROUP, _GROUP)
    group = groups.amin(2).argmin(1)
    row = torch.arange(0, n * (k // _GROUP), k // _GROUP)
    return groups.flatten(0, 1).index_select(0, row + group).argmin(1).add_(group, alpha=_GROUP)


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the code frequencies: K when all are used alike, 1 when a single one is."""
    p = counts.double() / counts.sum()
    return torch.special.entr(p).sum().exp()


def usage(counts: Tensor) -> Tensor:
    """Fraction of the codes that occur at all."""
    return (counts > 0).double().mean()
