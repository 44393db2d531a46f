"""The paper's runs on 8 and 128 devices, on one page: work, hours, traffic, memory, disks. Prints Markdown.

    python experiments/scale.py --devices 8 128 > experiments/SCALE.md

Nothing is trained: operations, bytes and memory are counted on tensors without values, at the sizes of the
configs. Only latent shards are written, to see how large they are. What a device achieves is an assumption.
"""

import inspect
import math
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

import memory
from bench_training import MadeUpData, step_flops
from configured import CONFIGS, data_facts, network
from timing import print_table
from vqvae2.composition import compose
from vqvae2.data.latent_shards import write_shard
from vqvae2.data.latents import LatentSpec

BYTES_SAVED = 4 + 8 + 4  # a weight in a checkpoint: itself, Adam's two moments, its average
GRADIENT_BYTES, GATHERED_BYTES = 4, 2  # of a gradient (float32) and a weight (bf16) that travel
NODE = 8  # devices of one, over which configs/fsdp.yaml shards
FID_IMAGES = 50_000
STAGES = {"imagenet": ("top", "bottom"), "ffhq": ("top", "mid", "bottom")}
IMAGES = {"imagenet": 1_281_167, "ffhq": 70_000}  # for training; FFHQ before a hundredth is held out
KEYS = {"imagenet": "n01440764/n01440764_{}.JPEG", "ffhq": "00000/{:05d}.png"}

Row = dict[str, str | float]

# What no count can tell: values and meanings. Each is an option.
ASSUMED = {
    "tflops": (989.0, "TFLOP/s of a device at best, bf16, dense (data sheet of an H100)"),
    "share": (0.35, "of it, in a prior's step"),
    "autoencoder_share": (0.1, "of it, in an autoencoder's step, whose convolutions are thin"),
    "network_gbs": (200.0, "GB/s from a device to the next; a node with 8 links of 400 Gbit/s has 400"),
    "memory_gbs": (3350.0, "GB/s of its memory (data sheet of an H100)"),
    "device_gb": (80.0, "GB of its memory"),
    "disk_gbs": (1.0, "GB/s to the disk of the checkpoints"),
    "disk_tb": (10.0, "TB on it"),
    "imagenet_mb": (0.115, "MB of a JPEG of ImageNet, and of a sample as a PNG"),
    "ffhq_mb": (1.27, "MB of a PNG of FFHQ, and of a sample"),
    "imagenet_decoded": (100.0, "JPEGs of ImageNet a second that a processor core decodes and resizes"),
    "ffhq_decoded": (20.0, "likewise PNGs of FFHQ"),
}


class Run(NamedTuple):
    """A training run as its config has it, and what is counted of its network."""

    name: str
    steps: int
    batch: int
    validation: int  # steps between two, after each of which a checkpoint is written
    weights: int
    statistics: int  # numbers in buffers
    flops: int  # of one image's forward and backward pass

    def step_s(self, devices: int, assumed: Namespace) -> float:
        share = assumed.autoencoder_share if self.name.endswith("vqvae") else assumed.share
        return self.batch * self.flops / (devices * assumed.tflops * 1e12 * share)


def run(name: str) -> Run:
    """Of `configs/NAME.yaml`."""
    config, made = compose(CONFIGS / f"{name}.yaml"), network(name)
    return Run(
        name,
        steps=config["trainer"]["max_steps"],
        batch=config["data"]["init_args"]["batch_size"],
        validation=config["trainer"]["val_check_interval"],
        weights=sum(weights.numel() for weights in made.parameters()),
        statistics=sum(values.numel() for values in made.buffers()),
        flops=step_flops(name, MadeUpData(name, 1, 1).batch()),
    )


