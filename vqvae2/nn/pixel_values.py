"""Grey values as codes: a tokenizer without weights.

Source: Megapixel Image Generation with Step-Unrolled Denoising Autoencoders (McKinney and Willcocks, 2022),
section 4.2, where a prior draws the pixels of MNIST themselves.

Shape legend: B batch, H W image.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from vqvae2.nn.checks import require
from vqvae2.nn.contracts import Tokenizer
from vqvae2.pixels import from_uint8, to_uint8


class PixelReconstruction(NamedTuple):
    """What `PixelValues.forward` returns."""

    images: Tensor  # [B, 1, H, W]
    codes: tuple[Tensor]  # ([B, H, W] int64,)


class PixelValues(Tokenizer, architecture="pixel_values"):
    """Each pixel is a code, its grey value of 256, and nothing is lost.

    Args:
        channels: 1; colours would be three grids, of which none comes first.
    """

    level_names = ("top",)
    codebook_sizes = (256,)

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        require(channels == 1, "channels", channels, "1, for grey values are the codes")
        self.channels = channels

    def grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """The image's own size."""
        return ((height, width),)

    def forward(self, images: Tensor) -> PixelReconstruction:
        """`images` [B, 1, H, W] in [-1, 1], rounded to 8 bits."""
        codes = self.encode(images)
        return PixelReconstruction(self.decode(codes), codes)

    def encode(self, images: Tensor) -> tuple[Tensor]:
        """Codes ([B, H, W],)."""
        return (to_uint8(images)[:, 0].long(),)

    def decode(self, codes: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Images [B, 1, H, W] of codes ([B, H, W],); `num_levels` can only be 1 or None."""
        return from_uint8(codes[0][:, None])
