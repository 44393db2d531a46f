"""The reference that samples are compared with: features of real images and of their reconstructions."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vqvae2 import distributed
from vqvae2.data.images import ImageBatch
from vqvae2.evaluation.data_module import EvaluationDataModule, spread
from vqvae2.evaluation.feature_cache import Kept, RecordStore
from vqvae2.evaluation.feature_networks import DISTANCE, FeatureNetworks
from vqvae2.metrics.feature_statistics import Collector
from vqvae2.metrics.nearest_training import NearestTrainingImages
from vqvae2.metrics.quality import Reference, Wanted
from vqvae2.metrics.sums import ReconstructionError
from vqvae2.nn.contracts import Tokenizer
from vqvae2.nn.weights import fingerprint
from vqvae2.pixels import from_uint8, size_of

REAL = "real"
RECONSTRUCTED = "reconstructed"


class Nearest(NamedTuple):
    """A search for the training images that are nearest to some samples."""

    candidate: str
    queries: Tensor  # int64 [Q], positions in the candidate
    found: dict[str, NearestTrainingImages]  # by "features" and "pixels"


class ReferenceImages(nn.Module):
    """Computes the features of the real images once, and keeps them for the next evaluation of other samples.

    Args:
        data: has the loader "real".
        feature_networks: None measures the reconstructions' error alone.
        autoencoder: None leaves the reconstructions out.
        wanted: figures that the reference is for.
        store: where the records are kept.
        max_features: keep features of so many real images, evenly spread; None keeps all. Means and
            covariances are always those of all.
    """

    def __init__(
        self,
        data: EvaluationDataModule,
        *,
        feature_networks: FeatureNetworks | None,
        autoencoder: Tokenizer | None,
        wanted: Wanted,
        store: RecordStore,
        max_features: int | None,
    ) -> None:
        super().__init__()
        self.data, self.feature_networks, self.autoencoder = data, feature_networks, autoencoder
        self.wanted, self.store, self.max_features = wanted, store, max_features
        self.error: ReconstructionError | None = None
        self.nearest: Nearest | None = None
        self.kept: dict[tuple[str, str], Kept] = {}  # by set and role
        self.collectors = nn.ModuleDict()  # of what is not kept: by set, then by role
        if feature_networks is not None:
            self._prepare_collectors()
        rebuilt = self.kept.get((RECONSTRUCTED, DISTANCE))
        if autoencoder is not None and data.real == "train" and rebuilt is None:
            self.error = ReconstructionError()

    @property
    def needed(self) -> bool:
        """Whether it has to read the real images."""
        return bool(self.error or self.nearest or any(len(found) for found in self.collectors.values()))

    @property
    def num_images(self) -> int:
        """Number of real images that it has read, or that a kept record is of."""
        return next(kept.record.count for (name, _), kept in self.kept.items() if name == REAL)

    def search(self, candidate: str, *, queries: int, nearest: int, device: torch.device) -> None:
        """Starts a search for the nearest real images of some samples, equally many of each class."""
        by_class = self.data.labels_of(candidate).argsort(stable=True)
        count = min(queries, len(by_class))
        chosen = by_class[(2 * torch.arange(count) + 1) * len(by_class) // (2 * count)]
        pixels = torch.stack([self.data.picture(candidate, i) for i in chosen.tolist()]).to(device)
        images = from_uint8(pixels)
        role = self.feature_networks.manifold_role
        features = self.feature_networks.features(images, {role})[role].features
        spaces = {"features": features, "pixels": images}
        found = {name: NearestTrainingImages(values, nearest) for name, values in spaces.items()}
        self.nearest = Nearest(candidate, chosen, found)

    def update(self, batch: ImageBatch) -> None:
        """Takes real images and, where wanted, their reconstructions."""
        if not len(batch.images):  # every image of the batch was unreadable
            return
        self._collect(batch)
        collects = RECONSTRUCTED in self.collectors and DISTANCE in self.collectors[RECONSTRUCTED]
        if self.error is None and not collects:
            return
        images = self.autoencoder(batch.images).images
        if self.error is not None:
            self.error.update(batch.images, images)
        if collects:
            seen = self.feature_networks.features(images, {DISTANCE})[DISTANCE]
            self.collectors[RECONSTRUCTED][DISTANCE].update(seen, batch.index)

    def figures(self) -> dict[str, float]:
        """MSE and PSNR of the training images' reconstructions, where these are the reference."""
        if self.error is not None:
            found = self.error.compute()
            return {"mse_train": found.mse, "psnr_db_train": found.psnr_db}
        rebuilt = self.kept.get((RECONSTRUCTED, DISTANCE))
        return {} if rebuilt is None else rebuilt.figures

    def reference(self) -> Reference:
        """The features and statistics, which are also written to the store; every rank must call this."""
        figures = self.figures()
        for name, collectors in self.collectors.items():
            for role, collector in collectors.items():
                record = collector.record()
                if k := self._num_neighbours(name, role):
                    if self.wanted.manifold.fits:
                        k = min(k, len(record.features) - 1)
                    record = record.with_radii(k)
                kept = Kept(record, figures if name == RECONSTRUCTED else {})
                if distributed.rank() == 0:
                    self.store.write(self.identity(name, role), kept)
                self.kept[name, role] = kept
        # Records from the store are on the processor.
        device = next(self.feature_networks.parameters()).device
        real = self.kept[REAL, DISTANCE].record
        manifold = self.kept[REAL, self.feature_networks.manifold_role].record
        rebuilt = self.kept.get((RECONSTRUCTED, DISTANCE))
        return Reference(
            real.gaussian(),
            real.features.to(device),
            manifold.balls().to(device) if self.wanted.manifold else None,
            None if rebuilt is None else rebuilt.record.gaussian(),
        )

    def nearest_images(self) -> list[dict[str, Any]]:
        """The queries with what was nearest to each; every rank must call this."""
        if self.nearest is None:
            return []
        labels = self.data.labels_of(self.nearest.candidate)
        rows = [
            {"set": self.nearest.candidate, "index": query, "label": int(labels[query])}
            for query in self.nearest.queries.tolist()
        ]
        for space, search in self.nearest.found.items():
            found = search.compute()
            for row, distances, places in zip(
                rows, found.distance.tolist(), found.index.tolist(), strict=True
            ):
                row[space] = [
                    {"index": place, "key": self.data.key_of(REAL, place), "distance": distance}
                    for place, distance in zip(places, distances, strict=True)
                ]
        return rows

    def identity(self, name: str, role: str) -> dict[str, Any]:
        """What a record is of."""
        network = self.feature_networks.by_role[role]
        return {
            "set": name,
            "images": self.data.identity_of(REAL),
            "network": {"name": network.name, "layers": network.layers, "fingerprint": network.fingerprint},
            "features_kept": self.max_features if name == REAL else 0,
            "neighbours": self._num_neighbours(name, role),
            "autoencoder": fingerprint(self.autoencoder) if name == RECONSTRUCTED else None,
        }

    def _prepare_collectors(self) -> None:
        image = torch.zeros(1, self.data.channels, *size_of(self.data.image_size))
        size = self.data.num_test_samples(REAL)
        kept = {REAL: self.max_features, RECONSTRUCTED: 0}
        roles = {REAL: list(self.feature_networks.by_role)}
        if self.autoencoder is not None:
            roles[RECONSTRUCTED] = [DISTANCE]
        for name, chosen in roles.items():
            self.collectors[name] = nn.ModuleDict()
            for role, features in self.feature_networks.features(image, chosen).items():
                found = self.store.read(self.identity(name, role))
                if all(distributed.all_gather_objects(found is not None)):  # each sees a folder of its own
                    self.kept[name, role] = found
                else:
                    keep = torch.from_numpy(spread(size, kept[name]))
                    features = features._replace(logits=None)
                    self.collectors[name][role] = Collector(features, size=size, keep=keep)

    def _num_neighbours(self, name: str, role: str) -> int:
        manifold = self.wanted.manifold
        compared = (name, role) == (REAL, self.feature_networks.manifold_role)
        return manifold.largest if manifold and compared else 0

    def _collect(self, batch: ImageBatch) -> None:
        if self.feature_networks is None:
            return
        collectors = self.collectors[REAL]
        searches = {self.feature_networks.manifold_role} if self.nearest else set()
        seen = self.feature_networks.features(batch.images, set(collectors) | searches)
        for role, collector in collectors.items():
            collector.update(seen[role], batch.index)
        if self.nearest is not None:
            features = seen[self.feature_networks.manifold_role].features
            self.nearest.found["features"].update(features, batch.index)
            self.nearest.found["pixels"].update(batch.images, batch.index)