def work(runs: list[Run], devices: list[int], assumed: Namespace) -> Iterator[Row]:
    """Operations are those of products and convolutions (a multiplication and an addition are two), forward
    and backward, attention over the full square. What is recomputed when layers are checkpointed (a third
    more) is not in them. For the priors an image is its grids of codes.
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
    devices: a bound and not a plan (the paper used 8), and decoding comes first; see Data.
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


def fitting(runs: list[Run], devices: list[int], assumed: Namespace) -> Iterator[Row]:
    """Weights, gradients, moments and average are 20 bytes a weight on each device under DDP, divided by a
    node's devices under FSDP. Parts are those into which a device's share of the batch is split under DDP,
    with bf16 autocast (`--trainer.accumulate_grad_batches`), as in `experiments/memory.py`; only priors can
    be checkpointed.
    """
    for job in runs:
        owner, made = memory.build(job.name)
        for checkpointed in (False, True) if isinstance(made, memory.Prior) else (False,):
            costs = memory.activations(job.name, owner, made, bf16=True, checkpointed=checkpointed)
            state = job.weights * memory.BYTES_A_WEIGHT / 1e9
            row: Row = {"config": job.name, "checkpointed": "yes" if checkpointed else "no"}
            row |= {"state, GB (c)": state, f"under FSDP, nodes of {NODE} (c)": state / NODE}
            row["MB an image (c)"] = costs.an_image / 1e6
            for count in devices:
                fits = memory.largest_batch(assumed.device_gb * 1e9, job.weights, costs, count)
                row[f"parts on {count} (c)"] = memory.accumulation(job.batch, count, fits) or "-"
            yield row


def shard_bytes(spec: LatentSpec, num_samples: int, samples_per_record: int, key: str) -> int:
    """Size of a latent shard, which is written to find out; `key` is the pattern of its samples' names."""
    draw = np.random.default_rng(0)
    shapes = [(num_samples, level.height, level.width) for level in spec.levels]
    codes = [draw.integers(0, spec.levels[i].num_codes, shape) for i, shape in enumerate(shapes)]
    with tempfile.TemporaryDirectory() as folder:
        samples = {
            "codes": codes,
            "labels": codes[0][:, 0, 0],
            "keys": [*map(key.format, range(num_samples))],
        }
        samples["samples_per_record"] = samples_per_record
        return write_shard(Path(folder), "train/000000.tar", spec, **samples).bytes


def stored(runs: list[Run], devices: list[int], assumed: Namespace) -> Iterator[Row]:
    """A latent's size is that of a shard that was written. Rates are those of all devices together, at the
    computing times above: of the autoencoder, whose loaders need so many cores or it is slower, and of the
    fastest prior.
    """
    rates = {(job.name, n): job.batch / job.step_s(n, assumed) for job, n in product(runs, devices)}
    for dataset, stages in STAGES.items():
        asked = compose(CONFIGS / f"{dataset}_encode.yaml")["data"]["init_args"]
        chunk = asked.get("chunk_size", 4096)
        spec = data_facts(f"{dataset}_{stages[0]}").spec
        a_sample = shard_bytes(spec, chunk, 256, KEYS[dataset]) / chunk
        samples = IMAGES[dataset] * asked.get("encode_views", 1) * (2 if asked.get("encode_flips") else 1)
        image_mb = getattr(assumed, f"{dataset}_mb")
        row: Row = {
            "data": dataset,
            "images": f"{IMAGES[dataset]:,}",
            "images, GB (a)": IMAGES[dataset] * image_mb / 1e3,
            "latents (c)": f"{samples:,}",
            "KB a latent (m)": a_sample / 1e3,
            "latents, GB (m)": samples * a_sample / 1e9,
            "shards (c)": f"{math.ceil(samples / chunk):,}",
        }
        for count in devices:
            images = rates[f"{dataset}_vqvae", count]
            row[f"on {count}: images, MB/s (a)"] = images * image_mb
            row[f"on {count}: cores to decode (a)"] = images / getattr(assumed, f"{dataset}_decoded")
            fastest = max(rates[f"{dataset}_{stage}", count] for stage in stages)
            row[f"on {count}: latents, MB/s (a)"] = fastest * a_sample / 1e6
        yield row


def core_weights(prior: nn.Module) -> int:
    """Those that every position is multiplied with: without conditioning stack and embeddings."""
    parts = [*prior.layers, *prior.attention.values(), prior.output, prior.to_logits]
    return sum(weights.numel() for part in parts for weights in part.parameters())


