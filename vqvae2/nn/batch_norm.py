"""Batch normalisation whose batch is that of all ranks together, so that their number changes nothing."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm

from vqvae2 import distributed


class BatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the batches of all ranks; torch's own `SyncBatchNorm` refuses a processor.

    The running statistics are the same on every rank too: one rank's checkpoint is everyone's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """
        Raises:
            ValueError: in training, all ranks together have one value a channel, which has no variance.
        """
        if self.training and x.numel() == x.shape[1] and distributed.world_size() == 1:
            raise ValueError(
                "Batch normalisation over one value a channel, wanted at least 2: take more than 1 sample a "
                "batch (data.batch_size)."
            )
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        self.num_batches_tracked.add_(1)
        return self._on_processor(x) if x.device.type == "cpu" else self._on_accelerator(x)

    def _on_accelerator(self, x: Tensor) -> Tensor:
        """What `SyncBatchNorm` does: its fused kernels."""
        statistics = self.running_mean, self.running_var
        group = dist.group.WORLD
        return SyncBatchNorm.apply(
            x, self.weight, self.bias, *statistics, self.eps, self.momentum, group, group.size()
        )

    @torch.compiler.disable
    def _on_processor(self, x: Tensor) -> Tensor:
        normalised, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), self.momentum)
        return normalised


class _Normalise(torch.autograd.Function):
    """x [B, C, H, W] to (x − mean) / √(variance + ε) · weight + bias, with the moments of all ranks' x.

    Returns the mean and the biased variance [C] and the number of values of each channel too.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        wide = x.float()
        variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        mine = torch.cat([mean, variance, mean.new_tensor([x.numel() / x.shape[1]])])
        ranks = mine.new_empty(distributed.world_size(), len(mine))
        dist.all_gather(list(ranks.unbind()), mine)
        means, variances, counts = ranks.split([len(mean), len(mean), 1], 1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        scale = (variance + eps).rsqrt()
        unit = (wide - _as_map(mean)) * _as_map(scale)
        ctx.save_for_backward(unit, scale, weight, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return (unit * _as_map(weight) + _as_map(bias)).to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        unit, scale, weight, count = ctx.saved_tensors
        wide = grad.float()
        sums = torch.stack([wide.sum((0, 2, 3)), (wide * unit).sum((0, 2, 3))])
        grad_bias, grad_weight = sums.clone()  # of this rank: as all weights' gradients are
        of_mean, of_scale = distributed.all_reduce_sum(sums) / count
        grad_x = (wide - _as_map(of_mean) - unit * _as_map(of_scale)) * _as_map(scale * weight)
        return grad_x.to(grad.dtype), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None


def _as_map(x: Tensor) -> Tensor:
    return x[:, None, None]
