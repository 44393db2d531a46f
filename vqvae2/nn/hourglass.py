"""The hourglass transformer over a grid: attention at full, at half, and again at full resolution.

Source: Megapixel Image Generation with Step-Unrolled Denoising Autoencoders (McKinney and Willcocks, 2022),
section 3.2, equation 4 and figure 5, after Nawrot et al., 2021. In the authors' code positions reach the
first head alone, and the attention behind a resampling looks at four positions in a row; here both are as the
paper says.

Nothing is causal: every position sees every other. Angles follow from the grid, so that one network takes any
grid. A grid with an odd side is padded, and what is padded is never seen.

Shape legend: B batch, H W grid, N = H·W positions, d width, m heads of width e, n patches of 2x2 positions.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vqvae2.nn.checks import require
from vqvae2.nn.recompute import run_again

_PATCH = 2  # side; the paper shortens by 4 in all


def angles(height: int, width: int, head_width: int, device: torch.device) -> Tensor:
    """Axial rotary positions [H, W, e/2], in radians: half of each head turns by the row, half by the column.

    Place p, from -1 to 1 along its axis, turns by p·f·π/2, for e/4 frequencies f, evenly from 1 to √N/2.
    Departs from the authors' code, which turns by p·f·π: where all frequencies are whole numbers, as for
    32x32 and e = 64, the first and the last row are then alike. (Places that are centres would be worse: the
    angles then close to a circle, on which no position can be told from another.)
    In float64: in bfloat16, which networks of that precision take by default, many turns are a wrong angle.
    """
    exact = {"dtype": torch.float64, "device": device}
    frequencies = torch.linspace(1, (height * width) ** 0.5 / 2, head_width // 4, **exact)
    places = (torch.linspace(-1, 1, size, **exact) for size in (height, width))
    row, column = (place[:, None] * frequencies * (torch.pi / 2) for place in places)
    return torch.cat([row[:, None].expand(-1, width, -1), column[None].expand(height, -1, -1)], -1)


def waves(at: Tensor, dtype: torch.dtype) -> Tensor:
    """Cosines and sines [2, ..., e/2] of angles [..., e/2], which turn what has those positions."""
    return torch.stack([at.cos(), at.sin()]).to(dtype)


def turned(x: Tensor, by: Tensor) -> Tensor:
    """x [..., m, Q, e], its pairs (2i, 2i + 1) turned by `waves` [2, ..., Q, e/2], all heads alike."""
    cos, sin = by[..., None, :, :].to(x.dtype)  # under autocast, queries are rounded and waves are not
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)


class Attention(nn.Module):
    """x + attention of x over some keys; both are normalised first.

    Args:
        width: d.
        heads: m.
        head_width: e, a multiple of 4.
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, heads * head_width, bias=False)
        self.key_value = nn.Linear(width, 2 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, x: Tensor, at: Tensor, over: Tensor, over_at: Tensor, seen: Tensor | None) -> Tensor:
        """
        Args:
            x: queries [..., Q, d].
            at: their `waves` [2, ..., Q, e/2].
            over: keys and values [..., K, d].
            over_at: their `waves` [2, ..., K, e/2].
            seen: bool [..., K], which of them there are; None for all.
        """
        query = rearrange(self.query(self.norm(x)), "... q (m e) -> ... m q e", m=self.heads)
        both = self.key_value(self.norm(over))
        key, value = rearrange(both, "... k (two m e) -> two ... m k e", two=2, m=self.heads)
        mask = None if seen is None else seen[..., None, None, :]
        query, key = turned(query, at), turned(key, over_at)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return x + self.out(rearrange(attended, "... m q e -> ... q (m e)"))


