"""What the scripts beside this file share: images with labels as a WebDataset tar of PNGs."""

from pathlib import Path

import numpy as np
import torch

from vqvae2.pixels import png_bytes
from vqvae2.storage.shards import write_tar


def write_images(folder: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes `folder/name.tar` aside, renames it, and says how many images it holds.

    Args:
        images: uint8 `[N, C, H, W]`, one channel or three.
        labels: `[N]`.
    """
    records = (
        {
            "__key__": f"{name}-{number:05d}",
            "png": png_bytes(torch.tensor(image)),
            "cls": str(label).encode(),
        }
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True))
    )
    write_tar(folder, f"{name}.tar", records, num_samples=len(images))
    print(f"{name}.tar: {len(images)} images", flush=True)
