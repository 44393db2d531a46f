"""The contracts that every family keeps, and the networks by their names.

Stage 1 is a `Tokenizer`: images to grids of codes and back. Stage 2 is one `PriorNetwork` for each level of
codes. Jobs, previews and the evaluation use what is declared here and nothing else, so a new family is a
subclass in a file of `vqvae2.nn` and needs no change elsewhere. `vqvae2.sampling.draw.level_sampler` says how
codes are drawn from a prior.

Shape legend: B batch, C channels, H W image, h w a level's grid, K codes. Levels are ordered top first.
"""

import copy
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

_NETWORKS: dict[tuple[str, str], type["Network"]] = {}


class Network(nn.Module, ABC):
    """A network that checkpoints can hold.

    A subclass names its `architecture`, `class PixelSNAIL(PriorNetwork, architecture="pixelsnail")`; with it
    and the keyword arguments a checkpoint describes the network.
    """

    kind: ClassVar[str]  # its role in a run: autoencoder, prior or classifier
    architecture: ClassVar[str]  # which network in this role

    def __init_subclass__(cls, architecture: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if architecture is not None:
            cls.architecture = architecture
            _NETWORKS[cls.kind, architecture] = cls

    @property
    def blocks(self) -> list[nn.Module]:
        """Parts that run as a whole, inner ones first; sharded training gathers one of them at a time."""
        return []


def network_class(kind: str, architecture: str) -> type[Network]:
    """The network of a name.

    Raises:
        ValueError: there is none.
    """
    if (kind, architecture) not in _NETWORKS:
        package = importlib.import_module("vqvae2.nn")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"vqvae2.nn.{module.name}")
    if (kind, architecture) not in _NETWORKS:
        known = ", ".join(sorted(name for role, name in _NETWORKS if role == kind)) or "none"
        raise ValueError(f"There is no {kind} of the architecture '{architecture}', wanted one of: {known}.")
    return _NETWORKS[kind, architecture]


class Reconstructed(Protocol):
    """What the forward pass of a tokenizer gives, beside what its own training needs."""

    images: Tensor  # [B, C, H, W]
    codes: tuple[Tensor, ...]  # int64 [B, h, w] of each level


class Tokenizer(Network):
    """Compresses images into grids of codes, and back.

    Attributes:
        channels: C of its images.
        level_names: of its levels.
        codebook_sizes: K of each level.
    """

    kind = "autoencoder"
    channels: int
    level_names: tuple[str, ...]
    codebook_sizes: tuple[int, ...]

    @property
    def num_levels(self) -> int:
        return len(self.level_names)

    @abstractmethod
    def grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Each level's grid (h, w) for images of this size.

        Raises:
            ValueError: such images do not divide into grids.
        """

    @abstractmethod
    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Codes, int64 [B, h, w], of each level of images [B, C, H, W] in [-1, 1]."""

    @abstractmethod
    def decode(self, codes: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Images [B, C, H, W] of the codes of all levels; with `num_levels`, of so many upper ones."""

    @abstractmethod
    def forward(self, images: Tensor) -> Reconstructed:
        """Encodes and decodes images [B, C, H, W] in [-1, 1]."""

    @property
    def codebooks(self) -> dict[str, int]:
        """The codebooks whose use is logged, with their sizes; a subclass may have several in a level."""
        return dict(zip(self.level_names, self.codebook_sizes, strict=True))

    def by_codebook(self, codes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What each of `codebooks` has in the codes [B, h, w] of all levels."""
        return tuple(codes)

    def refinements(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Images [B, C, H, W] of ever more of the codes: of the top level, of one level more each, of all."""
        return [self.decode(codes, count) for count in range(1, self.num_levels + 1)]

    def image_size(self, grids: Sequence[Sequence[int]]) -> tuple[int, int]:
        """(H, W) of the images that such grids decode to, found on a copy without values."""
        codes = [torch.zeros(1, *grid, dtype=torch.int64, device="meta") for grid in grids]
        height, width = copy.deepcopy(self).to("meta").decode(codes).shape[-2:]
        return height, width


def divided(height: int, width: int, factors: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The grids (h, w) of levels whose sides are those of an image divided by a factor each, the top first.

    Raises:
        ValueError: the size is not a multiple of the first factor, which all others divide.
    """
    if height % factors[0] or width % factors[0]:
        into = "a grid" if len(factors) == 1 else f"the grids of {len(factors)} levels"
        raise ValueError(
            f"Images of {height}x{width} do not divide into {into}: "
            f"height and width must be multiples of {factors[0]}."
        )
    return tuple((height // factor, width // factor) for factor in factors)


class PriorShape(NamedTuple):
    """What the latents decide of the prior of a level; the keyword arguments of every `PriorNetwork`."""

    grid: Sequence[int]  # (h, w)
    num_codes: int
    condition_grids: Sequence[Sequence[int]]  # of the levels above; none for the top level
    condition_codes: Sequence[int]  # K of the levels above
    num_classes: int  # 0 without classes


class PriorNetwork(Network):
    """The distribution of one level's codes, given the codes of the levels above and the class.

    Attributes:
        grid: (h, w) of the level.
        num_codes: K of the level.
        num_classes: 0 for a prior without classes.
        checkpoint_layers: whether training keeps only what goes from layer to layer, and computes the rest
            again in the backward pass: the same gradients for a fraction of the memory and a third more work.
            A network that cannot do so ignores it.
    """

    kind = "prior"
    checkpoint_layers = False  # how it trains, not what it is: not among its options
    grid: tuple[int, int]
    num_codes: int
    num_classes: int

    @abstractmethod
    def loss(self, codes: Tensor, conditions: Sequence[Tensor], labels: Tensor) -> Tensor:
        """What training minimises, a scalar, in nats a code.

        Args:
            codes: int64 [B, h, w].
            conditions: codes [B, h, w] of the levels above.
            labels: int64 [B]; a prior without classes ignores them.
        """

    def nll(self, codes: Tensor, conditions: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Negative log-likelihood of each code, float32 [B, h, w], in nats, where there is one."""
        raise TypeError(f"{type(self).__name__} has no likelihood.")

    @property
    def has_likelihood(self) -> bool:
        return type(self).nll is not PriorNetwork.nll
