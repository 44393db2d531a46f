"""Stage 1 of VQ-GAN + SUNDAE: training an autoencoder against a discriminator.

One optimiser steps both networks, by one backward pass of the sum of their losses. The losses are made so
that no gradient leaks: the reconstruction's is found by itself, the discriminator sees a detached copy.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from vqvae2 import distributed
from vqvae2.nn.adversarial import (
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    inside_margin,
    last_layer_gradient,
)
from vqvae2.nn.checks import require
from vqvae2.nn.patch_discriminator import PatchDiscriminator
from vqvae2.nn.vqgan import VQGAN, VQGANReconstruction
from vqvae2.pixels import size_of
from vqvae2.training.perceptual import Distance, Perceptual, load_distance
from vqvae2.training.schedules import Schedule
from vqvae2.training.tokenizer import Losses, TokenizerModule

_STATE = "vqgan"  # the checkpoint's entry
_ANY = "a finite number, 0 or more"


@dataclass(frozen=True)
class Discriminator:
    """Options of `PatchDiscriminator`, and its learning rate in units of the schedule's."""

    hidden: int
    layers: int
    norm: Literal["group", "batch"]
    norm_groups: int | None = None
    rate: float = 1.0


@dataclass(frozen=True)
class Adversarial:
    """When and how much the discriminator's gradient counts.

    Args:
        start: batches of the run after which it counts, however many make a step.
        warmup: batches before `start` that already train the discriminator; 0 as in taming.
        weight: α_GAN of equation 7. It multiplies λ after λ has been clamped.
        weighting: `adaptive` is λ of equation 7, over all ranks, for each batch; `fixed` is 1 in its place.
        lambda_max: λ is at most this.
        lecam: weight of LeCam's regulariser of the discriminator; 0 is the paper's.
        lecam_decay: of its moving averages; needed where `lecam` is not 0.
    """

    start: int
    warmup: int
    weight: float
    weighting: Literal["adaptive", "fixed"]
    lambda_max: float = math.inf
    lecam: float = 0.0
    lecam_decay: float | None = None

    def __post_init__(self) -> None:
        require(self.start >= 0, "adversarial.start", self.start, "0 or more batches")
        require(0 <= self.warmup <= self.start, "adversarial.warmup", self.warmup, f"0 to {self.start}")
        require(0 <= self.weight < math.inf, "adversarial.weight", self.weight, _ANY)
        require(0 <= self.lecam < math.inf, "adversarial.lecam", self.lecam, _ANY)
        require(self.lambda_max > 0, "adversarial.lambda_max", self.lambda_max, "above 0")
        kinds = ("adaptive", "fixed")
        require(self.weighting in kinds, "adversarial.weighting", self.weighting, "adaptive or fixed")
        decays = self.lecam_decay is not None or not self.lecam
        require(decays, "adversarial.lecam_decay", self.lecam_decay, "a decay, as lecam is not 0")


