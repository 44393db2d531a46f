"""The sets of images that are compared with the reference: samples, held-out images, reconstructions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqvae2.data.images import ImageBatch
from vqvae2.evaluation.data_module import EvaluationDataModule
from vqvae2.evaluation.feature_networks import FeatureNetworks
from vqvae2.evaluation.fractions import Part
from vqvae2.metrics.feature_statistics import Collector, Record
from vqvae2.metrics.sums import ReconstructionError
from vqvae2.nn.contracts import Tokenizer
from vqvae2.pixels import size_of

HELD_OUT = "held_out"
RECONSTRUCTIONS = "reconstructions"  # of the held-out images


class ImageSet(NamedTuple):
    """A row of the evaluation, before its figures are computed."""

    key: str  # such as "samples@0.25"
    kind: str  # samples, held_out or reconstructions
    loader: str  # whose images, or whose reconstructions, these are
    records: dict[str, Record]  # by the role of the network
    labels: Tensor  # int64, of the images in the records
    part: Part | None  # of samples


class ImageSets(nn.Module):
    """Computes the features of each image once; a sample counts in every part that it is in.

    Args:
        data: says which sets there are.
        feature_networks: None measures the reconstructions' error alone.
        autoencoder: None leaves the reconstructions out.
    """

    def __init__(
        self,
        data: EvaluationDataModule,
        *,
        feature_networks: FeatureNetworks | None,
        autoencoder: Tokenizer | None,
    ) -> None:
        super().__init__()
        self.data, self.feature_networks, self.autoencoder = data, feature_networks, autoencoder
        self.parts: Sequence[Part] = []
        has_held_out = HELD_OUT in data.test_names
        self.error = ReconstructionError() if autoencoder is not None and has_held_out else None
        self.names: list[str] = []  # of sets; one may have a dot, which a ModuleDict would not take
        self.collectors = nn.ModuleList()  # of each of these, by role
        if feature_networks is None:
            return
        image = torch.zeros(1, data.channels, *size_of(data.image_size))
        loaders = {name: name for name in data.candidates}
        if has_held_out and data.real != "val":  # else they are the reference
            loaders[HELD_OUT] = HELD_OUT
        if self.error is not None:
            loaders[RECONSTRUCTIONS] = HELD_OUT
        for name, loader in loaders.items():
            size = data.num_test_samples(loader)
            collectors = {
                role: Collector(seen, size=size) for role, seen in feature_networks.features(image).items()
            }
            self.names.append(name)
            self.collectors.append(nn.ModuleDict(collectors))

    @property
    def loaders(self) -> set[str]:
        """The loaders that it reads."""
        names = {HELD_OUT if name == RECONSTRUCTIONS else name for name in self.names}
        return names | ({HELD_OUT} if self.error is not None else set())

    def select(self, parts: Sequence[Part]) -> None:
        """Says which samples are evaluated, before the first batch; nothing is kept of the others."""
        self.parts = parts

    def update(self, loader: str, batch: ImageBatch) -> None:
        """Takes a batch of a loader."""
        if loader in self.data.candidates:
            batch = self._selected(loader, batch)
        if not len(batch.images):  # every image of the batch was unreadable, or none of it is evaluated
            return
        self._collect(loader, batch.images, batch.index)
        if loader == HELD_OUT and self.error is not None:
            images = self.autoencoder(batch.images).images
            self.error.update(batch.images, images)
            self._collect(RECONSTRUCTIONS, images, batch.index)

    def figures(self) -> dict[str, float]:
        """MSE and PSNR of the held-out images' reconstructions."""
        if self.error is None:
            return {}
        found = self.error.compute()
        return {"mse_val": found.mse, "psnr_db_val": found.psnr_db}

    def sets(self) -> list[ImageSet]:
        """The sets in the order of the table; every rank must call this."""
        records = {
            name: {role: collector.record() for role, collector in collectors.items()}
            for name, collectors in zip(self.names, self.collectors, strict=True)
        }
        samples = [self._part(part, records[part.candidate]) for part in self.parts]
        others = [
            self._set(name, name, HELD_OUT, records[name], None)
            for name in (RECONSTRUCTIONS, HELD_OUT)
            if name in records
        ]
        return samples + others

    def _part(self, part: Part, records: dict[str, Record]) -> ImageSet:
        key = part.candidate + ("" if part.fraction == 1 else f"@{part.fraction}")
        chosen = {}
        for role, record in records.items():
            rows = part.evaluated.to(record.index.device)[record.index].nonzero().flatten()
            chosen[role] = record.take(rows)
        return self._set(key, "samples", part.candidate, chosen, part)

    def _set(
        self, key: str, kind: str, loader: str, records: dict[str, Record], part: Part | None
    ) -> ImageSet:
        index = next(iter(records.values())).index.cpu()
        return ImageSet(key, kind, loader, records, self.data.labels_of(loader)[index], part)

    def _selected(self, candidate: str, batch: ImageBatch) -> ImageBatch:
        parts = [part.evaluated for part in self.parts if part.candidate == candidate]
        rows = torch.stack(parts).any(0)[batch.index.cpu()].to(batch.index.device)
        return batch._replace(images=batch.images[rows], index=batch.index[rows])

    def _collect(self, name: str, images: Tensor, index: Tensor) -> None:
        if name in self.names:
            collectors = self.collectors[self.names.index(name)]
            for role, seen in self.feature_networks.features(images).items():
                collectors[role].update(seen, index)
