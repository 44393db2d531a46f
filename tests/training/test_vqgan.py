"""Adversarial training in one backward pass: its gradients, its start, its checkpoints."""

from itertools import pairwise

import lightning as L
import pytest
import torch
from torch.nn import functional as F

from tests.training.training_run import image_data, trainer
from tests.training.vqgan_run import AVERAGES, adversarial, fit_vqgan, vqgan_module
from vqvae2.nn.classifier import Classifier
from vqvae2.nn.patch_discriminator import PatchDiscriminator
from vqvae2.nn.perceptual import ClassifierDistance
from vqvae2.nn.vqgan import VQGANReconstruction
from vqvae2.nn.weights import fingerprint
from vqvae2.runs.previews import ReconstructionGrid
from vqvae2.storage.checkpoint import load_network, read_checkpoint, rebuild, save_network
from vqvae2.training.perceptual import Perceptual
from vqvae2.training.schedules import Constant
from vqvae2.training.vqgan import Discriminator

NORMS = {"group": {"norm": "group", "norm_groups": 4}, "batch": {"norm": "batch"}}
AT_ONCE = {"start": 0, "warmup": 0}


def built(norm="group", **changes):
    """A module with its networks, and a batch."""
    module = vqgan_module(**changes)
    module.network = module.make(3).train()
    module.helper = PatchDiscriminator(channels=3, hidden=8, layers=1, **NORMS[norm]).train()
    return module, torch.rand(4, 3, 8, 8) * 2 - 1


def gradients(network):
    found = {name: p.grad for name, p in network.named_parameters()}
    network.zero_grad(set_to_none=True)
    return found


def one_backward(module, images, batches=0):
    module.batches = batches
    losses = module.training_losses(images, module.network(images))
    losses["loss"].backward()
    return gradients(module.network), gradients(module.helper), losses


def two_steps(module, images, distance):
    """As two optimisers would have it: a discriminator frozen while it scores, λ by autograd (equation 7)."""
    network, helper, options = module.network, module.helper, module.adversarial
    helper.requires_grad_(False)
    out = network(images)
    rec = (out.images - images).abs().mean() + 0.7 * distance(out.images, images)
    generator = -helper(out.images).mean()
    norms = [
        torch.autograd.grad(loss, network.last.weight, retain_graph=True)[0].norm()
        for loss in (rec, generator)
    ]
    weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, options.lambda_max).detach()
    vq = 0.25 * out.commitment + out.codebook
    (rec + 2.0 * vq + options.weight * weight * generator).backward()
    of_network = gradients(network)
    helper.requires_grad_(True)
    real, fake = helper(images), helper(out.images.detach())
    (0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())).backward()
    return of_network, gradients(helper), weight


@pytest.mark.parametrize("lambda_max", [1e4, 0.02], ids=["", "clamped"])
@pytest.mark.parametrize("codebook", [{}, AVERAGES], ids=["gradient", "averages"])
@pytest.mark.parametrize("norm", NORMS)
def test_one_backward_pass_gives_the_gradients_of_two_separate_steps(norm, codebook, lambda_max):
    """λ is clamped first and multiplied by the weight after."""
    changes = {"pixel": "l1", "perceptual_weight": 0.7, "codebook_weight": 2.0, **codebook}
    module, images = built(
        norm, adversarial=adversarial(**AT_ONCE, weight=3.0, lecam=0, lambda_max=lambda_max), **changes
    )
    distance = ClassifierDistance(Classifier(num_classes=2, channels=3, widths=[4], blocks=1), "logits")
    module._distance = distance.__call__
    of_network, of_helper, weight = two_steps(module, images, distance)
    found_network, found_helper, losses = one_backward(module, images)
    assert losses["lambda"].item() == pytest.approx(weight.item(), rel=1e-4)
    assert (losses["lambda"] == lambda_max) == (lambda_max < 1)
    for found, expected in ((found_network, of_network), (found_helper, of_helper)):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert not any(p.grad is not None for p in distance.parameters())


