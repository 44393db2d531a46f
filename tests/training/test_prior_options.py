"""How a prior trains is no part of what it is: options that leave its checkpoints alone."""

from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser

from tests.nn.ends import WIDTHS
from vqvae2.data.latents import LatentBatch, LatentSpec, Level
from vqvae2.training.path_prior import PathPriorModule
from vqvae2.training.pixelsnail import ConditionalPriorModule, TopPriorModule
from vqvae2.training.schedules import Constant

SPEC = LatentSpec((Level("top", 4, 4, 8), Level("bottom", 8, 8, 8)), 3, "no fingerprint")
MODULES = {"bottom": ConditionalPriorModule, "path": PathPriorModule}


def module(kind="bottom", **options) -> ConditionalPriorModule | PathPriorModule:
    widths = WIDTHS | ({"depth": 3} if kind == "path" else {})
    made = MODULES[kind](level="bottom", schedule=Constant(1e-3), polyak=0.9, **(widths | options))
    made.trainer = SimpleNamespace(datamodule=SimpleNamespace(spec=SPEC))
    torch.manual_seed(0)
    made.configure_model()
    return made


def networks(made) -> list[torch.nn.Module]:
    """All `PixelSNAIL` of a prior: one for each residual level of a path's."""
    return list(getattr(made.network, "levels", [made.network]))


@pytest.mark.parametrize("kind", MODULES)
def test_a_run_may_go_on_with_checkpointed_layers_or_without(kind):
    plain, checkpointed = module(kind), module(kind, checkpoint_layers=True)
    assert all(network.checkpoint_layers for network in networks(checkpointed))
    assert not any(network.checkpoint_layers for network in networks(plain))
    runs = []
    for network in networks(checkpointed):
        network.layers[0].v_conv.register_forward_hook(lambda *_: runs.append(0))
    assert plain.description == checkpointed.description
    codes = tuple(torch.randint(8, (2, level.height, level.width)) for level in SPEC.levels)
    batch = LatentBatch(codes, torch.tensor([0, 2]), torch.arange(2))
    for made in (plain, checkpointed):
        for network in networks(made):
            torch.nn.init.normal_(network.to_logits.weight, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(2)
        made.network.loss(*made.inputs(batch)).backward()
    assert len(runs) == 2 * len(networks(checkpointed))  # each layer was computed again
    for (name, weights), others in zip(
        plain.network.named_parameters(), checkpointed.network.parameters(), strict=True
    ):
        assert torch.equal(weights.grad, others.grad), name
    assert plain.state_dict().keys() == checkpointed.state_dict().keys()


@pytest.mark.parametrize("option", ["compiled", "checkpoint_layers"])
@pytest.mark.parametrize("made", [TopPriorModule, ConditionalPriorModule, PathPriorModule])
def test_the_command_line_knows_the_options(made, option):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(made, "model", fail_untyped=False)
    given = [f"--model.{name}={value}" for name, value in WIDTHS.items()]
    level = ["--model.level=bottom"] if made is not TopPriorModule else []
    level += ["--model.depth=2"] if made is PathPriorModule else []
    schedule = [
        "--model.schedule=vqvae2.training.schedules.Constant",
        "--model.schedule.learning_rate=0.1",
        "--model.polyak=0.9",
    ]
    parsed = parser.parse_args([*given, *level, *schedule, f"--model.{option}=true"])
    instance = parser.instantiate_classes(parsed).model
    assert getattr(instance, option) is True
    assert option not in instance.options


def test_a_compiled_path_prior_trains_alike(monkeypatch):
    original, calls = torch.nn.Module.compile, []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward  # without a C++ compiler, and without waiting for it

    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: original(network, backend=backend))
    small = {"layers": 1, "attention_layers": 0, "output_layers": 0, "conditioning_blocks": 0, "dropout": 0.0}
    plain, compiled = (module("path", compiled=option, **small) for option in (False, True))
    codes = tuple(torch.randint(8, (2, level.height, level.width)) for level in SPEC.levels)
    batch = LatentBatch(codes, torch.tensor([0, 2]), torch.arange(2))
    for made in (plain, compiled):
        for network in networks(made):
            torch.nn.init.normal_(network.to_logits.weight, generator=torch.Generator().manual_seed(1))
        assert not calls
        torch.manual_seed(2)
        made.network.loss(*made.inputs(batch)).backward()
    assert len(calls) == 1  # all levels in one graph
    for (name, weights), others in zip(
        plain.network.named_parameters(), compiled.network.parameters(), strict=True
    ):
        torch.testing.assert_close(weights.grad, others.grad, msg=name, rtol=1e-5, atol=1e-6)
