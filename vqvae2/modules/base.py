"""What every trainable module shares: a network, its Polyak average, and checkpoints that describe themselves."""

import copy
from abc import abstractmethod
from typing import Any

import lightning as L
import torch
from torch import nn

from vqvae2.modules.checkpoint import DESCRIPTION


class NetworkModule(L.LightningModule):
    """Trains `self.network` and keeps `self.average`, its Polyak average, for evaluation.

    Args:
        polyak: decay of the average, once per optimiser step. The decay of step s is
            min(polyak, (1 + s) / (10 + s)), so that short runs are not averaged with their random start.

    A subclass says in `kind` what its checkpoints hold, builds its network in `build_network`, and calls
    `describe` there with what is needed to build the same network again.
    """

    kind: str

    def __init__(self, *, polyak: float) -> None:
        super().__init__()
        if not 0 <= polyak < 1:
            raise ValueError(f"polyak is a decay in [0, 1), found {polyak}. The papers use 0.9999.")
        self.polyak = polyak
        self.network: nn.Module | None = None
        self.average: nn.Module | None = None
        self._description: dict[str, Any] = {}
        self._averaged_step = 0

    @abstractmethod
    def build_network(self) -> nn.Module:
        """Builds the network; may ask `self.trainer.datamodule` for shapes."""

    def describe(self, network: dict[str, Any], **facts: Any) -> None:
        """Records the network's keyword arguments and any facts that its users need (plain types only)."""
        self._description = {"kind": self.kind, "network": network, **facts}

    def configure_model(self) -> None:
        if self.network is None:
            self.network = self.build_network()
            self.average = copy.deepcopy(self.network).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "NetworkModule":
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        return self

    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_step > self._averaged_step:  # gradient accumulation ends several batches a step
            self._averaged_step = self.global_step
            self.update_average()

    @torch.no_grad()
    def update_average(self) -> None:
        """average ← d·average + (1−d)·network for every floating tensor; counters are copied."""
        decay = min(self.polyak, (1 + self.global_step) / (10 + self.global_step))
        average, network = _floats(self.average), _floats(self.network)
        torch._foreach_lerp_(average, network, 1 - decay)
        for mine, theirs in zip(self.average.buffers(), self.network.buffers(), strict=True):
            if not mine.is_floating_point():
                mine.copy_(theirs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[DESCRIPTION] = self._description

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._averaged_step = checkpoint["global_step"]


def _floats(module: nn.Module) -> list[torch.Tensor]:
    tensors = [*module.parameters(), *module.buffers()]
    return [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
