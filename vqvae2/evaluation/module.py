"""The evaluation job: computes figures for samples, reconstructions and priors of a run."""

import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from vqvae2 import distributed
from vqvae2.data.images import ImageBatch
from vqvae2.data.latents import LatentBatch
from vqvae2.evaluation.data_module import EvaluationDataModule
from vqvae2.evaluation.feature_cache import RecordStore
from vqvae2.evaluation.fractions import Rejection
from vqvae2.evaluation.inputs import (
    check_counts,
    load_autoencoder_of,
    load_code_figures,
    load_feature_networks,
)
from vqvae2.evaluation.likelihood import storage_figures
from vqvae2.evaluation.provenance import surroundings
from vqvae2.evaluation.results import FORMAT, SetFigures, fit_sizes, print_table, run_legend, single_figures
from vqvae2.evaluation.sample_sets import HELD_OUT, ImageSet, ImageSets
from vqvae2.evaluation.training_images import REAL, ReferenceImages
from vqvae2.metrics.sizes import InfinitySizes, KernelSubsets, Neighbourhoods, Size, Wanted
from vqvae2.nn.checks import require
from vqvae2.nn.contracts import Tokenizer
from vqvae2.pixels import size_of
from vqvae2.storage.shards import write_json

REPORT = "metrics.json"  # in the run folder, trainer.default_root_dir


