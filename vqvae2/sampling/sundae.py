"""Sampling a whole grid at once, in a few steps that correct each other.

Source: Megapixel Image Generation with Step-Unrolled Denoising Autoencoders (McKinney and Willcocks, 2022),
section 3.4, after Savinov et al., 2022.
Shape legend: B batch, N = H·W positions, K codes.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vqvae2.nn.sundae import SUNDAE
from vqvae2.sampling.draw import Draw, Noise, Sampled, Steps, draw, level_sampler


class DenoisingSampler:
    """Draws the codes of one level, batch after batch.

    The codes start uniform. Each step proposes new ones for all positions, from the network's logits at the
    step's temperature, and takes a random share of the proposals. An image that has stopped is left out of
    the batch: it costs nothing more. Its randomness is that of its own number and step, whatever the batch.

    Args:
        prior: in eval mode, on its device.
        how: the codes are drawn.

    Raises:
        ValueError: guidance is asked for, and the prior was trained without `class_dropout`.
    """

    def __init__(self, prior: SUNDAE, how: Draw) -> None:
        self.prior = prior
        self.how = how
        self.steps = how.steps or Steps()
        if self.steps.guidance and not prior.class_dropout:
            raise ValueError(
                f"guidance is {self.steps.guidance}, but this prior knows no image without a class. "
                "Train one with --model.class_dropout 0.1, or set guidance to 0."
            )

    @torch.inference_mode()
    def __call__(self, conditions: Sequence[Tensor], labels: Tensor, noise: Noise, kept: Tensor) -> Sampled:
        """See `LevelSampler`."""
        *_, codes = self.states(conditions, labels, noise, kept)
        return Sampled(codes, None)

    @torch.inference_mode()
    def states(
        self, conditions: Sequence[Tensor], labels: Tensor, noise: Noise, kept: Tensor
    ) -> Iterator[Tensor]:
        """The codes [B, H, W] at the start and after each step; arguments as of `LevelSampler`."""
        batch, height, width = kept.shape
        uniforms = noise.uniforms(height * width).to(kept.device)
        start = (uniforms * self.prior.num_codes).long().view_as(kept)
        state = torch.where(kept < 0, start, kept)
        yield state
        logits = self._logits(conditions, labels, (height, width))
        going = (kept < 0).flatten(1).any(1).nonzero()[:, 0]  # rows of the batch that are not done
        sure = torch.ones(batch, height * width, dtype=torch.float64, device=kept.device)
        for step in range(self.steps.steps):
            if not len(going):
                break
            codes, free = state[going], kept[going] < 0
            own = noise._replace(images=[noise.images[i] for i in going.tolist()], step=step)
            uniforms = own.uniforms(2 * height * width).to(kept.device)
            found = logits(step, going, codes).double()
            proposed = self._proposed(step, found, uniforms[:, : height * width]).view_as(codes)
            sure_of_free = sure[going].masked_fill(~free.flatten(1), torch.nan)
            taken = self._taken(step, uniforms[:, height * width :], sure_of_free).view_as(codes) & free
            if self.steps.argmax:
                sure[going] = found.softmax(-1).amax(-1).flatten(1)
            state = state.index_copy(0, going, torch.where(taken, proposed, codes))
            yield state
            going = going[~self._done(step, codes, proposed, taken, free)]

    def _logits(
        self, conditions: Sequence[Tensor], labels: Tensor, grid: tuple[int, int]
    ) -> Callable[[int, Tensor, Tensor], Tensor]:
        """The network's logits [B, H, W, K] at a step, for some rows of the batch and their codes; guided."""
        given = self.prior.context(conditions, labels, grid)
        nobody = torch.full_like(labels, self.prior.num_classes)
        unlabelled = self.prior.context(conditions, nobody, grid) if self.steps.guidance else None

        def logits(step: int, rows: Tensor, codes: Tensor) -> Tensor:
            found = self.prior.logits(codes, _of(given, rows))
            weight = self.at(step, 0.0, self.steps.guidance)
            if not weight:
                return found
            without = self.prior.logits(codes, _of(unlabelled, rows))
            return without + (1 + weight) * (found - without)

        return logits

    def _proposed(self, step: int, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Codes [B·N] that a step proposes; logits [B, H, W, K], uniforms [B, N]."""
        if self.steps.argmax and step:
            return logits.argmax(-1).flatten()
        temperature = self.how.temperature * self.at(step, *self.steps.temperature)
        how = self.how._replace(temperature=temperature)
        return draw(logits.flatten(0, 2), uniforms.flatten(), how)

    def _taken(self, step: int, uniforms: Tensor, sure: Tensor) -> Tensor:
        """bool [B, N], which proposals a step takes. `sure`: how the step before was; nan of kept codes."""
        proportion = self.at(step, *self.steps.proportion)
        if not self.steps.argmax:
            return uniforms < proportion
        if step % 2 or not step:
            return torch.ones_like(uniforms, dtype=torch.bool)
        return sure <= sure.nanquantile(proportion, dim=1, keepdim=True)

    def _done(self, step: int, before: Tensor, proposed: Tensor, taken: Tensor, free: Tensor) -> Tensor:
        """bool [B], which images a step leaves for good."""
        if step + 1 < self.steps.min_steps or self.steps.stop == "never":
            return torch.zeros(len(before), dtype=torch.bool, device=before.device)
        looked_at = taken if self.steps.stop == "accepted" else free
        return ~((proposed != before) & looked_at).flatten(1).any(1)

    def at(self, step: int, first: float, last: float) -> float:
        """A figure that changes evenly from the first step to the last."""
        return first + (last - first) * step / max(self.steps.steps - 1, 1)


def _of(context: Tensor, rows: Tensor) -> Tensor:
    return context if len(context) == 1 else context[rows]


@level_sampler.register
def denoising_sampler(
    prior: SUNDAE, how: Draw, *, compiled: bool = False, graphed: bool = True
) -> DenoisingSampler:
    return DenoisingSampler(prior, how)
