"""Which samples a verdict is about: all, or those that a critic leaves (VQ-VAE-2, section 3.3)."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from vqvae2 import distributed
from vqvae2.data.evaluation import EvaluationDataModule
from vqvae2.data.images import ImageBatch
from vqvae2.modules.critic import load_critic
from vqvae2.nn.autoencoder import fingerprint
from vqvae2.pixels import to_uint8
from vqvae2.sampling.rejection import check_fraction, even_part, keep_best, log_scores, mean_score


class Part(NamedTuple):
    """The samples that are judged together."""

    fraction: float  # of each class that is kept
    num_kept: int
    judged: Tensor  # bool [M], which of all samples: those kept, or some of them
    log_score: float | None  # mean of the critic's scores of those kept; None without a critic


class Rejection(nn.Module):
    """Gets a critic's scores of the samples and keeps the best fractions of each class.

    Args:
        fractions: different ones, each above 0, up to 1.
        critic: classifier that scores the samples, as `load_critic` takes it; None takes the scores that the
            sample job wrote.
        samples_each: judge so many samples of each fraction; None judges all that it keeps.

    Raises:
        ValueError: the fractions or the number are not such.
    """

    def __init__(self, fractions: Sequence[float], critic: str | None, samples_each: int | None) -> None:
        super().__init__()
        for fraction in fractions:
            check_fraction(fraction)
        if not fractions or len(set(fractions)) < len(fractions):
            raise ValueError(f"fractions is {list(fractions)}, wanted different ones, such as [1.0, 0.25].")
        if samples_each is not None and samples_each < 1:
            raise ValueError(f"samples_each is {samples_each}, wanted at least 1, or null for all.")
        self.fractions = sorted((float(fraction) for fraction in fractions), reverse=True)
        self.critic = critic
        self.samples_each = samples_each
        self.parts: list[Part] = []
        self.fingerprint: str | None = None  # of the critic, where known
        self.scores: Tensor | None = None
        self.scorer: nn.Module | None = None

    def prepare(self, data: EvaluationDataModule) -> None:
        """Gets the scores, or the critic; neither if all samples are kept and no critic is asked for.

        Raises:
            ValueError: there are no scores, or a critic that does not know such samples, or no classes.
        """
        if self.critic is None and self.fractions == [1]:
            return
        if data.num_classes == 0:
            raise ValueError(
                "A critic chooses samples by the class that was asked for, but these have no classes: "
                "leave out model.init_args.critic, and fractions below 1."
            )
        if self.critic is None:
            self.scores, self.fingerprint = data.sample_scores(), data.sample_critic()
            return
        known = {name: getattr(data, name) for name in ("num_classes", "channels", "image_size", "classes")}
        self.scorer = load_critic(self.critic, **known)
        self.fingerprint = fingerprint(self.scorer)

    def choose(self, data: EvaluationDataModule, device: torch.device) -> list[Part]:
        """Scores the samples on `device`, if a critic was asked for, and says which of them to judge."""
        labels = data.sample_labels
        if self.scorer is not None:
            rank_zero_info(f"Scoring {len(labels)} samples with {self.critic}.")
            self.scores = score_samples(self.scorer, data.loader("samples"), len(labels), device)
            self.scorer = None  # makes room for what judges
        self.parts = [self._part(labels, fraction) for fraction in self.fractions]
        return self.parts

    def report(self) -> dict[str, Any] | None:
        """Who chose, and how many; None if nothing was chosen."""
        if self.scores is None:
            return None
        return {
            "critic": {"path": self.critic, "fingerprint": self.fingerprint},
            "kept": {str(part.fraction): part.num_kept for part in self.parts},
            "judged": {str(part.fraction): int(part.judged.sum()) for part in self.parts},
        }

    def _part(self, labels: Tensor, fraction: float) -> Part:
        if self.scores is None:
            kept, log_score = torch.ones_like(labels, dtype=torch.bool), None
        else:
            kept = keep_best(self.scores, labels, fraction)
            log_score = mean_score(self.scores, labels, kept)
        judged = kept if self.samples_each is None else even_part(labels, kept, self.samples_each)
        return Part(fraction, int(kept.sum()), judged, log_score)


@torch.no_grad()
def score_samples(
    critic: nn.Module, batches: Iterable[ImageBatch], num_samples: int, device: torch.device
) -> Tensor:
    """The critic's log scores of all samples, float64 [M] on the CPU, the same on every rank.

    Args:
        critic: on `device`.
        batches: this rank's share of the samples; each sample in one batch of one rank.
        num_samples: M, of all ranks together.
        device: where the scores are computed.
    """
    scores = torch.zeros(num_samples, dtype=torch.float64, device=device)
    for batch in batches:
        images = to_uint8(batch.images.to(device, non_blocking=True))
        scores[batch.index.to(device)] = log_scores(critic, images, batch.labels.to(device))
    return distributed.all_reduce_sum(scores).cpu()
