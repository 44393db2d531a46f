"""The count behind the table of what fits on a device."""

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("memory")


@pytest.mark.parametrize("batch_size", [1, 7])
def test_bytes_of_two_layers_in_closed_form(memory, batch_size):
    """A linear layer keeps its input, tanh its output; weights and views of what is kept count nothing."""
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2), nn.Sigmoid())

    def step():
        y = network(torch.empty(batch_size, 3))
        return y.T @ torch.empty(batch_size, 1)

    total, largest = memory.saved_bytes(step, network)
    floats = batch_size * (3 + 5 + 2 + 1)  # input, tanh, sigmoid, and what the product multiplies it by
    assert total == 4 * floats
    assert largest == 4 * batch_size * 5


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_imagined_tensors_keep_what_real_ones_keep(memory, bf16, checkpointed):
    owner, imagined = memory.build("demo_bottom")
    real = type(imagined)(**owner.description["network"]).train()
    batch = memory.MadeUpData("demo_bottom", 3, 1).batch()
    network = None

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return memory.loss(owner, network, batch)

    for network in (imagined, real):
        network.checkpoint_layers = checkpointed
    saved = memory.Saved([*real.parameters(), *real.buffers()])
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        loss = step()
    loss.backward()
    network = imagined
    total, _ = memory.saved_bytes(step, imagined)
    assert total == pytest.approx(saved.total, rel=0.005)  # it counts the normalisations' statistics too


def test_largest_batch_and_accumulation_in_closed_form(memory):
    costs = memory.Activations(an_image=1000, fixed=500)
    assert memory.largest_batch(100_000, 100, costs, devices=1) == (90_000 - 2000 - 500) // 1000
    assert memory.largest_batch(100_000, 100, costs, devices=8) == (90_000 - 2400 - 500) // 1000
    assert memory.largest_batch(100, 100, costs, devices=1) == 0
    assert memory.accumulation(1024, 8, 128) == 1
    assert memory.accumulation(1024, 1, 100) == 16  # 64 at a time; 100 do not divide it
    assert memory.accumulation(1024, 8, 0) is None
