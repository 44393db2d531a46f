"""Turns CIFAR-10's official binary archive into WebDataset tars of PNGs.

    python data/cifar10.py cifar-10-binary.tar.gz data/cifar10

The archive for Python holds pickles, which can run code when they are read; this takes the binary one.
"""

import tarfile
from pathlib import Path

import numpy as np

from image_tars import Images, convert

SHARDS = {
    **{f"train-{number - 1:04d}": f"data_batch_{number}.bin" for number in range(1, 6)},
    "test-0000": "test_batch.bin",
}
RECORD = 1 + 3 * 32 * 32  # bytes: the label, then the red, green and blue planes


def read_batches(archive: Path) -> dict[str, Images]:
    """The images of each shard, uint8 `[N, 3, 32, 32]`, and their labels, uint8 `[N]`.

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
    records = {shard: np.frombuffer(found[name], np.uint8) for shard, name in SHARDS.items()}
    rows = {shard: data.reshape(-1, RECORD) for shard, data in records.items()}
    return {shard: (own[:, 1:].reshape(-1, 3, 32, 32), own[:, 0]) for shard, own in rows.items()}


def main() -> None:
    convert(__doc__, "archive", "cifar-10-binary.tar.gz", read_batches)


if __name__ == "__main__":
    main()
