"""What stops a training run, what it says then, and what is left to go on from."""

import os
import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.quiet import quiet_trainer
from tests.ranks import run_ranks
from tests.training.training_run import NETWORK, autoencoder_module, image_data
from vqvae2 import distributed
from vqvae2.runs import health
from vqvae2.runs.health import Health, gradient_norm
from vqvae2.runs.run_folder import RunCheckpoint
from vqvae2.storage.checkpoint import read_checkpoint
from vqvae2.training.autoencoder import AutoencoderModule
from vqvae2.training.schedules import Constant
from vqvae2.training.sharding import ShardedStrategy


class At(L.Callback):
    """Does something to the module in one step, counted from 1: before its batch or before its optimiser."""

    def __init__(self, step, batch=None, optimizer=None):
        self.step, self.batch, self.optimizer = step, batch, optimizer

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.batch and trainer.global_step + 1 == self.step:
            self.batch(pl_module, batch)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.optimizer and trainer.global_step + 1 == self.step:
            self.optimizer(pl_module)


def spoil_images(module, batch):
    batch.images[0, 0, 3, 3] = float("nan")


def spoil_weight(module, *_):
    with torch.no_grad():
        next(module.network.parameters())[0, 0, 0, 0] = float("nan")


def spoil_gradient(module):
    next(module.network.parameters()).grad[0, 0, 0, 0] = float("inf")


def fit(images, folder, *callbacks, steps=12, every=4, module=None, watch=None, keep=0, **options):
    """Trains, looking every 4 steps and saving (by validation) every 5, unless asked otherwise."""
    trainer = quiet_trainer(
        **{"val_check_interval": 5, "devices": 1, **options},
        default_root_dir=folder,
        max_steps=steps,
        check_val_every_n_epoch=None,
        log_every_n_steps=every,
        num_sanity_val_steps=0,
        enable_checkpointing=True,
        callbacks=[*callbacks, watch or Health(), RunCheckpoint(monitor="val/loss", keep=keep)],
    )
    trainer.fit(module or autoencoder_module(), image_data(images))
    return trainer


def saved(path):
    """The steps of a checkpoint, after a look at whether everything in it is finite."""
    checkpoint = read_checkpoint(path)
    moments = [
        value for state in checkpoint["optimizer_states"][0]["state"].values() for value in state.values()
    ]
    for tensor in [*checkpoint["state_dict"].values(), *moments]:
        assert torch.as_tensor(tensor).isfinite().all()
    return checkpoint["global_step"]


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        # Looks are after the steps 4, 8 and 12 and before the validations at 5 and 10.
        (At(6, batch=spoil_images), r"step 8: the loss of step 6 is nan \(rank 0\)"),
        (At(6, batch=spoil_weight), r"step 8: the loss of step 6 is nan \(rank 0\)"),
        (At(9, batch=spoil_images), r"step 10: the loss of step 9 is nan \(rank 0\)"),
        (At(8, optimizer=spoil_gradient), r"step 8: the norm of the gradient of step 8 is inf"),
        (At(10, optimizer=spoil_gradient), r"step 10: weights, averages, .* not finite after step 10"),
    ],
    ids=["image", "weight", "image before a validation", "gradient", "gradient before a checkpoint"],
)
def test_a_number_that_is_not_finite_stops_the_run_and_never_reaches_a_checkpoint(
    images, tmp_path, fault, found
):
    with pytest.raises(ValueError, match=f"^Training stopped at {found}") as error:
        fit(images, tmp_path, fault)
    assert f"last good checkpoint is {tmp_path / 'last.ckpt'}. Go on with --ckpt_path" in str(error.value)
    for advice in ("learning rate", "warm-up", "gradient_clip_val", "bf16-mixed", "data"):
        assert advice in str(error.value)
    assert saved(tmp_path / "last.ckpt") == saved(tmp_path / "best.ckpt") == 5


def test_without_a_checkpoint_the_advice_is_to_start_anew(images, tmp_path):
    with pytest.raises(ValueError, match=r"There is no checkpoint from before that\. Start anew"):
        fit(images, tmp_path, At(2, batch=spoil_images))
    assert list(tmp_path.iterdir()) == []


def test_after_training_the_last_checkpoint_is_refused_too(images, tmp_path):
    """The last step is neither logged nor followed by a validation."""
    with pytest.raises(ValueError, match="not finite after step 7"):
        fit(images, tmp_path, At(7, batch=spoil_images), steps=7)
    assert saved(tmp_path / "last.ckpt") == 5


