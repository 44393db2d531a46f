"""Watches adversarial training: names the known causes of its failures, each with what to try."""

import statistics
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from vqvae2.nn.checks import require
from vqvae2.nn.perceptual import RANDOM
from vqvae2.runs.health import gradient_norm
from vqvae2.training.vqgan import VQGANModule

_HISTORY = 25  # logged steps from before the discriminator's gradient counts
Figures = Mapping[str, float]  # of a logged step, by their names without "train/"


class Symptom(NamedTuple):
    """What the figures of a logged step show, and what to say of it, with their names in braces."""

    shows: Callable[[Figures], bool]
    says: str


def _is_stuck(figures: Figures) -> bool:
    apart = abs(figures.get("logit_real", 9.0) - figures.get("logit_fake", -9.0))
    counts = "generator" in figures  # a new one tells nothing apart either
    return counts and abs(figures["discriminator"] - 1) < 0.02 and apart < 0.05


_SYMPTOMS = {
    "lambda": Symptom(
        lambda figures: figures.get("lambda", 0) > figures["lambda_above"],
        "λ is {lambda:.3g}: the discriminator's gradient is small where the reconstruction's is not, and is "
        "blown up, with its noise. Try --model.adversarial.weighting fixed with a small "
        "--model.adversarial.weight such as 0.1, or --model.adversarial.lambda_max 10.",
    ),
    "strong": Symptom(
        lambda figures: figures.get("discriminator", 1) < 0.01 and figures["inside_margin"] < 0.01,
        "The discriminator always wins: its logits are {logit_real:.3g} for images and {logit_fake:.3g} for "
        "reconstructions, outside the hinge's margin. Try --model.adversarial.lecam 0.05 with "
        "--model.adversarial.lecam_decay 0.999, --model.discriminator.rate 0.25, a narrower "
        "--model.discriminator.hidden, or more and augmented data.",
    ),
    "stuck": Symptom(
        _is_stuck,
        "The discriminator tells nothing apart: its loss is {discriminator:.3g}, its logits {logit_real:.3g} "
        "and {logit_fake:.3g} lie within the hinge's margin. Try a higher --model.discriminator.rate, a "
        "longer --model.adversarial.warmup, a smaller --model.adversarial.lecam, or a wider "
        "--model.discriminator.hidden.",
    ),
    "blind": Symptom(
        lambda figures: figures.get("perceptual", 1) <= 1e-6 * figures["mse"],
        "The perceptual loss is {perceptual:.3g} though images and reconstructions differ by {mse:.3g}: its "
        "network sees nothing. Try other --model.perceptual.weights, or --model.perceptual.compare logits.",
    ),
    "worse": Symptom(
        lambda figures: "generator" in figures and figures["mse"] > figures["worse"] * figures["before"],
        "Reconstructions got worse since the discriminator's gradient counts: their mean square error is "
        "{mse:.3g}, before it was {before:.3g}. Try a smaller --model.adversarial.weight, "
        "--model.adversarial.weighting fixed, or a longer --model.adversarial.warmup.",
    ),
}


class AdversarialHealth(L.Callback):
    """Warns, once each, of what is known to make the training of a VQ-GAN fail.

    Before training, of settings: a discriminator whose gradient counts before it has been trained, float16, a
    start that the run never reaches, a perceptual loss of random weights. In training, of what the logged
    figures show `patience` times in a row: λ too large, a discriminator that always wins, one that has not
    learned to tell anything, a perceptual loss that sees nothing, a reconstruction that got worse since the
    discriminator's gradient counts.

    It logs `train/gradient_norm_discriminator` too, before clipping.

    Args:
        patience: logged steps in a row.
        lambda_above: λ is too large above this.
        worse: the reconstruction has failed when its mean square error is so many times what it was.
    """

    def __init__(self, *, patience: int = 5, lambda_above: float = 1000.0, worse: float = 2.0) -> None:
        require(patience >= 1, "patience", patience, "at least 1")
        require(lambda_above > 0, "lambda_above", lambda_above, "above 0")
        require(worse > 1, "worse", worse, "above 1")
        self.patience = patience
        self.lambda_above = lambda_above
        self.worse = worse
        self._before: deque[float] = deque(maxlen=_HISTORY)  # mean square errors before the start
        self._streaks: dict[str, int] = {}
        self._step = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, VQGANModule):
            raise ValueError(
                f"AdversarialHealth watches a VQGANModule, not a {type(pl_module).__name__}. Leave it out."
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: VQGANModule) -> None:
        self._step = trainer.global_step
        for doubt in doubts(trainer, pl_module):
            rank_zero_warn(doubt)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: VQGANModule, optimizer: Optimizer
    ) -> None:
        trains = pl_module.batches > pl_module.first_of_discriminator
        if trains and pl_module.writes_step(trainer.global_step + 1):
            pl_module.log("train/gradient_norm_discriminator", gradient_norm(pl_module.helper.parameters()))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: VQGANModule, *_: Any) -> None:
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        if not stepped or not pl_module.writes_step(trainer.global_step):
            return
        metrics = trainer.callback_metrics
        figures = {k.removeprefix("train/"): float(v) for k, v in metrics.items() if k.startswith("train/")}
        if pl_module.batches <= pl_module.adversarial.start and "mse" in figures:
            self._before.append(figures["mse"])
        self.judge(figures)

    def judge(self, figures: Figures) -> None:
        """Warns of what the figures of a logged step show for the `patience`-th time in a row."""
        before = statistics.median(self._before) if self._before else float("inf")
        known = {**figures, "before": before, "lambda_above": self.lambda_above, "worse": self.worse}
        for name, symptom in _SYMPTOMS.items():
            count = self._streaks.get(name, 0)
            if count == self.patience:  # what has been said is not said again
                continue
            self._streaks[name] = count + 1 if symptom.shows(known) else 0
            if self._streaks[name] == self.patience:
                rank_zero_warn(f"{symptom.says.format_map(known)} (Seen {self.patience} times in a row.)")

    def state_dict(self) -> dict[str, Any]:
        return {"before": list(self._before), "streaks": dict(self._streaks)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before.extend(state_dict["before"])
        self._streaks = dict(state_dict["streaks"])


def doubts(trainer: L.Trainer, module: VQGANModule) -> list[str]:
    """What is known to fail in the settings of a run."""
    options, found = module.adversarial, []
    if options.warmup == 0:
        found.append(
            f"The discriminator's gradient counts after {options.start} batches, when nothing has trained it "
            "yet: it spoils reconstructions. Try --model.adversarial.warmup 1000 or more, with as large a "
            "start."
        )
    if trainer.precision == "16-mixed":
        found.append(
            "Adversarial losses in float16 are known to end in numbers that are not finite. Try "
            "--trainer.precision bf16-mixed or 32-true."
        )
    batches = trainer.max_steps * trainer.accumulate_grad_batches
    if 0 <= batches <= options.start:
        found.append(
            f"The run ends after {batches} batches, and the discriminator's gradient counts after "
            f"{options.start}: it never will. Try a smaller --model.adversarial.start; it is in batches."
        )
    if module.perceptual is not None and module.perceptual.weights == RANDOM:
        found.append(
            "The perceptual loss has random weights, which looks like a failure of the discriminator. Try "
            "--model.perceptual.weights with a file of trained ones, or --model.perceptual null."
        )
    return found
