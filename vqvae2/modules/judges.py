"""Who says what about which data: each judge looks at batches and turns them into named figures.

Shape legend: B batch, M samples, C H W images, h w a level's grid.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqvae2.data.images import ImageBatch
from vqvae2.data.latents import LatentBatch, LatentSpec
from vqvae2.metrics.features import INCEPTION, FeatureNetwork, Features
from vqvae2.metrics.frechet import FeatureMoments, Moments, frechet_distance
from vqvae2.metrics.inception_score import InceptionScore, check_splits
from vqvae2.metrics.sums import ClassAccuracy, CodebookUse, Likelihood, ReconstructionError
from vqvae2.modules.classifier import ClassifierFeatures
from vqvae2.modules.rejection import Part
from vqvae2.nn.autoencoder import HierarchicalVQVAE
from vqvae2.nn.prior import Prior
from vqvae2.sampling.rejection import num_enough, num_kept


class Figure(NamedTuple):
    """One line of the verdict."""

    name: str  # as people read it, with its unit
    value: float | int | list[float | None]
    fraction: float = 1.0  # of the samples, the best of each class, that it is about

    @property
    def full_name(self) -> str:
        return self.name if self.fraction == 1 else f"{self.name}, best {self.fraction} of each class"


class SampleJudge(nn.Module):
    """Holds samples against real images in the eyes of a feature network, whole and in the critic's choice.

    Each image is looked at once; it counts in every fraction that keeps it.

    Args:
        network: whose features and logits are compared.
        image_shape: (C, H, W).
        num_classes: of the data; 0 when unlabelled.
        splits: of the Inception score.
        fractions: of the samples, from the largest down.
        is_critic: whether the network is also the critic that chose them.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        splits: int,
        fractions: Sequence[float] = (1.0,),
        is_critic: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        seen = network(torch.zeros(1, *image_shape))
        num_features = seen.features.shape[1]
        self.splits = None if seen.logits is None else splits
        knows_classes = isinstance(network.extractor, ClassifierFeatures) and num_classes > 0
        self.real = FeatureMoments(num_features)
        self.tallies = nn.ModuleList(
            _Tally(num_features, self.splits, num_classes if knows_classes else 0) for _ in fractions
        )
        self.fractions = [float(fraction) for fraction in fractions]
        self.parts: list[Part] = []
        self.is_critic = is_critic

    def check(self, labels: Tensor, num_real: int, count: int | None = None) -> None:
        """Finds out whether there are enough images for the figures of every fraction.

        Args:
            labels: int64 [M], of the samples.
            num_real: real images.
            count: samples to judge of each fraction; None is all that it keeps.

        Raises:
            ValueError: there are not; says how many would do.
        """
        num_judged = len(labels) if count is None else count
        if min(num_judged, num_real) < 2:
            raise ValueError(
                f"There are {num_judged} samples to judge and {num_real} real images, wanted at least 2 of "
                "each: a Fréchet distance compares covariances."
            )
        if self.splits is not None:
            check_splits(num_judged, self.splits)
        least = max(2, self.splits or 2) if count is None else count
        for fraction in self.fractions:
            kept = sum(num_kept(size, fraction) for size in labels.unique(return_counts=True)[1].tolist())
            if kept < least:
                raise ValueError(
                    f"The fraction {fraction} keeps {kept} of the {len(labels)} samples, wanted at least "
                    f"{least}. {num_enough(least, fraction)} samples would do; or leave it out."
                )

    def judge(self, parts: Sequence[Part]) -> None:
        """Says which samples each of the fractions has, before they are shown."""
        self.parts = list(parts)

    def update(self, name: str, batch: ImageBatch) -> None:
        if not len(batch.images):  # every image of the batch was unreadable
            return
        seen = self.network(batch.images)
        if name == "real":
            self.real.update(seen.features)
            return
        for part, tally in zip(self.parts, self.tallies, strict=True):
            chosen = part.judged[batch.index.cpu()].to(batch.index.device)
            logits = None if seen.logits is None else seen.logits[chosen]
            tally.update(Features(seen.features[chosen], logits), batch.labels[chosen], batch.index[chosen])

    def figures(self) -> dict[str, Figure]:
        """A figure of another network than Inception is never called FID or IS alone."""
        real = self.real.compute()
        figures = {}
        for part, tally in zip(self.parts, self.tallies, strict=True):
            for key, figure in self._figures_of(part, tally, real).items():
                figures[key + _at(part.fraction)] = figure
        return figures

    def _figures_of(self, part: Part, tally: "_Tally", real: Moments) -> dict[str, Figure]:
        plain = self.network.name == INCEPTION
        key = "" if plain else "_" + self.network.name.replace("-", "_")
        label = "" if plain else f" ({self.network.name})"
        found = {f"fid{key}": (f"FID{label}", frechet_distance(tally.moments.compute(), real))}
        if tally.score is not None:
            score = tally.score.compute()
            found[f"is{key}"] = (f"IS{label}", score.mean)
            found[f"is{key}_std"] = (f"IS{label}, deviation over {self.splits} splits", score.std)
        if tally.accuracy is not None:
            recognition = tally.accuracy.compute()
            by_whom = ", by the critic itself" if self.is_critic else ""
            found["class_accuracy"] = (f"samples recognised as their class{by_whom}", recognition.accuracy)
            found["class_accuracy_by_class"] = (f"the same{by_whom}, class by class", recognition.by_class)
        if part.log_score is not None:
            found["critic_log_score"] = ("mean of the critic's log scores, nats", part.log_score)
            found["num_judged"] = ("samples judged", int(part.judged.sum()))
        return {name: Figure(*figure, part.fraction) for name, figure in found.items()}


class _Tally(nn.Module):
    """Sums over the samples of one part."""

    def __init__(self, num_features: int, splits: int | None, num_classes: int) -> None:
        super().__init__()
        self.moments = FeatureMoments(num_features)
        self.score = None if splits is None else InceptionScore(splits)
        self.accuracy = ClassAccuracy(num_classes) if num_classes else None

    def update(self, seen: Features, labels: Tensor, index: Tensor) -> None:
        self.moments.update(seen.features)
        if self.score is not None:
            self.score.update(seen.logits, index)
        if self.accuracy is not None:
            self.accuracy.update(seen.logits, labels)


def _at(fraction: float) -> str:
    """What a fraction adds to the key of a figure: nothing if all samples are kept, else such as "@0.25"."""
    return "" if fraction == 1 else f"@{float(fraction)}"


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
