"""What a file's numbers look like by its own colour profile or gamma, as sRGB."""

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}
_SERVES = {"L": ("L",), "RGB": ("RGB", "L"), "CMYK": ("CMYK",)}  # grey in RGB has equal channels
_ALIKE = 2  # of 255: profiles that mean sRGB differ from each other by rounding


def to_srgb(image: Image.Image, warn: Callable[[str], None]) -> Image.Image:
    """The picture in sRGB, if its own colour profile (or the gamma of a PNG without one) says otherwise.

    Args:
        image: mode L, RGB or CMYK. If its profile is for RGB or CMYK, it becomes RGB.
        warn: is told why a profile cannot be used; then the picture stays as it is.
    """
    if "icc_profile" not in image.info:
        return _to_srgb_gamma(image)
    try:
        mode, transform = _transform(image.info["icc_profile"] or b"")
    # ImportError: this Pillow is built without LittleCMS.
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError) as error:
        warn(f"its colour profile cannot be used ({error})")
        return image
    if image.mode not in _SERVES[mode]:
        warn(f"its colour profile is for {mode} pictures, and it is {image.mode}")
        return image
    return image if transform is None else transform(image.convert(mode))


def _to_srgb_gamma(image: Image.Image) -> Image.Image:
    gamma = image.info.get("gamma", 0)
    # As libpng does: sRGB is about 1 / 2.2, what is within 5 % of it is meant to be it, and 0 is an error.
    if "srgb" in image.info or gamma <= 0 or abs(2.2 * gamma - 1) < 0.05:
        return image
    table = np.rint(255 * (np.arange(256) / 255) ** (1 / (2.2 * gamma))).astype(int).tolist()
    return image.point(table * len(image.getbands()))


@lru_cache(maxsize=32)
def _transform(profile: bytes) -> tuple[str, Callable[[Image.Image], Image.Image] | None]:
    """The mode that a profile is for, and what brings such pictures to sRGB; None: they are sRGB."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = opened.profile.xcolor_space.strip()
    if space not in _MODES:
        raise ValueError(f"it is for the colour space {space}")
    mode = _MODES[space]
    # LittleCMS's short cuts are off by up to 10 of 255 in dark grey. Grey has few values, so it needs none.
    flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    srgb = ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(opened, srgb, mode, "RGB", flags=flags).apply
    if mode == "CMYK":
        return mode, transform
    probe = Image.fromarray(_colours()).convert(mode)
    there, here = (np.asarray(picture, int) for picture in (transform(probe), probe.convert("RGB")))
    if np.abs(there - here).max() <= _ALIKE:
        return mode, None
    if mode == "L":
        table = there[-1, :, 0].tolist()
        return mode, lambda image: image.point(table)
    return mode, transform


def _colours() -> np.ndarray:
    """Each combination of 16 values of red, green and blue; at the end all greys. uint8 `[17, 256, 3]`."""
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(16, 256, 3)
    greys = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, 2)
    return np.concatenate([cube, greys])
