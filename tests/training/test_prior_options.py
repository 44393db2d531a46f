"""How a prior trains is no part of what it is: options that leave its checkpoints alone."""

from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser

from vqvae2.data.latents import LatentBatch, LatentSpec, Level
from vqvae2.training.pixelsnail import ConditionalPriorModule, TopPriorModule
from vqvae2.training.schedules import Constant

SPEC = LatentSpec((Level("top", 4, 4, 8), Level("bottom", 8, 8, 8)), 3, "no fingerprint")
WIDTHS = {
    "hidden": 8,
    "residual": 8,
    "layers": 2,
    "attention_layers": 1,
    "heads": 2,
    "kernel": 3,
    "dropout": 0.1,
    "output_layers": 1,
    "conditioning_hidden": 8,
    "conditioning_blocks": 2,
}


def module(**options) -> ConditionalPriorModule:
    made = ConditionalPriorModule(level="bottom", schedule=Constant(1e-3), polyak=0.9, **(WIDTHS | options))
    made.trainer = SimpleNamespace(datamodule=SimpleNamespace(spec=SPEC))
    torch.manual_seed(0)
    made.configure_model()
    return made


def test_a_run_may_go_on_with_checkpointed_layers_or_without():
    plain, checkpointed = module(), module(checkpoint_layers=True)
    assert checkpointed.network.checkpoint_layers
    assert not plain.network.checkpoint_layers
    assert plain.description == checkpointed.description
    codes = tuple(torch.randint(8, (2, level.height, level.width)) for level in SPEC.levels)
    batch = LatentBatch(codes, torch.tensor([0, 2]), torch.arange(2))
    for made in (plain, checkpointed):
        torch.nn.init.normal_(made.network.to_logits.weight, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(2)
        made.network.loss(*made.inputs(batch)).backward()
    for (name, weights), others in zip(
        plain.network.named_parameters(), checkpointed.network.parameters(), strict=True
    ):
        assert torch.equal(weights.grad, others.grad), name
    assert plain.state_dict().keys() == checkpointed.state_dict().keys()


@pytest.mark.parametrize("option", ["compiled", "checkpoint_layers"])
@pytest.mark.parametrize("made", [TopPriorModule, ConditionalPriorModule])
def test_the_command_line_knows_the_options(made, option):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(made, "model", fail_untyped=False)
    given = [f"--model.{name}={value}" for name, value in WIDTHS.items()]
    level = ["--model.level=bottom"] if made is ConditionalPriorModule else []
    schedule = [
        "--model.schedule=vqvae2.training.schedules.Constant",
        "--model.schedule.learning_rate=0.1",
        "--model.polyak=0.9",
    ]
    parsed = parser.parse_args([*given, *level, *schedule, f"--model.{option}=true"])
    instance = parser.instantiate_classes(parsed).model
    assert getattr(instance, option) is True
    assert option not in instance.options
