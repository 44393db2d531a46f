"""The training module of HR-VQVAE: its loss, its figures in training and validation, mixed precision."""

import math

import lightning as L
import pytest
import torch
from torch.nn import functional as F

from tests.training.test_training_speed import Written
from tests.training.training_run import image_data, trainer, write_images
from vqvae2.nn.hr_vqvae import ResidualReconstruction
from vqvae2.nn.quantizer import perplexity, usage
from vqvae2.nn.weights import fingerprint
from vqvae2.storage.checkpoint import load_network, rebuild
from vqvae2.training.hr_vqvae import HRVQVAEModule
from vqvae2.training.schedules import Constant

NETWORK = {"factor": 2, "hidden": 8, "residual": 4, "residual_blocks": 1, "branch": 3, "depth": 3}
NETWORK |= {"code_dim": 4, "decay": 0.9, "eps": 1e-5}
LEVELS = {"level1": 3, "level2": 9, "level3": 27}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def module(**changes):
    torch.manual_seed(0)
    return HRVQVAEModule(schedule=Constant(1e-3), **{"beta": 0.3, "polyak": 0.9, **NETWORK, **changes})


def fit(images, steps, made=None, batch_size=4, **options):
    made = made or module()
    training = trainer(steps, log_every_n_steps=1, **options)
    training.loggers = [Written()]
    training.fit(made, image_data(images, batch_size))
    return made, training


class Watch(L.Callback):
    """What the network has made of each batch, and the figures of each validation."""

    def __init__(self):
        self.outs, self.validations = [], []

    def on_train_start(self, _, pl_module):
        keep = self.outs.append
        pl_module.network.register_forward_hook(lambda network, given, out: keep((given[0], out)))

    def on_validation_end(self, trainer, pl_module):
        self.validations.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_the_loss_is_the_formula():
    made = module(beta=0.7)
    made.network = made.make(3)
    images = torch.randn(2, 3, 4, 4)
    parts = [torch.tensor(value) for value in (2.0, 3.0, 5.0)]
    shares = [torch.tensor(value) for value in (1.0, 0.5, 0.25)]
    out = ResidualReconstruction(images + 0.5, (), tuple(parts), torch.tensor(11.0), (), tuple(shares))
    losses = made.losses(images, out)
    assert losses["loss"].item() == pytest.approx(0.25 + 0.7 * (11 + 2 + 3 + 5))
    expected = {"mse": 0.25, "commitment": 11, "commitment_level1": 2, "commitment_level2": 3}
    expected |= {"commitment_level3": 5, "visited_level1": 1, "visited_level2": 0.5, "visited_level3": 0.25}
    assert {name: value.item() for name, value in losses.items() if name != "loss"} == pytest.approx(expected)


@pytest.mark.parametrize("mode", ["stop", "full"])
def test_the_network_knows_the_weight_of_the_commitments(mode):
    network = module(beta=0.7, residual_gradient=mode).make(3)
    assert network.quantizer.beta == 0.7
    assert network.quantizer.residual_gradient == mode