def test_no_gradient_leaks_from_one_network_to_the_other():
    def found(batches=9, **changes):
        module, images = built(adversarial=adversarial(**changes))
        return one_backward(module, images, batches)[:2]

    def same(one, other):
        return all(torch.equal(one[name], other[name]) for name in one)

    network, helper = found(weight=0.5)
    heavy_network, heavy_helper = found(weight=50.0)
    assert same(helper, heavy_helper)  # of the hinge alone, however much the generator's term weighs
    assert not same(network, heavy_network)
    _, drawn = found(lecam=3.0)
    assert not same(helper, drawn)
    assert same(network, found(lecam=3.0)[0])  # and nothing of the discriminator's loss here
    alone, _ = found(weight=0.0)
    before, _ = found(batches=2)  # the discriminator is trained, its gradient does not count yet
    assert same(alone, before)


@pytest.mark.parametrize("network", ["network", "helper"])
def test_what_is_not_finite_is_seen_in_the_loss(network):
    """The adversarial terms have the value 0 there, but not then: that is what stops a run."""
    module, images = built(adversarial=adversarial(**AT_ONCE))
    assert one_backward(module, images, 9)[2]["loss"].isfinite()
    part = module.network.last if network == "network" else module.helper.layers[-1]
    torch.nn.init.constant_(part.bias, torch.nan)
    assert one_backward(module, images, 9)[2]["loss"].isnan()


def test_losses_of_half_precision_are_float32():
    module, images = built(adversarial=adversarial(**AT_ONCE))
    module.network.bfloat16(), module.helper.bfloat16()
    images = images.bfloat16()
    out = module.network(images)
    assert out.images.dtype == torch.bfloat16
    for losses in (module.losses(images, out), module.training_losses(images, out)):
        assert {value.dtype for value in losses.values()} == {torch.float32}
        assert losses["l1"] == F.l1_loss(out.images.float(), images.float())


class Passes(L.Callback):
    """What of the discriminator each batch has used: its passes; then its weights."""

    def __init__(self):
        self.counts, self.weights = [], []

    def on_train_batch_start(self, trainer, module, *_):
        if not self.counts:
            module.helper.register_forward_hook(lambda *_: self.counts.append(self.counts.pop() + 1))
        self.counts.append(0)

    def on_train_batch_end(self, trainer, module, *_):
        self.weights.append(torch.cat([p.detach().flatten() for p in module.helper.parameters()]))


def test_the_start_is_counted_in_batches_and_nothing_is_computed_before(images, tmp_path):
    """Two batches a step: after 3 batches the discriminator is trained, after 5 its gradient counts."""
    passes = [Passes(), Passes()]
    options = {"accumulate_grad_batches": 2, "limit_val_batches": 0}
    module = vqgan_module(adversarial=adversarial(start=5, warmup=2))
    first = trainer(2, callbacks=passes[:1], **options)
    first.fit(module, image_data(images, 2))
    first.save_checkpoint(tmp_path / "half.ckpt")
    module = vqgan_module(adversarial=adversarial(start=5, warmup=2))
    fit_vqgan(images, 4, 2, module, tmp_path / "half.ckpt", callbacks=passes[1:], **options)
    assert passes[0].counts + passes[1].counts == [0, 0, 0, 2, 2, 3, 3, 3]
    assert module.batches == 8
    weights = passes[0].weights + passes[1].weights
    moved = [not torch.equal(a, b) for a, b in pairwise(weights)]
    assert moved == [False, False, True, False, True, False, True]  # at the ends of steps, from the second on


def test_an_idle_discriminator_is_new_to_the_optimiser(images):
    module = fit_vqgan(images, 3, module=vqgan_module(adversarial=adversarial(start=9, warmup=7)))
    [steps] = {int(module.optimizers().state[p]["step"]) for p in module.helper.parameters()}
    assert steps == 1
    assert int(module.optimizers().state[module.network.last.weight]["step"]) == 3


