"""The vector quantiser's training step against another library's and against a bare product of distances.

    python experiments/bench_quantizer.py
    python experiments/bench_quantizer.py --against CLONE   # of the most-used public port, beside them

One step quantises 65,536 vectors of 64 numbers with 512 codes, moves the codebook by their averages, and
takes the gradient to the vectors. `vector-quantize-pytorch` (pip install 'vqvae2[bench]') does the same work
where it is told to pass gradients straight through. The bare product, written to memory, is what a quantiser
of this kind can hardly avoid.

Extra memory is the most that is allocated at any moment beyond what every quantiser has to hold: the vectors,
the quantised vectors, the codes, and the gradients of the two former once they exist.
"""

import vqvae2  # noqa: F401 # isort: skip  # before torch: how its threads wait

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench_autoencoder import load_clone
from timing import add_beside, compare, describe_machine, print_table
from vqvae2.nn.quantizer import VectorQuantizer
from vqvae2.surroundings import home_path

IMAGES, SIDE, DIM, NUM_CODES = 16, 64, 64, 512
DECAY, EPS, BETA = 0.99, 1e-5, 0.25
PRODUCT = "bare product z·e"

Step = Callable[[bool], object]  # True: with the backward pass


def suite(vectors: Tensor, gradient: Tensor) -> Step:
    quantizer = VectorQuantizer(
        num_codes=NUM_CODES, dim=DIM, decay=DECAY, eps=EPS, init="normal", revive_below=0.0
    ).to(vectors.device)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_beside(parser)
    parser.add_argument("--against", type=home_path, metavar="CLONE", help="folder of the public port")
    options = parser.parse_args()
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
