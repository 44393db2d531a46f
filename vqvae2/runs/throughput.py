"""How fast training goes, how much of the time it waits for data, and the memory that it takes."""

import resource
import sys
import time
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vqvae2 import distributed


class Throughput(L.Callback):
    """Logs `speed/samples_per_s` and `speed/data_wait` over the steps since the last logged one, and memory.

    A sample is an image or a code grid, counted over all ranks (whose shares of a batch are equal to within
    one). `data_wait` is the share of the time, in [0, 1], between the end of a step and the arrival of the
    next batch (what is queued on a GPU goes on meanwhile, so at most this share is lost). Validation is in
    neither figure. `speed/training_s` is the time of all steps so far and of their waiting, also of those
    before the run was resumed. `memory/peak_gb` is the most so far, in 10^9 bytes: what tensors took on a
    GPU, else the process. Waiting and memory are rank 0's.

    By hand: Lightning's `ThroughputMonitor` does not know how long a run waits for data.
    """

    def __init__(self) -> None:
        self._ready_at: float | None = None  # when the loop last began to ask for a batch, or to compute
        self._step = 0  # steps done
        self._last_wait_s = 0.0  # for the batch that is being computed
        self._training_s = 0.0  # of all batches whose computing has ended: what a checkpoint holds
        self.restart()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ready_at = None
        self._step = trainer.global_step
        self.restart()

    def on_validation_start(self, *_: Any) -> None:
        self._ready_at = None

    def on_train_batch_start(self, *_: Any) -> None:
        self._last_wait_s = self._lap_s()
        self._wait_s += self._last_wait_s

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        computed_s = self._lap_s()
        self._step_s += computed_s
        self._training_s += self._last_wait_s + computed_s
        self._samples += batch_size(batch) * distributed.world_size()
        stepped = trainer.global_step > self._step  # not after the earlier ones of accumulated batches
        self._step = trainer.global_step
        if not stepped or trainer.log_every_n_steps == 0 or self._step % trainer.log_every_n_steps:
            return  # Lightning would take the figures in, and not write them
        totals = {"speed/training_s": self._training_s, "memory/peak_gb": peak_memory_gb(pl_module.device)}
        pl_module.log_dict(self.figures() | totals)
        self.restart()

    def state_dict(self) -> dict[str, Any]:
        return {"training_s": self._training_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._training_s = state_dict["training_s"]

    def figures(self) -> dict[str, float]:
        """Samples a second and the share of waiting, over the steps since the last `restart`."""
        elapsed_s = self._wait_s + self._step_s
        return {"speed/samples_per_s": self._samples / elapsed_s, "speed/data_wait": self._wait_s / elapsed_s}

    def restart(self) -> None:
        """Forgets the steps so far."""
        self._wait_s = self._step_s = 0.0
        self._samples = 0

    def _lap_s(self) -> float:
        now = time.perf_counter()
        lap_s = 0.0 if self._ready_at is None else now - self._ready_at
        self._ready_at = now
        return lap_s


def peak_memory_gb(device: torch.device) -> float:
    """The most so far, in 10^9 bytes: of a GPU's tensors, or of the process where `device` is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def batch_size(batch: Any) -> int:
    """The length of the first tensor in a batch.

    Raises:
        ValueError: there is no tensor in it.
    """
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor):
            return len(leaf)
    raise ValueError(f"A batch of {type(batch).__name__} holds no tensor to count samples by.")
