"""Watches a training run: stops it when its numbers go bad, warns of codebooks that collapse."""

import statistics
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from vqvae2 import distributed
from vqvae2.nn.checks import require
from vqvae2.storage.checkpoint import Pieces, read_checkpoint
from vqvae2.training.base import NetworkModule
from vqvae2.training.sharding import local
from vqvae2.training.tokenizer import TokenizerModule

SMALLEST_LOSS_SCALE = 1e-4  # fairseq's --min-loss-scale: float16 that overflows below it will always do so
ADVICE = (
    "a lower learning rate, a longer warm-up, --trainer.gradient_clip_val 1, "
    "--trainer.precision bf16-mixed or 32-true, or without the data of that step if they are at fault"
)
_PERIOD = 50  # steps between two looks where trainer.log_every_n_steps is 0
_HISTORY = 25  # looks


class Health(L.Callback):
    """Logs the gradient's norm, stops a run that diverges, and warns of codebooks that collapse.

    `train/gradient_norm` is that of all weights over all ranks, before clipping.

    The run stops on all ranks, with an error that names the last good checkpoint, when

    - a loss of any step and rank, or a logged gradient norm, is not finite: found at the next logged step,
      within `trainer.log_every_n_steps`, and before a validation. Under float16's loss scaling, which skips
      steps whose gradient overflows, a gradient counts only when the scale has fallen below 1e-4;
    - the loss explodes: its median over a period, the steps between two logged ones, is above `explosion`
      times the median of the last 25 periods, `patience` times in a row. (The first is compared with the
      run's first loss.)
    - weights, averages, codebooks or the optimiser's state are not finite. This is checked before each
      validation and before every checkpoint, so no checkpoint ever holds such numbers.

    Each check waits for the device once; the steps between do not wait. Not Lightning's `SpikeDetection`,
    because it waits at every step and checks only the loss.

    Args:
        explosion: the largest factor by which a loss may exceed its earlier median; null for no limit.
        patience: the run stops after so many periods in a row with a larger loss.
        collapsed_below: a codebook counts as collapsed while its perplexity in validation is below this
            fraction of its codes, or below 1.5 (hardly more than one code is used); 0 never warns.
        collapsed_validations: the warning comes after so many validations in a row, once for each level.
    """

    def __init__(
        self,
        *,
        explosion: float | None = 10.0,
        patience: int = 3,
        collapsed_below: float = 0.05,
        collapsed_validations: int = 2,
    ) -> None:
        require(explosion is None or explosion > 1, "explosion", explosion, "above 1, or null")
        require(patience >= 1, "patience", patience, "at least 1")
        require(0 <= collapsed_below < 1, "collapsed_below", collapsed_below, "0 up to, not including, 1")
        require(collapsed_validations >= 1, "collapsed_validations", collapsed_validations, "at least 1")
        self.explosion = explosion
        self.patience = patience
        self.collapsed_below = collapsed_below
        self.collapsed_validations = collapsed_validations
        self._collapsed: dict[str, int] = {}  # validations in a row, of each level

    def on_train_start(self, trainer: L.Trainer, pl_module: NetworkModule) -> None:
        self._step = trainer.global_step  # steps done
        self._losses: list[tuple[int, Tensor]] = []  # since the last look, with their steps, counted from 1
        self._gradient_norm: Tensor | None = None  # of a logged step
        self._medians: deque[float] = deque(maxlen=_HISTORY)
        self._exploded: list[int] = []  # steps of looks in a row that found too large a loss

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: NetworkModule, optimizer: Optimizer
    ) -> None:
        if pl_module.writes_step(trainer.global_step + 1):
            self._gradient_norm = gradient_norm(pl_module.network.parameters())
            pl_module.log("train/gradient_norm", self._gradient_norm)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: NetworkModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = trainer.global_step > self._step  # not after the earlier ones of accumulated batches
        loss = outputs["loss"] * trainer.accumulate_grad_batches  # Lightning has divided it
        self._losses.append((self._step + 1, loss))
        self._step = trainer.global_step
        if stepped and self._step % (trainer.log_every_n_steps or _PERIOD) == 0:
            self._look(trainer, check_size=True)

    def on_validation_start(self, trainer: L.Trainer, pl_module: NetworkModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._look(trainer, check_size=False)
            self._check_state(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: NetworkModule, checkpoint: dict[str, Any]
    ) -> None:
        self._check_state(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: NetworkModule) -> None:
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if not fitting or not isinstance(pl_module, TokenizerModule):
            return
        for level, num_codes in pl_module.network.codebooks.items():
            perplexity = float(trainer.callback_metrics[f"val/perplexity_{level}"])
            low = self.collapsed_below and perplexity < max(self.collapsed_below * num_codes, 1.5)
            count = self._collapsed.get(level, 0)
            if count < self.collapsed_validations:  # what has been said is not said again
                self._collapsed[level] = count + 1 if low else 0
                if low and count + 1 == self.collapsed_validations:
                    rank_zero_warn(_collapse(level, perplexity, num_codes, pl_module.advice(level)))

    def _look(self, trainer: L.Trainer, *, check_size: bool) -> None:
        """Checks that the losses are finite; also their size, if they are those of a whole period."""
        if not self._losses:
            return
        steps, losses = zip(*self._losses, strict=True)
        values = torch.stack(losses).double()
        first = values.isfinite().logical_not().int().argmax()  # 0 if all are finite
        norm = values.new_zeros(()) if self._gradient_norm is None else self._gradient_norm.to(values)
        row = torch.stack([first.to(values), values[first], values.median(), values[0], norm])
        table = _of_all_ranks(row)
        self._gradient_norm = None
        found = [(index, rank, value) for rank, (index, value, *_) in enumerate(table) if not _finite(value)]
        if found:  # a fault of one rank is that of the others' next step
            index, rank, value = min(found)
            step = steps[int(index)]
            self._stop(trainer, step, f"the loss of step {step} is {value} (rank {rank})")
        norm = table[0][-1]
        if not _finite(norm) and not _scales_down(trainer):
            self._stop(trainer, self._step, f"the norm of the gradient of step {self._step} is {norm}")
        if check_size:
            self._losses = []
            medians, firsts = ([r[column] for r in table] for column in (2, 3))
            self._check_size(trainer, statistics.fmean(medians), statistics.fmean(firsts))

    def _check_size(self, trainer: L.Trainer, median: float, first: float) -> None:
        if self.explosion is None:
            return
        if not self._medians:
            self._medians.append(first)
        usual = statistics.median(self._medians)
        if median <= self.explosion * usual:
            self._medians.append(median)
            self._exploded = []
            return
        self._exploded.append(self._step)
        if len(self._exploded) == self.patience:
            period = trainer.log_every_n_steps or _PERIOD
            since = self._exploded[0] - period + 1
            what = f"since step {since} the loss is too large, now {median:.4g}, where it was {usual:.4g}"
            self._stop(trainer, since - period, what)  # less than half of the period before may be bad too

    def _check_state(self, trainer: L.Trainer, module: NetworkModule) -> None:
        """Of what a checkpoint holds: all ranks have to come here, as they do when they save one."""
        finite = [torch.ones((), dtype=torch.bool, device=module.device)]  # a network may have no weights
        finite += [t.isfinite().all().to(module.device) for t in _saved_tensors(module, trainer.optimizers)]
        bad = torch.stack(finite).logical_not().any().double()
        if any(flag for [flag] in _of_all_ranks(bad[None])):
            what = "weights, averages, codebooks or the optimiser's state are not finite"
            self._stop(trainer, trainer.global_step, f"{what} after step {trainer.global_step}")

    def _stop(self, trainer: L.Trainer, since: int, what: str) -> None:
        """Raises the same error on all ranks, which all have found the same."""
        good = newest_checkpoint(Path(trainer.default_root_dir), before=since)
        if good is None:
            advice = f"There is no checkpoint from before that. Start anew with {ADVICE}."
        else:
            go_on = f"--ckpt_path {good} --allow_inexact_resume true"
            advice = f"The last good checkpoint is {good}. Go on with {go_on} and {ADVICE}."
        message = f"Training stopped at step {trainer.global_step}: {what}. {advice}"
        raise ValueError(trainer.strategy.broadcast(message))


def gradient_norm(parameters: Iterable[torch.nn.Parameter]) -> Tensor:
    """The 2-norm of all gradients as one vector, over all ranks where they are sharded (collective there)."""
    norm = torch.nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def newest_checkpoint(folder: Path, *, before: int) -> Path | None:
    """The checkpoint in a run folder after the most steps, but fewer than `before`."""
    steps = {path: _steps_done(path) for path in folder.glob("*.ckpt")}
    good = [path for path, step in steps.items() if step is not None and step < before]
    return max(good, key=lambda path: (steps[path], path.name), default=None)


def _steps_done(path: Path) -> int | None:
    """None of what cannot be read: it will not do to go on from."""
    try:
        return read_checkpoint(path, join=Pieces)["global_step"]
    except ValueError:
        return None


def _saved_tensors(module: NetworkModule, optimizers: list[Optimizer]) -> Iterator[Tensor]:
    states = (state.values() for optimizer in optimizers for state in optimizer.state.values())
    values = [value for state in states for value in state]
    for value in [*module.parameters(), *module.buffers(), *values]:
        if torch.is_tensor(value) and value.is_floating_point():
            yield local(value.detach())


def _of_all_ranks(row: Tensor) -> list[list[float]]:
    """One row a rank; waits for the device."""
    table = row.new_zeros(distributed.world_size(), len(row))
    table[distributed.rank()] = row
    return distributed.all_reduce_sum(table).tolist()


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def _scales_down(trainer: L.Trainer) -> bool:
    """Whether float16's loss scaling skips steps that overflow, and can still lower its scale."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and scaler.get_scale() >= SMALLEST_LOSS_SCALE


def _collapse(level: str, perplexity: float, num_codes: int, tries: list[str]) -> str:
    tries = [*tries, "a lower learning rate or a longer warm-up"]
    found = f"its perplexity is {perplexity:.3g}, of {num_codes} codes"
    return f"The codebook of the level '{level}' has collapsed: {found}. Try {'; or '.join(tries)}."
