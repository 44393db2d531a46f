"""Stage 1 without training: the checkpoint of grey values as codes, which the other jobs read."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vqvae2.data.images import ImageBatch
from vqvae2.nn.contracts import Reconstructed
from vqvae2.nn.pixel_values import PixelValues
from vqvae2.training.tokenizer import Losses, TokenizerModule


class PixelValuesModule(TokenizerModule):
    """Writes `PixelValues` into a checkpoint. There is nothing to train: one step on one device is enough.

    Validation logs the error of rounding to 8 bits, which is 0 for images that have 8, and how many grey
    values the held-out images have.
    """

    def __init__(self) -> None:
        super().__init__(polyak=0)
        self.options = {}

    def make(self, channels: int) -> PixelValues:
        return PixelValues(channels=channels)

    def losses(self, images: Tensor, out: Reconstructed) -> Losses:
        mse = F.mse_loss(out.images, images.float())
        return {"loss": mse, "mse": mse}

    def training_step(self, batch: ImageBatch, _: int) -> Tensor:
        return torch.zeros((), device=self.device, requires_grad=True)  # Lightning passes it backward

    def update_codebooks(self) -> Sequence[Tensor]:
        return ()

    def update_average(self, step: int) -> None:
        """Nothing: there are no weights."""

    def configure_optimizers(self) -> None:
        """None, for the same reason."""
