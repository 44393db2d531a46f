"""What makes training fast leaves its outcome as it was: fused steps, sparse logging, compilation."""

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import Logger

from tests.training.training_run import (
    autoencoder_module,
    fit_autoencoder,
    image_data,
    trainer,
)
from vqvae2.nn.quantizer import perplexity, usage
from vqvae2.nn.weights import fingerprint
from vqvae2.storage.checkpoint import load_network


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipping_works_and_the_fused_optimiser_steps_as_the_plain_one(images, precision):
    """Lightning refuses to clip the gradients of fused optimisers in mixed precision."""
    plain = fit_autoencoder(images, 4, precision=precision, gradient_clip_val=1e6)
    fused = fit_autoencoder(images, 4, precision=precision)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
    clipped = fit_autoencoder(images, 4, precision=precision, gradient_clip_val=1e-6)
    assert not torch.allclose(clipped.network.decoder[0].weight, plain.network.decoder[0].weight, atol=1e-4)


def test_moments_of_another_layout_are_resumed_as_they_are_meant(images, tmp_path):
    whole = fit_autoencoder(images, 4, limit_val_batches=0)

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "last.ckpt")

    fit_autoencoder(images, 2, limit_val_batches=0, callbacks=[Save()])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=False)
    restrided = 0
    for state in checkpoint["optimizer_states"][0]["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            restrided += not state[name].is_contiguous()
            state[name] = state[name].contiguous()
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert restrided
    module = autoencoder_module()
    trainer(4, limit_val_batches=0).fit(
        module, image_data(images), ckpt_path=tmp_path / "last.ckpt", weights_only=False
    )
    for name, value in whole.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


class Written(Logger):
    """Keeps what is logged, by step."""

    name = version = "written"

    def __init__(self):
        super().__init__()
        self.steps = {}

    def log_hyperparams(self, *_):
        pass

    def log_metrics(self, metrics, step=None):
        self.steps.setdefault(step, {}).update(metrics)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_figures_are_those_of_the_step_that_is_written(images, accumulate):
    written, seen = Written(), {}

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if (batch_idx + 1) % accumulate == 0:
                seen[trainer.global_step] = outputs["loss"].item() * accumulate  # Lightning divides it

    module = autoencoder_module(beta=0.0)
    counts = []
    update = module.after_optimizer_step

    def keep_counts():
        update()
        counts.append([level.clone() for level in module._counts])

    module.after_optimizer_step = keep_counts
    options = {"log_every_n_steps": 3, "accumulate_grad_batches": accumulate, "limit_val_batches": 0}
    training = trainer(7, callbacks=[Keep()], **options)
    training.loggers = [written]
    training.fit(module, image_data(images, batch_size=2))
    assert sorted(written.steps) == [2, 5]  # counted from 0
    for step, figures in written.steps.items():
        assert figures["train/loss"] == pytest.approx(seen[step + 1])
        assert figures["train/mse"] == figures["train/loss"]
        for level, used in zip(("top", "bottom"), counts[step], strict=True):
            assert figures[f"train/perplexity_{level}"] == pytest.approx(perplexity(used).item())
            assert figures[f"train/usage_{level}"] == pytest.approx(usage(used).item())
            assert f"train/commitment_{level}" in figures


def test_a_compiled_network_trains_alike_and_its_checkpoint_needs_no_compiler(images, tmp_path, monkeypatch):
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward  # without a C++ compiler, and without waiting for it

    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: original(module, backend=backend))
    plain = fit_autoencoder(images, 3, limit_val_batches=0)
    assert not calls
    module = autoencoder_module(compiled=True)
    training = trainer(3, limit_val_batches=0)
    training.fit(module, image_data(images))
    assert len(calls) >= 3  # all that lies around the two quantisers
    for name, value in plain.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name
    training.save_checkpoint(tmp_path / "compiled.ckpt")
    assert fingerprint(load_network(tmp_path / "compiled.ckpt", "autoencoder").network) == fingerprint(
        plain.average
    )