class EvaluationModule(L.LightningModule):
    """Evaluates what an `EvaluationDataModule` reads, prints the figures and writes them to the run folder.

    Args:
        features: network whose features give FID, IS and KID: one of torch-fidelity's, such as
            "inception-v3-compat" (the standard one), or "classifier", one trained by this suite.
        weights: its weights; a checkpoint for "classifier"; null downloads those of torch-fidelity.
        manifold_features: the same for precision, recall, density, coverage and nearest images; "vgg16" is
            the standard one, null takes the network above.
        manifold_weights: its weights.
        autoencoder: checkpoint; the error and the quality of its reconstructions are measured, and FID*,
            which compares the samples with reconstructions of the real images.
        priors: checkpoints, top first; their likelihoods are measured on the latents.
        splits: parts of the samples that the Inception score is averaged over; papers take 10. This and the
            sizes of the next three may be auto: the published number, or fewer if there are fewer images.
        kid: subsets for the kernel inception distance; null leaves it out.
        fid_infinity: sizes for FID-infinity; null leaves it out.
        manifold: neighbours for precision, recall, density and coverage; null leaves them out.
        queries: so many of the first candidate's samples are shown beside their nearest training images.
        nearest: number of nearest training images for each.
        fractions: evaluate the best samples of each class by their scores (section 3.3), one set for each
            fraction; 1 is all samples. The name of such a set ends in its fraction, as "samples@0.25".
        rejection_classifier: classifier that scores the samples, as `load_rejection_classifier` takes it;
            null takes the scores that the sample job wrote.
        samples_each: evaluate so many samples of each fraction, equally many of each class. A Fréchet
            distance falls as the number of images rises, so a curve over fractions needs the same number at
            every point: draw this number divided by the smallest fraction. Null evaluates all samples that a
            fraction keeps.
        max_features: features of so many real images, evenly spread, are kept for the figures that compare
            images pair by pair; null keeps all.
        keep: folder for the features and statistics of the real images, so that the next evaluation need not
            compute them again; null keeps nothing.
    """

    def __init__(
        self,
        *,
        features: str | None = None,
        weights: str | None = None,
        manifold_features: str | None = None,
        manifold_weights: str | None = None,
        autoencoder: str | None = None,
        priors: list[str] | None = None,
        splits: Size = 10,
        kid: KernelSubsets | None = None,
        fid_infinity: InfinitySizes | None = None,
        manifold: Neighbourhoods | None = None,
        queries: int = 0,
        nearest: int = 5,
        fractions: Sequence[float] = (1.0,),
        rejection_classifier: str | None = None,
        samples_each: int | None = None,
        max_features: int | None = None,
        keep: str | None = None,
    ) -> None:
        super().__init__()
        self.features, self.weights = features, weights
        self.manifold_features, self.manifold_weights = manifold_features, manifold_weights
        self.autoencoder = autoencoder
        self.priors = priors or []
        self.wanted = Wanted(splits=splits, kid=kid, fid_infinity=fid_infinity, manifold=manifold)
        self.queries, self.nearest = queries, nearest
        self.rejection = Rejection(fractions, rejection_classifier, samples_each)
        self.max_features = max_features
        self.store = RecordStore(keep)
        self.evaluation: dict[str, Any] | None = None  # what was written, after the test
        self._check_arguments()

    def setup(self, stage: str) -> None:
        """Loads the networks and finds out whether they and the data belong together.

        Raises:
            ValueError: something is missing, or does not fit; says what.
        """
        data: EvaluationDataModule = self.trainer.datamodule
        autoencoder = None if self.autoencoder is None else load_autoencoder_of(self.autoencoder, data)
        if bool(data.candidates) != (self.features is not None):
            raise ValueError(
                f"data.init_args.samples is {data.samples} and model.init_args.features is {self.features}: "
                "give both, to evaluate samples, or neither."
            )
        self.rejection.prepare(data)
        self.feature_networks, self.notes = None, []
        if self.features is not None:
            manifold = (self.manifold_features, self.manifold_weights)
            distance = (self.features, self.weights)
            folder = self.trainer.default_root_dir
            self.feature_networks, self.notes = load_feature_networks(distance, manifold, data, folder)
            for note in self.notes:
                rank_zero_info(note)
        networks = {"feature_networks": self.feature_networks, "autoencoder": autoencoder}
        self.reference = ReferenceImages(
            data, **networks, wanted=self.wanted, store=self.store, max_features=self.max_features
        )
        self.sets = ImageSets(data, **networks)
        if self.feature_networks is not None:
            check_counts(data, self.wanted, self.rejection, self.max_features)
        self.codes = nn.ModuleDict({} if data.latents is None else load_code_figures(self.priors, data))
        self._check_loaders(data)
        data.select(self._loaders())

    def on_test_start(self) -> None:
        """Scores the samples if a rejection classifier is given, and decides which of them are evaluated."""
        self._started_s = time.monotonic()
        data = self.trainer.datamodule
        self.sets.select(self.rejection.choose(data, self.device))
        if self.feature_networks is not None and self.queries:
            first = next(iter(data.candidates))
            self.reference.search(first, queries=self.queries, nearest=self.nearest, device=self.device)

    def on_test_epoch_start(self) -> None:
        names = self.trainer.datamodule.test_names
        self._counts = torch.zeros(len(names), dtype=torch.int64, device=self.device)

    def test_step(self, batch: ImageBatch | LatentBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        name = self.trainer.datamodule.test_names[dataloader_idx]
        self._counts[dataloader_idx] += len(batch.labels)
        if name in self.codes:
            self.codes[name].update(batch)
        elif name == REAL:
            self.reference.update(batch)
        else:
            self.sets.update(name, batch)

    def on_test_epoch_end(self) -> None:
        """Raises:
        ValueError: too many images turned out to be unreadable for a figure.
        """
        data: EvaluationDataModule = self.trainer.datamodule
        counts = distributed.all_reduce_sum(self._counts).tolist()
        figures = self._run_figures(data)
        sets: list[dict[str, Any]] = []
        legend = {key: run_legend(key) for key in figures}
        left_out: list[dict[str, str]] = []
        wanted, fits = self.wanted, []
        if self.feature_networks is not None:
            reference = self.reference.reference()
            seen = self.sets.sets()
            wanted, fits = fit_sizes(self.wanted, seen, len(reference.real_features))
            computed = SetFigures(
                self.feature_networks, wanted, num_classes=data.num_classes, rejection=self.rejection
            )
            sets = [self._row(found, computed.compute(found, reference), data) for found in seen]
            legend |= computed.legend
            left_out = computed.left_out
        self.evaluation = {
            "format": FORMAT,
            "sets": sets,
            "figures": figures,
            "legend": legend,
            "left_out": left_out,
            "notes": self.notes + fits,
            "settings": asdict(wanted) | {"max_features": self.max_features},
            **self._facts(data, dict(zip(data.test_names, counts, strict=True))),
            "neighbours": self.reference.nearest_images(),
        }
        self._publish()

    @property
    def autoencoder_network(self) -> Tokenizer | None:
        """The autoencoder, once it is loaded."""
        return self.sets.autoencoder

    def _run_figures(self, data: EvaluationDataModule) -> dict[str, float]:
        figures = self.reference.figures() | self.sets.figures()
        for codes in self.codes.values():
            figures |= codes.figures()
        if data.latents is not None:
            size = {"num_pixels": math.prod(size_of(data.image_size)), "channels": data.channels}
            figures |= storage_figures(data.latent_spec, **size)
        return figures

    def _row(self, found: ImageSet, figures: dict[str, Any], data: EvaluationDataModule) -> dict[str, Any]:
        location = data.candidates.get(found.loader) or data.held_out_from
        return {
            "key": found.key,
            "kind": found.kind,
            "candidate": None if found.part is None else found.part.candidate,
            "fraction": 1.0 if found.part is None else found.part.fraction,
            "num_images": len(found.labels),
            "location": location,
            "figures": figures,
        }

    def _facts(self, data: EvaluationDataModule, counts: dict[str, int]) -> dict[str, Any]:
        """What was evaluated, with which networks and settings."""
        unreadable = {name: data.num_test_samples(name) - count for name, count in counts.items()}
        if self.feature_networks is not None and REAL not in counts:  # kept from an earlier evaluation
            counts = counts | {REAL: self.reference.num_images}
        return {
            "counts": counts,
            "unreadable": unreadable,
            "networks": {} if self.feature_networks is None else self.feature_networks.describe(),
            "rejection": self.rejection.report(),
            "classes": list(data.classes),
            "inputs": {
                "samples": data.candidates,
                "real": data.train if data.real == "train" else data.held_out_from,
                "real_part": data.real,
                "latents": data.latents and str(data.latents),
                "image_size": data.image_size,
                "channels": data.channels,
                "autoencoder": self.autoencoder,
                "priors": self.priors,
            },
            **surroundings(self.device),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "seconds": round(time.monotonic() - self._started_s, 3),
        }

    def _publish(self) -> None:
        """Logs every single figure, writes the evaluation and prints it."""
        for logger in self.trainer.loggers:
            logger.log_metrics(single_figures(self.evaluation), step=self.global_step)
        if self.trainer.is_global_zero:
            path = Path(self.trainer.default_root_dir, REPORT)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, self.evaluation)
            print_table(self.evaluation)
            print(f"All figures with counts and inputs: {path}")

    def _loaders(self) -> set[str]:
        names = self.sets.loaders | set(self.codes)
        searches = self.feature_networks is not None and self.queries > 0
        return names | ({REAL} if self.reference.needed or searches else set())

    def _check_arguments(self) -> None:
        self.wanted.check()
        for name, value, least in (("queries", self.queries, 0), ("nearest", self.nearest, 1)):
            require(value >= least, name, value, f"at least {least}")
        most = self.max_features
        require(most is None or most >= 2, "max_features", most, "at least 2, or null for all")
        if self.features is None and self.manifold_features is not None:
            raise ValueError(
                f"manifold_features is {self.manifold_features}, but there are no features: give both."
            )

    def _check_loaders(self, data: EvaluationDataModule) -> None:
        """Refuses networks for which there is no data."""
        if self.priors and data.latents is None:
            raise ValueError(
                "There are priors but no latents to measure them on: give data.init_args.latents."
            )
        if self.autoencoder is not None and HELD_OUT not in data.test_names:
            raise ValueError(
                f"There is an autoencoder but {data.train} has no held-out images: give data.init_args.val "
                "or data.init_args.holdout."
            )
        if not self._loaders():
            raise ValueError(
                "There is nothing to evaluate: give samples and features, an autoencoder, or latents and "
                "priors."
            )
