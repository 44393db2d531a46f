"""From the bytes of an image file to 8-bit pixels, whatever the file's colour mode.

What the file says of its pixels is heeded: which way up they are, which colour is transparent, what the
numbers look like. Transparency is laid over white. 16-bit grey is scaled to 8 bits with rounding; 16-bit
colour is reduced by Pillow itself, which keeps the high byte (at most one step of 255 away).
"""

import io
import logging
import math
import struct
import zlib
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from vqvae2.pictures import png
from vqvae2.pictures.grey import eight_bits
from vqvae2.pictures.profiles import to_srgb
from vqvae2.pixels import ImageSize

log = logging.getLogger(__name__)

# Naming the formats keeps Pillow from handing a file of the wrong name to, say, a PostScript interpreter. All
# of these notice missing pixels.
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c"),
    "QOI": (".qoi",),
    "DIB": (".dib",),
    "TGA": (".tga",),
}
FORMATS = tuple(_SUFFIXES)
IMAGE_SUFFIXES = frozenset(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)

# What Pillow's readers raise on damaged files, besides OSError.
_DAMAGE = (
    *(SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, RuntimeError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)

# What brings a picture upright (EXIF 2.3, tag 0x0112).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The mode of a picture without its transparency, where that is not RGB.
_OPAQUE = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}

# A picture enlarged to more than so many crops in a row is made only where one is cut out.
_CROPS = 16
_MARGIN = 4  # pixels of the source beyond a cut; bicubic enlarging looks at 2

Fit = Literal["crop", "pad"]


def open_image(encoded: bytes) -> Image.Image:
    """Decodes a whole image file: its first picture, upright, of 8 bits.

    Raises:
        OSError: the bytes are not an image, pixels are missing, or it is not known which of its numbers is
            white. (A file that only lost its end mark, after the last pixel, is read.)
    """
    if not encoded:
        raise OSError("the file is empty")
    try:
        image = _loaded(encoded)
        turn = _turn(image)
        opaque = png.shown(image, encoded) if image.format == "PNG" and _has_key(image) else None
        image = eight_bits(image)
        if opaque is not None:
            del image.info["transparency"]
            image.putalpha(opaque)
        return image if turn is None else image.transpose(turn)
    except Image.UnidentifiedImageError:
        raise OSError(f"not an image in one of the formats {', '.join(FORMATS)}") from None
    except _DAMAGE as error:
        raise OSError(f"damaged image: {error}") from error


def to_rgb(image: Image.Image, warn: Callable[[str], None] = log.warning) -> Image.Image:
    """The same 8-bit picture in sRGB.

    Args:
        warn: is told why the picture's colour profile cannot be used; it is then taken for sRGB.
    """
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if not image.has_transparency_data:
        return _as(to_srgb(_as(image, _OPAQUE.get(image.mode, "RGB")), warn), "RGB")
    pixels = _as(image, "RGBA")
    colours = to_srgb(pixels.convert(_OPAQUE.get(image.mode, "RGB")), warn).convert("RGBA")
    colours.putalpha(pixels.getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")


def to_channels(image: Image.Image, channels: int, warn: Callable[[str], None] = log.warning) -> Image.Image:
    """sRGB for 3 channels; for 1, grey as 0.299 R + 0.587 G + 0.114 B (ITU-R 601-2)."""
    rgb = to_rgb(image, warn)
    return rgb if channels == 3 else rgb.convert("L")


class Strip(NamedTuple):
    """A long picture to be enlarged, of which only those crops are made that are used.

    Attributes:
        image: as it is.
        shape: what it would be when enlarged, [C, H, W].
    """

    image: Image.Image
    shape: tuple[int, int, int]

    def crop(self, top: int, left: int, size: ImageSize) -> np.ndarray:
        """A part of the enlarged picture, uint8 `[C, H, W]` of that size."""
        _, height, width = self.shape
        across, down = self.image.width / width, self.image.height / height
        box = (left * across, top * down, (left + size.width) * across, (top + size.height) * down)
        # Cut before, as Pillow holds a box in float32.
        x, y = (max(0, int(start) - _MARGIN) for start in box[:2])
        part = self.image.crop(
            (
                x,
                y,
                *(min(math.ceil(end) + _MARGIN, n) for end, n in zip(box[2:], self.image.size, strict=True)),
            )
        )
        box = (box[0] - x, box[1] - y, min(box[2] - x, part.width), min(box[3] - y, part.height))
        return to_pixels(part.resize((size.width, size.height), Image.Resampling.BICUBIC, box))


def fit_image(image: Image.Image, size: ImageSize, fit: Fit) -> Image.Image | Strip:
    """Brings an image to `size`.

    crop: resized until it just covers `size` (bicubic, antialiased); the crop itself is left to the caller.
    pad: the image is centred on black of `size`, and only shrunk if it is larger than that.
    """
    covers = image.height * size.width >= image.width * size.height  # once it is as wide
    if covers == (fit == "crop"):
        now, wanted = image.width, size.width
    else:
        now, wanted = image.height, size.height
    if now > wanted or (now < wanted and fit == "crop"):
        width, height = (max(1, round(length * wanted / now)) for length in image.size)
        if now < wanted and width * height > _CROPS * size.width * size.height:
            return Strip(image, (len(image.getbands()), height, width))
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    if fit == "crop" or image.size == (size.width, size.height):
        return image
    canvas = Image.new(image.mode, (size.width, size.height))
    canvas.paste(image, ((size.width - image.width) // 2, (size.height - image.height) // 2))
    return canvas


def to_pixels(image: Image.Image) -> np.ndarray:
    """The pixels of an RGB or grey image, uint8 `[C, H, W]`."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _loaded(encoded: bytes) -> Image.Image:
    """The file's first picture as Pillow gives it.

    A PNG that Pillow refuses is tried again without what its pixels do not depend on: more text than Pillow
    holds, or damage in it, then also such a colour profile (which leaves "icc_profile" empty).
    """
    try:
        return _first(encoded)
    except (OSError, *_DAMAGE):
        if not encoded.startswith(png.SIGNATURE):
            raise
    try:
        return _first(png.without(encoded, png.TEXT))
    except (OSError, *_DAMAGE):
        image = _first(png.without(encoded, png.TEXT | png.PROFILE))
    image.info["icc_profile"] = b""
    return image


def _first(encoded: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    image.load()
    return image


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings the picture upright. (Not ImageOps.exif_transpose: it fails where EXIF has odd fields.)"""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except (OSError, *_DAMAGE):
        return None  # unreadable EXIF, beside whole pixels


def _has_key(image: Image.Image) -> bool:
    return "transparency" in image.info and image.mode != "P"


def _as(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)
