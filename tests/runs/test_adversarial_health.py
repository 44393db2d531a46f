"""Known causes of failing adversarial training, each injected into a run, and what is said of it."""

import warnings
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from tests.training.training_run import autoencoder_module, trainer
from tests.training.vqgan_run import adversarial, vqgan_module
from vqvae2.data.images import ImageDataModule
from vqvae2.nn.classifier import Classifier
from vqvae2.runs.adversarial_health import AdversarialHealth
from vqvae2.runs.health import Health
from vqvae2.storage.checkpoint import save_network
from vqvae2.training.perceptual import Perceptual
from vqvae2.training.schedules import Constant
from vqvae2.training.vqgan import Discriminator

SURE = {"start": 2, "warmup": 1, "lecam": 0.0}  # starts early, with nothing to be said of its settings
EAGER, FROZEN = (
    Discriminator(hidden=8, layers=1, norm="group", norm_groups=4, rate=rate) for rate in (50.0, 0.0)
)


def said(images, *callbacks, steps=8, watch=None, image_size=8, plugins=None, module=None, **changes):
    """What a run warns of."""
    data = ImageDataModule(
        train=str(images / "train"), val=str(images / "val"), image_size=image_size, batch_size=4
    )
    watch = watch or AdversarialHealth(patience=3)
    module = module or vqgan_module(**{"adversarial": adversarial(**SURE), "discriminator": EAGER, **changes})
    run = trainer(
        steps,
        callbacks=[*callbacks, Health(), watch],
        log_every_n_steps=1,
        limit_val_batches=0,
        plugins=plugins,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(module, data)
    texts = [str(warning.message) for warning in caught]
    return [text for text in texts if "Try" in text]


class Inject(L.Callback):
    """Does something to the module at the start."""

    def __init__(self, what):
        self.what = what

    def on_train_start(self, trainer, module):
        with torch.no_grad():
            self.what(module)


def test_a_healthy_run_is_told_nothing_and_logs_the_discriminators_gradient(images):
    norms = []

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            norms.append(trainer.callback_metrics.get("train/gradient_norm_discriminator"))

    assert said(images, Keep()) == []
    assert norms[0] is None  # idle
    assert min(norms[1:]) > 0


def test_a_gradient_that_counts_before_the_discriminator_was_trained(images):
    [text] = said(images, adversarial=adversarial(start=2, warmup=0))
    assert "counts after 2 batches, when nothing has trained it" in text
    assert "--model.adversarial.warmup" in text


def test_float16(images):
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    precision.autocast_context_manager = lambda: torch.autocast("cpu", torch.bfloat16)
    [text] = said(images, steps=3, plugins=[precision])
    assert "float16" in text
    assert "--trainer.precision bf16-mixed" in text


def test_a_start_that_never_comes(images):
    [text] = said(images, adversarial=adversarial(start=100))
    assert "The run ends after 8 batches, and the discriminator's gradient counts after 100" in text
    assert "--model.adversarial.start" in text


def test_random_weights_of_the_perceptual_loss(images):
    [text] = said(
        images, steps=3, image_size=16, perceptual=Perceptual("lpips-vgg", "random"), perceptual_weight=1.0
    )
    assert "random weights" in text
    assert "--model.perceptual.weights" in text


def test_a_perceptual_loss_that_sees_nothing(images, tmp_path):
    options = {"num_classes": 2, "channels": 3, "widths": [4], "blocks": 1}
    classifier = Classifier(**options)
    torch.nn.init.zeros_(classifier.head.weight)
    save_network(tmp_path / "blind.ckpt", classifier, options)
    blind = Perceptual("classifier", str(tmp_path / "blind.ckpt"), compare="logits")
    [text] = said(images, perceptual=blind, perceptual_weight=1.0)
    assert "its network sees nothing" in text
    assert "--model.perceptual.weights" in text


def test_lambda_that_is_blown_up(images):
    """The discriminator's gradient is next to nothing."""
    faint = Inject(lambda module: module.helper.layers[-1].weight.mul_(1e-9))
    watch = AdversarialHealth(patience=3, lambda_above=100)
    texts = said(images, faint, watch=watch, discriminator=FROZEN)
    [text] = [text for text in texts if "λ" in text]
    assert "--model.adversarial.weighting fixed" in text
    assert "--model.adversarial.lambda_max" in text


def test_a_discriminator_that_learns_nothing(images):
    def flatten(module):
        module.helper.layers[-1].weight.zero_()
        module.helper.layers[-1].bias.zero_()

    texts = said(images, Inject(flatten), discriminator=FROZEN)
    [text] = [text for text in texts if "apart" in text]
    assert "its loss is 1, its logits 0 and 0 lie within the hinge's margin" in text
    assert "--model.discriminator.rate" in text


def test_a_discriminator_that_always_wins(images):
    class Knows(L.Callback):
        """It is told what is real."""

        def on_train_start(self, trainer, module):
            module.helper.register_forward_hook(self.tell)

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.real = batch.images

        def tell(self, helper, inputs, logits):
            return logits + (20 if torch.equal(inputs[0], self.real) else -20)

    [text] = said(images, Knows())
    assert "always wins" in text
    for advice in ("--model.adversarial.lecam", "--model.discriminator.rate", "data"):
        assert advice in text


def test_reconstructions_that_get_worse_when_the_gradient_counts(images):
    """Its weight is much too large."""
    heavy = adversarial(start=6, warmup=4, lecam=0.0, weighting="fixed", weight=1e4)
    rate = {"schedule": Constant(3e-2), "codebook_weight": 0.0}
    texts = said(images, steps=16, adversarial=heavy, **rate)
    [text] = [text for text in texts if "worse" in text]
    assert "before it was" in text
    assert "--model.adversarial.weight" in text


def test_what_was_seen_outlives_a_resumed_run_and_is_said_once():
    figures = {
        "generator": 0.0,
        "discriminator": 1.0,
        "logit_real": 0.0,
        "logit_fake": 0.0,
        "mse": 0.1,
        "inside_margin": 1.0,
    }
    first = AdversarialHealth(patience=2)
    first.judge(figures)
    second = AdversarialHealth(patience=2)
    second.load_state_dict(first.state_dict())
    with pytest.warns(UserWarning, match="tells nothing apart"):
        second.judge(figures)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.judge(figures)


WORSE = {"generator": 0.0, "discriminator": 0.9, "logit_real": 2.0, "logit_fake": 0.0, "mse": 0.3}
WORSE |= {"inside_margin": 0.5}


def logged(watch, mse, batches):
    """A logged step of a run whose gradient counts after five batches."""
    figures = WORSE | {"mse": mse}
    metrics = {f"train/{name}": torch.tensor(value) for name, value in figures.items()}
    module = SimpleNamespace(
        batches=batches, adversarial=SimpleNamespace(start=5), writes_step=lambda step: True
    )
    watch.on_train_batch_end(SimpleNamespace(global_step=batches, callback_metrics=metrics), module)


def test_reconstructions_are_compared_with_those_before_the_start_alone():
    """Steps after it are no standard: a run that stays bad would be its own."""
    watch = AdversarialHealth(patience=9)
    logged(watch, 0.1, 5)
    for batches in range(6, 14):
        logged(watch, 0.3, batches)
    with pytest.warns(UserWarning, match=r"error is 0\.3, before it was 0\.1\."):
        logged(watch, 0.3, 14)


def test_the_standard_outlives_a_resumed_run():
    first = AdversarialHealth(patience=1)
    logged(first, 0.1, 5)
    second = AdversarialHealth(patience=1)
    second.load_state_dict(first.state_dict())
    with pytest.warns(UserWarning, match=r"before it was 0\.1\."):
        second.judge(WORSE)


def test_another_family_is_not_watched(images):
    with pytest.raises(ValueError, match="not a AutoencoderModule"):
        said(images, module=autoencoder_module())


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"lambda_above": 0}, {"worse": 1}])
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AdversarialHealth(**wrong)
