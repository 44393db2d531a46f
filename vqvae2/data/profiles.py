"""Colour profiles: what a file's numbers look like, as sRGB."""

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}
_SERVES = {"L": ("L",), "RGB": ("RGB", "L"), "CMYK": ("CMYK",)}  # grey in RGB has equal channels
_ALIKE = 2  # of 255: profiles that mean sRGB differ from each other by rounding


def to_srgb(image: Image.Image, warn: Callable[[str], None]) -> Image.Image:
    """The picture in sRGB by its own colour profile, if it has one that says otherwise.

    Args:
        image: mode L, RGB or CMYK. Only a profile leads to another mode, RGB.
        warn: is told why a profile cannot be used; then the picture stays as it is.
    """
    if "icc_profile" not in image.info:
        return image
    try:
        mode, transform = _transform(image.info["icc_profile"] or b"")
    # ImportError: this Pillow is built without LittleCMS.
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError) as error:
        warn(f"its colour profile cannot be used ({error})")
        return image
    if image.mode not in _SERVES[mode]:
        warn(f"its colour profile is for {mode} pictures, and it is {image.mode}")
        return image
    return image if transform is None else transform.apply(image.convert(mode))


@lru_cache(maxsize=32)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode that a profile is for, and what brings its numbers to sRGB; None: they are sRGB."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = opened.profile.xcolor_space.strip()
    if space not in _MODES:
        raise ValueError(f"it is for the colour space {space}")
    mode = _MODES[space]
    transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "CMYK":
        return mode, transform
    probe = Image.fromarray(_colours()).convert(mode)
    there, here = (np.asarray(picture, int) for picture in (transform.apply(probe), probe.convert("RGB")))
    return mode, transform if np.abs(there - here).max() > _ALIKE else None


def _colours() -> np.ndarray:
    """Each combination of 16 values of red, green and blue, and all greys: uint8 `[17, 256, 3]`."""
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(16, 256, 3)
    greys = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, 2)
    return np.concatenate([cube, greys])