class VQGANModule(TokenizerModule):
    """Trains a `VQGAN` on images against a `PatchDiscriminator`.

    The autoencoder minimises L_rec + codebook_weight · L_VQ + λ · weight · L_G, with
    L_rec = pixel_weight · mean |x − x̂| (or its square) + perceptual_weight · d(x, x̂) and L_G = −mean D(x̂);
    the discriminator a hinge loss (Esser et al., 2021, equations 4 to 7). L_VQ is beta · commitment +
    codebook term, or commitment + beta · codebook term. Moving averages leave out the codebook term.

    `train/loss` and `val/loss` are L_rec + codebook_weight · L_VQ: the adversarial terms have no scale that
    could be compared over time, so they are logged beside it (`generator`, `discriminator`, ...). All of them
    are in the gradient.

    Args:
        schedule: learning rate of Adam.
        betas: of Adam, for both networks.
        polyak: decay of the averaged weights of the autoencoder, which are evaluated and encode; 0 is the
            paper's.
        pixel: `l1` (the paper) or `l2`.
        pixel_weight: α_PIX.
        perceptual: what compares images, null for nothing.
        perceptual_weight: α_PER.
        codebook_weight: α_VQ.
        beta: weight within L_VQ.
        beta_on: which term beta multiplies: `commitment` (VQ-VAE), or `codebook`, as taming's published
            configs do, which need `codebook: gradient`.
        adversarial: see `Adversarial`.
        discriminator: see `PatchDiscriminator`; it has no average, and is in the run's checkpoints only to go
            on from.
        weight_decay: AdamW's, of matrices; null for plain Adam (the paper).
        compiled: see `NetworkModule`.
        network: options of `VQGAN`; the channels come from the data.
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        betas: tuple[float, float],
        polyak: float,
        pixel: Literal["l1", "l2"],
        pixel_weight: float,
        perceptual: Perceptual | None,
        perceptual_weight: float,
        codebook_weight: float,
        beta: float,
        adversarial: Adversarial,
        discriminator: Discriminator,
        beta_on: Literal["commitment", "codebook"] = "commitment",
        weight_decay: float | None = None,
        compiled: bool = False,
        **network: Any,
    ) -> None:
        super().__init__(polyak=polyak, compiled=compiled)
        weights = {"pixel_weight": pixel_weight, "perceptual_weight": perceptual_weight, "beta": beta}
        for name, value in {**weights, "codebook_weight": codebook_weight}.items():
            require(0 <= value < math.inf, name, value, _ANY)
        require(all(0 <= b < 1 for b in betas), "betas", list(betas), "0 up to, not including, 1 each")
        require(pixel in ("l1", "l2"), "pixel", pixel, "l1 or l2")
        trains = beta_on == "commitment" or network.get("codebook") == "gradient"
        require(trains, "beta_on", beta_on, "commitment, as moving averages teach the codebook")
        self.schedule, self.betas, self.weight_decay = schedule, betas, weight_decay
        self.pixel, self.pixel_weight = pixel, pixel_weight
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight
        self.codebook_weight, self.beta, self.beta_on = codebook_weight, beta, beta_on
        self.adversarial, self.discriminator = adversarial, discriminator
        self.lecam = LeCam(adversarial.lecam_decay) if adversarial.lecam else None
        self.batches = 0  # trained on, of the whole run; Lightning's counters depend on how a run is resumed
        self.options = network
        self._distance: Distance | None = None

    def make(self, channels: int) -> VQGAN:
        return VQGAN(channels=channels, **self.options)

    def setup(self, stage: str) -> None:
        if self.perceptual is not None and self._distance is None:
            device = self.trainer.strategy.root_device
            self._distance = load_distance(self.perceptual, self.trainer.datamodule, device)

    def build_helper(self) -> PatchDiscriminator:
        options, data = self.discriminator, self.trainer.datamodule
        helper = PatchDiscriminator(
            channels=data.channels,
            hidden=options.hidden,
            layers=options.layers,
            norm=options.norm,
            norm_groups=options.norm_groups,
        )
        helper.patches(*size_of(data.image_size))
        return helper

    def configure_optimizers(self) -> dict[str, Any]:
        adam = self.adam(self.weight_decay, betas=self.betas, helper_rate=self.discriminator.rate)
        return self.scheduled(adam, self.schedule, width=self.options["hidden"])

    @property
    def first_of_discriminator(self) -> int:
        """Batches before the first that trains the discriminator."""
        return self.adversarial.start - self.adversarial.warmup

    def losses(self, images: Tensor, out: VQGANReconstruction) -> Losses:
        """All but the adversarial terms, as they are validated."""
        reconstruction, found = self._reconstruction(images.float(), out.images.float())
        return {"loss": reconstruction + self._vq(out), **found, **_codebook_terms(out)}

    def training_losses(self, images: Tensor, out: VQGANReconstruction) -> Losses:
        """All terms. The value of "loss" is that of `losses`, its gradient the sum of all."""
        number, self.batches = self.batches, self.batches + 1
        x, made = images.float(), out.images.float()
        # Each network is passed backward once: to the reconstruction, where λ needs its gradient anyway.
        # autograd.grad gives no gradient to the discriminator's weights, which so are as good as frozen.
        # (Not by requires_grad_: under autocast, frozen weights' half-precision copies would be used later.)
        seen = made.detach().requires_grad_()
        reconstruction, found = self._reconstruction(x, seen)
        [gradient] = torch.autograd.grad(reconstruction, seen)
        if number >= self.adversarial.start:
            pull, figures = self._generator(seen, gradient, out.last_input)
            gradient = gradient + pull
            found |= figures
        vq = self._vq(out)
        loss = vq + reconstruction.detach() + _only_gradient((made * gradient).sum())
        if number >= self.first_of_discriminator:
            judged, figures = self._judge(x, seen.detach())
            loss = loss + _only_gradient(judged)
            found |= figures
        elif self.device_mesh is None:  # DDP waits for a gradient of every weight
            loss = loss + 0 * sum(p.sum() for p in self.helper.parameters())
        detached = {name: value.detach() for name, value in {**found, **_codebook_terms(out)}.items()}
        return {"loss": loss, **detached}

    def _reconstruction(self, x: Tensor, made: Tensor) -> tuple[Tensor, Losses]:
        """L_rec, and its terms."""
        l1, mse = F.l1_loss(made, x), F.mse_loss(made, x)
        loss = self.pixel_weight * (l1 if self.pixel == "l1" else mse)
        found = {"l1": l1, "mse": mse}
        if self._distance is not None:
            found["perceptual"] = self._distance(made, x)
            loss = loss + self.perceptual_weight * found["perceptual"]
        return loss, {"reconstruction": loss, **found}

    def _vq(self, out: VQGANReconstruction) -> Tensor:
        """codebook_weight · L_VQ."""
        on_codebook = self.beta_on == "codebook"
        terms = (out.codebook, out.commitment) if on_codebook else (out.commitment, out.codebook)
        return self.codebook_weight * (self.beta * terms[0] + terms[1])

    def _generator(self, seen: Tensor, gradient: Tensor, last_input: Tensor) -> tuple[Tensor, Losses]:
        """weight · λ · ∂L_G/∂x̂, beside `gradient` = ∂L_rec/∂x̂; and what is logged."""
        loss = generator_loss(self.helper(seen))
        [pull] = torch.autograd.grad(loss, seen)
        weight = pull.new_ones(())
        if self.adversarial.weighting == "adaptive":
            last = self.network.last
            both = torch.stack([last_layer_gradient(last, last_input, g) for g in (gradient, pull)])
            both = distributed.all_reduce_sum(both) / distributed.world_size()
            weight = adaptive_weight(*both, maximum=self.adversarial.lambda_max)
        return self.adversarial.weight * weight * pull, {"generator": loss, "lambda": weight}

    def _judge(self, x: Tensor, made: Tensor) -> tuple[Tensor, Losses]:
        """What the discriminator minimises, and what is logged."""
        real, fake = self.helper(x), self.helper(made)
        hinge = discriminator_loss(real, fake)
        figures = {
            "discriminator": hinge,
            "logit_real": real.mean(),
            "logit_fake": fake.mean(),
            "inside_margin": inside_margin(real, fake),
        }
        if self.lecam is None:
            return hinge, figures
        figures["lecam"] = self.lecam(real, fake)
        return hinge + self.adversarial.lecam * figures["lecam"], figures

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.batches <= self.first_of_discriminator:  # it is untrained, also as Adam counts its steps
            self.helper.zero_grad(set_to_none=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[_STATE] = {"batches": self.batches}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.batches = checkpoint[_STATE]["batches"]

    def advice(self, level: str) -> list[str]:
        if self.options["codebook"] == "gradient":
            return ["--model.codebook averages --model.codebook_init data (codes that follow the vectors)"]
        tries = []
        if self.options.get("codebook_init") not in (None, "data"):
            tries.append("--model.codebook_init data")
        if not self.options.get("revive_below"):
            tries.append("--model.revive_below 0.02 (unused codes are moved to where vectors are)")
        return tries


def _only_gradient(loss: Tensor) -> Tensor:
    """0 with the gradient of a loss; not a number where the loss is not finite, which has to be seen."""
    return loss - loss.detach()


def _codebook_terms(out: VQGANReconstruction) -> Losses:
    return {"commitment": out.commitment, "codebook": out.codebook}
