"""Losses of adversarial training: the hinge, the weight λ, LeCam.

Sources: Lim and Ye (2017), "Geometric GAN" (the hinge); Esser et al. (2021), equation 7 (λ); Tseng et al.
(2021), "Regularizing generative adversarial networks under limited data", equation 4 (LeCam).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqvae2 import distributed
from vqvae2.nn.checks import require
from vqvae2.nn.precision import without_autocast

LAMBDA_EPS = 1e-4  # keeps λ finite; Esser et al., public code (the paper: 1e-6)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """(mean relu(1 − D(x)) + mean relu(1 + D(x̂))) / 2, of logits."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def generator_loss(fake: Tensor) -> Tensor:
    """−mean D(x̂), of logits."""
    return -fake.mean()


def inside_margin(real: Tensor, fake: Tensor) -> Tensor:
    """The share of logits on which the hinge still acts: real ones below 1, fake ones above −1."""
    return ((real < 1).float().mean() + (fake > -1).float().mean()) / 2


def last_layer_gradient(last: nn.Conv2d, seen: Tensor, gradient: Tensor) -> Tensor:
    """∂L/∂W of a decoder's last layer, a 3x3 convolution with padding, in float32.

    What autograd would give, but found from the layer's input and from ∂L/∂x̂ alone: no loss has to be passed
    backward twice, and the weights may be sharded.

    Args:
        last: the layer.
        seen: [B, C, H, W], its input.
        gradient: ∂L/∂x̂, [B, 3, H, W].
    """
    shape = (gradient.shape[1], seen.shape[1], *last.kernel_size)
    with without_autocast(seen.device):
        return torch.nn.grad.conv2d_weight(seen.float(), shape, gradient.float(), padding=last.padding)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, maximum: float) -> Tensor:
    """λ = ‖∇L_rec‖ / (‖∇L_G‖ + ε), at most `maximum` (equation 7), of gradients of the last layer."""
    return (reconstruction.norm() / (adversarial.norm() + LAMBDA_EPS)).clamp(max=maximum)


class LeCam(nn.Module):
    """Draws logits to the moving average of the other side's, so that the discriminator cannot run away.

    Departs from equation 4 as its authors' code does: a logit is drawn only while it is on its own side.
    The averages start at 0 and are used bias-corrected; they are those of all ranks.

    Args:
        decay: of the averages, once a batch.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        require(0 <= decay < 1, "adversarial.lecam_decay", decay, "0 up to, not including, 1")
        self.decay = decay
        self.register_buffer("averages", torch.zeros(2, dtype=torch.float32))  # of real, of fake logits
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LeCam":
        """Moves, but never narrows."""
        return super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), recurse)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """The regulariser of the discriminator's logits, a scalar."""
        means = torch.stack([real.detach().mean(), fake.detach().mean()])
        means = distributed.all_reduce_sum(means) / distributed.world_size()
        self.num_updates += 1
        self.averages.lerp_(means, 1 - self.decay)
        mean_real, mean_fake = self.averages / (1 - self.decay**self.num_updates)
        return F.relu(real - mean_fake).square().mean() + F.relu(mean_real - fake).square().mean()
