"""Made-up files of MNIST's format."""

import gzip
from pathlib import Path

import numpy as np

MAGIC = {1: 2049, 3: 2051}  # by dimensions, of unsigned bytes


def idx(values: np.ndarray) -> bytes:
    """The content of an IDX file."""
    return np.array([MAGIC[values.ndim], *values.shape], ">u4").tobytes() + values.astype(np.uint8).tobytes()


def write_mnist(
    folder: Path, *, train: int, test: int, compressed: bool = True
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Writes the four files with random images; returns images and labels by split."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for name, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for file, values in ((f"{name}-images-idx3-ubyte", images), (f"{name}-labels-idx1-ubyte", labels)):
            content = idx(values)
            path = folder / (f"{file}.gz" if compressed else file)
            path.write_bytes(gzip.compress(content) if compressed else content)
        splits[name] = images, labels
    return splits
