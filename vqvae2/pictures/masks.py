"""Masks of what is to be repainted in pictures: read from files, or generated; and which codes they leave.

Shape legend: H W picture, h w a level's grid. In a mask True is to be repainted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vqvae2.nn.checks import require
from vqvae2.pictures.decode import to_channels, to_pixels
from vqvae2.pixels import ImageSize

WHITE = 255


@dataclass(frozen=True)
class GeneratedMask:
    """A mask that is the same for all pictures.

    Attributes:
        shape: block: a rectangle in the middle; ring: all but such a rectangle; stripes: across the picture;
            pixels: squares at random places.
        share: how much of the picture is repainted, between 0 and 1.
        cell: side of the squares and width of the stripes, in pixels; null: of what one code of the top level
            covers, so that squares and stripes hide whole codes.
        seed: another seed has other places.
    """

    shape: Literal["block", "ring", "stripes", "pixels"]
    share: float = 0.25
    cell: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "mask.share", self.share, "a fraction between 0 and 1")
        cell = self.cell
        require(cell is None or cell >= 1, "mask.cell", cell, "at least 1 pixel, or null")
        require(self.seed >= 0, "mask.seed", self.seed, "0 or more")

    def drawn(self, size: ImageSize, top: Sequence[int]) -> Tensor:
        """The mask, bool [H, W].

        Args:
            size: of the pictures.
            top: grid (h, w) of the top level.
        """
        if self.shape in ("block", "ring"):
            ring = self.shape == "ring"
            block = _block(size, 1 - self.share if ring else self.share)
            return ~block if ring else block
        tall, wide = (self.cell or max(1, side // codes) for side, codes in zip(size, top, strict=True))
        rows, columns = math.ceil(size.height / tall), math.ceil(size.width / wide)
        cells = torch.zeros(rows, columns, dtype=torch.bool)
        if self.shape == "stripes":
            # Stripe i is repainted where the share of the first i + 1 reaches a new whole number.
            reached = np.floor(np.arange(rows + 1) * self.share + 1e-9)
            cells[torch.from_numpy(np.diff(reached) > 0)] = True
        else:
            places = np.random.Generator(np.random.Philox(self.seed)).permutation(cells.numel())
            cells.view(-1)[torch.from_numpy(places[: round(self.share * cells.numel())])] = True
        whole = cells.repeat_interleave(tall, 0).repeat_interleave(wide, 1)
        return whole[: size.height, : size.width].contiguous()


def black_and_white(image: Image.Image, name: str) -> Image.Image:
    """A mask's file in mode L.

    Args:
        name: of the mask, for messages.

    Raises:
        ValueError: it has other values than black and white.
    """
    mask = to_channels(image, 1)
    values = np.unique(to_pixels(mask)).tolist()
    if not set(values) <= {0, WHITE}:
        listed = ", ".join(map(str, values[:5])) + (", …" if len(values) > 5 else "")
        raise ValueError(
            f"{name} has the values {listed}, wanted black (0: keep) and white ({WHITE}: repaint) only. Save "
            "it as PNG, without smooth edges."
        )
    return mask


def kept_codes(mask: Tensor, grid: Sequence[int]) -> Tensor:
    """Which codes of a level stay, bool [h, w]: those of which no pixel that they cover is repainted.

    Args:
        mask: bool [H, W].
        grid: (h, w) of the level.
    """
    return F.adaptive_max_pool2d(mask.float()[None], tuple(grid))[0] == 0


def _block(size: ImageSize, share: float) -> Tensor:
    """A rectangle of the picture's proportions in its middle, which takes about that share, bool [H, W]."""
    height, width = (min(max(round(side * math.sqrt(share)), 1), side) for side in size)
    top, left = (size.height - height) // 2, (size.width - width) // 2
    block = torch.zeros(*size, dtype=torch.bool)
    block[top : top + height, left : left + width] = True
    return block
