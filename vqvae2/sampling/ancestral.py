"""Ancestral sampling of one level, code by code.

Source: VQ-VAE-2 (Razavi et al., 2019), algorithm 2 and figure 2b.
Shape legend: B batch, K codes, H W a level's grid, N = H·W positions.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from vqvae2.nn.pixelsnail import PixelSNAIL
from vqvae2.sampling.draw import Draw, Noise, Sampled, draw, level_sampler
from vqvae2.sampling.graphs import captured
from vqvae2.sampling.incremental import IncrementalPrior

_KEY_STEPS = 4  # where passes are recorded or compiled, attention looks at 1/4, 2/4, 3/4 or all of the rows

SIZES_KEPT = 2  # of batches whose passes are kept: the usual one, and the rest at the end of a file


class AncestralSampler:
    """Draws the codes of one level, batch after batch.

    Args:
        prior: in eval mode, on its device.
        how: the codes are drawn.
        compiled: passes go through `torch.compile`, which takes a minute once for each size of batch.
        graphed: on a GPU, passes are recorded as CUDA graphs, once for each size of batch.
    """

    def __init__(self, prior: PixelSNAIL, how: Draw, *, compiled: bool = False, graphed: bool = True) -> None:
        self.prior = prior
        self.how = how
        self.compiled = compiled
        self.graphed = graphed and prior.embedding.weight.is_cuda
        self._passes: dict[int, _Passes] = {}  # by size of batch, the last used at the end

    @torch.inference_mode()
    def __call__(self, conditions: Sequence[Tensor], labels: Tensor, noise: Noise, kept: Tensor) -> Sampled:
        """See `LevelSampler`."""
        if bool((kept >= 0).all()):
            return self._scored(conditions, labels, kept)
        return self._passes_for(len(labels))(conditions, labels, noise, kept)

    def _scored(self, conditions: Sequence[Tensor], labels: Tensor, codes: Tensor) -> Sampled:
        """Nothing is to be drawn: one full pass."""
        logits = self.prior(codes, conditions, labels)
        nll = F.cross_entropy(logits.double(), self.prior.choices(codes), reduction="none")
        return Sampled(codes.clone(), nll.sum((1, 2)))

    def _passes_for(self, batch_size: int) -> "_Passes":
        """Made anew or, where making them takes long, kept for `SIZES_KEPT` sizes of batch."""
        passes = self._passes.pop(batch_size, None)
        if passes is None:
            keep = SIZES_KEPT if self.compiled or self.graphed else 1
            while len(self._passes) >= keep:
                del self._passes[next(iter(self._passes))]
            passes = _Passes(self.prior, self.how, batch_size, compiled=self.compiled, graphed=self.graphed)
        self._passes[batch_size] = passes
        return passes


class _Passes:
    """Row pass and pixel passes for one size of batch, with their buffers; see `LevelSampler`."""

    def __init__(
        self, prior: PixelSNAIL, how: Draw, batch_size: int, *, compiled: bool, graphed: bool
    ) -> None:
        self.prior = prior
        self.how = how
        self.few_visible = compiled or graphed
        state = self.state = IncrementalPrior(prior, batch_size)
        shape = prior.grid[0] * prior.grid[1], batch_size
        device = state.position.device
        self.noise = torch.zeros(shape, dtype=torch.float64, device=device)
        self.codes = torch.zeros(shape, dtype=torch.int64, device=device)
        self.nll = torch.zeros(batch_size, dtype=torch.float64, device=device)
        self.first_children = torch.zeros(shape, dtype=torch.int64, device=device) if prior.branch else None
        row_pass, pixel_pass = state.start_row, self._pixel_pass
        if compiled:
            row_pass, pixel_pass = (torch.compile(one, dynamic=False) for one in (row_pass, pixel_pass))
        visible = {self._visible(row) for row in range(prior.grid[0])}
        self.row_pass, self.pixel_passes = row_pass, {keys: partial(pixel_pass, keys) for keys in visible}
        if graphed:
            self.row_pass = captured(self.row_pass, state.restart)
            self.pixel_passes = {k: captured(one, state.restart) for k, one in self.pixel_passes.items()}

    def __call__(self, conditions: Sequence[Tensor], labels: Tensor, noise: Noise, kept: Tensor) -> Sampled:
        height, width = self.prior.grid
        self.state.start(conditions, labels)
        self.noise.copy_(noise.uniforms(height * width).T)
        self.codes.copy_(kept.flatten(1).T)
        if self.first_children is not None:
            self.first_children.copy_(conditions[-1].flatten(1).T * self.prior.branch)
        self.nll.zero_()
        for row in range(height):
            self.row_pass()
            pixel_pass = self.pixel_passes[self._visible(row)]
            for _ in range(width):
                pixel_pass()
        codes = self.codes.T.clone(memory_format=torch.contiguous_format)
        return Sampled(codes.view(-1, height, width), self.nll.clone())

    def _visible(self, row: int) -> int:
        """How many keys attention looks at in this row: few different numbers where each has its own pass."""
        height, width = self.prior.grid
        most = min(_KEY_STEPS, height) if self.few_visible else height
        steps = most if self.prior.attention else 1
        step = row * steps // height
        return -(-(step + 1) * height // steps) * width

    def _pixel_pass(self, visible: int) -> None:
        """Draws the code of the next position, or takes the one that is given."""
        position = self.state.position
        logits = self.state.logits(visible).double()
        drawn = draw(logits, self.noise.index_select(0, position)[0], self.how)
        if self.first_children is not None:
            drawn = drawn + self.first_children.index_select(0, position)[0]
        kept = self.codes.index_select(0, position)[0]
        codes = torch.where(kept < 0, drawn, kept)
        self.nll -= logits.log_softmax(-1).gather(1, self.prior.choices(codes)[:, None])[:, 0]
        self.codes.index_copy_(0, position, codes[None])
        self.state.append(codes)


level_sampler.register(PixelSNAIL, AncestralSampler)
