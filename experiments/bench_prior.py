"""A prior's training step against its floor, which is its matrix products and convolutions alone.

    python experiments/bench_prior.py
    python experiments/bench_prior.py --against CLONE   # of the most-used public port, at the same size
    python experiments/bench_prior.py --batch 128 --precision bf16     # on a GPU

A step is forward, loss, backward and Adam. The floor runs each product and convolution by itself, forward and
backward, on inputs of the same shape and layout, in the same precision; those of attention only as far as
they are causal. bf16 is autocast, for the port too, which does not offer it itself.
"""

import vqvae2  # noqa: F401 # isort: skip  # before torch: how its threads wait

import argparse
import copy
import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configured import PRIOR_26M
from timing import add_beside, compare, describe_machine, print_table
from vqvae2.nn.causal import CausalAttention
from vqvae2.nn.pixelsnail import PixelSNAIL
from vqvae2.surroundings import home_path

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
LEARNING_RATE = 3e-4
PORT_26M = {"channel": 128, "kernel_size": 5, "n_block": 4, "n_res_block": 5, "res_channel": 128}  # 26.7 M
SMALL = {"grid": (16, 16), "hidden": 64, "residual": 128, "layers": 4, "attention_layers": 2}
PORT_SMALL = {"channel": 64, "kernel_size": 5, "n_block": 2, "n_res_block": 2, "res_channel": 32}


def training_step(
    network: nn.Module, codes: Tensor, dtype: torch.dtype, *, fused: bool
) -> Callable[[], None]:
    adam = torch.optim.Adam(network.parameters(), LEARNING_RATE, fused=fused)

    def step() -> None:
        with torch.autocast(codes.device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
            out = network(codes)
        logits = out if torch.is_tensor(out) else out[0]  # the port's come with a cache
        loss = F.cross_entropy(logits.float(), codes)
        adam.zero_grad()
        loss.backward()
        adam.step()

    return step


def floor(prior: PixelSNAIL, codes: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Only the products and convolutions of `prior`, each on inputs as it sees them for `codes`."""
    layers = [layer for layer in prior.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    seen: list[tuple[nn.Module, Tensor]] = []
    hooks = [layer.register_forward_hook(lambda layer, x, _: seen.append((layer, x[0]))) for layer in layers]
    with torch.no_grad():
        prior(codes)
    for hook in hooks:
        hook.remove()
    calls = [(copy.deepcopy(layer).to(dtype), x.clone().to(dtype).requires_grad_()) for layer, x in seen]
    incoming = [torch.randn_like(layer(x)) for layer, x in calls]
    attention = [_attention(layer, codes, dtype) for layer in prior.attention.values()]

    def step() -> None:
        for (layer, x), gradient in zip(calls, incoming, strict=True):
            layer.zero_grad()
            x.grad = None
            layer(x).backward(gradient)
        for products in attention:
            products()

    return step


def _attention(layer: CausalAttention, codes: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Two products forward and four backward of half the queries: causality leaves half of all pairs."""
    batch, num_positions, width = len(codes) * layer.heads, codes[0].numel(), layer.out.in_features
    keys = torch.randn(batch, num_positions, width // layer.heads, device=codes.device, dtype=dtype)
    queries = keys[:, : num_positions // 2].clone()
    pairs = queries @ keys.mT

    def products() -> None:
        for _ in range(2):  # logits, and the gradient of the weights
            queries @ keys.mT
            pairs @ keys
            pairs.mT @ queries

    return products


def load_clone(path: Path) -> ModuleType:
    """The module `pixelsnail` of a clone of the public port.

    Raises:
        ValueError: there is none.
    """
    if not (path / "pixelsnail.py").is_file():
        raise ValueError(f"{path} holds no pixelsnail.py: --against wants a clone of the public port.")
    warnings.filterwarnings("ignore", message=".*weight_norm.*")
    sys.path.insert(0, str(path.resolve()))
    return importlib.import_module("pixelsnail")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=list(PRECISIONS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a small network on a small grid")
    parser.add_argument("--compile", action="store_true", help="also the step with torch.compile")
    add_beside(parser)
    parser.add_argument("--against", type=home_path, metavar="CLONE", help="folder of the public port")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    widths = PRIOR_26M | (SMALL if options.quick else {})
    clone = load_clone(options.against) if options.against else None
    torch.manual_seed(0)
    codes = torch.randint(widths["num_codes"], (options.batch, *widths["grid"]), device=options.device)
    cases: dict[tuple[str, str], Callable[[], None]] = {}
    sizes: dict[str, float] = {}
    for precision in options.precision:
        dtype = PRECISIONS[precision]
        prior = PixelSNAIL(**widths).to(codes.device)
        sizes["this suite"] = millions(prior)
        cases["this suite", precision] = training_step(prior, codes, dtype, fused=True)
        cases["its products alone", precision] = floor(copy.deepcopy(prior), codes, dtype)
        if options.compile:
            compiled = copy.deepcopy(prior)
            compiled.compile()
            cases["this suite, compiled", precision] = training_step(compiled, codes, dtype, fused=True)
        if clone:
            network = port(clone, widths, PORT_SMALL if options.quick else PORT_26M).to(codes.device)
            sizes["public port"] = millions(network)
            cases["public port", precision] = training_step(network, codes, dtype, fused=False)
    height, width = widths["grid"]
    weights = ", ".join(f"{name} {size:.1f} M weights" for name, size in sizes.items())
    print(f"{describe_machine()}; batch {options.batch} of {height}x{width} codes; {weights}")
    print_table(table(compare(cases, repeats=options.repeats, beside=options.beside)))


def port(clone: ModuleType, widths: dict[str, Any], port_widths: dict[str, int]) -> nn.Module:
    """The public port's prior over the same codes."""
    return clone.PixelSNAIL(list(widths["grid"]), widths["num_codes"], dropout=0.1, **port_widths)


def millions(network: nn.Module) -> float:
    return sum(weights.numel() for weights in network.parameters()) / 1e6


def table(seconds: dict[tuple[str, str], float]) -> list[dict[str, str | float]]:
    """One row a case; the port's own choice is fp32, so that is what it is compared in."""
    rows = []
    for (name, precision), elapsed in seconds.items():
        row = {"": name, "precision": precision, "s a step": elapsed}
        row["times its floor"] = elapsed / seconds["its products alone", precision] if "suite" in name else ""
        if ("public port", "fp32") in seconds:
            row["faster than the port in fp32"] = seconds["public port", "fp32"] / elapsed
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
