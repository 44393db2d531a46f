"""Prompts for the sample job: codes that are kept while the rest is sampled.

Keeping the upper rows of all levels completes images; keeping the top level gives it new detail.

Shape legend: B batch, h w a level's grid.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vqvae2.data.class_names import comparable, labels_of_priors
from vqvae2.data.latent_module import LatentDataset
from vqvae2.data.latent_shards import check_files, verify
from vqvae2.data.latents import (
    LatentBatch,
    LatentSpec,
    Level,
    check_autoencoder,
    latent_folder,
    read_manifest,
)
from vqvae2.data.order import Index
from vqvae2.jobs.requests import GivenRequests, RequestBatch
from vqvae2.jobs.sampled_codes import SampledCodes
from vqvae2.nn.checks import require
from vqvae2.storage.job_file import SAMPLES_FORMAT, written_by
from vqvae2.storage.shards import Shard

_WHOLE = 1e-4  # rows that a fraction written with six digits may be off


class CodeSource(Protocol):
    """Codes that can be asked for by number."""

    spec: LatentSpec
    classes: tuple[str, ...]  # in label order; () where the names are not known
    shards: Sequence[Shard]

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[Index]) -> LatentBatch: ...


class PromptRequests(GivenRequests):
    """Asks for images with some codes given: those of real images, or of other samples.

    Every prompt is completed `per_prompt` times: images 0 to per_prompt - 1 belong to the first, and so on.
    The images get the prompt's class: the priors' class of the same name, or of the same number if one side
    has only class numbers, as tars do. The order of the prompts is drawn once from all that the folder
    holds, so asking for more of them later only adds images.

    As always in sampling, a code is drawn given the codes before it in its level and all codes of the levels
    above. The kept rows of a lower level do not influence what is sampled in an upper level. So this is the
    usual way to complete images, but not a draw from the exact posterior.

    Args:
        prompts: a folder of latents or of samples.
        split: of the latents; a folder of samples has one only.
        per_prompt: images of each prompt.
        num_prompts: how many.
        levels: names of the upper levels that are kept whole, such as [top].
        rows: which upper fraction of the rows is kept in the other levels; it must be whole rows in each.
        batch_size: images sampled together on each device; see `SampleRequests`.
        chunk_size: images in one file.
    """

    def __init__(
        self,
        *,
        prompts: str,
        per_prompt: int,
        num_prompts: int,
        batch_size: int,
        split: str = "val",
        levels: list[str] | None = None,
        rows: float = 0.0,
        chunk_size: int = 1024,
    ) -> None:
        super().__init__()
        self.per_prompt, self.num_prompts = per_prompt, num_prompts
        self.batch_size, self.chunk_size = batch_size, chunk_size
        for name in ("per_prompt", "num_prompts", "batch_size", "chunk_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(0 <= rows < 1, "rows", rows, "a fraction from 0 up to, not including, 1")
        if not levels and not rows:
            raise ValueError("Nothing is kept: give levels to keep, such as [top], or rows, such as 0.5.")
        self.location = prompts
        self.split = split
        self.levels = tuple(levels or ())
        self.rows = rows
        self._source: CodeSource | None = None
        self._labels = torch.empty(0, dtype=torch.int64)  # the priors' label of each prompt

    @cached_property
    def folder(self) -> Path:
        """The folder on this machine; latents may lie at an address."""
        return latent_folder(self.location)

    @property
    def source(self) -> CodeSource:
        """The codes of the folder. Opened when first asked for.

        Raises:
            ValueError: it holds no finished latents or samples, or not as many prompts as are asked for.
        """
        if self._source is None:
            source = SampledCodes(self.folder) if self._holds_samples else self._open_latents()
            if len(source) < self.num_prompts:
                raise ValueError(
                    f"num_prompts is {self.num_prompts}, but {self.folder} holds only {len(source)} prompts."
                )
            self._source = source
        return self._source

    def prepare_data(self) -> None:
        """Verifies the shards of latents, in one process of each machine."""
        if not self._holds_samples:
            manifest = read_manifest(self.folder)
            check_files(self.folder, manifest)
            verify(self.folder, manifest)

    def check(self, spec: LatentSpec, checkpoint: str, classes: Sequence[str] = ()) -> None:
        """
        Raises:
            ValueError: the prompts are other codes, are of no class of the priors where one is needed, or
                what is to be kept does not fit the levels.
        """
        source = self.source
        check_autoencoder(source.spec, spec.autoencoder, codes=str(self.folder), checkpoint=checkpoint)
        by_name = bool(spec.num_classes) and comparable(source.classes, classes)
        found = replace(source.spec, num_classes=spec.num_classes) if by_name else source.spec
        if found != spec:
            raise ValueError(
                f"The prompts in {self.folder} are {source.spec.summary}, the priors learned {spec.summary}. "
                "Give prompts of the latents that the priors were trained on."
            )
        self._check_levels()
        self._labels = torch.tensor(
            labels_of_priors(
                self._codes(range(self.num_prompts)).labels.tolist(),
                source.classes,
                classes,
                num_classes=spec.num_classes,
                things="prompts",
                location=str(self.folder),
            )
        )

    @property
    def num_images(self) -> int:
        return self.num_prompts * self.per_prompt

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256("".join(shard.sha256 for shard in self.source.shards).encode()).hexdigest()
        kept = {"levels": list(self.levels), "rows": self.rows}
        return {"prompts": {"shards": digest, **kept, "per_prompt": self.per_prompt}}

    def codes(self, prompts: Sequence[int]) -> tuple[Tensor, ...]:
        """All codes of some prompts, int64 [B, h, w] a level."""
        return self._codes(prompts).codes

    def request(self, index: Tensor) -> RequestBatch:
        """The images of some numbers [B]: what is kept of their prompts."""
        prompts = index // self.per_prompt
        codes, _, places = self._codes(prompts.tolist())
        kept = []
        for level, code in zip(self.source.spec.levels, codes, strict=True):
            given = torch.full_like(code, -1)
            rows = self.kept_rows(level)
            given[:, :rows] = code[:, :rows]
            kept.append(given)
        return RequestBatch(index, self._labels[prompts], tuple(kept), places)

    def kept_rows(self, level: Level) -> int:
        """How many of a level's upper rows are kept."""
        return level.height if level.name in self.levels else round(self.rows * level.height)

    @property
    def _holds_samples(self) -> bool:
        return written_by(self.folder) == SAMPLES_FORMAT

    @cached_property
    def _order(self) -> np.ndarray:
        return np.random.Generator(np.random.Philox(0)).permutation(len(self.source))

    def _open_latents(self) -> LatentDataset:
        manifest = read_manifest(self.folder)
        if not manifest.splits.get(self.split):
            splits = ", ".join(split for split, shards in manifest.splits.items() if shards)
            raise ValueError(f"{self.folder} has no split '{self.split}', wanted one of {splits}.")
        return LatentDataset(self.folder, manifest, self.split)

    def _codes(self, prompts: Sequence[int]) -> LatentBatch:
        return self.source.__getitems__([(0, int(self._order[prompt])) for prompt in prompts])

    def _check_levels(self) -> None:
        levels = self.source.spec.levels
        names = tuple(level.name for level in levels)
        unknown = [name for name in self.levels if name not in names]
        if unknown:
            raise ValueError(f"There is no level {unknown[0]} to keep, wanted some of {', '.join(names)}.")
        if set(self.levels) == set(names):
            raise ValueError("All levels are kept, so nothing is left to sample. Leave one out of levels.")
        if set(self.levels) != set(names[: len(set(self.levels))]):
            raise ValueError(
                f"levels keeps {', '.join(self.levels)}, but a level is sampled from those above it, without "
                f"regard to those below. Keep the uppermost, such as {', '.join(names[: len(self.levels)])}."
            )
        heights = [level.height for level in levels if level.name not in self.levels]
        if any(abs(self.rows * height - round(self.rows * height)) > _WHOLE for height in heights):
            step = math.gcd(*heights)  # fractions of it are whole rows everywhere
            fitting = sorted((k / step for k in range(step)), key=lambda rows: abs(rows - self.rows))[:2]
            raise ValueError(
                f"rows is {self.rows}, which is no whole number of rows in grids of {heights} rows. The "
                f"nearest that are: {', '.join(f'{rows:g}' for rows in sorted(fitting))}."
            )
