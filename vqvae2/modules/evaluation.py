"""The verdict: samples, reconstructions and priors of a run, in figures."""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from vqvae2 import distributed
from vqvae2.data.evaluation import EvaluationDataModule
from vqvae2.data.images import ImageBatch
from vqvae2.data.latents import LatentBatch, LatentSpec, check_autoencoder
from vqvae2.data.shards import write_json
from vqvae2.metrics.features import FeatureNetwork
from vqvae2.modules.autoencoder import AutoencoderModule
from vqvae2.modules.checkpoint import Loaded, load_network
from vqvae2.modules.classifier import ClassifierFeatures
from vqvae2.modules.critic import check_classifier, trained_for
from vqvae2.modules.judges import CodeJudge, Figure, ReconstructionJudge, SampleJudge
from vqvae2.modules.prior import PriorModule
from vqvae2.modules.rejection import Rejection
from vqvae2.nn.autoencoder import fingerprint

REPORT = "metrics.json"  # in the run folder, trainer.default_root_dir


class EvaluationModule(L.LightningModule):
    """Judges what an `EvaluationDataModule` reads, prints the figures and writes them to the run folder.

    Args:
        features: feature network that compares samples with real images: one of torch-fidelity's, such as
            "inception-v3-compat" (FID and IS proper), or "classifier", one trained by this suite.
        weights: its weights; a checkpoint for "classifier"; null downloads those of torch-fidelity.
        autoencoder: checkpoint; its error is measured on held-out images.
        priors: checkpoints, top first; their likelihoods are measured on the latents.
        splits: parts of the samples that the Inception score is averaged over; papers take 10.
        fractions: of the samples, the best of each class by a critic (section 3.3), that are judged, each by
            itself; 1 is all samples. The figures of a fraction have its number in their keys, as "fid@0.25".
        critic: classifier that scores the samples, as `load_critic` takes it; null takes the scores that the
            sample job wrote.
        samples_each: judge so many samples of each fraction, from all classes alike. A Fréchet distance
            falls as their number rises, so a curve over fractions wants the same number in all: draw this
            number divided by the smallest fraction. Null judges all that a fraction keeps.
    """

    def __init__(
        self,
        *,
        features: str | None = None,
        weights: str | None = None,
        autoencoder: str | None = None,
        priors: list[str] | None = None,
        splits: int = 10,
        fractions: Sequence[float] = (1.0,),
        critic: str | None = None,
        samples_each: int | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.weights = weights
        self.autoencoder = autoencoder
        self.priors = priors or []
        self.splits = splits
        self.rejection = Rejection(fractions, critic, samples_each)
        self.judges = nn.ModuleDict()

    def setup(self, stage: str) -> None:
        """Loads the networks and finds out whether they and the data belong together.

        Raises:
            ValueError: something is missing, or does not fit; says what.
        """
        data: EvaluationDataModule = self.trainer.datamodule
        autoencoder = None if self.autoencoder is None else self._load_autoencoder(data)
        if autoencoder is not None and data.latents is not None:
            found = fingerprint(autoencoder)
            check_autoencoder(data.latent_spec, found, codes=str(data.latents), checkpoint=self.autoencoder)
        self.judges = nn.ModuleDict()
        if (data.samples is None) != (self.features is None):
            raise ValueError(
                f"data.init_args.samples is {data.samples} and model.init_args.features is {self.features}: "
                "give both, to judge samples, or neither."
            )
        if self.features is not None:
            self.rejection.prepare(data)
            self.judges["samples"] = self.judges["real"] = self._sample_judge(data)
        if autoencoder is not None:
            self.judges["held_out"] = ReconstructionJudge(autoencoder)
        if data.latents is not None:
            self.judges.update(self._code_judges(data))
        data.select(self.judges.keys())
        self._check_loaders(data)

    def on_test_start(self) -> None:
        """Scores the samples, if a critic is given, and decides which of them are judged."""
        self._started_s = time.monotonic()
        if "samples" in self.judges:
            self.judges["samples"].judge(self.rejection.choose(self.trainer.datamodule, self.device))

    def on_test_epoch_start(self) -> None:
        names = self.trainer.datamodule.test_names
        self._counts = torch.zeros(len(names), dtype=torch.int64, device=self.device)

    def test_step(self, batch: ImageBatch | LatentBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        name = self.trainer.datamodule.test_names[dataloader_idx]
        self._counts[dataloader_idx] += len(batch.labels)
        self.judges[name].update(name, batch)

    def on_test_epoch_end(self) -> None:
        """Raises:
        ValueError: too many images turned out to be unreadable for a figure.
        """
        counts = distributed.all_reduce_sum(self._counts).tolist()
        figures: dict[str, Figure] = {}
        for judge in dict.fromkeys(self.judges.values()):
            figures |= judge.figures()
        numbers = {key: figure.value for key, figure in figures.items() if not isinstance(figure.value, list)}
        for logger in self.trainer.loggers:
            logger.log_metrics(
                {f"test/{key}": value for key, value in numbers.items()}, step=self.global_step
            )
        if self.trainer.is_global_zero:
            path = Path(self.trainer.default_root_dir, REPORT)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, self._report(figures, counts))
            _print_table(
                [figure for figure in figures.values() if not isinstance(figure.value, list)],
                self.rejection.fractions if self.rejection.parts else [1.0],
                path,
            )

    def _report(self, figures: dict[str, Figure], counts: list[int]) -> dict[str, Any]:
        data: EvaluationDataModule = self.trainer.datamodule
        network = self.judges["samples"].network if "samples" in self.judges else None
        return {
            "metrics": {key: figure.value for key, figure in figures.items()},
            "names": {key: figure.full_name for key, figure in figures.items()},
            "counts": dict(zip(data.test_names, counts, strict=True)),
            "unreadable": {
                name: data.num_test_samples(name) - count
                for name, count in zip(data.test_names, counts, strict=True)
            },
            "features": network
            and {"name": network.name, "layers": network.layers, "fingerprint": network.fingerprint},
            "rejection": self.rejection.report(),
            "inputs": {
                "samples": data.samples,
                "real": getattr(data, data.real) or f"{data.train} ({data.real} part)",
                "latents": data.latents and str(data.latents),
                "image_size": data.image_size,
                "channels": data.channels,
                "weights": self.weights,
                "autoencoder": self.autoencoder,
                "priors": self.priors,
            },
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "seconds": round(time.monotonic() - self._started_s, 3),
        }

    def _load_autoencoder(self, data: EvaluationDataModule) -> nn.Module:
        loaded = load_network(self.autoencoder, AutoencoderModule.kind)
        _check_channels(self.autoencoder, loaded, data)
        loaded.network.grids(data.image_size, data.image_size)
        return loaded.network

    def _sample_judge(self, data: EvaluationDataModule) -> SampleJudge:
        network = FeatureNetwork(self.features, self.weights)
        is_critic = False
        if isinstance(network.extractor, ClassifierFeatures):
            _check_classifier(self.weights, network.extractor, data)
            is_critic = fingerprint(network.extractor.network) == self.rejection.fingerprint
        judge = SampleJudge(
            network,
            image_shape=(data.channels, data.image_size, data.image_size),
            num_classes=data.num_classes,
            splits=self.splits,
            fractions=self.rejection.fractions,
            is_critic=is_critic,
        )
        judge.check(data.sample_labels, data.num_test_samples("real"), self.rejection.samples_each)
        return judge

    def _code_judges(self, data: EvaluationDataModule) -> dict[str, CodeJudge]:
        """One for the held-out codes and, if there are priors, one for the training codes."""
        spec = data.latent_spec
        priors = {}
        for path in self.priors:
            loaded = load_network(path, PriorModule.kind)
            check_prior(
                LatentSpec.from_dict(loaded.facts["latents"]), spec, prior=path, latents=str(data.latents)
            )
            priors[loaded.facts["level"]] = loaded.network
        if len(priors) < len(self.priors):
            raise ValueError(
                f"Several of the priors {', '.join(self.priors)} are of one level, wanted one each."
            )
        splits = ("train", "val") if priors else ("val",)
        return {
            f"latents_{split}": CodeJudge(split, spec, priors, num_pixels=data.image_size**2)
            for split in splits
            if f"latents_{split}" in data.test_names
        }

    def _check_loaders(self, data: EvaluationDataModule) -> None:
        """Refuses networks that would have nothing to look at."""
        if self.priors and data.latents is None:
            raise ValueError(
                "There are priors but no latents to measure them on: give data.init_args.latents."
            )
        if "held_out" in self.judges and "held_out" not in data.test_names:
            raise ValueError(
                f"There is an autoencoder but {data.train} has no held-out images: give data.init_args.val "
                "or data.init_args.holdout."
            )
        if not data.test_names:
            raise ValueError(
                "There is nothing to judge: give samples and features, an autoencoder, or latents and priors."
            )


def check_prior(found: LatentSpec, wanted: LatentSpec, *, prior: str, latents: str) -> None:
    """Refuses a prior that was trained on the codes of another autoencoder, or on other grids.

    Raises:
        ValueError: names both fingerprints.
    """
    if found != wanted:
        raise ValueError(
            f"{prior} was trained on codes of the autoencoder {found.autoencoder[:16]}, {_grids(found)}, but "
            f"{latents} holds codes of the autoencoder {wanted.autoencoder[:16]}, {_grids(wanted)}. Train "
            "the prior on these latents, or name those that it was trained on."
        )


def _grids(spec: LatentSpec) -> str:
    levels = (f"{level.name} {level.height}x{level.width} of {level.num_codes}" for level in spec.levels)
    return f"{', '.join(levels)}, {spec.num_classes} classes"


def _check_channels(path: str, loaded: Loaded, data: EvaluationDataModule) -> None:
    channels = loaded.facts["network"]["channels"]
    if channels != data.channels:
        raise ValueError(
            f"{path} was trained on images of {channels} channels, the data has {data.channels}. "
            f"Set data.init_args.channels to {channels}."
        )


def _check_classifier(path: str, classifier: ClassifierFeatures, data: EvaluationDataModule) -> None:
    """Refuses a classifier that was trained on other images or classes."""
    found = trained_for(classifier.facts)
    wanted = {"image_size": data.image_size, "channels": data.channels, "num_classes": data.num_classes}
    if data.num_classes == 0:  # without labels only the features count
        check_classifier(path, found, {**wanted, "num_classes": found["num_classes"]})
    else:
        check_classifier(path, found, wanted, classifier.facts["classes"], data.classes)


def _print_table(figures: list[Figure], fractions: list[float], path: Path) -> None:
    """A row a figure; those of the samples have a column for each of the fractions."""
    rows: dict[str, list[str]] = {}
    if fractions != [1]:
        rows["samples kept of each class, the critic's best"] = [f"{fraction:g}" for fraction in fractions]
    for figure in figures:
        value = f"{figure.value}" if isinstance(figure.value, int) else f"{figure.value:.5g}"
        rows.setdefault(figure.name, []).append(value)
    width = max(map(len, rows))
    print()  # ends the progress bar's line
    for name, values in rows.items():
        print(f"{name:<{width}}  {' '.join(f'{value:<9}' for value in values)}".rstrip())
    print(f"All figures with counts and inputs: {path}")
