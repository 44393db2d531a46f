"""Data loaders against the training steps that they feed, as the configs set them up.

    python experiments/bench_loader.py
    python experiments/bench_loader.py cifar10_vqvae --data.num_workers 2

A loader is timed alone and in training, where the share of the time that is spent waiting for it counts: the
`speed/data_wait` of `vqvae2.runs.throughput`, over all timed steps; above 5 % it is marked. Images that
a config caches are decoded once, so the second epoch is timed apart (if the first was a whole one, it is from
memory alone). The data of the configs has to be there; options unknown to this script go to the configs.
"""

import vqvae2  # noqa: F401 # isort: skip  # before torch: how its threads wait

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from timing import describe_machine, print_table
from vqvae2.cli.suite import SuiteCLI
from vqvae2.runs.throughput import Throughput, batch_size

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = [f"{dataset}_{stage}" for dataset in ("demo", "cifar10") for stage in ("vqvae", "top", "bottom")]
WARMUP = 3  # steps, and batches of an epoch
MOST_WAITING = 5  # per cent


class Build(SuiteCLI):
    """Makes the module and the data of a config, and stops there."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class AfterWarmup(Throughput):
    """What every fit logs as its speed and its waiting, once for all steps after the first ones."""

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        if torch.cuda.is_available() and trainer.global_step in (WARMUP, trainer.max_steps):
            torch.cuda.synchronize()  # what is queued belongs to these steps
        super().on_train_batch_end(trainer, *arguments)
        if trainer.global_step <= WARMUP:
            self.restart()


def measure(name: str, steps: int, options: list[str]) -> dict[str, str | float]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            "fit",
            "-c",
            str(CONFIGS / f"{name}.yaml"),
            "--trainer.default_root_dir",
            folder,
            *options,
        ]
        training, alone = Build(arguments), Build(arguments)  # what one caches does not help the other
    clock = AfterWarmup()
    trainer = L.Trainer(
        max_steps=WARMUP + steps,
        precision=training.trainer.precision,
        callbacks=[clock],
        log_every_n_steps=0,
        devices=1,
        limit_val_batches=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(training.model, training.datamodule)
    alone.datamodule.setup("fit")
    loader = alone.datamodule.train_dataloader()
    first, second = (loading_rate(loader, steps) for _ in range(2))
    figures = clock.figures()
    waiting = 100 * figures["speed/data_wait"]
    step_rate = figures["speed/samples_per_s"] / (
        1 - figures["speed/data_wait"]
    )  # of the steps by themselves
    return {
        "config": name,
        "batch": alone.datamodule.batch_size,
        "workers": loader.num_workers,
        "loader, first epoch": first,
        "second epoch": second,
        "step": step_rate,
        "loader / step": first / step_rate,
        "waiting, %": waiting,
        "": f"above {MOST_WAITING} %" if waiting > MOST_WAITING else "",
    }


def loading_rate(loader: DataLoader, num_batches: int) -> float:
    """Samples a second of one epoch after its first batches, when workers have started."""
    batches: Iterator[Any] = iter(loader)
    sizes: list[int] = []
    start = time.perf_counter()
    for number, batch in enumerate(batches, 1):
        sizes.append(batch_size(batch))
        if number == WARMUP:
            sizes, start = [], time.perf_counter()
        if len(sizes) == num_batches and number > WARMUP:
            break
    return sum(sizes) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("configs", nargs="*", default=NAMES, help="names; those of the demo and CIFAR-10")
    parser.add_argument("--steps", type=int, default=100, help="timed steps, and most batches of an epoch")
    arguments, options = parser.parse_known_args()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print(f"{describe_machine()}; samples a second")
    print_table([measure(name, arguments.steps, options) for name in arguments.configs])


if __name__ == "__main__":
    main()
