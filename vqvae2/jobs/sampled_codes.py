"""The codes of samples, read back from the folder that the sample job wrote."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vqvae2.data.latents import LatentBatch, LatentSpec
from vqvae2.data.order import Index
from vqvae2.storage.shards import MANIFEST, Member, Shard, index_members, npy_array, read_member


def sample_key(number: int) -> str:
    """What a sample is called in its shard."""
    return f"{number:08d}"


class SampledCodes:
    """The codes and labels of a folder that the sample job wrote, by the samples' numbers.

    Args:
        folder: of the samples.

    Raises:
        ValueError: its manifest is not that of a finished sample job.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            content = json.loads((folder / MANIFEST).read_bytes())
            self.spec = LatentSpec.from_dict(content["latents"])
            self.classes = tuple(content.get("classes", ()))  # older manifests have none
            self.shards = tuple(Shard(**shard) for shard in content["shards"])
        except FileNotFoundError:
            raise ValueError(f"The samples in {folder} are not finished. Run their job again.") from None
        except (KeyError, TypeError, ValueError) as error:
            path = folder / MANIFEST
            raise ValueError(f"{path} does not describe samples ({error}). Sample again.") from error
        self._members: dict[Path, dict[str, dict[str, Member]]] = {}
        self._starts = np.cumsum([0, *(shard.num_samples for shard in self.shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitems__(self, indices: Sequence[Index]) -> LatentBatch:
        rows = [self._read(sample) for _, sample in indices]
        grids = [(len(rows), level.height, level.width) for level in self.spec.levels]
        codes = tuple(
            torch.tensor(np.array([codes[i] for codes, _ in rows], np.int64).reshape(grid))
            for i, grid in enumerate(grids)
        )
        labels = torch.tensor([label for _, label in rows], dtype=torch.int64)
        return LatentBatch(codes, labels, torch.tensor([sample for _, sample in indices], dtype=torch.int64))

    def _read(self, sample: int) -> tuple[list[np.ndarray], int]:
        """
        Raises:
            ValueError: the sample's shard is damaged, or holds other codes than the manifest says.
        """
        path = self.folder / self.shards[np.searchsorted(self._starts, sample, side="right") - 1].file
        key = sample_key(sample)
        try:
            if path not in self._members:
                self._members[path] = index_members(path)
            members = self._members[path][key]
            codes = [npy_array(read_member(path, members[f"{level.name}.npy"])) for level in self.spec.levels]
            label = int(read_member(path, members["cls"])) if "cls" in members else -1
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"{path} holds no codes of sample {key} ({error}). Sample again.") from error
        for level, code in zip(self.spec.levels, codes, strict=True):
            if code.shape != (level.height, level.width) or code.max() >= level.num_codes:
                raise ValueError(
                    f"{path}: sample {key} has {level.name} codes {list(code.shape)} up to {code.max()}, "
                    f"wanted {[level.height, level.width]} below {level.num_codes}. Sample again."
                )
        return codes, label
