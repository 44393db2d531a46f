"""The vector quantiser's training step against another library's and against a bare product of distances.

    python experiments/bench_quantizer.py
    python experiments/bench_quantizer.py --against CLONE   # of the most-used public port, beside them
    python experiments/bench_quantizer.py --linked          # HR-VQVAE's linked quantiser instead

One step quantises 65,536 vectors of 64 numbers with 512 codes, moves the codebook by their averages, and
takes the gradient to the vectors. `vector-quantize-pytorch` (pip install 'vqvae2[bench]') does the same work
where it is told to pass gradients straight through. The bare product, written to memory, is what a quantiser
of this kind can hardly avoid.

Extra memory is the most that is allocated at any moment beyond what every quantiser has to hold: the vectors,
the quantised vectors, the codes, and the gradients of the two former once they exist.

With `--linked`: the search of L levels of m linked codes against that of a flat codebook of m^L; the training
step (forward, moving averages, backward) against its floor; and the ways to search a level. The floor is what
the search of a step can hardly avoid: on each level sorting the vectors by cell, their products with the m
children of each cell, and fetching the codes that are found. Least distances, residuals, losses, statistics
and gradients are not in it.
"""

import vqvae2  # noqa: F401 # isort: skip  # before torch: how its threads wait

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from itertools import product
from types import ModuleType

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench_autoencoder import load_clone
from timing import add_beside, compare, describe_machine, print_table
from vqvae2.nn.linked_quantizer import Level, LinkedQuantizer
from vqvae2.nn.quantizer import VectorQuantizer
from vqvae2.surroundings import home_path

IMAGES, SIDE, DIM, NUM_CODES = 16, 64, 64, 512
DECAY, EPS, BETA = 0.99, 1e-5, 0.25
CODEBOOK = {"decay": DECAY, "eps": EPS, "init": "normal", "revive_below": 0.0}
PRODUCT = "bare product z·e"

Step = Callable[[bool], object]  # True: with the backward pass


def suite(vectors: Tensor, gradient: Tensor) -> Step:
    quantizer = VectorQuantizer(num_codes=NUM_CODES, dim=DIM, **CODEBOOK).to(vectors.device)
    vectors, gradient = (tensor.permute(0, 3, 1, 2) for tensor in (vectors, gradient))
    beta = torch.tensor(BETA, device=vectors.device)

    def step(backward: bool) -> object:
        out = quantizer(vectors.detach().requires_grad_())
        quantizer.update(out.statistics)
        if backward:
            torch.autograd.backward([out.vectors, out.commitment], [gradient, beta])
        return out

    return step


def library(vectors: Tensor, gradient: Tensor) -> Step:
    from vector_quantize_pytorch import VectorQuantize

    quantizer = VectorQuantize(
        dim=DIM,
        codebook_size=NUM_CODES,
        decay=DECAY,
        eps=EPS,
        commitment_weight=BETA,
        rotation_trick=False,  # its default for gradients, which costs more than straight through
    ).to(vectors.device)
    vectors, gradient = (tensor.flatten(1, 2) for tensor in (vectors, gradient))

    def step(backward: bool) -> object:
        found, codes, commitment = quantizer(vectors.detach().requires_grad_())
        if backward:
            torch.autograd.backward([found, commitment.sum()], [gradient, torch.ones_like(commitment.sum())])
        return found, codes

    return step


def port(clone: ModuleType, vectors: Tensor, gradient: Tensor) -> Step:
    quantizer = clone.Quantize(DIM, NUM_CODES, decay=DECAY, eps=EPS).to(vectors.device)
    beta = torch.tensor(BETA, device=vectors.device)

    def step(backward: bool) -> object:
        found, commitment, codes = quantizer(vectors.detach().requires_grad_())
        if backward:
            torch.autograd.backward([found, commitment], [gradient, beta])
        return found, codes

    return step


def extra_memory(step: Step, vectors: Tensor) -> int:
    """Bytes; the definition is at the top."""
    codes = vectors.numel() // DIM * 8
    forward = _peak(lambda: step(False), vectors.device) - vectors.nbytes - codes
    whole = _peak(lambda: step(True), vectors.device) - 2 * vectors.nbytes - codes
    return max(forward, whole)


def _peak(call: Callable[[], object], device: torch.device) -> int:
    """The most bytes that are allocated at once in a call, beyond what was allocated before."""
    call()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    peak = now = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


def linked(branch: int, depth: int, dim: int, init: str = "normal") -> LinkedQuantizer:
    return LinkedQuantizer(
        branch=branch,
        depth=depth,
        dim=dim,
        linked=True,
        residual_gradient="stop",
        beta=BETA,
        **CODEBOOK | {"init": init},
    )


def linked_step(quantizer: LinkedQuantizer, grid: Tensor, gradient: Tensor) -> Callable[[], object]:
    beta = torch.tensor(BETA, device=grid.device)

    def step() -> object:
        out = quantizer(grid.detach().requires_grad_())
        quantizer.update(out.statistics)
        losses = [*out.commitments, out.commitment]
        torch.autograd.backward([out.vectors, *losses], [gradient, *[beta] * len(losses)])
        return out

    return step