@pytest.mark.parametrize(
    "part",
    [
        lambda module: next(module.average.parameters()),
        lambda module: module.network.quantizers[1].codebook,
        lambda module: next(iter(module.optimizers().state.values()))["exp_avg_sq"],
    ],
    ids=["average", "codebook", "moment"],
)
def test_no_part_of_a_checkpoint_may_be_other_than_finite(images, tmp_path, part):
    class Spoil(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            part(pl_module).data.fill_(float("inf"))

    with pytest.raises(ValueError, match="not finite after step 1"):
        fit(images, tmp_path, Spoil(), steps=1)


def test_an_exploding_learning_rate_is_stopped_with_the_checkpoint_from_before_it(images, tmp_path):
    class Explodes(Constant):
        def rate(self, step, **options):
            return 1e-3 if step <= 10 else 1.0

    module = autoencoder_module(schedule=Explodes(0.0))
    options = {"steps": 40, "every": 2, "val_check_interval": 4, "keep": 9}
    found = r"stopped at step 18: since step 13 the loss is too large, now \d+.*, where it was 0\.3"
    with pytest.raises(ValueError, match=found) as error:
        fit(images, tmp_path, module=module, **options)
    # That of step 12 was the first of the explosion, which half of the steps 11 and 12 did not show yet.
    assert [saved(tmp_path / f"{name}.ckpt") for name in ("last", "step-00000012", "best")] == [16, 12, 8]
    assert f"last good checkpoint is {tmp_path / 'step-00000008.ckpt'}" in str(error.value)


def test_a_spike_or_an_explosion_that_is_allowed_stops_nothing(images, tmp_path):
    def spike(module, batch):
        batch.images.mul_(1000)

    fit(images, tmp_path / "a", *(At(step, batch=spike) for step in (3, 4, 7, 8, 11, 12)), every=2)
    wild = autoencoder_module(schedule=Constant(1.0))
    fit(images, tmp_path / "b", every=2, steps=12, module=wild, watch=Health(explosion=None))


def test_accumulated_batches_are_looked_at_once_a_step_and_the_loss_is_undivided(
    images, tmp_path, monkeypatch
):
    looks, losses = [], []
    look = health._of_all_ranks
    monkeypatch.setattr(health, "_of_all_ranks", lambda row: looks.append(row) or look(row))
    watch = Health()

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            losses.append(trainer.callback_metrics["train/loss"].item())

    fit(
        images,
        tmp_path,
        Keep(),
        steps=4,
        every=2,
        watch=watch,
        accumulate_grad_batches=2,
        limit_val_batches=0,
    )
    looks = [row for row in looks if len(row) > 1]  # less those of checkpoints
    assert len(looks) == 2
    assert looks[0][3].item() == pytest.approx(losses[0])
    assert looks[1][3].item() == pytest.approx(losses[4])


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Norms(L.Callback):
    """What the gradient's norm is, by hand, and as it was logged."""

    def __init__(self):
        self.expected, self.logged = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        gradients = [whole(p.grad).flatten() for p in pl_module.network.parameters()]
        self.expected.append(torch.cat(gradients).norm().item())

    def on_train_batch_end(self, trainer, *_):
        self.logged.append(trainer.callback_metrics["train/gradient_norm"].item())


def test_the_gradients_norm_is_logged_as_before_clipping(images, tmp_path):
    norms = Norms()
    fit(images, tmp_path, norms, steps=3, every=1, gradient_clip_val=1e-3, limit_val_batches=0)
    assert norms.logged == pytest.approx(norms.expected)
    assert min(norms.logged) > 1e-2


@pytest.mark.parametrize("strategy", [lambda: "ddp", ShardedStrategy], ids=["ddp", "fsdp"])
def test_two_ranks_log_one_norm_and_stop_together_for_the_fault_of_one(images, tmp_path, strategy):
    def work():
        os.environ["LOCAL_RANK"] = rank = str(distributed.rank())
        norms = Norms()
        fault = [At(7, batch=spoil_images)] if rank == "1" else []
        options = {"devices": 2, "strategy": strategy(), "gradient_clip_val": 1e-3}
        with pytest.raises(ValueError, match="stopped") as error:
            fit(images, tmp_path, norms, *fault, **options, every=1)
        return norms.expected[:6], norms.logged[:6], str(error.value)

    (expected, logged, message), other = run_ranks(work)
    assert other == (expected, logged, message)
    assert logged == pytest.approx(expected)
    assert "step 7: the loss of step 7 is nan (rank 1)" in message
    assert saved(tmp_path / "last.ckpt") == 5


def test_a_shard_that_is_not_finite_keeps_all_ranks_from_saving(images, tmp_path):
    """After the last step, on one of them; the first would write the file."""

    def spoil_shard(module):
        if distributed.rank() == 1:
            next(module.network.parameters()).grad.to_local().fill_(float("inf"))

    def work():
        os.environ["LOCAL_RANK"] = str(distributed.rank())
        options = {"devices": 2, "strategy": ShardedStrategy(), "limit_val_batches": 0}
        with pytest.raises(ValueError, match="optimiser's state are not finite after step 3"):
            fit(images, tmp_path, At(3, optimizer=spoil_shard), steps=3, every=2, **options)

    run_ranks(work)
    assert list(tmp_path.iterdir()) == []


def test_the_norm_of_sharded_gradients_is_that_of_the_whole(images):
    def gradients(sharded):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 1))  # rows that two ranks cannot share alike
        if sharded:
            fully_shard(network, mesh=init_device_mesh("cpu", (2,)))
        network(torch.ones(2, 5)).sum().backward()
        return gradient_norm(network.parameters()).item()

    norms = run_ranks(lambda: (gradients(False), gradients(True)))
    assert norms[0] == norms[1]
    assert norms[0][1] == pytest.approx(norms[0][0], rel=1e-6)


