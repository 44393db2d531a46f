"""Whether a batch fits into a device's memory, asked before the work begins."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

GIB = 2**30
USABLE = 0.9  # of what is free; the rest is for what nobody counts, such as fragments and workspaces

_MEMINFO = Path("/proc/meminfo")


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a CUDA device or, under Linux, for a processor; None where nobody can know."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu" and _MEMINFO.is_file():
        entries = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return int(entries["MemAvailable"].split()[0]) * 1024
    return None


def forward_bytes(network: nn.Module, forward: Callable[[Any], object]) -> int:
    """What a forward pass without gradients takes at its peak, estimated without computing it.

    The largest, over all layers, of a layer's inputs, its outputs, and as much again for what a residual
    branch keeps meanwhile (measured: 0.5 to 1 of this, for the networks of this suite). Workspaces of
    convolution algorithms are not in it.

    Args:
        network: stays as it is; a copy without values is run.
        forward: runs the copy, which is on the meta device.
    """
    peak = 0

    def look(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal peak
        peak = max(peak, 2 * sum(each.nbytes for each in (*inputs, output) if isinstance(each, Tensor)))

    shell = copy.deepcopy(network).to("meta")
    for layer in shell.modules():
        if not any(layer.children()):
            layer.register_forward_hook(look)
    with torch.no_grad():
        forward(shell)
    return peak


def check_batch(
    batch_size: int, needed: Callable[[int], int], free: int | None, device: torch.device
) -> None:
    """Refuses a batch that does not fit.

    Args:
        batch_size: what was asked for.
        needed: bytes for a batch of some size; does not fall as the size rises.
        free: bytes, or None for no check.
        device: for the message.

    Raises:
        ValueError: it does not fit; names the largest size that does.
    """
    if free is None or needed(batch_size) <= USABLE * free:
        return
    found = (
        f"A batch of {batch_size} needs about {needed(batch_size) / GIB:.1f} GiB beside what is loaded, "
        f"{device} has {free / GIB:.1f} GiB free."
    )
    fits, too_large = 0, batch_size
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        fits, too_large = (middle, too_large) if needed(middle) <= USABLE * free else (fits, middle)
    if not fits:
        raise ValueError(f"{found} Not even one image fits, which needs {needed(1) / GIB:.1f} GiB.")
    raise ValueError(f"{found} Set batch_size to {fits}, which fits.")
