"""Which samples are evaluated: all, or those that rejection sampling keeps (VQ-VAE-2, section 3.3)."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from vqvae2 import distributed
from vqvae2.data.images import ImageBatch
from vqvae2.evaluation.data_module import EvaluationDataModule
from vqvae2.jobs.rejection_classifier import load_rejection_classifier
from vqvae2.jobs.scores import SCORER
from vqvae2.nn.checks import require
from vqvae2.nn.weights import fingerprint
from vqvae2.pixels import to_uint8
from vqvae2.sampling.rejection import check_fraction, even_part, keep_best, log_scores, mean_score


class Part(NamedTuple):
    """The samples of a candidate that are evaluated together."""

    candidate: str
    fraction: float  # of each class that is kept
    num_kept: int
    evaluated: Tensor  # bool [M], which of all samples: those kept, or some of them
    log_score: float | None  # mean of the scores of those kept; None without scores


class Rejection(nn.Module):
    """Gets a classifier's scores of the samples and keeps the best fractions of each class.

    Args:
        fractions: different ones, each above 0, up to 1.
        rejection_classifier: scores the samples; see `load_rejection_classifier`. None takes the scores that
            the sample job wrote.
        samples_each: evaluate so many samples of each fraction; None evaluates all that it keeps.

    Raises:
        ValueError: the fractions or the number are not such.
    """

    def __init__(
        self, fractions: Sequence[float], rejection_classifier: str | None, samples_each: int | None
    ) -> None:
        super().__init__()
        for fraction in fractions:
            check_fraction(fraction)
        if not fractions or len(set(fractions)) < len(fractions):
            raise ValueError(f"fractions is {list(fractions)}, wanted different ones, such as [1.0, 0.25].")
        wanted = "at least 1, or null for all"
        require(samples_each is None or samples_each >= 1, "samples_each", samples_each, wanted)
        self.fractions = sorted((float(fraction) for fraction in fractions), reverse=True)
        self.rejection_classifier = rejection_classifier
        self.samples_each = samples_each
        self.parts: list[Part] = []
        self.unlabelled: list[str] = []  # candidates that are only evaluated whole
        self.fingerprints: dict[str, str | None] = {}  # of each candidate's classifier, where known
        self.scores: dict[str, Tensor] = {}
        self.scorer: nn.Module | None = None

    def prepare(self, data: EvaluationDataModule) -> None:
        """Reads the scores, or loads the classifier. If all samples are kept and none is given, does neither.

        Raises:
            ValueError: there are no scores or no classes, or the classifier does not know such samples.
        """
        self.unlabelled = [name for name in data.candidates if (data.labels_of(name) < 0).all()]
        labelled = [name for name in data.candidates if name not in self.unlabelled]
        if self.rejection_classifier is None and self.fractions == [1]:
            return
        if not labelled:
            raise ValueError(
                "Rejection sampling ranks samples by the class that was asked for, but these have no "
                "classes: leave out model.init_args.rejection_classifier, and fractions below 1."
            )
        if self.rejection_classifier is None:
            self.scores = {name: data.sample_scores(name) for name in labelled}
            self.fingerprints = {name: data.sample_scorer(name) for name in labelled}
            return
        known = {name: getattr(data, name) for name in ("num_classes", "channels", "image_size", "classes")}
        self.scorer = load_rejection_classifier(self.rejection_classifier, **known)
        self.fingerprints = dict.fromkeys(labelled, fingerprint(self.scorer))

    def fractions_of(self, candidate: str) -> list[float]:
        """Those that are evaluated; without labels only 1, all samples."""
        return [1.0] if candidate in self.unlabelled else self.fractions

    def choose(self, data: EvaluationDataModule, device: torch.device) -> list[Part]:
        """Scores the samples on `device` if a classifier was given, and says which of them to evaluate."""
        if self.scorer is not None:
            for name in self.fingerprints:
                rank_zero_info(
                    f"Scoring {data.num_test_samples(name)} of '{name}' with {self.rejection_classifier}."
                )
                self.scores[name] = score_samples(
                    self.scorer, data.loader(name), data.num_test_samples(name), device
                )
            self.scorer = None  # frees memory for the feature networks
        self.parts = [
            self._part(name, data.labels_of(name), fraction)
            for name in data.candidates
            for fraction in self.fractions_of(name)
        ]
        return self.parts

    def report(self) -> dict[str, Any] | None:
        """Which classifier ranked the samples, and how many were kept; None if none were ranked."""
        if not self.scores:
            return None
        return {
            SCORER: self.rejection_classifier,
            "fingerprints": self.fingerprints,
            "kept": {name: self._counts(name) for name in self.scores},
        }

    def _counts(self, candidate: str) -> dict[str, int]:
        return {str(part.fraction): part.num_kept for part in self.parts if part.candidate == candidate}

    def _part(self, candidate: str, labels: Tensor, fraction: float) -> Part:
        scores = self.scores.get(candidate)
        if scores is None:
            kept, log_score = torch.ones_like(labels, dtype=torch.bool), None
        else:
            kept = keep_best(scores, labels, fraction)
            log_score = mean_score(scores, labels, kept)
        evaluated = kept if self.samples_each is None else even_part(labels, kept, self.samples_each)
        return Part(candidate, fraction, int(kept.sum()), evaluated, log_score)


@torch.no_grad()
def score_samples(
    classifier: nn.Module, batches: Iterable[ImageBatch], num_samples: int, device: torch.device
) -> Tensor:
    """The classifier's log scores of all samples, float64 [M] on the CPU, the same on every rank.

    Args:
        classifier: on `device`.
        batches: this rank's share of the samples; each sample in one batch of one rank.
        num_samples: M, of all ranks together.
        device: where the scores are computed.
    """
    scores = torch.zeros(num_samples, dtype=torch.float64, device=device)
    for batch in batches:
        images = to_uint8(batch.images.to(device, non_blocking=True))
        scores[batch.index.to(device)] = log_scores(classifier, images, batch.labels.to(device))
    return distributed.all_reduce_sum(scores).cpu()
