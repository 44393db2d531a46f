"""Images as people and files see them: eight bits a channel."""

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


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
