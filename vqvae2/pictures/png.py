"""What Pillow does not make of a PNG by itself: transparent colours at every depth, and text without end."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"

TEXT = frozenset({b"tEXt", b"zTXt", b"iTXt"})
PROFILE = frozenset({b"iCCP"})


def without(encoded: bytes, kinds: frozenset[bytes]) -> bytes:
    """The file without all its chunks of some kinds."""
    kept = [chunk for chunk in _chunks(encoded) if chunk[4:8] not in kinds]
    return b"".join((SIGNATURE, *kept))


def shown(image: Image.Image, encoded: bytes) -> Image.Image:
    """Where a picture with a transparent colour (tRNS) is opaque: mode L, 255 there and 0 elsewhere.

    The colour is compared at the file's own depth (PNG specification, 11.3.2.1); Pillow would compare it with
    pixels that it has brought to 8 bits before.

    Args:
        image: the picture as Pillow loads it, mode 1, L, I;16 or RGB.
        encoded: its file.
    """
    depth = encoded[24]
    body = next(chunk for chunk in _chunks(encoded) if chunk[4:8] == b"tRNS")[8:-4]
    key = np.frombuffer(body, ">u2", len(image.getbands())) & (2**depth - 1)
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    if depth == 16 and image.mode == "RGB":
        pixels = pixels * np.uint16(256) + _low_bytes(encoded)
    elif depth < 8 and image.mode == "L":
        key = key * (255 // (2**depth - 1))
    return Image.fromarray((pixels != key).any(-1)).convert("L")


def _low_bytes(encoded: bytes) -> np.ndarray:
    """The lower bytes of 16-bit colours, uint8 `[H, W, 3]`; of these Pillow gives the upper ones only."""
    image = Image.open(io.BytesIO(encoded), formats=("PNG",))
    # Read as if its numbers began with the lower byte: then what Pillow keeps as the upper one is the lower.
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    return np.asarray(image)


def _chunks(encoded: bytes) -> Iterator[bytes]:
    """Each with its length, its kind and its check sum: 4 bytes each."""
    start = len(SIGNATURE)
    while start < len(encoded):
        end = start + 12 + int.from_bytes(encoded[start : start + 4])
        yield encoded[start:end]
        start = end