@pytest.mark.parametrize("codebook", [{}, AVERAGES | {"codebook_init": "data", "revive_below": 0.1}])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(images, tmp_path, codebook):
    """To the bit, from before the discriminator's gradient counts: weights, averages, moments, counters."""

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step in (3, 12):
                trainer.save_checkpoint(tmp_path / f"{self.name}-{trainer.global_step}.ckpt")

    def run(name, steps, resume=None):
        save = Save()
        save.name = name
        module = vqgan_module(adversarial=adversarial(start=5), dropout=0.1, **codebook)
        fit_vqgan(images, steps, module=module, resume=resume, callbacks=[save])

    run("whole", 12)
    run("part", 4)
    run("resumed", 12, tmp_path / "part-3.ckpt")
    whole, resumed = (read_checkpoint(tmp_path / f"{name}-12.ckpt") for name in ("whole", "resumed"))
    assert whole["vqgan"] == resumed["vqgan"] == {"batches": 12}
    assert whole["state_dict"].keys() == resumed["state_dict"].keys()
    for name, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (whole, resumed)]
    for number, moments in states[0].items():
        for name, value in moments.items():
            assert torch.equal(states[1][number][name], value), (number, name)


@pytest.mark.parametrize("codebook", [{}, AVERAGES])
def test_a_checkpoint_holds_the_discriminator_and_its_network_does_not(images, tmp_path, codebook):
    grid = ReconstructionGrid(num_samples=2)
    module = vqgan_module(**codebook)
    fitting = trainer(5, callbacks=[grid], default_root_dir=tmp_path, val_check_interval=5)
    fitting.fit(module, image_data(images))
    fitting.save_checkpoint(tmp_path / "last.ckpt")
    names = {name.split(".")[0] for name in read_checkpoint(tmp_path / "last.ckpt")["state_dict"]}
    assert names == {"network", "average", "helper", "lecam"}
    loaded = load_network(tmp_path / "last.ckpt", "autoencoder")
    assert loaded.facts == module.description
    assert fingerprint(loaded.network) == fingerprint(module.average)
    assert not any("helper" in name or "discriminator" in name for name in loaded.network.state_dict())
    batch = next(iter(image_data(images).val_dataloader())).images
    assert loaded.network.decode(loaded.network.encode(batch)).shape == batch.shape
    assert list((tmp_path / "images").iterdir())


def test_held_out_figures_are_those_without_the_adversarial_terms(images):
    module, data = vqgan_module(pixel="l1", codebook_weight=2.0), image_data(images, batch_size=8)
    fitting = trainer(4)
    fitting.fit(module, data)
    [metrics] = fitting.validate(module, data, verbose=False)
    batch = torch.cat([batch.images for batch in data.val_dataloader()])
    with torch.no_grad():
        out = rebuild(module.description, module.average.state_dict())(batch)
    l1 = F.l1_loss(out.images, batch).item()
    assert metrics["val/l1"] == pytest.approx(l1, rel=1e-5)
    assert metrics["val/loss"] == pytest.approx(l1 + 2.0 * (1.25 * out.commitment.item()), rel=1e-5)
    assert "val/generator" not in metrics


def test_the_loss_weighs_its_terms():
    images = torch.randn(2, 3, 4, 4)
    terms = (torch.tensor(2.0), torch.tensor(3.0))
    out = VQGANReconstruction(images + 0.5, (), *terms, (), torch.zeros(()))
    changes = {"pixel_weight": 4.0, "codebook_weight": 0.1, "beta": 0.25}
    for pixel, beta_on, expected in (
        ("l1", "commitment", 4 * 0.5 + 0.1 * (0.25 * 2 + 3)),
        ("l2", "codebook", 4 * 0.25 + 0.1 * (0.25 * 3 + 2)),
    ):
        losses = vqgan_module(pixel=pixel, beta_on=beta_on, **changes).losses(images, out)
        assert losses["loss"].item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="beta_on is codebook, wanted commitment, as moving"):
        vqgan_module(beta_on="codebook", **AVERAGES)


def test_gradients_are_clipped_network_by_network(images):
    norms = []

    class Watch(L.Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):
            parts = [list(part.parameters()) for part in module.trained]
            if all(p.grad is not None for part in parts for p in part):
                norms.append([torch.nn.utils.get_total_norm(p.grad for p in part).item() for part in parts])

    module = vqgan_module(adversarial=adversarial(**AT_ONCE))
    fit_vqgan(images, 3, module=module, gradient_clip_val=1e-3, callbacks=[Watch()])
    assert norms
    for pair in norms:
        assert pair == pytest.approx([1e-3, 1e-3], rel=1e-3)


