"""Who says what about which data: each judge looks at batches and turns them into named figures.

Shape legend: B batch, C H W images, h w a level's grid.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from vqvae2.data.images import ImageBatch
from vqvae2.data.latents import LatentBatch, LatentSpec
from vqvae2.metrics.features import INCEPTION, FeatureNetwork
from vqvae2.metrics.frechet import FeatureMoments, frechet_distance
from vqvae2.metrics.inception_score import InceptionScore, check_splits
from vqvae2.metrics.sums import ClassAccuracy, CodebookUse, Likelihood, ReconstructionError
from vqvae2.modules.classifier import ClassifierFeatures
from vqvae2.nn.autoencoder import HierarchicalVQVAE
from vqvae2.nn.prior import Prior


class Figure(NamedTuple):
    """One line of the verdict."""

    name: str  # as people read it, with its unit
    value: float | list[float | None]


class SampleJudge(nn.Module):
    """Holds samples against real images in the eyes of a feature network.

    Args:
        network: whose features and logits are compared.
        image_shape: (C, H, W).
        num_classes: of the data; 0 when unlabelled.
        splits: of the Inception score.
    """

    def __init__(
        self, network: FeatureNetwork, *, image_shape: tuple[int, int, int], num_classes: int, splits: int
    ) -> None:
        super().__init__()
        self.network = network
        seen = network(torch.zeros(1, *image_shape))
        num_features = seen.features.shape[1]
        self.samples, self.real = FeatureMoments(num_features), FeatureMoments(num_features)
        self.score = None if seen.logits is None else InceptionScore(splits)
        knows_classes = isinstance(network.extractor, ClassifierFeatures) and num_classes > 0
        self.accuracy = ClassAccuracy(num_classes) if knows_classes else None

    def check(self, num_samples: int, num_real: int) -> None:
        """Raises ValueError if these are too few images for the figures."""
        if min(num_samples, num_real) < 2:
            raise ValueError(
                f"There are {num_samples} samples and {num_real} real images, wanted at least 2 of each: a "
                "Fréchet distance compares covariances."
            )
        if self.score is not None:
            check_splits(num_samples, self.score.splits)

    def update(self, name: str, batch: ImageBatch) -> None:
        if not len(batch.images):  # every image of the batch was unreadable
            return
        seen = self.network(batch.images)
        if name == "real":
            self.real.update(seen.features)
            return
        self.samples.update(seen.features)
        if self.score is not None:
            self.score.update(seen.logits, batch.index)
        if self.accuracy is not None:
            self.accuracy.update(seen.logits, batch.labels)

    def figures(self) -> dict[str, Figure]:
        """A figure of another network than Inception is never called FID or IS alone."""
        plain = self.network.name == INCEPTION
        key = "" if plain else "_" + self.network.name.replace("-", "_")
        label = "" if plain else f" ({self.network.name})"
        figures = {
            f"fid{key}": Figure(f"FID{label}", frechet_distance(self.samples.compute(), self.real.compute()))
        }
        if self.score is not None:
            score = self.score.compute()
            figures[f"is{key}"] = Figure(f"IS{label}", score.mean)
            figures[f"is{key}_std"] = Figure(
                f"IS{label}, deviation over {self.score.splits} splits", score.std
            )
        if self.accuracy is not None:
            found = self.accuracy.compute()
            figures["class_accuracy"] = Figure("samples recognised as their class", found.accuracy)
            figures["class_accuracy_by_class"] = Figure("the same, class by class", found.by_class)
        return figures


class ReconstructionJudge(nn.Module):
    """Measures what an autoencoder loses of held-out images."""

    def __init__(self, autoencoder: HierarchicalVQVAE) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.error = ReconstructionError()

    def update(self, _: str, batch: ImageBatch) -> None:
        if len(batch.images):
            self.error.update(batch.images, self.autoencoder(batch.images).images)

    def figures(self) -> dict[str, Figure]:
        error = self.error.compute()
        return {
            "mse": Figure("MSE of reconstructions, pixels in [-1, 1]", error.mse),
            "psnr_db": Figure("PSNR of reconstructions, dB", error.psnr_db),
        }


class CodeJudge(nn.Module):
    """Measures, on one split of the latents, how well priors predict the codes and how many codes are used.

    Args:
        spec: of the latents.
        priors: by the name of their level.
        num_pixels: H · W of the images.
    """

    def __init__(self, split: str, spec: LatentSpec, priors: Mapping[str, Prior], num_pixels: int) -> None:
        super().__init__()
        self.split = split
        self.levels = [level.name for level in spec.levels]
        self.num_pixels = num_pixels
        self.priors = nn.ModuleDict(priors)
        self.likelihoods = nn.ModuleDict({name: Likelihood() for name in priors})
        self.use = nn.ModuleDict({level.name: CodebookUse(level.num_codes) for level in spec.levels})

    def update(self, _: str, batch: LatentBatch) -> None:
        for i, level in enumerate(self.levels):
            self.use[level].update(batch.codes[i])
            if level in self.priors:
                logits = self.priors[level](batch.codes[i], batch.codes[:i], batch.labels)
                nll_nats = F.cross_entropy(logits.float(), batch.codes[i], reduction="none")
                self.likelihoods[level].update(nll_nats)

    def figures(self) -> dict[str, Figure]:
        rates = {level: likelihood.compute() for level, likelihood in self.likelihoods.items()}
        figures = {
            f"nll_{level}_{self.split}": Figure(f"NLL {level}, {self.split}, nats a code", rate.nats_per_code)
            for level, rate in rates.items()
        }
        bits = {level: rate.bits_per_image for level, rate in rates.items()}
        for level, value in bits.items():
            figures[f"bits_{level}_{self.split}"] = Figure(f"NLL {level}, {self.split}, bits an image", value)
        if len(bits) == len(self.levels):
            total = sum(bits.values())
            figures[f"bits_{self.split}"] = Figure(f"NLL of all levels, {self.split}, bits an image", total)
            figures[f"bpp_{self.split}"] = Figure(
                f"NLL of all levels, {self.split}, bits a pixel", total / self.num_pixels
            )
        if self.split == "val":
            for level, use in self.use.items():
                used = use.compute()
                figures[f"usage_{level}"] = Figure(f"codebook {level}, fraction in use", used.usage)
                figures[f"perplexity_{level}"] = Figure(f"codebook {level}, perplexity", used.perplexity)
        return figures
