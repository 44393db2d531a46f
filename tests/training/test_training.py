"""The training modules: averages, figures of validation, and two ranks against one."""

import math
import os

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.nn import functional as F

from tests.checkpoints import PRIOR
from tests.ranks import run_ranks
from tests.training.training_run import (
    SPEC,
    autoencoder_module,
    fit_autoencoder,
    image_data,
    trainer,
)
from vqvae2.data.latent_module import LatentDataModule
from vqvae2.data.latents import LatentSpec
from vqvae2.nn.hierarchical import Reconstruction
from vqvae2.nn.quantizer import perplexity, usage
from vqvae2.nn.weights import fingerprint
from vqvae2.storage.checkpoint import load_network, read_description, rebuild
from vqvae2.training.pixelsnail import ConditionalPriorModule, TopPriorModule
from vqvae2.training.schedules import Constant


def test_every_step_uses_its_own_rate(images):
    seen = []

    class Rates(Constant):
        def rate(self, step, *, width, total_steps):
            seen.append((step, width, total_steps))
            return 1e-3 * step

    module = autoencoder_module(schedule=Rates(0.0))
    rates = []
    module.after_optimizer_step = lambda: rates.append(module.optimizers().param_groups[0]["lr"])
    fit_autoencoder(images, 3, module=module)
    assert rates == pytest.approx([1e-3, 2e-3, 3e-3])
    assert {(width, total) for _, width, total in seen} == {(8, 3)}


def test_the_average_follows_every_float_and_copies_counters(images):
    module = autoencoder_module()
    expected = {}

    class Follow(L.Callback):
        def on_train_start(self, trainer, pl_module):
            expected.update({k: v.clone() for k, v in pl_module.network.state_dict().items()})

        def on_train_batch_end(self, trainer, pl_module, *_):
            step = trainer.global_step
            decay = min(0.9, (1 + step) / (10 + step))
            for name, value in pl_module.network.state_dict().items():
                floating = value.is_floating_point()
                expected[name] = decay * expected[name] + (1 - decay) * value if floating else value.clone()

    fit_autoencoder(images, 9, module=module, callbacks=[Follow()], limit_val_batches=0)
    state = module.average.state_dict()
    assert module.average.quantizers[0].num_updates == 9
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)


def test_the_average_is_in_eval_mode_while_the_network_trains(images):
    modes = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            parts = pl_module.network.modules(), pl_module.average.modules()
            modes.append([any(part.training for part in network) for network in parts])

    module = fit_autoencoder(images, 3, callbacks=[Watch()], val_check_interval=1)
    assert modes == [[True, False]] * 3
    made = autoencoder_module()
    made.trainer = module.trainer
    made.configure_model()
    for _ in range(2):  # before and after all of the module is put into training mode
        assert not any(part.training for part in made.average.modules())
        made.train()
    assert made.network.training


def test_a_checkpoint_holds_the_whole_step_and_rebuilds_the_average(images, tmp_path):
    """Saved by a callback at the end of a batch, it has that step's codebooks and average."""
    path = tmp_path / "step.ckpt"

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 3:
                trainer.save_checkpoint(path)

    module = fit_autoencoder(images, 3, callbacks=[Save()], limit_val_batches=0)
    loaded = load_network(path, "autoencoder")
    assert fingerprint(loaded.network) == fingerprint(module.average)
    assert loaded.network.quantizers[0].num_updates == 3
    assert read_description(path)["image_size"] == 8
    assert not loaded.network.training
    assert not any(p.requires_grad for p in loaded.network.parameters())


