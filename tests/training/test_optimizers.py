"""Optimisers, losses and averages by hand, and their numbers at the ends of their ranges."""

import math
from types import SimpleNamespace

import pytest
import torch

from tests.training.training_run import autoencoder_module, fit_autoencoder
from vqvae2.data.images import ImageBatch
from vqvae2.nn.hierarchical import Reconstruction
from vqvae2.training.classifier import ClassifierModule
from vqvae2.training.schedules import Constant, Cosine, InverseSquareRoot

RATE = 0.25


def classifier(**options) -> ClassifierModule:
    """With its network, as for images of noise of 4 classes."""
    module = ClassifierModule(
        **{"schedule": Constant(RATE), "polyak": 0.9, "widths": [4], "blocks": 1, **options}
    )
    data = SimpleNamespace(num_classes=4, channels=3, image_size=8, classes=list("abcd"))
    module.trainer = SimpleNamespace(datamodule=data, estimated_stepping_batches=10)
    torch.manual_seed(0)
    module.configure_model()
    return module


def weights_after(module: ClassifierModule, gradients: list[float]) -> tuple[float, float, float]:
    """The first weight of the last layer, before and after steps with these gradients, and its bias after."""
    optimizer = module.configure_optimizers()["optimizer"]
    head = module.network.head
    before = head.weight[0, 0].item()
    torch.nn.init.zeros_(head.bias)
    for gradient in gradients:
        for weight in module.network.parameters():
            weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
    return before, head.weight[0, 0].item(), head.bias[0].item()


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd_is_nesterovs(momentum, decay):
    """v ← μ v + g, w ← w − r (g + μ v); weights decay, biases do not."""
    gradients = [1.0, -3.0, 2.0]
    before, weight, bias = weights_after(
        classifier(optimizer="sgd", momentum=momentum, weight_decay=decay), gradients
    )
    expected = {"weight": before, "bias": 0.0}
    for name, shrinks in (("weight", decay), ("bias", 0.0)):
        velocity = 0.0
        for gradient in gradients:
            gradient += shrinks * expected[name]
            velocity = momentum * velocity + gradient
            expected[name] -= RATE * (gradient + momentum * velocity)
    assert (weight, bias) == pytest.approx((expected["weight"], expected["bias"]))


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_loshchilovs(momentum, decay):
    """Moments corrected for their start at zero; decay apart from the gradient, and of weights alone."""
    gradients = [1.0, -3.0, 2.0]
    before, weight, bias = weights_after(classifier(momentum=momentum, weight_decay=decay), gradients)
    expected = {"weight": before, "bias": 0.0}
    for name, shrinks in (("weight", decay), ("bias", 0.0)):
        first = second = 0.0
        for step, gradient in enumerate(gradients, 1):
            first = momentum * first + (1 - momentum) * gradient
            second = 0.999 * second + 0.001 * gradient**2
            unbiased = first / (1 - momentum**step), second / (1 - 0.999**step)
            expected[name] -= RATE * (shrinks * expected[name] + unbiased[0] / (unbiased[1] ** 0.5 + 1e-8))
    assert (weight, bias) == pytest.approx((expected["weight"], expected["bias"]), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3, 0.999])
def test_label_smoothing_spreads_its_share_over_all_classes(smoothing):
    module = classifier(label_smoothing=smoothing)
    module.over_ranks = module.log_dict = lambda figures, **_: figures
    pictures, labels = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0])
    loss = module.training_step(ImageBatch(pictures, labels, torch.arange(5), list("abcde")), 0)
    log_p = module.network(pictures).log_softmax(1)
    wanted = torch.full((5, 4), smoothing / 4)
    wanted[torch.arange(5), labels] += 1 - smoothing
    assert loss.item() == pytest.approx(-(wanted * log_p).sum(1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("polyak", [0.0, 1e-9])
def test_an_average_without_memory_is_the_network(images, polyak):
    module = fit_autoencoder(images, 3, module=autoencoder_module(polyak=polyak))
    for mine, theirs in zip(
        module.average.state_dict().values(), module.network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_without_a_rate_the_codebooks_alone_learn(images):
    module = autoencoder_module(schedule=Constant(0.0))
    fit_autoencoder(images, 1, module=module)
    before = {name: value.clone() for name, value in module.network.state_dict().items()}
    fit_autoencoder(images, 2, module=module)
    for name, value in module.network.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith("quantizers")), name


def test_a_beta_of_zero_leaves_the_error_alone():
    given = torch.randn(2, 3, 4, 4)
    out = Reconstruction(given + 0.5, (), (torch.tensor(2.0), torch.tensor(3.0)), ())
    losses = autoencoder_module(beta=0.0).losses(given, out)
    assert losses["loss"].item() == losses["mse"].item() == pytest.approx(0.25)


@pytest.mark.parametrize(
    "schedule",
    [Cosine(1e-3, warmup=0), Cosine(1e-3, warmup=100), InverseSquareRoot(0.01, 0, 0.5), Constant(0.0)],
)
@pytest.mark.parametrize("steps", [1, 3])
def test_runs_at_the_ends_of_their_schedules_end_finite(images, schedule, steps):
    module = fit_autoencoder(images, steps, module=autoencoder_module(schedule=schedule, beta=0.0))
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert module.network.quantizers[0].num_updates == steps


def test_a_run_of_no_steps_changes_nothing(images):
    module = autoencoder_module(schedule=Cosine(1e-3, warmup=2))
    fit_autoencoder(images, 0, module=module)
    assert module.network.quantizers[0].num_updates == 0


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("polyak", [-0.1, 1.0, math.nan, math.inf]),
        ("beta", [-0.1, math.nan, math.inf]),
        ("recon_variance", [0.0, -1.0, math.nan, math.inf]),
    ],
)
def test_autoencoder_settings_that_cannot_work_are_refused(name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"{name} is {value}, wanted"):
            autoencoder_module(**{name: value})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("momentum", [-0.1, 1.0, math.nan]),
        ("weight_decay", [-0.1, math.nan, math.inf]),
        ("label_smoothing", [-0.1, 1.0, math.nan]),
        ("polyak", [-0.1, 1.0, math.nan]),
    ],
)
def test_classifier_settings_that_cannot_work_are_refused(optimizer, name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"{name} is {value}, wanted"):
            classifier(optimizer=optimizer, **{name: value})
