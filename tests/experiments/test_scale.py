"""The page of arithmetic: its counts in closed form and on real files, and the page as it is committed."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vqvae2.data.latents import LatentSpec, Level
from vqvae2.nn.pixelsnail import PixelSNAIL

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def scale(experiment):
    return experiment("scale")


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


def test_operations_of_a_prior_in_closed_form(experiment, monkeypatch):
    """6 for each position and weight that multiplies, which are all but embeddings and biases."""
    side, hidden, residual, codes, layers = 4, 8, 16, 32, 3
    prior = PixelSNAIL(
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
    module = experiment("bench_training")
    monkeypatch.setattr(module, "network", lambda name: prior.to("meta"))
    spec = LatentSpec((Level("top", side, side, codes),), 0, "none")
    monkeypatch.setattr(module, "data_facts", lambda name: Namespace(spec=spec))
    named = dict(prior.named_parameters())
    assert named.pop("embedding.weight").shape == (codes, hidden)
    multiplied = sum(weights.numel() for weights in named.values() if weights.ndim > 1)
    positions = 5 * side * side
    flops = module.step_flops("made_top", module.MadeUpData("made_top", 5, 1).batch())
    assert flops == 6 * positions * multiplied


@pytest.mark.parametrize(("size", "shape"), [(8, (2, 1, 8, 8)), ([4, 12], (2, 1, 4, 12))])
def test_made_up_images_are_of_the_config_s_size(experiment, monkeypatch, size, shape):
    module = experiment("bench_training")
    facts = Namespace(channels=1, image_size=size, num_classes=0, classes=())
    monkeypatch.setattr(module, "data_facts", lambda name: facts)
    assert module.MadeUpData("made_vqvae", 2, 1).batch().images.shape == shape


def test_time_and_traffic_in_closed_form(scale, assumed):
    job = scale.Run("made_top", steps=3600, batch=64, weights=1000, flops=10**12)
    assumed.tflops, assumed.share, assumed.network_gbs = 100, 0.5, 1e-6
    assert job.step_s(8, assumed) == 64 * 1e12 / (8 * 50e12)
    assert scale.sent(job, 1) == (0, 0)
    assert scale.sent(job, 8) == pytest.approx((2 * 7 / 8 * 4000, 7 / 8 * 8000))
    assert scale.sent(job, 32) == pytest.approx((2 * 31 / 32 * 4000, 7 / 8 * 8000 + 2 * 3 / 4 * 4000 / 8))
    row = next(scale.hours([job], [8], assumed))
    assert row["hours (a)"] == pytest.approx(7.0)  # it waits for 7,000 bytes at 1,000 a second


@pytest.mark.parametrize("batch_size", [1, 7])
def test_bytes_of_two_layers_in_closed_form(scale, batch_size):
    """A linear layer keeps its input, tanh its output; weights and views of what is kept count nothing."""
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2), nn.Sigmoid())

    def step():
        y = network(torch.empty(batch_size, 3))
        return y.T @ torch.empty(batch_size, 1)

    total, largest = scale.saved_bytes(step, network)
    floats = batch_size * (3 + 5 + 2 + 1)  # input, tanh, sigmoid, and what the product multiplies it by
    assert total == 4 * floats
    assert largest == 4 * batch_size * 5


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_imagined_tensors_keep_what_real_ones_keep(scale, bf16, checkpointed):
    owner, imagined = scale.build("demo_bottom")
    real = type(imagined)(**owner.description["network"]).train()
    batch = scale.MadeUpData("demo_bottom", 3, 1).batch()
    network = None

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return scale.loss(owner, network, batch)

    for network in (imagined, real):
        network.checkpoint_layers = checkpointed
    saved = scale.Saved([*real.parameters(), *real.buffers()])
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        loss = step()
    loss.backward()
    network = imagined
    total, _ = scale.saved_bytes(step, imagined)
    assert total == pytest.approx(saved.total, rel=0.005)  # it counts the normalisations' statistics too


def test_largest_batch_and_accumulation_in_closed_form(scale):
    costs = scale.Activations(an_image=1000, fixed=500)
    assert scale.largest_batch(100_000, 100, costs, devices=1) == (90_000 - 2000 - 500) // 1000
    assert scale.largest_batch(100_000, 100, costs, devices=8) == (90_000 - 2400 - 500) // 1000
    assert scale.largest_batch(100, 100, costs, devices=1) == 0
    assert scale.accumulation(1024, 8, 128) == 1
    assert scale.accumulation(1024, 1, 100) == 16  # 64 at a time; 100 do not divide it
    assert scale.accumulation(1024, 8, 0) is None


def test_the_committed_page_is_what_the_script_prints(scale, assumed, capsys):
    """Without the table of memory, whose count takes a minute."""
    committed = (EXPERIMENTS / "SCALE.md").read_text().split("\n## ")
    titles = [title for title in scale.SECTIONS if title != "Memory"]
    scale.page(scale.PAPER, [8, 128], assumed, titles)
    printed = capsys.readouterr().out.split("\n## ")
    memory = [part for part in committed if part.startswith("Memory\n")]
    assert len(memory) == 1
    assert printed == [part for part in committed if part not in memory]
