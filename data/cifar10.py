"""Turns CIFAR-10's official binary archive into WebDataset tars of PNGs.

    python data/cifar10.py cifar-10-binary.tar.gz data/cifar10

The archive for Python holds pickles, which can run code when they are read; this takes the binary one.
"""

import argparse
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

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


def write_shard(path: Path, name: str, records: np.ndarray) -> None:
    """Writes the tar beside its place and renames it."""
    aside = path.with_suffix(".partial")
    with webdataset.TarWriter(str(aside), mtime=0) as tar:
        for number, record in enumerate(records):
            png = io.BytesIO()
            Image.fromarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0)).save(png, "PNG")
            tar.write({"__key__": f"{name}-{number:05d}", "png": png.getvalue(), "cls": str(record[0])})
    aside.rename(path)


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
        arguments.folder.mkdir(parents=True, exist_ok=True)
        for name, records in batches.items():
            write_shard(arguments.folder / f"{name}.tar", name, records)
            print(f"{name}.tar: {len(records)} images", flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
