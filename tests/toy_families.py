"""A third kind of tokenizer and of prior, each as small as can be, that keep the contracts."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqvae2.nn.contracts import PriorNetwork, PriorShape, Tokenizer
from vqvae2.sampling.draw import Draw, Noise, Sampled, draw, level_sampler
from vqvae2.training.prior import PriorModule
from vqvae2.training.tokenizer import TokenizerModule


class Means(NamedTuple):
    images: Tensor
    codes: tuple[Tensor, ...]


class BlockMeans(Tokenizer, architecture="block-means"):
    """The mean of each 8x8 block, then what the mean of each 4x4 block differs from it, in 16 steps each."""

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.channels, self.level_names, self.codebook_sizes = channels, ("top", "bottom"), (16, 16)
        self.steps = nn.Parameter(torch.linspace(-1, 1, 16))

    def grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        return (height // 8, width // 8), (height // 4, width // 4)

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        top = self.nearest(F.avg_pool2d(images.mean(1), 8))
        above = F.interpolate(self.steps[top][:, None], scale_factor=2)[:, 0]
        return top, self.nearest(F.avg_pool2d(images.mean(1), 4) - above)

    def decode(self, codes: tuple[Tensor, ...], num_levels: int | None = None) -> Tensor:
        shown = F.interpolate(self.steps[codes[0]][:, None], scale_factor=2)
        shown = shown + (self.steps[codes[1]][:, None] if num_levels != 1 else 0)
        return F.interpolate(shown, scale_factor=4).expand(-1, self.channels, -1, -1)

    def forward(self, images: Tensor) -> Means:
        codes = self.encode(images)
        return Means(self.decode(codes), codes)

    def nearest(self, values: Tensor) -> Tensor:
        return (values[..., None] - self.steps).abs().argmin(-1)


class BlockMeansModule(TokenizerModule):
    def __init__(self) -> None:
        super().__init__(polyak=0.5)
        self.options: dict[str, Any] = {}

    def make(self, channels: int) -> BlockMeans:
        return BlockMeans(channels=channels)

    def losses(self, images: Tensor, out: Means) -> dict[str, Tensor]:
        mse = F.mse_loss(out.images, images)
        return {"loss": mse, "mse": mse.detach()}

    def keep_statistics(self, out: Means) -> None: ...

    def update_codebooks(self) -> tuple[()]:
        return ()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.network.parameters(), lr=0.01)


class Histogram(PriorNetwork, architecture="histogram"):
    """Codes that depend on their class alone; its likelihood is kept to itself."""

    def __init__(self, **shape: Any) -> None:
        super().__init__()
        self.grid, self.num_codes, self.num_classes = (
            tuple(shape["grid"]),
            shape["num_codes"],
            shape["num_classes"],
        )
        self.logits = nn.Parameter(torch.zeros(max(self.num_classes, 1), self.num_codes))

    def forward(self, labels: Tensor) -> Tensor:
        return self.logits[labels.clamp(min=0)]

    def loss(self, codes: Tensor, conditions: Any, labels: Tensor) -> Tensor:
        logits = self(labels)[:, :, None].expand(-1, -1, codes[0].numel())
        return F.cross_entropy(logits, codes.flatten(1))


class HistogramModule(PriorModule):
    def __init__(self, *, level: str, schedule: Any = None) -> None:
        super().__init__(level=level, schedule=schedule, polyak=0.5)
        self.options: dict[str, Any] = {}

    def make(self, shape: PriorShape) -> Histogram:
        return Histogram(**shape._asdict())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.network.parameters(), lr=0.1)


@level_sampler.register
def histogram_sampler(prior: Histogram, how: Draw, **_: bool) -> Any:
    def sampler(conditions: Any, labels: Tensor, noise: Noise, kept: Tensor) -> Sampled:
        uniforms = noise.uniforms(kept[0].numel()).to(kept.device)
        logits = prior(labels).double()
        drawn = torch.stack([draw(logits, column, how) for column in uniforms.T], 1).view_as(kept)
        return Sampled(torch.where(kept < 0, drawn, kept), None)

    return sampler
