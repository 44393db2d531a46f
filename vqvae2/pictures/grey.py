"""Grey of more than 8 bits becomes 8 bits. What is white follows from the type of the file's numbers alone.

| numbers | black to white |
|---|---|
| unsigned, 16 bits | 0 to 65535; in a TIFF of 12 bits 0 to 4095 |
| floats | 0 to 1; what lies up to 0.5 outside, as resizing leaves it, is clipped |
| others; floats further outside, or not finite | refused: nothing in the file says what is white |
"""

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, MM, OPEN_INFO, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

_OUTSIDE = 0.5
_WHITE_IS_ZERO, _SIGNED = 0, 2  # TIFF 6.0, tags 262 and 339

# Pillow opens this at 16 bits (and leaves it to us to exchange black and white) in the other byte order only.
OPEN_INFO[MM, _WHITE_IS_ZERO, (1,), 1, (16,), ()] = ("I;16B", "I;16B")


def eight_bits(image: Image.Image) -> Image.Image:
    """The picture with grey as 8 bits, where 255 is white; colours are returned as they are.

    Args:
        image: as Pillow opened and loaded it.

    Raises:
        OSError: it is not known which number is white.
    """
    tags = getattr(image, "tag_v2", {})  # only a TIFF has some
    signed = _SIGNED in tags.get(SAMPLEFORMAT, ())
    if not (signed or image.mode.startswith(("I", "F"))):
        return image
    values = np.asarray(image)
    if signed or (tags and image.mode == "I"):
        raise OSError(
            f"whole numbers of 32 bits or with a sign, here from {values.min()} to {values.max()}: nothing "
            "says which one is white; save them as 8 or 16 bits without a sign"
        )
    if image.mode == "F":
        values = _floats(values)
    else:
        top = 4095 if tags.get(BITSPERSAMPLE) == (12,) else 65535
        rounded = (np.arange(top + 1) * 510 + top) // (2 * top)
        values = rounded.astype(np.uint8)[values]
    if tags.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:
        values = 255 - values
    grey = Image.fromarray(values)
    grey.info = image.info
    return grey


def _floats(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    if not (low >= -_OUTSIDE and high <= 1 + _OUTSIDE):  # also of NaN
        raise OSError(
            f"floats from {low:g} to {high:g}, wanted 0 (black) to 1 (white), at most {_OUTSIDE} outside; "
            "bring them to that scale, or save them as 8 or 16 bits"
        )
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)
