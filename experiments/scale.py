"""The paper's runs on several devices: operations, hours, traffic, memory. Computed, not measured.

    python experiments/scale.py --devices 8 128 > experiments/SCALE.md
    python experiments/scale.py imagenet_top --devices 1 8 --device-gb 40

Prints Markdown. Nothing is trained: the networks of the configs go through a step of tensors without memory;
operations are counted, and the bytes that autograd keeps for the backward pass, each storage once. They are
linear in the batch, so batches of 1 and 2 tell all others. What a device achieves is an assumption.
"""

import argparse
import inspect
import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bench_training import MadeUpData, step_flops
from configured import CONFIGS, data_facts, module
from timing import print_table
from vqvae2.cli.recipes import compose
from vqvae2.data.images import ImageBatch
from vqvae2.nn.pixelsnail import PixelSNAIL
from vqvae2.training.base import NetworkModule

PAPER = [
    *(f"imagenet_{stage}" for stage in ("vqvae", "top", "bottom")),
    *(f"ffhq_{stage}" for stage in ("vqvae", "top", "mid", "bottom")),
]
STATE_BYTES = 4 + 4 + 8 + 4  # of a weight in training: itself, its gradient, Adam's two moments, its average
SAVED_BYTES = STATE_BYTES - 4  # in a checkpoint, which has no gradients
GRADIENT_BYTES, GATHERED_BYTES = 4, 2  # of a gradient (float32) and a weight (bf16) that travel
USABLE = 0.9  # of a device's memory; the rest is for gradients in flight, workspaces and fragments
NODE = 8  # devices of one, over which configs/fsdp.yaml shards

Row = dict[str, str | float]

# What no count can tell: values and meanings. Each is an option.
ASSUMED = {
    "tflops": (989.0, "TFLOP/s of a device at best, bf16, dense (data sheet of an H100)"),
    "share": (0.35, "of it, in a prior's step"),
    "autoencoder_share": (0.1, "of it, in an autoencoder's step, whose convolutions are thin"),
    "network_gbs": (200.0, "GB/s from a device to the next; a node with 8 links of 400 Gbit/s has 400"),
    "device_gb": (80.0, "GB of its memory"),
}


class Run(NamedTuple):
    """A training run as its config has it, and what is counted of its network."""

    name: str
    steps: int
    batch: int
    weights: int
    flops: int  # of one image's forward and backward pass

    @classmethod
    def of(cls, name: str) -> "Run":
        """Of `configs/NAME.yaml`."""
        config, (_, network) = compose(CONFIGS / f"{name}.yaml"), build(name)
        steps, batch = config["trainer"]["max_steps"], config["data"]["init_args"]["batch_size"]
        weights = sum(weights.numel() for weights in network.parameters())
        return cls(name, steps, batch, weights, step_flops(name, MadeUpData(name, 1, 1).batch()))

    def step_s(self, devices: int, assumed: Namespace) -> float:
        share = assumed.autoencoder_share if self.name.endswith("vqvae") else assumed.share
        return self.batch * self.flops / (devices * assumed.tflops * 1e12 * share)


def work(runs: list[Run], devices: list[int], assumed: Namespace) -> Iterator[Row]:
    """Operations are those of products and convolutions (a multiplication and an addition are two), forward
    and backward, attention over the full square. What is recomputed when layers are checkpointed (a third
    more) is not in them. For the priors an image is its grids of codes. A checkpoint holds weights, two
    moments and the average.
    """
    for job in runs:
        yield {
            "config": job.name,
            "weights, M (c)": job.weights / 1e6,
            "steps (p)": f"{job.steps:,}",
            "batch (p)": job.batch,
            "GFLOP an image (c)": job.flops / 1e9,
            "TFLOP a step (c)": job.batch * job.flops / 1e12,
            "EFLOP a run (c)": job.flops * job.batch * job.steps / 1e18,
            "GB a checkpoint (c)": job.weights * SAVED_BYTES / 1e9,
        }


