"""Running the sample job on small networks, and reading what it wrote."""

import tarfile
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar

from vqvae2.jobs.requests import SampleRequests
from vqvae2.jobs.sample import SampleModule
from vqvae2.jobs.sample_writer import SampleWriter


def sample(
    folder: Path,
    autoencoder: str,
    priors: list[str],
    *,
    data=None,
    writer=None,
    precision="32-true",
    **options,
) -> Path:
    """Runs the job with 12 images in batches of 3 and files of 5, unless asked otherwise."""
    names = ("per_class", "batch_size", "chunk_size", "classes")
    request = {"per_class": 4, "batch_size": 3, "chunk_size": 5}
    request |= {name: options.pop(name) for name in names if name in options}
    run(
        SampleModule(
            autoencoder=autoencoder, priors=priors, **{"temperatures": [1.0] * len(priors), **options}
        ),
        data or SampleRequests(**request),
        SampleWriter(str(folder), **{"grid_columns": 3, "grid_rows": 2, **(writer or {})}),
        precision=precision,
    )
    return folder


def run(
    module: L.LightningModule, data: L.LightningDataModule, *callbacks: L.Callback, precision="32-true"
) -> None:
    """Predicts on the CPU, on all ranks if there are some."""
    ranks = {}
    if torch.distributed.is_initialized():
        ranks = {"strategy": "ddp", "devices": torch.distributed.get_world_size()}
    trainer = L.Trainer(
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        use_distributed_sampler=False,
        callbacks=list(callbacks),
        **ranks,
    )
    trainer.predict(module, data, return_predictions=False)


def read(folder: Path) -> dict[str, dict[str, bytes]]:
    """{key: {extension: bytes}} of all shards, in order."""
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return samples


def files(folder: Path) -> dict[str, bytes]:
    """All files of a folder by their relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
