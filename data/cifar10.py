"""Turns CIFAR-10's official binary archive into WebDataset tars of PNGs.

    python data/cifar10.py cifar-10-binary.tar.gz data/cifar10

The archive for Python holds pickles, which can run code when they are read; this takes the binary one.
"""

import argparse
import sys
import tarfile
from pathlib import Path

import numpy as np

from image_tars import write_images
from vqvae2.surroundings import home_path, show_any_name

SHARDS = {
    **{f"train-{number - 1:04d}": f"data_batch_{number}.bin" for number in range(1, 6)},
    "test-0000": "test_batch.bin",
}
RECORD = 1 + 3 * 32 * 32  # bytes: the label, then the red, green and blue planes


def read_batches(archive: Path) -> dict[str, np.ndarray]:
    """The records of each shard, uint8 `[N, 3073]`.

    Raises:
        ValueError: it is not the binary archive.
    """
    try:
        with tarfile.open(archive) as tar:
            files = {Path(member.name).name: tar.extractfile(member) for member in tar if member.isfile()}
            found = {name: files[name].read() for name in SHARDS.values() if name in files}
    except (tarfile.ReadError, EOFError) as error:
        raise ValueError(f"{archive} is not a tar, or cut short: {error}") from error
    missing = sorted(set(SHARDS.values()) - set(found))
    if missing:
        raise ValueError(f"{archive} lacks {', '.join(missing)}. Wanted cifar-10-binary.tar.gz.")
    odd = [name for name, data in found.items() if len(data) % RECORD]
    if odd:
        raise ValueError(f"{archive}: {', '.join(odd)} is not made of records of {RECORD} bytes.")
    return {shard: np.frombuffer(found[name], np.uint8).reshape(-1, RECORD) for shard, name in SHARDS.items()}


def main() -> None:
    show_any_name()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=home_path, help="cifar-10-binary.tar.gz")
    parser.add_argument("folder", type=home_path, help="where the tars go")
    arguments = parser.parse_args()
    try:
        batches = read_batches(arguments.archive)
        for name, records in batches.items():
            write_images(arguments.folder, name, records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