def sent(job: Run, devices: int) -> tuple[float, float]:
    """Bytes that a device sends each step, in rings: under DDP, and under FSDP with the batch in one part.

    DDP reduces and gathers all gradients. FSDP gathers weights within its node for the forward and again for
    the backward pass, scatters reduced gradients, and reduces and gathers its part of them over the nodes.
    """
    node = min(NODE, devices)
    nodes = devices / node
    ddp = 2 * (1 - 1 / devices) * job.weights * GRADIENT_BYTES
    within = (1 - 1 / node) * job.weights * (2 * GATHERED_BYTES + GRADIENT_BYTES)
    return ddp, within + 2 * (1 - 1 / nodes) * job.weights / node * GRADIENT_BYTES


def hours(runs: list[Run], devices: list[int], assumed: Namespace) -> Iterator[Row]:
    """A step takes the time of its operations at the share above, or of its DDP traffic if that is longer.
    Traffic is what each device sends in rings: gradients in float32, under `configs/fsdp.yaml` also weights
    in bf16, once more for each part of a batch. The autoencoders' batch of 128 is one image for each of 128
    devices: a bound and not a plan (the paper used 8). Decoding the images is not in it.
    """
    for job, count in product(runs, devices):
        ddp, fsdp = sent(job, count)
        computing, sending = job.step_s(count, assumed), ddp / (assumed.network_gbs * 1e9)
        yield {
            "config": job.name,
            "devices": count,
            "images a device (c)": job.batch // count,
            "computing, ms (a)": computing * 1e3,
            "DDP sends, GB (c)": ddp / 1e9,
            "in ms (a)": sending * 1e3,
            "FSDP sends, GB (c)": fsdp / 1e9,
            "images/s (a)": job.batch / max(computing, sending),
            "hours (a)": max(computing, sending) * job.steps / 3600,
        }


def memory(runs: list[Run], devices: list[int], assumed: Namespace) -> Iterator[Row]:
    """Weights, gradients, moments and average are 20 bytes a weight on each device under DDP, divided by a
    node's devices under FSDP; they are float32 under bf16 autocast too. Parts are those into which a device's
    share of the paper's batch is split under DDP (`--trainer.accumulate_grad_batches`). Only priors can be
    checkpointed, which keeps the largest layer that is computed again.
    """
    for job in runs:
        owner, network = build(job.name)
        for bf16, checkpointed in product((False, True), (False, True)):
            if checkpointed and not stacks(network):
                continue
            costs = activations(job.name, owner, network, bf16=bf16, checkpointed=checkpointed)
            state = job.weights * STATE_BYTES / 1e9
            row: Row = {"config": job.name, "precision": "bf16" if bf16 else "fp32"}
            row |= {"checkpointed": "yes" if checkpointed else "no", "state, GB (c)": state}
            row |= {f"under FSDP, nodes of {NODE} (c)": state / NODE, "MB an image (c)": costs.an_image / 1e6}
            for count in devices:
                fits = largest_batch(assumed.device_gb * 1e9, job.weights, costs, count)
                row[f"fit each of {count} (c)"] = fits
                row[f"parts on {count} (c)"] = accumulation(job.batch, count, fits) or "-"
            yield row


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
        hooks = torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor)
        with _by_part(network, saved) as parts, hooks:
            step()
    return saved.total, max(parts, default=0)


@contextmanager
def _by_part(network: nn.Module, saved: Saved) -> Iterator[list[int]]:
    """The list that it gives fills with what each member of a list of modules keeps."""
    lists = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
    members = {part for many in network.modules() if isinstance(many, lists) for part in many.children()}
    members -= {*stacks(network)}
    starts: dict[nn.Module, int] = {}
    kept: list[int] = []
    hooks = []
    for member in members:
        hooks.append(member.register_forward_pre_hook(lambda part, *_: starts.update({part: saved.total})))
        hooks.append(member.register_forward_hook(lambda part, *_: kept.append(saved.total - starts[part])))
    yield kept
    for hook in hooks:
        hook.remove()