def test_the_discriminators_rate_is_in_units_of_the_schedules(images):
    rate = Discriminator(hidden=8, layers=1, norm="batch", rate=0.25)
    module = fit_vqgan(images, 2, module=vqgan_module(discriminator=rate, schedule=Constant(1e-3)))
    assert [group["lr"] for group in module.optimizers().param_groups] == pytest.approx([1e-3, 2.5e-4])
    assert {group["betas"] for group in module.optimizers().param_groups} == {(0.5, 0.9)}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_trains_both_networks(images, precision):
    module = vqgan_module(adversarial=adversarial(**AT_ONCE))
    before = None

    class Watch(L.Callback):
        def on_train_start(self, trainer, module):
            nonlocal before
            before = [part.state_dict() for part in module.trained]
            before = [{k: v.clone() for k, v in state.items()} for state in before]

    fit_vqgan(images, 3, module=module, precision=precision, callbacks=[Watch()])
    for part, state in zip(module.trained, before, strict=True):
        for value in part.state_dict().values():
            assert value.isfinite().all()
        assert any(not torch.equal(value, state[name]) for name, value in part.state_dict().items())
    assert module.network.quantizer.codebook.dtype == torch.float32
    assert module.lecam.averages.dtype == torch.float32


def test_a_perceptual_network_is_loaded_and_in_no_checkpoint(images, tmp_path):
    with pytest.raises(ValueError, match="There is no checkpoint critic"):
        fit_vqgan(images, 1, module=vqgan_module(perceptual=Perceptual("classifier", "critic.ckpt")))
    options = {"num_classes": 2, "channels": 3, "widths": [4], "blocks": 1}
    save_network(tmp_path / "critic.ckpt", Classifier(**options), options)
    perceptual = Perceptual("classifier", str(tmp_path / "critic.ckpt"))
    module = fit_vqgan(images, 4, module=vqgan_module(perceptual=perceptual, perceptual_weight=1.0))
    assert module.trainer.callback_metrics["train/perceptual"] > 0
    assert {name.split(".")[0] for name in module.state_dict()} == {"network", "average", "helper", "lecam"}
    grey = {**options, "channels": 1}
    save_network(tmp_path / "grey.ckpt", Classifier(**grey), grey)
    with pytest.raises(ValueError, match="images of 1 channels, the data has 3"):
        fit_vqgan(
            images, 1, module=vqgan_module(perceptual=Perceptual("classifier", str(tmp_path / "grey.ckpt")))
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup": 4}, "adversarial.warmup is 4, wanted 0 to 3"),
        ({"start": -1, "warmup": 0}, "adversarial.start is -1"),
        ({"weight": float("nan")}, "adversarial.weight is nan"),
        ({"lambda_max": 0}, "adversarial.lambda_max is 0"),
        ({"weighting": "none"}, "adversarial.weighting is none"),
        ({"lecam_decay": None}, "adversarial.lecam_decay is None"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        adversarial(**changes)


@pytest.mark.parametrize("codebook", [{}, AVERAGES | {"codebook_init": "data"}], ids=["gradient", "averages"])
def test_a_few_images_are_learned_by_heart(codebook):
    changes = {"schedule": Constant(5e-3), "num_codes": 64, "code_dim": 8, "polyak": 0.9, **codebook}
    module, images = built(adversarial=adversarial(start=40, warmup=20, weight=0.1), pixel="l1", **changes)
    network = module.network
    parameters = [*network.parameters(), *module.helper.parameters()]
    adam = torch.optim.Adam(parameters, lr=5e-3, betas=(0.5, 0.9))
    seen = []
    for _ in range(110):
        adam.zero_grad()
        out = network(images)
        losses = module.training_losses(images, out)
        losses["loss"].backward()
        adam.step()
        module.keep_statistics(out)
        module.update_codebooks()
        seen.append(losses)
    assert seen[-1]["mse"] < 0.3 * seen[0]["mse"]
    assert all(value.isfinite() for value in seen[-1].values())
    assert {"generator", "discriminator", "lambda", "logit_real", "logit_fake", "inside_margin"} <= {
        *seen[-1]
    }
    assert seen[-1]["lecam"] > 0
