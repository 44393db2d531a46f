"""The smallest module and data that the command line can run, with options of every kind."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from torch.utils.data import DataLoader


@dataclass
class Augmentation:
    flip: bool = False
    shift: int = 0


class FakeModule(L.LightningModule):
    """Fits one number to the data's mean."""

    def __init__(
        self, *, hidden: int, learning_rate: float = 0.1, mode: Literal["plain", "fancy"] = "plain"
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden is a width of at least 1, found {hidden}.")
        self.hidden = hidden
        self.learning_rate = learning_rate
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        loss = (batch - self.weight).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: torch.Tensor) -> None:
        self.log("val/loss", (batch - self.weight).square().mean())

    def test_step(self, batch: torch.Tensor) -> None:
        self.log("test/loss", (batch - self.weight).square().mean())

    def predict_step(self, batch: torch.Tensor) -> torch.Tensor:
        return batch - self.weight

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


class FakeData(L.LightningDataModule):
    """`size` ones in batches of `batch_size`."""

    def __init__(self, *, size: int = 16, batch_size: int = 4, augment: Augmentation | None = None) -> None:
        super().__init__()
        self.loader = DataLoader(torch.ones(size), batch_size=batch_size)

    def train_dataloader(self) -> DataLoader:
        return self.loader

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class BrokenModule(FakeModule):
    """Fails as a programming mistake does."""

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        raise TypeError("a bug")


class UnbuildableModule(FakeModule):
    """Fails as a programming mistake does, while it is built."""

    def __init__(self) -> None:
        raise TypeError("not a width")


class PathModule(FakeModule):
    """Takes paths of every kind."""

    def __init__(
        self,
        *,
        checkpoint: Path,
        priors: list[str] | None = None,
        samples: dict[str, str] | None = None,
        others: dict[str, str | None] | None = None,
        plain: str | Path = "x",
    ) -> None:
        super().__init__(hidden=1)
        self.checkpoint, self.priors, self.plain = checkpoint, priors, plain
        self.samples, self.others = samples, others


class PathCallback(L.Callback):
    """Takes a path."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