class Activations(NamedTuple):
    """Bytes of a step: those that come with every image, and those that do not."""

    an_image: int
    fixed: int


def activations(
    name: str, owner: NetworkModule, network: nn.Module, *, bf16: bool, checkpointed: bool
) -> Activations:
    """Of the network that `configs/NAME.yaml` trains; only priors can be checkpointed."""
    totals = []
    for batch_size in (1, 2):
        batch = MadeUpData(name, batch_size, 1).batch()

        def step(batch: object = batch) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return loss(owner, network, batch)

        for stack in stacks(network):
            stack.checkpoint_layers = False
        total, part = saved_bytes(step, network)
        if checkpointed:
            for stack in stacks(network):
                stack.checkpoint_layers = True
            total = saved_bytes(step, network)[0] + part
        totals.append(total)
    an_image = totals[1] - totals[0]
    return Activations(an_image, totals[0] - an_image)


def stacks(network: nn.Module) -> list[PixelSNAIL]:
    """What can be checkpointed: a prior, or the networks of a prior's residual levels."""
    return [part for part in network.modules() if isinstance(part, PixelSNAIL)]


def loss(owner: NetworkModule, network: nn.Module, batch: object) -> Tensor:
    """As in the module's training step."""
    if isinstance(batch, ImageBatch):
        return owner.losses(batch.images, network(batch.images))["loss"]
    return network.loss(*owner.inputs(batch))


def build(name: str) -> tuple[NetworkModule, nn.Module]:
    """The module of a config, and its network in memory that is asked for but never touched."""
    owner = module(name)
    owner.trainer = SimpleNamespace(datamodule=data_facts(name))
    with torch.device("meta"):
        owner.network = owner.build_network()
    return owner, owner.network.to_empty(device="cpu").train()


def largest_batch(device_bytes: float, num_weights: int, costs: Activations, devices: int) -> int:
    """Images of the largest batch that fits on each device."""
    state = num_weights * (STATE_BYTES + (GRADIENT_BYTES if devices > 1 else 0))
    return max(0, int((USABLE * device_bytes - state - costs.fixed) // costs.an_image))


def accumulation(global_batch: int, devices: int, largest: int) -> int | None:
    """Batches to accumulate for a step: the fewest that divide a device's share into parts that fit."""
    share = global_batch // devices
    if largest < 1:
        return None
    return next(parts for parts in range(math.ceil(share / largest), share + 1) if share % parts == 0)


SECTIONS = {"Work": work, "Hours and traffic": hours, "Memory": memory}
INTRODUCTION = """# The paper's runs on {devices} devices

Printed by `python experiments/scale.py`; nothing here was measured. Marks: **(p)** the paper's number, from
the config; **(c)** computed, counted on the networks at full size; **(a)** rests on an assumption, one of
these, which are options of the script:
"""


def page(names: list[str], devices: list[int], assumed: Namespace, titles: list[str]) -> None:
    """Prints the introduction and the chosen sections; a table's prose is the docstring of its function."""
    print(INTRODUCTION.format(devices=" and ".join(map(str, devices))))
    values = [(f"--{name}".replace("_", "-"), f"{getattr(assumed, name):g}") for name in ASSUMED]
    meanings = [meaning for _, meaning in ASSUMED.values()]
    print_table([{"": n, "(a)": v, "meaning": m} for (n, v), m in zip(values, meanings, strict=True)])
    runs = [Run.of(name) for name in names]
    for title in titles:
        table = SECTIONS[title]
        print(f"\n## {title}\n\n{inspect.getdoc(table)}\n")
        print_table(list(table(runs, devices, assumed)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", default=PAPER, help="such as imagenet_top; all of the paper's")
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 128])
    for name, (value, meaning) in ASSUMED.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value, help=meaning)
    options = parser.parse_args()
    page(options.configs, options.devices, options, list(SECTIONS))


if __name__ == "__main__":
    main()