class Layer(nn.Module):
    """A layer of a transformer: attention of all positions over all, then two dense layers; norms first."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, head_width)
        self.dense = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor, at: Tensor, seen: Tensor | None) -> Tensor:
        """x [B, N, d] with the `waves` [2, N, e/2] of its positions; `seen` as of `Attention`."""
        x = self.attention(x, at, x, at, seen)
        return x + self.dense(x)


class Hourglass(nn.Module):
    """[B, H, W, d] → [B, H, W, d], of any grid.

    Args:
        width: d.
        heads: m.
        head_width: e, a multiple of 4, whatever d is.
        depth: layers before, at and after the half resolution.
        dropout: in the dense layers.
    """

    def __init__(
        self, *, width: int, heads: int, head_width: int, depth: tuple[int, int, int], dropout: float
    ) -> None:
        super().__init__()
        require(width >= 1, "width", width, "at least 1")
        require(heads >= 1, "heads", heads, "at least 1")
        fits = head_width >= 4 and head_width % 4 == 0
        require(fits, "head_width", head_width, "a multiple of 4: two axes of pairs")
        require(len(depth) == 3 and min(depth) >= 0, "depth", depth, "three numbers, each 0 or more")
        require(0 <= dropout < 1, "dropout", dropout, "0 up to, not including, 1")
        self.head_width = head_width
        before, middle, after = (
            nn.ModuleList(Layer(width, heads, head_width, dropout) for _ in range(count)) for count in depth
        )
        self.before, self.middle, self.after = before, middle, after
        self.shorten = nn.Linear(_PATCH**2 * width, width)
        self.lengthen = nn.Linear(width, _PATCH**2 * width)
        self.to_patches = Attention(width, heads, head_width)
        # The positions of a patch attend to the one that it became: of a single key, attention is the value.
        self.from_patches = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))

    @property
    def layers(self) -> list[nn.Module]:
        """The layers of all three stages."""
        return [*self.before, *self.middle, *self.after]

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        """[B, H, W, d]; with `recompute`, layers run again in the backward pass and keep only their input."""
        batch, height, width, _ = x.shape
        padded = height + height % _PATCH, width + width % _PATCH
        x = F.pad(x, (0, 0, 0, padded[1] - width, 0, padded[0] - height))
        seen = self._seen(height, width, padded, x.device)
        fine = angles(*padded, self.head_width, x.device)
        half = angles(padded[0] // _PATCH, padded[1] // _PATCH, self.head_width, x.device)
        parts = _patches(fine[None])[0]  # [n, 4, e/2]
        flat, coarse = (waves(at.flatten(0, 1), x.dtype) for at in (fine, half))
        patches, centres = (waves(at, x.dtype) for at in (parts, parts.mean(1, keepdim=True)))
        flat_seen = None if seen is None else seen.flatten()
        patch_seen = None if seen is None else _patches(seen[None, :, :, None])[0, :, :, 0]

        x = _run(self.before, x.flatten(1, 2), flat, flat_seen, recompute).view(batch, *padded, -1)
        if seen is not None:
            x = x * seen[..., None]
        parts = _patches(x)  # [B, n, 4, d]
        short = self.shorten(parts.flatten(2))[:, :, None]
        short = self.to_patches(short, centres, parts, patches, patch_seen)[:, :, 0]
        short = _run(self.middle, short, coarse, None, recompute)[:, :, None]
        long = rearrange(self.lengthen(short[:, :, 0]), "b n (p d) -> b n p d", p=_PATCH**2) + parts
        long = long + self.from_patches(short)
        x = _run(self.after, _unpatched(long, padded).flatten(1, 2), flat, flat_seen, recompute)
        return x.view(batch, *padded, -1)[:, :height, :width]

    @staticmethod
    def _seen(height: int, width: int, padded: tuple[int, int], device: torch.device) -> Tensor | None:
        """bool [H, W] of a padded grid; None if nothing is padded."""
        if (height, width) == padded:
            return None
        seen = torch.zeros(padded, dtype=torch.bool, device=device)
        seen[:height, :width] = True
        return seen


def _patches(x: Tensor) -> Tensor:
    """[B, H, W, d] → [B, n, 4, d]: space to depth, both axes alike (figure 5)."""
    return rearrange(x, "b (h p) (w q) d -> b (h w) (p q) d", p=_PATCH, q=_PATCH)


def _unpatched(x: Tensor, grid: tuple[int, int]) -> Tensor:
    height = grid[0] // _PATCH
    return rearrange(x, "b (h w) (p q) d -> b (h p) (w q) d", h=height, p=_PATCH, q=_PATCH)


def _run(layers: nn.ModuleList, x: Tensor, at: Tensor, seen: Tensor | None, recompute: bool) -> Tensor:
    for layer in layers:
        x = run_again(layer, x, at, seen) if recompute else layer(x, at, seen)
    return x
