"""What trainable modules share: a network, its Polyak average, checkpoints that describe themselves."""

import copy
from abc import abstractmethod
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vqvae2 import distributed
from vqvae2.nn.checks import require
from vqvae2.storage.checkpoint import DESCRIPTION, described, rebuild
from vqvae2.training.schedules import Schedule
from vqvae2.training.sharding import local, shard


class NetworkModule(L.LightningModule):
    """Trains `self.network` and keeps `self.average`, its Polyak average, for evaluation.

    Args:
        polyak: decay of the average, once per optimiser step. Departs from the paper, which does not say how
            the average starts: the decay of step s is min(polyak, (1 + s) / (10 + s)), so that short runs are
            not averaged with their random start. With 0.9999 that matters for the first 90,000 steps.
        compiled: compile the network that is trained (not its average), which needs a C++ compiler on a
            processor; the first steps wait for it. Checkpoints are the same either way.

    A subclass says in `kind` what its checkpoints hold, builds its network in `build_network`, and says there
    in `self.description` what is needed to build the same network again. It may build a `helper` too, which
    is trained beside the network by the same optimiser and saved with the run, and is in no average and no
    description: what `load_network` finds is the network alone.
    """

    kind: str

    def __init__(self, *, polyak: float, compiled: bool = False) -> None:
        super().__init__()
        require(0 <= polyak < 1, "polyak", polyak, "0 up to, not including, 1 (the paper's is 0.9999)")
        self.polyak = polyak
        self.compiled = compiled
        self.network: nn.Module | None = None
        self.average: nn.Module | None = None
        self.helper: nn.Module | None = None
        self.description: dict[str, Any] = {}

    @abstractmethod
    def build_network(self) -> nn.Module:
        """Builds the network; may ask `self.trainer.datamodule` for shapes."""

    def build_helper(self) -> nn.Module | None:
        """Builds what is trained beside the network, with `blocks` as networks have them; here, nothing."""
        return None

    @property
    def trained(self) -> list[nn.Module]:
        """What the optimiser steps: the network, and the helper where there is one."""
        return [part for part in (self.network, self.helper) if part is not None]

    def configure_model(self) -> None:
        if self.network is None:
            self.network = self.build_network()
            self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
            self.helper = self.build_helper()
            if self.device_mesh is not None:  # the strategy shards
                for part in self.trained:
                    shard(part, self.device_mesh, mixed=self.trainer.precision == "bf16-mixed")
                shard(self.average, self.device_mesh, between=True)
            if self.compiled:
                self.network.compile()  # in place: no name in a checkpoint changes

    def whole_average(self) -> nn.Module:
        """The average; where it is sharded, a copy of it on this device, made by all ranks together.

        A sharded network cannot do more than `forward`.
        """
        if self.device_mesh is None:
            return self.average
        state = self.average.state_dict()
        whole = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in state.items()}
        return rebuild(self.description, whole)

    def on_fit_start(self) -> None:
        for network in (*self.trained, self.average):  # nothing else makes or keeps buffers the same
            distributed.broadcast(list(network.buffers()))
        self._seed = torch.initial_seed()

    def on_train_batch_start(self, *_: Any) -> None:
        # What a batch draws (dropout, revived codes) depends on seed, batch and rank alone, not on what was
        # drawn before: a resumed run draws what an uninterrupted one does.
        key = (self._seed, self.trainer.fit_loop.total_batch_idx, distributed.rank())
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))

    def train(self, mode: bool = True) -> "NetworkModule":
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        return self

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # Not in `on_train_batch_end`: callbacks run before it, and a checkpoint would miss this step's part.
        super().optimizer_step(*args, **kwargs)
        self.after_optimizer_step()
        self.update_average(step=self.global_step + 1)

    def after_optimizer_step(self) -> None:
        """For what a step changes besides the parameters."""

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """average ← d·average + (1−d)·network for every floating tensor; counters are copied."""
        decay = min(self.polyak, (1 + step) / (10 + step))
        torch._foreach_lerp_(_floats(self.average), _floats(self.network), 1 - decay)
        for mine, theirs in zip(self.average.buffers(), self.network.buffers(), strict=True):
            if not mine.is_floating_point():
                mine.copy_(theirs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[DESCRIPTION] = self.description

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called before the weights of a resumed checkpoint are loaded.

        Raises:
            ValueError: they are not those of such a network, on such data.
        """
        found = described(checkpoint)
        if found != self.description:
            difference = _first_difference(found, self.description)
            raise ValueError(
                f"The checkpoint to go on from does not fit this run: {difference}. "
                "Go on with the config and the data that it was trained with, or start anew."
            )

    def writes_step(self, step: int) -> bool:
        """Whether Lightning writes what is logged during optimiser step `step`, counted from 1.

        It takes in what is logged in every step, which can take longer than a small step itself.
        """
        every = self.trainer.log_every_n_steps
        return every > 0 and step % every == 0

    def over_ranks(self, figures: dict[str, Tensor]) -> dict[str, Tensor]:
        """The means of figures of a training step over the ranks, if it is one of those that are written.

        The ranks' batches are equal, so these are the figures that one process would write.
        """
        if distributed.world_size() == 1 or not self.writes_step(self.global_step + 1):
            return figures
        values = torch.stack([value.detach().float() for value in figures.values()])
        means = distributed.all_reduce_sum(values) / distributed.world_size()
        return dict(zip(figures, means, strict=True))

    def adam(
        self,
        weight_decay: float | None = None,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        helper_rate: float = 1.0,
    ) -> torch.optim.Adam:
        """Adam over all that is trained with a learning rate of 1, ε (unstated in the paper) torch's.

        Fused, the step takes a third of the time.

        Args:
            weight_decay: AdamW's, of matrices; not of biases and norms. None for plain Adam.
            betas: unstated in VQ-VAE-2; torch's.
            helper_rate: learning rate of the helper, in units of the network's.
        """
        plain = self._scales and bool(self.trainer.gradient_clip_val)
        options = {"lr": 1.0, "betas": betas, "fused": None if plain else True}
        groups = []
        for part, rate in zip(self.trained, (1.0, helper_rate), strict=False):
            whole = [{"params": list(part.parameters())}]
            own = whole if weight_decay is None else decayed(part, weight_decay)
            groups += [{**group, "lr": rate} for group in own]
        kind = torch.optim.Adam if weight_decay is None else torch.optim.AdamW
        adam = kind(groups, **options)
        adam.register_load_state_dict_post_hook(_lay_out_as_weights)
        return adam

    @property
    def _scales(self) -> bool:
        """Whether gradients are scaled; a fused step would undo that itself, too late for clipping."""
        return self.trainer.precision == "16-mixed"

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Each network by itself, as in steps of their own. By hand: Lightning clips all gradients as one, and
        # refuses to for a fused step under any mixed precision, bfloat16 too.
        if not gradient_clip_val:
            return
        by_value = GradClipAlgorithmType(gradient_clip_algorithm or "norm") == GradClipAlgorithmType.VALUE
        clip = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
        for part in self.trained:
            clip(part.parameters(), gradient_clip_val)

    def scheduled(self, optimizer: Optimizer, schedule: Schedule, *, width: int) -> dict[str, Any]:
        """An optimiser made with a learning rate of 1, and the schedule's rate for each of its steps."""
        total_steps = self.trainer.estimated_stepping_batches  # infinite without trainer.max_steps
        scheduler = LambdaLR(
            optimizer, lambda step: schedule.rate(step + 1, width=width, total_steps=total_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def decayed(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """A module's weights as groups of an optimiser: matrices and kernels decay, biases and norms do not."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _lay_out_as_weights(optimizer: Optimizer) -> None:
    """A fused step walks through weights and moments in the order of memory, whatever their strides are.

    Those of a checkpoint may differ: channels last or not, as the run had it that wrote the checkpoint.
    """
    for weights, state in optimizer.state.items():
        for name, value in state.items():
            if not torch.is_tensor(value) or value.shape != weights.shape:
                continue
            if local(value).stride() != local(weights).stride():
                state[name] = torch.empty_like(weights, dtype=value.dtype).copy_(value)


def _first_difference(found: dict[str, Any] | None, wanted: dict[str, Any]) -> str:
    if found is None:
        return "it was not written by this suite"
    for name in {**wanted, **found}:
        mine, theirs = wanted.get(name), found.get(name)
        if mine == theirs:
            continue
        if isinstance(mine, dict) and isinstance(theirs, dict):
            return f"{name}: {_first_difference(theirs, mine)}"
        return f"its {name} is {theirs!r}, here it is {mine!r}"
    return "it describes itself in another order"


def _floats(module: nn.Module) -> list[torch.Tensor]:
    tensors = [*module.parameters(), *module.buffers()]
    return [local(tensor.detach()) for tensor in tensors if tensor.is_floating_point()]
