"""SUNDAE: a prior that denoises all codes of a grid at once, trained over several of its own steps.

Source: Megapixel Image Generation with Step-Unrolled Denoising Autoencoders (McKinney and Willcocks, 2022),
section 3.3, equations 5 and 6, after Savinov et al., 2022.

Shape legend: B batch, H W grid, K codes, d width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqvae2.nn.checks import require
from vqvae2.nn.contracts import PriorNetwork
from vqvae2.nn.hourglass import Hourglass
from vqvae2.nn.precision import without_autocast


class SUNDAE(PriorNetwork, architecture="sundae"):
    """Logits of all codes of a level, given a noisy version of them, the levels above and the class.

    It has no likelihood: its loss is the mean cross entropy of denoising.

    Args:
        grid: (H, W) of this level, that it is trained on; `forward` takes any.
        num_codes: K of this level.
        condition_grids: (h, w) of each level above, top first; each divides the grid.
        condition_codes: K of each level above.
        num_classes: 0 for a prior without classes.
        width: d.
        heads: see `Hourglass`.
        head_width: see `Hourglass`.
        depth: see `Hourglass`.
        dropout: see `Hourglass`.
        unroll: T, denoising steps that one training step unrolls.
        class_dropout: the share of images whose class is hidden in training, for guidance; 0 is the paper's.
    """

    def __init__(
        self,
        *,
        grid: Sequence[int],
        num_codes: int,
        condition_grids: Sequence[Sequence[int]],
        condition_codes: Sequence[int],
        num_classes: int,
        width: int,
        heads: int,
        head_width: int,
        depth: Sequence[int],
        dropout: float,
        unroll: int,
        class_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require(num_codes >= 1, "num_codes", num_codes, "at least 1")
        require(num_classes >= 0, "num_classes", num_classes, "0 (no classes) or more")
        require(unroll >= 1, "unroll", unroll, "at least 1")
        require(0 <= class_dropout < 1, "class_dropout", class_dropout, "0 up to, not including, 1")
        if class_dropout and not num_classes:
            raise ValueError("class_dropout needs classes: without them there is nothing to hide.")
        self.grid = tuple(grid)
        self.num_codes = num_codes
        self.num_classes = num_classes
        self.unroll = unroll
        self.class_dropout = class_dropout
        for above in condition_grids:
            if self.grid[0] % above[0] or self.grid[1] % above[1]:
                raise ValueError(
                    f"A grid of {self.grid[0]}x{self.grid[1]} cannot be conditioned on one of "
                    f"{above[0]}x{above[1]}: wanted a whole multiple of the one above."
                )
        self.embedding = nn.Embedding(num_codes, width)
        hidden = 1 if class_dropout else 0  # the row behind the classes stands for a hidden one
        self.label_embedding = nn.Embedding(num_classes + hidden, width) if num_classes else None
        self.condition_embeddings = nn.ModuleList(nn.Embedding(codes, width) for codes in condition_codes)
        self.trunk = Hourglass(
            width=width, heads=heads, head_width=head_width, depth=tuple(depth), dropout=dropout
        )
        self.norm = nn.LayerNorm(width)
        self.to_logits = nn.Linear(width, num_codes)

    @property
    def blocks(self) -> list[nn.Module]:
        return self.trunk.layers

    def context(self, conditions: Sequence[Tensor], labels: Tensor | None, grid: Sequence[int]) -> Tensor:
        """What is added to the embedded codes: class and levels above, [B or 1, H or 1, W or 1, d]."""
        context = self.embedding.weight.new_zeros(1, 1, 1, self.embedding.embedding_dim)
        if self.label_embedding is not None:
            context = context + self.label_embedding(labels)[:, None, None]
        for embed, codes in zip(self.condition_embeddings, conditions, strict=True):
            above = embed(codes)
            rows, columns = grid[0] // above.shape[1], grid[1] // above.shape[2]
            context = context + above.repeat_interleave(rows, 1).repeat_interleave(columns, 2)
        return context

    def logits(self, codes: Tensor, context: Tensor) -> Tensor:
        """Logits [B, H, W, K] of the clean codes, given noisy ones [B, H, W] and a `context`."""
        h = self.trunk(self.embedding(codes) + context, recompute=self.checkpoint_layers)
        with without_autocast(h.device):
            return self.to_logits(self.norm(h.to(self.norm.weight.dtype)))

    def forward(self, codes: Tensor, conditions: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The unrolled loss in nats a code (equation 6); in eval mode with the same noise at each call.

        Args:
            codes: int64 [B, H, W].
            conditions: codes [B, h, w] of the levels above, top first.
            labels: int64 [B]; ignored by a prior without classes.
        """
        generator = None
        if not self.training:
            generator = torch.Generator(codes.device).manual_seed(0)
        context = self.context(conditions, self._hide(labels), codes.shape[1:])
        steps = [self.logits(self._corrupt(codes, generator), context)]
        for _ in range(self.unroll - 1):
            steps.append(self.logits(_drawn(steps[-1].detach(), generator), context))
        losses = [F.cross_entropy(logits.flatten(0, 2).float(), codes.flatten()) for logits in steps]
        return torch.stack(losses).mean()

    def loss(self, codes: Tensor, conditions: Sequence[Tensor], labels: Tensor) -> Tensor:
        return self(codes, conditions, labels)

    def _hide(self, labels: Tensor) -> Tensor:
        if not self.class_dropout or not self.training:
            return labels
        hidden = torch.rand(len(labels), device=labels.device, dtype=torch.float32) < self.class_dropout
        return labels.masked_fill(hidden, self.num_classes)

    def _corrupt(self, codes: Tensor, generator: torch.Generator | None) -> Tensor:
        """Each code is replaced with a probability that is drawn for each image (equation 5)."""
        options = {"device": codes.device, "generator": generator}
        noise = torch.randint(self.num_codes, codes.shape, **options)
        options["dtype"] = torch.float32  # in bfloat16, a network's default there, 256 numbers are drawn
        threshold = torch.rand(len(codes), 1, 1, **options)
        return torch.where(torch.rand(codes.shape, **options) < threshold, noise, codes)


def _drawn(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Codes [B, H, W] from logits [B, H, W, K], at temperature 1."""
    flat = logits.flatten(0, 2).float().softmax(-1)
    return torch.multinomial(flat, 1, generator=generator).view(logits.shape[:-1])
