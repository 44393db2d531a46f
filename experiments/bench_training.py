"""Training throughput of the configs' networks: real modules and trainer, made-up data that costs nothing.

    python experiments/bench_training.py imagenet_vqvae imagenet_top --batch 16 --precision bf16-mixed
    python experiments/bench_training.py demo_top demo_bottom --batch 32

A step is all that `lightning fit` does in one: forward, backward, optimiser, codebooks, average, logging.
Operations are those of the products and convolutions, forward and backward, counted by torch.
"""

import vqvae2  # noqa: F401 # isort: skip  # before torch: how its threads wait

import argparse
import logging
import time
import warnings
from typing import Any

import lightning as L
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from configured import data_facts, module, network
from timing import describe_machine, print_table
from vqvae2.data.images import ImageBatch
from vqvae2.data.latents import LatentBatch
from vqvae2.pixels import size_of

WARMUP = 3  # steps


class MadeUpData(L.LightningDataModule):
    """The same random batch again and again.

    Args:
        name: of the config whose network is trained.
        batch_size: samples of the batch.
        steps: how often it comes.
    """

    def __init__(self, name: str, batch_size: int, steps: int) -> None:
        super().__init__()
        self.__dict__ |= vars(data_facts(name))
        self.batch_size = batch_size
        self.steps = steps

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch()] * self.steps, batch_size=None)

    def batch(self) -> ImageBatch | LatentBatch:
        generator = torch.Generator().manual_seed(0)
        index = torch.arange(self.batch_size)
        if hasattr(self, "spec"):
            codes = tuple(
                torch.randint(
                    level.num_codes, (self.batch_size, level.height, level.width), generator=generator
                )
                for level in self.spec.levels
            )
            return LatentBatch(codes, index % max(self.spec.num_classes, 1), index)
        shape = (self.batch_size, self.channels, *size_of(self.image_size))
        images = torch.rand(shape, generator=generator) * 2 - 1
        return ImageBatch(images, index % max(self.num_classes, 1), index, [""] * self.batch_size)


class StepTimes(L.Callback):
    """Notes when each step is over."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends_s.append(time.perf_counter())

    @property
    def median_s(self) -> float:
        laps = torch.tensor(self.ends_s).double().diff()[WARMUP - 1 :]
        return laps.median().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", help="names, such as imagenet_top")
    parser.add_argument("--batch", type=int, default=8, help="samples a step")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--precision", default="32-true", help="of Lightning, such as bf16-mixed")
    parser.add_argument("--peak", type=float, help="the device's peak, in TFLOP/s")
    parser.add_argument("--options", nargs="*", default=[], help="of the module, such as compiled=true")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    print(describe_machine())
    changes = {name: value == "true" for name, value in (option.split("=") for option in arguments.options)}
    print_table(
        [
            measure(name, arguments.batch, arguments.steps, arguments.precision, arguments.peak, changes)
            for name in arguments.configs
        ]
    )


def measure(
    name: str, batch_size: int, steps: int, precision: str, peak: float | None, changes: dict[str, Any]
) -> dict[str, str | float]:
    """One row of the table."""
    data = MadeUpData(name, batch_size, WARMUP + steps)
    times = StepTimes()
    trainer = L.Trainer(
        max_steps=WARMUP + steps,
        precision=precision,
        callbacks=[times],
        logger=False,
        devices=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module(name, **changes), data)
    flops = step_flops(name, data.batch())
    rate = flops / times.median_s / 1e12
    row = {
        "config": name,
        "batch": batch_size,
        "precision": precision,
        "s a step": times.median_s,
        "samples a second": batch_size / times.median_s,
        "TFLOP a step": flops / 1e12,
        "TFLOP/s": rate,
    }
    if peak is not None:
        row["share of peak"] = rate / peak
    if torch.cuda.is_available():
        row["memory, GB"] = torch.cuda.max_memory_allocated() / 1e9
    return row


def step_flops(name: str, batch: ImageBatch | LatentBatch) -> int:
    """Of a forward and a backward pass, without recomputing anything."""
    with FlopCounterMode(display=False) as counter:
        if isinstance(batch, ImageBatch):
            made = network(name, "cpu").train()
            with FakeTensorMode(allow_non_fake_inputs=True):
                out = made(torch.empty(batch.images.shape))
                getattr(out, "images", out).sum().backward()  # of an autoencoder, or logits of a classifier
        else:
            made = network(name).train()
            codes = [torch.empty_like(level, device="meta") for level in batch.codes]
            above = len(made.condition_grids)
            labels = torch.empty_like(batch.labels, device="meta")
            made(codes[above], codes[:above], labels).sum().backward()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
