"""Images as people and files see them: their size, and eight bits a channel."""

import io
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor


class ImageSize(NamedTuple):
    """Of images, in pixels."""

    height: int
    width: int


def size_of(image_size: int | list[int]) -> ImageSize:
    """What an option or a file means.

    Raises:
        ValueError: it is no size.
    """
    sides = image_size if isinstance(image_size, list | tuple) else [image_size] * 2
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        raise ValueError(
            f"image_size is {image_size!r}, wanted the side of square images, such as 256, or [height, "
            "width], such as [192, 320], at least 1 each."
        )
    return ImageSize(*sides)


def written(size: ImageSize) -> int | list[int]:
    """A size as files have it: squares by their side, as before there were others."""
    return size.height if size.height == size.width else list(size)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8 of the same shape: rounded to the nearest, clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """float32 in [-1, 1] of bytes, any shape; `to_uint8` gives the bytes back."""
    return pixels.float() / 127.5 - 1


def to_pil(picture: Tensor) -> Image.Image:
    """uint8 [C, H, W] with one channel (grey) or three (RGB) as an image."""
    return Image.fromarray(picture.cpu().movedim(0, -1).squeeze(-1).numpy())


def png_bytes(picture: Tensor) -> bytes:
    """uint8 [C, H, W] as the content of a .png file."""
    buffer = io.BytesIO()
    to_pil(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def write_png(path: Path, picture: Tensor) -> None:
    """Writes uint8 [C, H, W] aside and moves it to its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_bytes(png_bytes(picture))
    aside.replace(path)