def sampling(runs: list[Run], devices: list[int], assumed: Namespace) -> Iterator[Row]:
    """The least time: for each position the weights of all layers are read once a batch (bf16), or multiplied
    at the share above, whichever takes longer. Starting kernels comes on top and may take more than either. A
    file is made by one device, so no more devices than files have work: for more, lower `--data.chunk_size`.
    """
    by_name = {job.name: job for job in runs}
    for dataset, stages in STAGES.items():
        spec = data_facts(f"{dataset}_{stages[0]}").spec
        asked = compose(CONFIGS / f"{dataset}_sample.yaml")["data"]["init_args"]
        batch, chunk = asked["batch_size"], asked.get("chunk_size", 1024)
        batch_s = 0.0
        for level, stage in zip(spec.levels, stages, strict=True):
            name = f"{dataset}_{stage}"
            read = level.height * level.width * 2 * core_weights(network(name))
            forward = batch * by_name[name].flops / 3  # the backward pass has two products for each of its
            rates = assumed.memory_gbs * 1e9, assumed.tflops * 1e12 * assumed.share
            batch_s += max(read / rates[0], forward / rates[1])
        chunks = math.ceil(FID_IMAGES / chunk)
        codes = 2 * sum(level.height * level.width for level in spec.levels)
        row: Row = {"data": dataset, "batch of a device": batch, "files (c)": chunks}
        row["ms an image (a)"] = batch_s / batch * 1e3
        minutes = chunk / batch * batch_s / 60  # of a file
        row |= {f"minutes on {count} (a)": math.ceil(chunks / count) * minutes for count in (1, *devices)}
        images_gb = FID_IMAGES * getattr(assumed, f"{dataset}_mb") / 1e3
        yield row | {"codes, GB (c)": FID_IMAGES * codes / 1e9, "images, GB (a)": images_gb}


def checkpoint_bytes(job: Run) -> int:
    """Of a checkpoint's tensors: weights, moments and average; buffers of the network and of the average."""
    return job.weights * BYTES_SAVED + job.statistics * 4 * 2


def checkpoints(runs: list[Run], devices: list[int], assumed: Namespace) -> Iterator[Row]:
    """A checkpoint holds weights, two moments and the average; three are the last, the best and one being
    written. One is written after every validation, so a run that is killed loses at most the minutes between
    two; `--checkpoint.every_minutes` bounds them.
    """
    for job in runs:
        size = checkpoint_bytes(job)
        row: Row = {
            "config": job.name,
            "GB (c)": size / 1e9,
            "three of them, GB (c)": 3 * size / 1e9,
            "a disk holds (c)": f"{int(assumed.disk_tb * 1e12 // size):,}",
            "s to write (a)": size / assumed.disk_gbs / 1e9,
            "validation every, steps": f"{job.validation:,}",
        }
        minutes = {n: job.validation * job.step_s(n, assumed) / 60 for n in devices}
        yield row | {f"minutes between two on {n} (a)": minutes[n] for n in devices}


INTRODUCTION = """# The paper's runs on {devices} devices

Printed by `python experiments/scale.py`; nothing here was measured on a GPU. Marks: **(p)** the paper's
number, from the config; **(m)** measured, on files that the script writes; **(c)** computed, counted on the
networks at full size; **(a)** rests on an assumption, one of these, which are options of the script:
"""
SECTIONS = {
    "Work": work,
    "Hours and traffic": hours,
    "Memory": fitting,
    "Data": stored,
    "50,000 samples": sampling,
    "Checkpoints": checkpoints,
}


def page(devices: list[int], assumed: Namespace, titles: list[str]) -> None:
    """Prints the introduction and the chosen sections; a table's prose is the docstring of its function."""
    print(INTRODUCTION.format(devices=" and ".join(map(str, devices))))
    values = [(f"--{name}".replace("_", "-"), f"{getattr(assumed, name):g}") for name in ASSUMED]
    meanings = [meaning for _, meaning in ASSUMED.values()]
    print_table([{"": n, "(a)": v, "meaning": m} for (n, v), m in zip(values, meanings, strict=True)])
    runs = [run(name) for name in memory.PAPER]
    for title in titles:
        table = SECTIONS[title]
        print(f"\n## {title}\n\n{inspect.getdoc(table)}\n")
        print_table(list(table(runs, devices, assumed)))


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 128])
    for name, (value, meaning) in ASSUMED.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value, help=meaning)
    options = parser.parse_args()
    page(options.devices, options, list(SECTIONS))


if __name__ == "__main__":
    main()
