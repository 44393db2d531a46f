"""The autoencoder's training step and encoding against their floor, which is their convolutions alone.

    python experiments/bench_autoencoder.py
    python experiments/bench_autoencoder.py --against CLONE   # of the most-used public port, beside it
    python experiments/bench_autoencoder.py --batch 128 --precision bf16      # on a GPU

A step is forward, loss, backward, Adam, codebooks and Polyak average; the port has no average. The floor runs
each convolution by itself, forward and backward, on inputs of the same shape, layout and precision. bf16 is
autocast, for the port too, which does not offer it itself.
"""

import vqvae2  # noqa: F401 # isort: skip  # before torch: how its threads wait

import argparse
import copy
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timing import add_beside, compare, describe_machine, print_table
from vqvae2.nn.hierarchical import HierarchicalVQVAE
from vqvae2.nn.quantizer import update_codebooks
from vqvae2.surroundings import home_path
from vqvae2.training.autoencoder import AutoencoderModule
from vqvae2.training.schedules import Constant

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
LEARNING_RATE = 2e-4
NETWORK = {  # the port's defaults; the paper's residual blocks are twice as wide
    "num_levels": 2,
    "factor": 4,
    "hidden": 128,
    "residual": 32,
    "residual_blocks": 2,
    "num_codes": 512,
    "code_dim": 64,
    "decay": 0.99,
    "eps": 1e-5,
}


class Cases(NamedTuple):
    """Two things to time, each in one precision."""

    step: Callable[[], object]
    encode: Callable[[], object] | None


def suite(images: Tensor, dtype: torch.dtype, *, compiled: bool = False) -> tuple[Cases, HierarchicalVQVAE]:
    module = AutoencoderModule(schedule=Constant(LEARNING_RATE), beta=0.25, polyak=0.9999, **NETWORK)
    network = HierarchicalVQVAE(channels=3, **NETWORK).to(images.device)
    module.network, module.average = network, copy.deepcopy(network).eval().requires_grad_(False)
    if compiled:
        network.compile()
    adam = torch.optim.Adam(network.parameters(), LEARNING_RATE, fused=True)

    def step() -> None:
        with _autocast(images, dtype):
            out = network(images)
            loss = module.losses(images, out)["loss"]
        adam.zero_grad()
        loss.backward()
        adam.step()
        update_codebooks(network.quantizers, out.statistics)
        module.update_average(step=1)

    @torch.inference_mode()
    def encode() -> object:
        with _autocast(images, dtype):
            return module.average.encode(images)

    return Cases(step, None if compiled else encode), network  # the average is never compiled


def convolutions(network: HierarchicalVQVAE, images: Tensor, dtype: torch.dtype) -> Cases:
    """Only the convolutions of `network`, each on the input that it sees for `images`."""
    whole, encoding = (_inputs(network, call, images, dtype) for call in (network.forward, network.encode))
    incoming = [torch.randn_like(layer(x)) for layer, x in whole]

    def step() -> None:
        for (layer, x), gradient in zip(whole, incoming, strict=True):
            layer.zero_grad()
            x.grad = None
            layer(x).backward(gradient)

    @torch.inference_mode()
    def encode() -> None:
        for layer, x in encoding:
            layer(x)

    return Cases(step, encode)


def _inputs(
    network: nn.Module, call: Callable[[Tensor], object], images: Tensor, dtype: torch.dtype
) -> list[tuple[nn.Module, Tensor]]:
    """A copy of each convolution that a call uses, with its input; the images need no gradient."""
    seen: list[tuple[nn.Module, Tensor]] = []
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    hooks = [layer.register_forward_hook(lambda *of: seen.append((of[0], of[1][0]))) for layer in layers]
    with torch.no_grad():
        call(images)
    for hook in hooks:
        hook.remove()
    return [
        (copy.deepcopy(layer).to(dtype), x.detach().clone().to(dtype).requires_grad_(x is not images))
        for layer, x in seen
    ]


def load_clone(path: Path) -> ModuleType:
    """The module `vqvae` of a clone of the public port.

    Raises:
        ValueError: there is none.
    """
    if not (path / "vqvae.py").is_file():
        raise ValueError(f"{path} holds no vqvae.py: --against wants a clone of the public port.")
    sys.path.insert(0, str(path.resolve()))
    return importlib.import_module("vqvae")


def port(clone: ModuleType, images: Tensor, dtype: torch.dtype) -> Cases:
    network = clone.VQVAE().to(images.device)
    adam = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    frozen = copy.deepcopy(network).eval()

    def step() -> None:
        with _autocast(images, dtype):
            out, commitment = network(images)
            loss = F.mse_loss(out, images) + 0.25 * commitment.mean()
        adam.zero_grad()
        loss.backward()
        adam.step()

    @torch.inference_mode()
    def encode() -> object:
        with _autocast(images, dtype):
            return frozen.encode(images)

    return Cases(step, encode)


def _autocast(images: Tensor, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(images.device.type, torch.bfloat16, enabled=dtype is torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="side of the images, a multiple of 8")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=list(PRECISIONS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also this suite's step with torch.compile")
    add_beside(parser)
    parser.add_argument("--against", type=home_path, metavar="CLONE", help="folder of the public port")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    clone = load_clone(options.against) if options.against else None
    torch.manual_seed(0)
    images = torch.rand(options.batch, 3, options.size, options.size, device=options.device) * 2 - 1
    contenders: dict[tuple[str, str], Cases] = {}
    for precision in options.precision:
        dtype = PRECISIONS[precision]
        contenders["this suite", precision], network = suite(images, dtype)
        contenders["its convolutions", precision] = convolutions(network, images, dtype)
        if options.compile:
            contenders["this suite, compiled", precision], _ = suite(images, dtype, compiled=True)
        if clone:
            contenders["public port", precision] = port(clone, images, dtype)
    print(f"{describe_machine()}; batch {options.batch} at {options.size}x{options.size}")
    for what in Cases._fields:
        cases = {name: case for name, of in contenders.items() if (case := getattr(of, what))}
        seconds = compare(cases, repeats=options.repeats, warmup=2, beside=options.beside)
        print(f"\n{'Training step' if what == 'step' else 'Encoding'}")
        print_table(table(seconds, len(images)))


def table(seconds: dict[tuple[str, str], float], batch_size: int) -> list[dict[str, str | float]]:
    """One row a case; ratios are to this suite in the same precision."""
    return [
        {
            "": name,
            "precision": precision,
            "ms": 1e3 * elapsed,
            "images/s": batch_size / elapsed,
            "times this suite's": elapsed / seconds["this suite", precision],
        }
        for (name, precision), elapsed in seconds.items()
    ]


if __name__ == "__main__":
    main()
