"""VQ-GAN on two ranks where `test_parallel.py` does not look: averages, batch norm, accumulated batches."""

import pytest
import torch

from tests.ranks import run_ranks
from tests.training import parallel_run as runs
from tests.training.vqgan_run import AVERAGES, adversarial
from vqvae2.training.vqgan import Discriminator

BATCH_NORM = {"discriminator": Discriminator(hidden=8, layers=1, norm="batch")}
MODEL = {**AVERAGES, "codebook_init": "normal", **BATCH_NORM, "adversarial": adversarial(start=5, warmup=2)}
HOW = {"steps": 6, "model": MODEL, "accumulate_grad_batches": 2}  # it is idle, trained, counts within steps


def _on_rank(folder):
    figures = {name: runs.fit("vqgan", name, folder, **HOW) for name in ("ddp", "fsdp")}
    figures["mixed"] = runs.fit("vqgan", "fsdp", folder, run="mixed", steps=5, precision="bf16-mixed")
    runs.fit("vqgan", "fsdp", folder, run="true", steps=5, precision="bf16-true")
    return figures


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of all runs, what one process logged and what the first of two did."""
    with runs.folder_of_runs(tmp_path_factory) as folder:
        alone = runs.fit("vqgan", "single", folder, **HOW)
        yield folder, alone, run_ranks(_on_rank, 2, folder, timeout_s=200)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_ranks_train_as_one(trained, name):
    folder, alone, ranks = trained
    runs.assert_same(folder / f"vqgan-{name}.ckpt", folder / "vqgan-single.ckpt", 1e-5)
    state = runs.state(folder / f"vqgan-{name}.ckpt")
    assert any(key.startswith("helper.") and "running_mean" in key for key in state)
    for figures in ranks:
        assert "train/lambda" in figures[name][-1]
        for step, expected in zip(figures[name], alone, strict=True):
            assert step == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_half_precision_spares_codebook_and_averages_of_logits(trained):
    """Blocks are gathered as bfloat16, the codebook that the gradient teaches is not."""
    folder, _, ranks = trained
    alone = runs.fit("vqgan", "single", folder, run="autocast", steps=5, precision="bf16-mixed")
    for step, expected in zip(ranks[0]["mixed"], alone, strict=True):
        for name in ("loss", "discriminator", "lambda"):
            if f"train/{name}" in expected:
                assert step[f"train/{name}"] == pytest.approx(expected[f"train/{name}"], rel=2e-2)
    state = runs.state(folder / "true.ckpt")
    wide = {name for name, value in state.items() if value.dtype == torch.float32 and "optim" not in name}
    assert wide == {"network.quantizer.codebook", "average.quantizer.codebook", "lecam.averages"}
    assert all(value.isfinite().all() for value in state.values())
