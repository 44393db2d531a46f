"""The residual conditioning stack of the mid and bottom priors.

Source: VQ-VAE-2 (Razavi et al., 2019), supplement A.2, pseudo code for the conditioning stack. Its loops over
`num_conditioning_blocks 2` have lost a `//`: with halves the weights agree with the top prior's.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from vqvae2.nn.batch_norm import BatchNorm
from vqvae2.nn.recompute import run_again


def residual_block(hidden: int, bottleneck: int) -> nn.Sequential:
    """resnet_block of the pseudo code; normalisation first, as its first statement says."""
    return nn.Sequential(
        BatchNorm(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, bottleneck, 1),
        nn.ReLU(),
        nn.Conv2d(bottleneck, bottleneck, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(bottleneck, hidden, 1),
    )


class ResidualBlocks(nn.ModuleList):
    """h += block(h), `count` times; `recompute` as in `ConditioningStack`."""

    def __init__(self, count: int, hidden: int) -> None:
        super().__init__(residual_block(hidden, hidden // 4) for _ in range(count))

    def forward(self, h: Tensor, recompute: bool) -> Tensor:
        for block in self:
            h = h + (run_again(block, h) if recompute else block(h))
        return h


class ConditioningStack(nn.Module):
    """Three scales down and up again: [B, in, h, w] → [B, Z, h, w], for any grid.

    Args:
        in_channels: of the embedded codes of the levels above.
        hidden: Z, width at the input's grid; the coarser grids have twice as much (in the paper 1024, 2048).
        blocks: residual blocks of the coarsest scale; half as many on each way at the others.
    """

    def __init__(self, in_channels: int, hidden: int, blocks: int) -> None:
        super().__init__()
        wide, half = 2 * hidden, blocks // 2
        self.enter = nn.Conv2d(in_channels, hidden, 1)
        self.down1 = ResidualBlocks(half, hidden)
        self.shrink1 = nn.Conv2d(hidden, wide, 1, stride=2)
        self.down2 = ResidualBlocks(half, wide)
        self.shrink2 = nn.Conv2d(wide, wide, 1, stride=2)
        self.middle = ResidualBlocks(blocks, wide)
        self.grow2 = nn.ConvTranspose2d(wide, wide, 2, stride=2)
        self.up2 = ResidualBlocks(half, wide)
        self.grow1 = nn.ConvTranspose2d(wide, hidden, 2, stride=2)
        self.up1 = ResidualBlocks(half, hidden)

    @property
    def blocks(self) -> list[nn.Module]:
        """All residual blocks."""
        return [*self.down1, *self.down2, *self.middle, *self.up2, *self.up1]

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        """[B, Z, h, w]; with `recompute`, blocks run again in the backward pass and keep only their input."""
        height, width = x.shape[-2:]
        # Both halvings need even sides; a grid that divides is not touched.
        x = F.pad(x, (0, -width % 4, 0, -height % 4))
        h1 = self.down1(self.enter(x), recompute)
        h2 = self.down2(self.shrink1(h1), recompute)
        h3 = self.middle(self.shrink2(h2), recompute)
        h2 = self.up2(h2 + self.grow2(h3), recompute)
        return self.up1(h1 + self.grow1(h2), recompute)[:, :, :height, :width]