def test_accumulated_batches_update_the_codebooks_once(images):
    module = fit_autoencoder(images, 2, batch_size=2, accumulate_grad_batches=2, limit_val_batches=0)
    whole = fit_autoencoder(images, 2, batch_size=4, limit_val_batches=0)
    assert module.network.quantizers[0].num_updates == 2
    for mine, expected in zip(module.network.quantizers, whole.network.quantizers, strict=True):
        torch.testing.assert_close(mine.codebook, expected.codebook, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_held_out_figures_are_those_of_all_images_at_once(images):
    module = autoencoder_module(level_dropout=0.5)  # in training only
    data = image_data(images, batch_size=2)  # batches of 2, 2 and 1
    figures = {}

    class Keep(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            figures.update({name: value.item() for name, value in trainer.callback_metrics.items()})

    with torch.enable_grad():
        trainer(4, callbacks=[Keep()], val_check_interval=4).fit(module, data)
    batch = torch.cat([batch.images for batch in data.val_dataloader()])
    out = rebuild(module.description, module.average.state_dict())(batch)
    mse = F.mse_loss(out.images, batch).item()
    assert figures["val/mse"] == pytest.approx(mse, rel=1e-5)
    assert figures["val/psnr"] == pytest.approx(10 * math.log10(4 / mse), rel=1e-5)
    assert figures["val/loss"] == pytest.approx(mse + 0.25 * sum(out.commitments).item(), rel=1e-5)
    for name, codes, commitment in zip(("top", "bottom"), out.codes, out.commitments, strict=True):
        counts = torch.bincount(codes.flatten(), minlength=16)
        assert figures[f"val/perplexity_{name}"] == pytest.approx(perplexity(counts).item(), rel=1e-5)
        assert figures[f"val/usage_{name}"] == pytest.approx(usage(counts).item())
        assert figures[f"val/commitment_{name}"] == pytest.approx(commitment.item(), rel=1e-5)


def _fit_on_rank(images):
    os.environ["LOCAL_RANK"] = str(torch.distributed.get_rank())
    strategy = DDPStrategy(broadcast_buffers=False, process_group_backend="gloo")
    module = fit_autoencoder(images, 20, batch_size=8, strategy=strategy, devices=2)
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_two_ranks_equal_one(images):
    """The same global batches, codebooks and averages; nothing copies one rank's buffers to the other."""
    alone = fit_autoencoder(images, 20, batch_size=8).state_dict()  # the last batches of an epoch hold 6 each
    for together in run_ranks(_fit_on_rank, 2, images):
        assert together.keys() == alone.keys()
        for name, value in together.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-6, atol=1e-6, msg=name)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(images, tmp_path):
    """Stopped in the middle of its second epoch, it goes on with the next batch: the same end to the bit."""
    whole = fit_autoencoder(images, 12).state_dict()
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.extend(batch.keys)

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 7:
                trainer.save_checkpoint(tmp_path / "last.ckpt")

    fit_autoencoder(images, 9, callbacks=[Save()])
    module = autoencoder_module()
    resumed = trainer(12, callbacks=[Watch()])
    resumed.fit(module, image_data(images), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert len(set(seen[:12])) == 12  # three more batches of the second epoch, none of them seen twice
    for name, value in module.state_dict().items():
        assert torch.equal(value, whole[name]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 16}, "its hidden is 8, here it is 16"),
        ({"num_codes": 4}, "its num_codes is 16, here it is 4"),
    ],
)
def test_resuming_another_network_is_refused(images, tmp_path, changes, message):
    first = trainer(1)
    first.fit(autoencoder_module(), image_data(images))
    first.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=message):
        trainer(2).fit(
            autoencoder_module(**changes),
            image_data(images),
            ckpt_path=tmp_path / "last.ckpt",
            weights_only=False,
        )


def test_the_loss_weighs_its_terms():
    module = autoencoder_module(beta=0.7, recon_variance=0.3)
    images = torch.randn(2, 3, 4, 4)
    out = Reconstruction(images + 0.5, (), (torch.tensor(2.0), torch.tensor(3.0)), ())
    losses = module.losses(images, out)
    assert losses["mse"].item() == pytest.approx(0.25)
    assert losses["loss"].item() == pytest.approx(0.25 / 0.3 + 0.7 * 5)


def test_mixed_precision_leaves_codebooks_and_loss_in_float32(images):
    module = fit_autoencoder(images, 3, precision="bf16-mixed")
    for quantizer in module.network.quantizers:
        assert quantizer.codebook.dtype == torch.float32
        assert quantizer.codebook.abs().max() > 0
    half = fit_autoencoder(images, 3, precision="bf16-true")
    assert half.network.decoder[0].weight.dtype == torch.bfloat16
    assert half.network.quantizers[0].codebook.dtype == torch.float32


def prior_module(level):
    options = {"schedule": Constant(1e-2), "polyak": 0.5, "output_layers": 0, **PRIOR, "dropout": 0.5}
    if level == "top":
        return TopPriorModule(**options)
    return ConditionalPriorModule(level=level, conditioning_hidden=8, conditioning_blocks=2, **options)


@pytest.mark.parametrize("level", ["top", "mid", "bottom"])
def test_a_prior_takes_its_shapes_from_the_manifest_and_reports_its_likelihood(level, latents, tmp_path):
    module, data = prior_module(level), LatentDataModule(latents=latents, batch_size=4)
    fitting = trainer(12, val_check_interval=5, check_val_every_n_epoch=1)
    fitting.fit(module, data)
    (metrics,) = fitting.validate(module, data, verbose=False)
    index = [at.name for at in SPEC.levels].index(level)
    averaged = rebuild(
        module.description, module.average.state_dict()
    )  # in eval mode, whatever was done to it
    nll = codes_seen = 0.0
    with torch.no_grad():
        for batch in data.val_dataloader():
            logits = averaged(batch.codes[index], batch.codes[:index], batch.labels)
            nll += F.cross_entropy(logits, batch.codes[index], reduction="sum").item()
            codes_seen += batch.codes[index].numel()
    here = SPEC.levels[index]
    assert codes_seen == 7 * here.height * here.width
    assert metrics["val/nll_nats"] == pytest.approx(nll / codes_seen, rel=1e-5)
    assert metrics["val/bits_per_image"] == pytest.approx(nll / 7 / math.log(2), rel=1e-5)
    fitting.save_checkpoint(tmp_path / "prior.ckpt")
    loaded = load_network(tmp_path / "prior.ckpt", "prior")
    assert LatentSpec.from_dict(loaded.facts["latents"]) == SPEC
    assert loaded.facts["level"] == level
    assert fingerprint(loaded.network) == fingerprint(module.average)


def test_a_level_that_the_latents_lack_is_refused(tmp_path, latents):
    module = ConditionalPriorModule(
        **{"level": "mid", "schedule": Constant(1e-2), "polyak": 0.5, "output_layers": 0, **PRIOR}
    )

    class Data:
        spec = LatentSpec((SPEC.levels[0], SPEC.levels[2]), 3, "a" * 64)

    class Facts:
        datamodule = Data()

    module.trainer = facts = Facts()
    with pytest.raises(ValueError, match="have the levels top, bottom, wanted 'mid'"):
        module.build_network()
    del facts
