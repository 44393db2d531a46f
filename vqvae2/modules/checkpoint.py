"""Reading the networks that the modules train back from their checkpoints, without a YAML."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

DESCRIPTION = "vqvae2"  # the checkpoint's entry that says what it holds and how to build it

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


class Loaded(NamedTuple):
    """A network from a checkpoint: averaged weights, eval mode, no gradients."""

    network: nn.Module
    facts: dict[str, Any]


def register_network(kind: str, build: Callable[..., nn.Module]) -> None:
    """Says how the networks of the checkpoints of `kind` are built from their recorded arguments."""
    _BUILDERS[kind] = build


def read_description(path: str | Path) -> dict[str, Any]:
    """The description in a checkpoint of this suite.

    Raises:
        ValueError: there is no such file, or it is not a checkpoint of this suite.
    """
    return _read(path)[DESCRIPTION]


def load_network(path: str | Path, kind: str) -> Loaded:
    """Loads the averaged network of a checkpoint of `kind`, on the CPU.

    Raises:
        ValueError: there is no such file, or it is not a checkpoint of this suite, or of another kind.
    """
    checkpoint = _read(path)
    description = checkpoint[DESCRIPTION]
    if description["kind"] != kind:
        raise ValueError(
            f"{path} holds a network of kind '{description['kind']}', wanted '{kind}'. "
            f"Name the checkpoint of a run that trained a network of kind '{kind}'."
        )
    with torch.device("meta"):
        network = _BUILDERS[kind](**description["network"])
    prefix = "average."
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    network.load_state_dict(state, assign=True)
    return Loaded(network.eval().requires_grad_(False), description)


def _read(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        found = f"{path} is a folder" if path.is_dir() else f"There is no checkpoint {path}"
        raise ValueError(f"{found}. Train it first: lightning fit -c CONFIG.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is damaged or something else."
        ) from error
    if not isinstance(checkpoint, dict) or DESCRIPTION not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of this suite: it does not say what network it holds.")
    return checkpoint
