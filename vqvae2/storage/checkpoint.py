"""Reading the networks that the modules train back from their checkpoints, without a YAML."""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

DESCRIPTION = "vqvae2"  # the checkpoint's entry that says what it holds and how to build it
META = "meta.pt"  # in a folder that sharded training wrote: all but the shards, with their shapes in place

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
    return _read(_meta(path))[DESCRIPTION]


def load_network(path: str | Path, kind: str) -> Loaded:
    """Loads the averaged network of a checkpoint of `kind`, a file or a folder of shards, on the CPU.

    Raises:
        ValueError: there is no such file, or it is not a checkpoint of this suite, or of another kind.
    """
    checkpoint = read_checkpoint(path)
    description = checkpoint[DESCRIPTION]
    if description["kind"] != kind:
        raise ValueError(
            f"{path} holds a network of kind '{description['kind']}', wanted '{kind}'. "
            f"Name the checkpoint of a run that trained a network of kind '{kind}'."
        )
    prefix = "average."
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    return Loaded(rebuild(description, state), description)


def rebuild(description: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """The network that a checkpoint describes, made of the tensors of `state`; in eval mode, frozen."""
    with torch.device("meta"):
        network = _BUILDERS[description["kind"]](**description["network"])
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def read_checkpoint(path: str | Path, join: Callable[[Sequence[Tensor]], Any] = torch.cat) -> dict[str, Any]:
    """All that a checkpoint holds, on the CPU. Tensors stay on the disk until they are used.

    Args:
        path: a file, or a folder of shards.
        join: makes a tensor of its parts, which follow each other along its first dimension.

    Raises:
        ValueError: there is no such file, or it is not a checkpoint of this suite, or damaged.
    """
    meta = _meta(path)
    checkpoint = _read(meta)
    if meta == Path(path):
        return checkpoint
    shards = [_load(meta.with_name(shard_file(i))) for i in range(checkpoint.pop("num_shards"))]
    parts: Iterator[tuple[Tensor, ...]] = zip(*shards, strict=True)
    return tree_map(
        lambda leaf: join(next(parts)) if isinstance(leaf, Tensor) and leaf.is_meta else leaf, checkpoint
    )


class Pieces:
    """A tensor in several files; what is asked of it is read, and nothing else.

    Args:
        parts: follow each other along the first dimension.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = parts
        self.shape = torch.Size((sum(map(len, parts)), *parts[0].shape[1:]))

    def __getitem__(self, rows: slice) -> Tensor:
        found, start = [], 0
        for part in self.parts:
            found.append(part[max(rows.start - start, 0) : max(rows.stop - start, 0)])
            start += len(part)
        return torch.cat(found)


def shard_file(number: int) -> str:
    """The name of a shard's file within its checkpoint's folder."""
    return f"shard-{number:05d}.pt"


def _meta(path: str | Path) -> Path:
    """The file that describes a checkpoint: itself, or one in its folder."""
    folder = Path(path)
    return folder / META if (folder / META).is_file() else folder


def _read(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        found = f"{path} is a folder" if path.is_dir() else f"There is no checkpoint {path}"
        raise ValueError(f"{found}. Train it first: lightning fit -c CONFIG.")
    checkpoint = _load(path)
    if not isinstance(checkpoint, dict) or DESCRIPTION not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of this suite: it does not say what network it holds.")
    return checkpoint


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is damaged or something else."
        ) from error
