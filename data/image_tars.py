"""What the scripts beside this file share: their command line, and WebDataset tars of PNGs with labels."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vqvae2.pixels import png_bytes
from vqvae2.storage.shards import write_tar
from vqvae2.surroundings import home_path, show_any_name

Images = tuple[np.ndarray, np.ndarray]  # uint8 `[N, C, H, W]`, one channel or three; and their labels `[N]`


def convert(description: str, source: str, what: str, read: Callable[[Path], dict[str, Images]]) -> None:
    """A script: `SOURCE FOLDER`, where the tars go.

    Args:
        description: of the script.
        source: what the first argument is called.
        what: it is, for the help.
        read: gives all images of a source by the names of the tars, or raises ValueError.
    """
    show_any_name()
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=home_path, metavar=source, help=what)
    parser.add_argument("folder", type=home_path, help="where the tars go")
    arguments = parser.parse_args()
    try:
        for name, images in read(arguments.source).items():
            write_images(arguments.folder, name, *images)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def write_images(folder: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes `folder/name.tar` aside, renames it, and says how many images it holds."""
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
