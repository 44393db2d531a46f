"""The page of arithmetic: its counts in closed form and on real files, and the page as it is committed."""

import importlib
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.modules.training_run import autoencoder_module, image_data, trainer, write_images
from vqvae2.data.latents import LatentSpec, Level
from vqvae2.nn.autoencoder import HierarchicalVQVAE
from vqvae2.nn.prior import Prior

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("scale")


@pytest.fixture
def assumed(scale):
    return Namespace(**{name: value for name, (value, _) in scale.ASSUMED.items()})


def test_operations_of_a_convolution_in_closed_form():
    """2 for each weight and output position forward, and for each of two gradients; the images have none."""
    images = torch.empty(2, 3, 8, 8, device="meta")
    layers = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 7, 4, stride=2, padding=1))
    with FlopCounterMode(display=False) as counter:
        layers.to("meta")(images).sum().backward()
    first, second = 2 * 2 * 64 * 9 * 3 * 5, 2 * 2 * 16 * 16 * 5 * 7
    assert counter.get_total_flops() == 2 * first + 3 * second


def test_operations_of_a_prior_in_closed_form(scale, monkeypatch):
    """6 for each position and weight that multiplies, which are all but embeddings and biases."""
    side, hidden, residual, codes, layers = 4, 8, 16, 32, 3
    prior = Prior(
        grid=(side, side),
        num_codes=codes,
        hidden=hidden,
        residual=residual,
        layers=layers,
        kernel=3,
        dropout=0.0,
        output_layers=0,
        attention_layers=0,
        condition_grids=(),
        condition_codes=(),
        num_classes=0,
    )
    module = importlib.import_module("bench_training")
    monkeypatch.setattr(module, "network", lambda name: prior.to("meta"))
    spec = LatentSpec((Level("top", side, side, codes),), 0, "none")
    monkeypatch.setattr(module, "data_facts", lambda name: Namespace(spec=spec))
    named = dict(prior.named_parameters())
    assert named.pop("embedding.weight").shape == (codes, hidden)
    multiplied = sum(weights.numel() for weights in named.values() if weights.ndim > 1)
    positions = 5 * side * side
    flops = module.step_flops("made_top", module.MadeUpData("made_top", 5, 1).batch())
    assert flops == 6 * positions * multiplied


def test_bytes_of_a_shard_are_those_of_a_real_one(scale, tmp_path):
    """The encode job's own format: codes of 2 bytes, labels of 8, keys, and the tar's blocks."""
    spec = LatentSpec((Level("top", 4, 4, 16), Level("bottom", 8, 8, 16)), 3, "none")
    assert scale.shard_bytes(spec, 64, 64, "a/{}.png") % 512 == 0
    more = scale.shard_bytes(spec, 4096, 4096, "a/{:04d}.png") - scale.shard_bytes(
        spec, 2048, 2048, "a/{:04d}.png"
    )
    assert more / 2048 == pytest.approx(2 * (16 + 64) + 8 + len('"a/0000.png", '), rel=0.03)


def test_bytes_of_a_checkpoint_are_those_of_a_real_one(scale, tmp_path):
    module, fit = autoencoder_module(hidden=64, residual=32), trainer(1)
    fit.fit(module, image_data(write_images(tmp_path)))
    fit.save_checkpoint(tmp_path / "run.ckpt")
    network = HierarchicalVQVAE(**module.description["network"])
    weights = sum(each.numel() for each in network.parameters())
    buffers = sum(each.numel() for each in network.buffers())
    run = scale.Run("made_vqvae", 1, 1, 1, weights, buffers, 1)
    assert (tmp_path / "run.ckpt").stat().st_size == pytest.approx(scale.checkpoint_bytes(run), rel=0.05)


def test_time_and_traffic_in_closed_form(scale, assumed):
    job = scale.Run("made_top", steps=3600, batch=64, validation=10, weights=1000, statistics=0, flops=10**12)
    assumed.tflops, assumed.share, assumed.network_gbs = 100, 0.5, 1e-6
    assert job.step_s(8, assumed) == 64 * 1e12 / (8 * 50e12)
    assert scale.sent(job, 1) == (0, 0)
    assert scale.sent(job, 8) == pytest.approx((2 * 7 / 8 * 4000, 7 / 8 * 8000))
    assert scale.sent(job, 32) == pytest.approx((2 * 31 / 32 * 4000, 7 / 8 * 8000 + 2 * 3 / 4 * 4000 / 8))
    row = next(scale.hours([job], [8], assumed))
    assert row["hours (a)"] == pytest.approx(7.0)  # it waits for 7,000 bytes at 1,000 a second


def test_the_committed_page_is_what_the_script_prints(scale, assumed, capsys):
    """Without the table of memory, whose count takes a minute; see `test_experiments_memory`."""
    committed = (EXPERIMENTS / "SCALE.md").read_text().split("\n## ")
    titles = [title for title in scale.SECTIONS if title != "Memory"]
    scale.page([8, 128], assumed, titles)
    printed = capsys.readouterr().out.split("\n## ")
    memory = [part for part in committed if part.startswith("Memory\n")]
    assert len(memory) == 1
    assert printed == [part for part in committed if part not in memory]