def test_figures_of_training_are_those_of_the_step(images):
    watch = Watch()
    _, training = fit(images, 8, callbacks=[watch], limit_val_batches=0)
    written = training.loggers[0].steps
    assert sorted(written) == list(range(8))
    visited = [torch.zeros(size).bool() for size in LEVELS.values()]
    for step, (shown, out) in enumerate(watch.outs):
        figures = written[step]
        mse = F.mse_loss(out.images, shown).item()
        terms = out.commitment.item() + sum(one.item() for one in out.commitments)
        assert figures["train/mse"] == pytest.approx(mse, rel=1e-5)
        assert figures["train/loss"] == pytest.approx(mse + 0.3 * terms, rel=1e-5)
        leaves = out.codes[0]
        for i, (level, size) in enumerate(LEVELS.items()):
            counts = torch.bincount((leaves // 3 ** (2 - i)).flatten(), minlength=size)
            assert figures[f"train/perplexity_{level}"] == pytest.approx(perplexity(counts).item(), rel=1e-5)
            assert figures[f"train/usage_{level}"] == pytest.approx(usage(counts).item())
            assert figures[f"train/commitment_{level}"] == pytest.approx(out.commitments[i].item(), rel=1e-5)
            assert figures[f"train/visited_{level}"] == pytest.approx(visited[i].float().mean().item())
            if step >= i:
                visited[i] |= counts > 0
    assert figures["train/usage_level3"] > 3 / 27
    assert figures["train/visited_level3"] > figures["train/usage_level3"] - 1e-6


@torch.no_grad()
def test_held_out_figures_are_those_of_all_images_at_once(images):
    watch, made = Watch(), module()
    data = image_data(images, batch_size=2)  # batches of 2, 2 and 1
    with torch.enable_grad():
        trainer(6, callbacks=[watch], val_check_interval=6).fit(made, data)
    figures = watch.validations[-1]
    batch = torch.cat([batch.images for batch in data.val_dataloader()])
    network = rebuild(made.description, made.average.state_dict())
    out = network(batch)
    mse = F.mse_loss(out.images, batch).item()
    assert figures["val/mse"] == pytest.approx(mse, rel=1e-5)
    assert figures["val/psnr"] == pytest.approx(10 * math.log10(4 / mse), rel=1e-5)
    terms = out.commitment.item() + sum(one.item() for one in out.commitments)
    assert figures["val/loss"] == pytest.approx(mse + 0.3 * terms, rel=1e-5)
    assert figures["val/commitment"] == pytest.approx(out.commitment.item(), rel=1e-5)
    for i, (level, size) in enumerate(LEVELS.items()):
        counts = torch.bincount((out.codes[0] // 3 ** (2 - i)).flatten(), minlength=size)
        assert figures[f"val/perplexity_{level}"] == pytest.approx(perplexity(counts).item(), rel=1e-5)
        assert figures[f"val/usage_{level}"] == pytest.approx(usage(counts).item())
        assert figures[f"val/commitment_{level}"] == pytest.approx(out.commitments[i].item(), rel=1e-5)
        visited = made.network.quantizer.levels[i].visited.float().mean().item()
        assert figures[f"val/visited_{level}"] == pytest.approx(visited)
    assert figures["val/visited_level3"] > 3 / 27


def test_an_epoch_over_the_same_batches_accumulated_learns_the_same_codes(images):
    parts, _ = fit(
        images, 2, module(codebook_init="normal"), 2, accumulate_grad_batches=2, limit_val_batches=0
    )
    whole, _ = fit(images, 2, module(codebook_init="normal"), 4, limit_val_batches=0)
    for mine, expected in zip(parts.network.quantizer.levels, whole.network.quantizer.levels, strict=True):
        assert mine.num_updates == 2
        torch.testing.assert_close(mine.codebook, expected.codebook, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_rebuilds_the_average(images, tmp_path):
    made, training = fit(images, 5, limit_val_batches=0)
    training.save_checkpoint(tmp_path / "last.ckpt")
    network, facts = load_network(tmp_path / "last.ckpt", "autoencoder")
    assert fingerprint(network) == fingerprint(made.average)
    assert facts["image_size"] == 8
    for mine, theirs in zip(network.quantizer.levels, made.network.quantizer.levels, strict=True):
        assert torch.equal(mine.started, theirs.started)
        assert torch.equal(mine.visited, theirs.visited)
        assert mine.num_updates == 5
    assert network.quantizer.levels[0].started.all()


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_leaves_codebooks_and_loss_in_float32(images, precision):
    made, training = fit(images, 4, precision=precision, val_check_interval=4)
    assert math.isfinite(training.callback_metrics["val/loss"])
    for level in made.network.quantizer.levels:
        assert level.codebook.dtype == torch.float32
        assert (level.codebook.bfloat16() != level.codebook).any()
    half = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert made.network.decoder[0].weight.dtype == half
    shown = torch.randn(2, 3, 8, 8, dtype=half)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        out = made.network(shown)
        losses = made.losses(shown, out)
    assert out.images.dtype == torch.bfloat16
    assert losses["loss"].dtype == losses["mse"].dtype == torch.float32
    assert losses["mse"] == F.mse_loss(out.images.float(), shown.float())


def test_a_compiled_network_trains_alike(images, monkeypatch):
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward  # without a C++ compiler

    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: original(network, backend=backend))
    plain, _ = fit(images, 4, limit_val_batches=0)
    assert not calls
    compiled, _ = fit(images, 4, module(compiled=True), limit_val_batches=0)
    assert len(calls) >= 2  # around the quantiser
    for name, value in plain.state_dict().items():
        assert torch.equal(compiled.state_dict()[name], value), name


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_an_impossible_weight_is_refused(beta):
    with pytest.raises(ValueError, match=r"beta is .*, wanted a finite number, 0 or more"):
        module(beta=beta)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["revive_below"]),
        ({"codebook_init": "normal"}, ["codebook_init data", "revive_below"]),
        ({"codebook_init": "data", "revive_below": 0.02}, []),
    ],
)
def test_advice_names_the_options_that_are_not_yet_set(changes, expected):
    tries = module(**changes).advice("level2")
    assert [name in line for name, line in zip(expected, tries, strict=True)] == [True] * len(expected)