def linked_floor(quantizer: LinkedQuantizer, rows: Tensor) -> Callable[[], object]:
    """The definition is at the top; what a vector finds is made up."""
    cells = [torch.randint(level.families, (len(rows),), device=rows.device) for level in quantizer.levels]
    counts = [
        torch.bincount(own, minlength=level.families).tolist()
        for own, level in zip(cells, quantizer.levels, strict=True)
    ]

    def floor() -> None:
        for level, parents, each in zip(quantizer.levels, cells, counts, strict=True):
            level.codebook.index_select(0, parents * level.branch)
            sorted_rows = rows if level.families == 1 else rows.index_select(0, parents.argsort())
            families = level.codebook.view(level.families, level.branch, -1).mT
            for part, children in zip(sorted_rows.split(each), families, strict=True):
                torch.mm(part, children)

    return floor


def level_search(branch: int, families: int, rows: Tensor) -> dict[str, Callable[[], object]]:
    """The ways to find the nearest of the m children."""
    size = {"num_codes": families * branch, "families": families, "dim": rows.shape[1]}
    level = Level(branch=branch, **size, **CODEBOOK).to(rows.device)
    cells = torch.randint(families, (len(rows),), device=rows.device)
    ways = {"all": level.among_all, "fetched": level.among_fetched, "cells": level.cell_by_cell}
    return {name: partial(way, rows, cells) for name, way in ways.items()}


def linked_tables(device: str, repeats: int) -> None:
    """Prints the three tables of `--linked`."""
    print(describe_machine())
    cases: list[dict[str, str | float]] = []
    images, side = 64, 16  # of HR-VQVAE's CIFAR-10
    for branch, depth, dim in ((8, 3, 16), (16, 3, 16), (8, 3, 32), (16, 3, 64)):
        grid = torch.randn(images, dim, side, side, device=device).to(memory_format=torch.channels_last)
        rows = grid.permute(0, 2, 3, 1).flatten(0, 2)
        codes = branch**depth
        flat = VectorQuantizer(num_codes=codes, dim=dim, **CODEBOOK).to(device)
        quantizer = linked(branch, depth, dim).to(device)
        drawing = linked(branch, depth, dim, "data").to(device)
        found = compare(
            {
                "flat": partial(flat.encode, grid),
                "linked": partial(quantizer.encode, grid),
                "step": linked_step(quantizer, grid, torch.randn_like(grid)),
                "drawing": linked_step(drawing, grid, torch.randn_like(grid)),
                "floor": linked_floor(quantizer, rows),
            },
            repeats=repeats,
            warmup=2,
        )
        case = {"": f"{len(rows):,} x {dim}, {branch}^{depth} = {codes:,} codes"}
        case |= {"flat search, ms": 1e3 * found["flat"], "linked search, ms": 1e3 * found["linked"]}
        case |= {"times as fast": found["flat"] / found["linked"], "step, ms": 1e3 * found["step"]}
        case |= {"with candidates, ms": 1e3 * found["drawing"], "floor, ms": 1e3 * found["floor"]}
        cases.append(case | {"step / floor": found["step"] / found["floor"]})
    print_table(cases)
    print("\nOne level of linked codes: all its distances; the m children fetched; cell by cell")
    print_table([_ways(case, device, repeats) for case in product((4, 8, 16), (2, 3), (8, 16, 32, 64))])


def _ways(case: tuple[int, int, int], device: str, repeats: int) -> dict[str, str | float]:
    branch, level, dim = case
    families = branch ** (level - 1)
    rows = torch.randn(2**14, dim, device=device)
    found = compare(level_search(branch, families, rows), repeats=repeats)
    where = {"m": branch, "level": level, "families": families, "D": dim}
    return where | {f"{way}, ms": 1e3 * seconds for way, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_beside(parser)
    parser.add_argument("--against", type=home_path, metavar="CLONE", help="folder of the public port")
    parser.add_argument("--linked", action="store_true", help="HR-VQVAE's linked quantiser instead")
    options = parser.parse_args()
    if options.linked and (options.beside or options.against):
        parser.error("--beside and --against do not go with --linked")
    if options.linked:
        torch.manual_seed(0)
        linked_tables(options.device, options.repeats)
        return
    clone = load_clone(options.against) if options.against else None
    torch.manual_seed(0)
    vectors = torch.randn(IMAGES, SIDE, SIDE, DIM, device=options.device)
    gradient = torch.randn_like(vectors)
    steps = {"this suite": suite(vectors, gradient)}
    if importlib.util.find_spec("vector_quantize_pytorch"):
        steps["vector-quantize-pytorch"] = library(vectors, gradient)
    else:
        print("vector-quantize-pytorch is not installed, so it is left out: pip install 'vqvae2[bench]'.")
    if clone:
        steps["public port"] = port(clone, vectors, gradient)
    rows, codebook = vectors.flatten(0, 2), torch.randn(NUM_CODES, DIM, device=options.device)
    matrix = len(rows) * NUM_CODES * 4
    cases: dict[str, Callable[[], object]] = {name: partial(step, True) for name, step in steps.items()}
    cases[PRODUCT] = lambda: rows @ codebook.T
    seconds = compare(cases, repeats=options.repeats, warmup=2, beside=options.beside)
    extra = {name: extra_memory(step, vectors) for name, step in steps.items()} | {PRODUCT: matrix}
    print(describe_machine())
    print_table(
        [
            {
                "": name,
                "ms": 1e3 * elapsed,
                "times this suite's": elapsed / seconds["this suite"],
                "extra MB": extra[name] / 1e6,
                "of the N x K matrix": extra[name] / matrix,
            }
            for name, elapsed in seconds.items()
        ]
    )


if __name__ == "__main__":
    main()
