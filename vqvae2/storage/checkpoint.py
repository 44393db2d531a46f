"""Networks in files: a checkpoint describes its network, so it is read back without a YAML."""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from vqvae2.nn.contracts import Network, network_class

DESCRIPTION = "vqvae2"  # the checkpoint's entry that says what it holds and how to build it
_AVERAGE = "average."  # what the names of the averaged weights begin with
META = "meta.pt"  # in a folder that sharded training wrote: all but the shards, with their shapes in place

_BEFORE_ARCHITECTURES = {"autoencoder": "vqvae2", "prior": "pixelsnail", "classifier": "classifier"}


class Loaded(NamedTuple):
    """A network from a checkpoint: averaged weights, eval mode, no gradients."""

    network: Network
    facts: dict[str, Any]


def read_description(path: str | Path) -> dict[str, Any]:
    """The description in a checkpoint of this suite.

    Raises:
        ValueError: there is no such file, or it is not a checkpoint of this suite.
    """
    return described(_read(_meta(path)))


def described(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The description in what a checkpoint holds; None without one.

    Checkpoints written when each kind had one architecture do not name it.
    """
    found = checkpoint.get(DESCRIPTION)
    if found is None or "architecture" in found:
        return found
    kind = found.get("kind")
    return {"kind": kind, "architecture": _BEFORE_ARCHITECTURES.get(kind), **found}


def save_network(path: str | Path, network: Network, options: Mapping[str, Any], **facts: Any) -> None:
    """Writes a network alone, with no state of a run, so that `load_network` reads it back.

    Args:
        path: of the file, which is written aside and moved to its place.
        network: of any kind.
        options: the keyword arguments that it was built with (plain types).
        facts: what its users need besides, such as a prior's `level` and `latents` (plain types).
    """
    state = {_AVERAGE + name: tensor for name, tensor in network.state_dict().items()}
    part = Path(path).with_name(Path(path).name + ".part")
    torch.save({DESCRIPTION: description(network, options, **facts), "state_dict": state}, part)
    part.replace(path)


def description(network: Network, options: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """What a checkpoint says of its network: enough to build it again."""
    return {"kind": network.kind, "architecture": network.architecture, "network": dict(options), **facts}


def load_network(path: str | Path, kind: str) -> Loaded:
    """Loads the averaged network of a checkpoint of `kind`, a file or a folder of shards, on the CPU.

    Raises:
        ValueError: there is no such file, or it is not a checkpoint of this suite, or of another kind.
    """
    checkpoint = read_checkpoint(path)
    facts = described(checkpoint)
    if facts["kind"] != kind:
        raise ValueError(
            f"{path} holds a network of kind '{facts['kind']}', wanted '{kind}'. "
            f"Name the checkpoint of a run that trained a network of kind '{kind}'."
        )
    state = {
        name.removeprefix(_AVERAGE): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(_AVERAGE)
    }
    return Loaded(rebuild(facts, state), facts)


def rebuild(facts: Mapping[str, Any], state: Mapping[str, Tensor]) -> Network:
    """The network that a checkpoint describes, made of the tensors of `state`; in eval mode, frozen.

    Raises:
        ValueError: no module that has been imported defines its architecture.
    """
    with torch.device("meta"):
        network = network_class(facts["kind"], facts["architecture"])(**facts["network"])
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
    shards = [read_file(meta.with_name(shard_file(i))) for i in range(checkpoint.pop("num_shards"))]
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
        raise ValueError(f"{found}. {unvalidated(path) or 'Train it first: lightning fit -c CONFIG.'}")
    checkpoint = read_file(path)
    if not isinstance(checkpoint, dict) or DESCRIPTION not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of this suite: it does not say what network it holds.")
    return checkpoint


def unvalidated(path: Path) -> str | None:
    """What to do for a best checkpoint that is not there although its run has been trained."""
    last = path.with_name("last.ckpt")
    if path.name != "best.ckpt" or not _meta(last).is_file():
        return None
    return (
        f"The run was trained, but no validation has written it yet. Name {last}, or let the run validate: "
        "trainer.val_check_interval within its steps, checkpoint.monitor with the figure that chooses."
    )


def read_file(path: Path) -> Any:
    """What torch has saved in a file: nothing that could run code. Tensors stay on the disk until used.

    Raises:
        ValueError: it is damaged, or something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is damaged or something else."
        ) from error