def test_float16_may_overflow_until_its_scale_is_hopeless(images, tmp_path):
    """Here autocast is in bfloat16; the scaler is what counts."""

    class Overflows(L.Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.global_step + 1 == 2:
                spoil_gradient(pl_module)

    def scaled(**scale):
        precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", **scale))
        precision.autocast_context_manager = lambda: torch.autocast("cpu", torch.bfloat16)
        return precision

    module = autoencoder_module()
    clipped = {"gradient_clip_val": 1e6, "steps": 4, "every": 1}  # as it needs an optimiser that is not fused
    fit(images, tmp_path, Overflows(), module=module, plugins=[scaled()], **clipped)
    assert saved(tmp_path / "last.ckpt") == 4
    with pytest.raises(ValueError, match="the gradient of step 2 is inf"):
        fit(images, tmp_path, Overflows(), plugins=[scaled(init_scale=1e-5)], **clipped)


def said(images, folder, perplexities, watch=None, **network):
    """What a run warns of whose validations find these perplexities of the upper level."""

    class Scripted(AutoencoderModule):
        script = iter(perplexities)

        def _log_codebooks(self, stage, counts):
            if stage == "val":
                self.log_dict({"val/perplexity_top": next(self.script), "val/perplexity_bottom": 16.0})

    options = {**NETWORK, "num_codes": 100, **network}
    module = Scripted(schedule=Constant(1e-3), beta=0.25, polyak=0.9, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(images, folder, steps=len(perplexities), val_check_interval=1, module=module, watch=watch)
    return [str(warning.message) for warning in caught if "collapsed" in str(warning.message)]


def test_a_collapsed_codebook_warns_once_naming_its_level_and_what_is_left_to_try(images, tmp_path):
    [message] = said(images, tmp_path, [4.0, 6.0, 4.9, 1.25, 1.0, 8.0, 1.0, 1.0])
    assert "level 'top' has collapsed: its perplexity is 1.25, of 100 codes." in message
    for advice in ("codebook_init data", "revive_below", "level_dropout", "learning rate"):
        assert advice in message
    options = {"codebook_init": "data", "revive_below": 0.1, "level_dropout": 0.1}
    [message] = said(images, tmp_path, [1.0, 1.0], **options)
    assert message.endswith("Try a lower learning rate or a longer warm-up.")


@pytest.mark.parametrize(
    ("watch", "perplexities"),
    [
        ({}, [1.0, 5.1, 1.0, 9.0]),
        ({"collapsed_below": 0}, [1.0] * 4),
        ({"collapsed_validations": 5}, [1.0] * 4),
    ],
)
def test_a_codebook_that_recovers_or_is_not_to_be_watched_warns_of_nothing(
    images, tmp_path, watch, perplexities
):
    assert said(images, tmp_path, perplexities, Health(**watch)) == []


@pytest.mark.parametrize(
    "wrong", [{"explosion": 1}, {"patience": 0}, {"collapsed_below": 1}, {"collapsed_validations": 0}]
)
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Health(**wrong)
