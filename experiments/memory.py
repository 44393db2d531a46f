"""What fits on a device: weights, activations and batches of the paper-size networks, computed, not measured.

    python experiments/memory.py
    python experiments/memory.py imagenet_top --device-gb 40

Nothing is run: the networks of the configs go through one training step of tensors without memory, and what
autograd would keep for the backward pass is counted, each storage once. That is linear in the batch, so
batches of 1 and 2 tell all others. With checkpointing comes on top the largest part that is computed again.
Precisions are Lightning's: weights, gradients, Adam's moments and the Polyak average stay in float32.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bench_training import MadeUpData
from configured import CONFIGS, data_facts, module
from timing import print_table
from vqvae2.composition import compose
from vqvae2.data.images import ImageBatch
from vqvae2.modules.base import NetworkModule
from vqvae2.nn.prior import Prior

PAPER = [
    *(f"imagenet_{stage}" for stage in ("vqvae", "top", "bottom")),
    *(f"ffhq_{stage}" for stage in ("vqvae", "top", "mid", "bottom")),
]
BYTES_A_WEIGHT = 4 + 4 + 8 + 4  # itself, its gradient, two moments, its average
BUCKETS = 4  # bytes a weight for the gradients that travel between devices
USABLE = 0.9  # of a device; the rest is for gradients in flight, workspaces and fragments


class Saved:
    """Counts bytes that autograd keeps: a storage once, weights and what is `uncounted` not at all."""

    def __init__(self, uncounted: list[Tensor]) -> None:
        self.total = 0
        self.kept = uncounted  # alive, so that no address comes twice
        self.seen = {tensor.untyped_storage()._cdata for tensor in uncounted}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        weights = tensor.is_leaf and tensor.requires_grad
        if storage._cdata not in self.seen and not weights:
            self.seen.add(storage._cdata)
            self.kept.append(tensor)
            self.total += storage.nbytes()
        return tensor


def saved_bytes(step: Callable[[], object], network: nn.Module) -> tuple[int, int]:
    """What `step` makes autograd keep, and the most that one of the network's repeated parts keeps of it."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        saved = Saved([mode.from_tensor(weights) for weights in [*network.parameters(), *network.buffers()]])
        hooks = torch.autograd.graph.saved_tensors_hooks(saved.pack, _same)
        with _by_part(network, saved) as parts, hooks:
            step()
    return saved.total, max(parts, default=0)


@contextmanager
def _by_part(network: nn.Module, saved: Saved) -> Iterator[list[int]]:
    """The list that it gives fills with what each member of a list of modules keeps."""
    lists = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
    members = {part for many in network.modules() if isinstance(many, lists) for part in many.children()}
    starts: dict[nn.Module, int] = {}
    kept: list[int] = []
    hooks = []
    for member in members:
        hooks.append(member.register_forward_pre_hook(lambda part, *_: starts.update({part: saved.total})))
        hooks.append(member.register_forward_hook(lambda part, *_: kept.append(saved.total - starts[part])))
    yield kept
    for hook in hooks:
        hook.remove()


def _same(tensor: Tensor) -> Tensor:
    return tensor


class Activations(NamedTuple):
    """Bytes of a step: those that come with every image, and those that do not."""

    an_image: int
    fixed: int


def activations(
    name: str, owner: NetworkModule, network: nn.Module, *, bf16: bool, checkpointed: bool
) -> Activations:
    """Of the network that `configs/NAME.yaml` trains; only a `Prior` can be checkpointed."""
    totals = []
    for batch_size in (1, 2):
        batch = MadeUpData(name, batch_size, 1).batch()

        def step(batch: object = batch) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return loss(owner, network, batch)

        if isinstance(network, Prior):
            network.checkpoint_layers = False
        total, part = saved_bytes(step, network)
        if checkpointed:
            network.checkpoint_layers = True
            total = saved_bytes(step, network)[0] + part
        totals.append(total)
    an_image = totals[1] - totals[0]
    return Activations(an_image, totals[0] - an_image)


def loss(owner: NetworkModule, network: nn.Module, batch: object) -> Tensor:
    """As in the module's training step."""
    if isinstance(batch, ImageBatch):
        return owner.loss(batch.images, network(batch.images))[0]
    return owner.nll(network, batch).mean()


def build(name: str) -> tuple[NetworkModule, nn.Module]:
    """The module of a config, and its network in memory that is asked for but never touched."""
    owner = module(name)
    owner.trainer = SimpleNamespace(datamodule=data_facts(name))
    with torch.device("meta"):
        network = owner.build_network()
    return owner, network.to_empty(device="cpu").train()


def largest_batch(device_bytes: float, num_weights: int, costs: Activations, devices: int) -> int:
    """Images of the largest batch that fits on each device."""
    state = num_weights * (BYTES_A_WEIGHT + (BUCKETS if devices > 1 else 0))
    return max(0, int((USABLE * device_bytes - state - costs.fixed) // costs.an_image))


def accumulation(global_batch: int, devices: int, largest: int) -> int | None:
    """Batches to accumulate for a step: the fewest that divide a device's share into parts that fit."""
    share = global_batch // devices
    if largest < 1:
        return None
    return next(parts for parts in range(math.ceil(share / largest), share + 1) if share % parts == 0)


def rows(name: str, device_bytes: float) -> Iterator[dict[str, str | float]]:
    """One for each precision and way to keep activations."""
    owner, network = build(name)
    num_weights = sum(weights.numel() for weights in network.parameters())
    global_batch = compose(CONFIGS / f"{name}.yaml")["data"]["init_args"]["batch_size"]
    for bf16 in (False, True):
        for checkpointed in (False, True) if isinstance(network, Prior) else (False,):
            costs = activations(name, owner, network, bf16=bf16, checkpointed=checkpointed)
            row = {
                "config": name,
                "weights, M": num_weights / 1e6,
                "state, GB": num_weights * BYTES_A_WEIGHT / 1e9,
                "precision": "bf16" if bf16 else "fp32",
                "checkpointed": "yes" if checkpointed else "no",
                "MB an image": costs.an_image / 1e6,
                "paper's batch": global_batch,
            }
            for devices in (1, 8):
                largest = largest_batch(device_bytes, num_weights, costs, devices)
                parts = accumulation(global_batch, devices, largest)
                row[f"fits, {devices} dev."] = largest
                row[f"accumulate, {devices} dev."] = parts or "-"
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "configs", nargs="*", default=PAPER, help="names, such as imagenet_top; the paper's if none"
    )
    parser.add_argument("--device-gb", type=float, default=80, help="memory of a device, in 10^9 bytes")
    arguments = parser.parse_args()
    print_table([row for name in arguments.configs for row in rows(name, arguments.device_gb * 1e9)])


if __name__ == "__main__":
    main()
