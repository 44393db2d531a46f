"""From the bytes of an image file to 8-bit pixels, whatever the file's colour mode.

Transparency is laid over white. 16-bit grey is scaled to 8 bits with rounding; 16-bit colour is reduced by
Pillow itself, which keeps the high byte (at most one step of 255 away).
"""

import io
import struct
import zlib
from typing import Literal

import numpy as np
from PIL import Image

# Naming the formats keeps Pillow from handing a file of the wrong name to, say, a PostScript interpreter.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

# What Pillow's readers raise on damaged files, besides OSError.
_DAMAGE = (
    *(SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)

Fit = Literal["crop", "pad"]


def open_image(encoded: bytes) -> Image.Image:
    """Decodes a whole image file.

    Raises:
        OSError: the bytes are not an image, or pixels are missing. (A file that only lost its end mark, after
            the last pixel, is read.)
    """
    if not encoded:
        raise OSError("the file is empty")
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        image.load()
    except Image.UnidentifiedImageError:
        raise OSError(f"not an image in one of the formats {', '.join(FORMATS)}") from None
    except _DAMAGE as error:
        raise OSError(f"damaged image: {error}") from error
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """The same picture as 8-bit RGB.

    Raises:
        ValueError: numbers whose scale nobody can know (negative, not finite, or beyond 16 bits).
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    return image.convert("RGB")


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """RGB for 3 channels; for 1, grey as 0.299 R + 0.587 G + 0.114 B (ITU-R 601-2)."""
    if channels == 1 and image.mode == "L" and "transparency" not in image.info:
        return image
    return to_rgb(image) if channels == 3 else to_rgb(image).convert("L")


def fit_image(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    """Brings an image to `size`.

    crop: the short side is resized to `size` (bicubic, antialiased); the crop itself is left to the caller.
    pad: the image is centred on a black square of `size`, and only shrunk if it is larger than that.
    """
    side = min(image.size) if fit == "crop" else max(image.size)
    if side > size or (side < size and fit == "crop"):
        width, height = (max(1, round(length * size / side)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    if fit == "crop" or image.size == (size, size):
        return image
    canvas = Image.new(image.mode, (size, size))
    canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return canvas


def to_pixels(image: Image.Image) -> np.ndarray:
    """The pixels of an RGB or grey image, uint8 `[C, H, W]`."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Scales grey of a wider type to uint8: floats up to 1 or 255, integers of 16 bits."""
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):  # also false for NaN
        raise ValueError(f"grey values from {low} to {high}; wanted 0 to 65535, or 0 to 1 as floats")
    if values.dtype.kind == "f":
        if high > 255:
            raise ValueError(f"float grey values up to {high}; wanted at most 1, or at most 255")
        scale = 255.0 if high <= 1 else 1.0
    else:
        scale = 255 / 65535
    return np.rint(values * scale).astype(np.uint8)
