"""The networks that the configs describe, at full size and without data: for benchmarks and tables."""

import importlib
from dataclasses import is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import torch
from torch import nn

from vqvae2.cli.recipes import compose
from vqvae2.data.latents import LatentSpec, levels_of
from vqvae2.pixels import size_of
from vqvae2.training.base import NetworkModule

CONFIGS = Path(__file__).parents[1] / "configs"
FACES = dict.fromkeys(("ffhq", "ffhq256", "ffhq1024", "celeba"), 0)
NUM_CLASSES = {"demo": 10, "mnist": 10, "cifar10": 10, "imagenet": 1000, **FACES}

# As many weights, over a grid as large, as the top prior of the most-used public port: 26.6 M.
PRIOR_26M = {
    "grid": (32, 32),
    "num_codes": 512,
    "condition_grids": (),
    "condition_codes": (),
    "num_classes": 0,
    "hidden": 256,
    "residual": 512,
    "layers": 9,
    "attention_layers": 4,
    "heads": 8,
    "kernel": 5,
    "dropout": 0.1,
    "output_layers": 0,
}


def module(name: str, **changes: Any) -> NetworkModule:
    """The module of `configs/NAME.yaml`, which trains a network, with some options changed."""
    model = compose(CONFIGS / f"{name}.yaml")["model"]
    return instantiate(model | {"init_args": model.get("init_args", {}) | changes})


def network(name: str, device: str = "meta", **changes: Any) -> nn.Module:
    """The network that `configs/NAME.yaml` trains; on the device "meta" it takes no memory."""
    owner = module(name, **changes)
    owner.trainer = SimpleNamespace(datamodule=data_facts(name))
    with torch.device(device):
        return owner.build_network()


def data_facts(name: str) -> SimpleNamespace:
    """What the data tells the network of `configs/NAME.yaml`: size and classes, or the codes' spec."""
    recipe, _, stage = name.rpartition("_")
    num_classes = NUM_CLASSES[recipe.rpartition("_")[2]]  # recipes such as small_mnist end with the data set
    if stage in ("vqvae", "classifier"):
        images = compose(CONFIGS / f"{name}.yaml")["data"]["init_args"]
        classes = [str(label) for label in range(num_classes)]
        size = images["image_size"]
        return SimpleNamespace(
            channels=images["channels"], image_size=size, num_classes=num_classes, classes=classes
        )
    vqvae = f"{recipe}_vqvae"
    levels = levels_of(network(vqvae), size_of(data_facts(vqvae).image_size))
    return SimpleNamespace(spec=LatentSpec(levels, num_classes, "not trained"))


def instantiate(value: Any) -> Any:
    """Builds what a config describes by `class_path` and `init_args`, as the command line does."""
    if not isinstance(value, dict) or "class_path" not in value:
        return value
    place, _, name = value["class_path"].rpartition(".")
    made = getattr(importlib.import_module(place), name)
    kinds = get_type_hints(made.__init__)
    arguments = {key: instantiate(entry) for key, entry in value.get("init_args", {}).items()}
    return made(**{key: _grouped(entry, kinds.get(key)) for key, entry in arguments.items()})


def _grouped(value: Any, kind: Any) -> Any:
    """A mapping as the dataclass that the argument is to be, alone or `| None`."""
    found = [each for each in (kind, *get_args(kind)) if is_dataclass(each)]
    return found[0](**value) if isinstance(value, dict) and found else value
