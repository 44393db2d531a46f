"""What the benchmarks share: fair timing on a machine that others may use too, and tables of the outcome.

Only ratios of times from one run can be trusted, so `compare` interleaves its cases: if the machine is slow
for a while, all cases are slower. It gives the median of many repeats.
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)

# Hashing does not hold Python's lock, so both threads are busy.
_BUSY = """
import hashlib, threading
def work():
    while True:
        hashlib.pbkdf2_hmac("sha256", b"busy", b"neighbour", 10**6)
threading.Thread(target=work).start()
work()
"""


def compare(
    cases: dict[Name, Callable[[], object]], *, repeats: int, warmup: int = 1, beside: int = 0
) -> dict[Name, float]:
    """Median seconds of each case; round r runs every case once, in an order that rotates with r.

    Args:
        cases: what to time, by name. On a GPU a case is over when its kernels are.
        repeats: timed rounds.
        warmup: rounds before them that do not count.
        beside: if not 0, time all once more beside so many busy neighbours, and print the ratios.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}, wanted at least 1.")
    alone = _medians(cases, repeats, warmup)
    if beside:
        with neighbours(beside):
            slowed = _medians(cases, repeats, warmup)
        print(
            f"\nBeside {beside} busy neighbours of two threads; a fair share takes {1 + beside} times as long"
        )
        rows = [_beside(name, alone[name], slowed[name]) for name in cases]
        print_table(rows)
        print()
    return alone


def add_beside(parser: argparse.ArgumentParser) -> None:
    """The option that `compare` takes as `beside`."""
    parser.add_argument("--beside", type=int, default=0, metavar="N", help="also beside N busy neighbours")


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Other processes that are busy meanwhile, with two threads each."""
    busy = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    time.sleep(1)  # until they are at work
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def _beside(name: Hashable, alone: float, slowed: float) -> dict[str, str | float]:
    label = " ".join(map(str, name)) if isinstance(name, tuple) else str(name)
    return {"": label, "alone, ms": 1e3 * alone, "beside, ms": 1e3 * slowed, "ratio": slowed / alone}


def _medians(cases: dict[Name, Callable[[], object]], repeats: int, warmup: int) -> dict[Name, float]:
    names = list(cases)
    times: dict[Name, list[float]] = {name: [] for name in names}
    for round_ in range(warmup + repeats):
        first = round_ % len(names) if names else 0
        for name in names[first:] + names[:first]:
            elapsed = seconds(cases[name])
            if round_ >= warmup:
                times[name].append(elapsed)
    return {name: statistics.median(laps) for name, laps in times.items()}


def seconds(case: Callable[[], object]) -> float:
    """Of one run; on a GPU until its kernels are done."""
    _synchronize()
    start = time.perf_counter()
    case()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def print_table(rows: Sequence[dict[str, str | float]]) -> None:
    """Prints rows as a Markdown table; its columns are those of the first row, numbers keep three digits."""
    if not rows:
        return
    names = list(rows[0])
    cells = [[_cell(row.get(name, "")) for name in names] for row in rows]
    widths = [max(3, *(len(line[i]) for line in [names, *cells])) for i in range(len(names))]
    numeric = [all(isinstance(row.get(name, 0.0), int | float) for row in rows) for name in names]
    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)]
    for line in [names, rule, *cells]:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        print("| " + " | ".join(padded) + " |")


def _cell(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    return str(value)


def describe_machine() -> str:
    """One line: the GPU if there is one, the processor, the threads that torch uses, and torch's version."""
    processor = f"{_processor()}, {torch.get_num_threads()} threads on {os.cpu_count()} cores"
    parts = [processor, f"torch {torch.__version__}"]
    if torch.cuda.is_available():
        parts.insert(0, torch.cuda.get_device_name())
    return "; ".join(parts)


def _processor() -> str:
    listing = Path("/proc/cpuinfo")  # Linux's; elsewhere Python knows a name, if only a general one
    text = listing.read_text(encoding="utf-8") if listing.exists() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = named[1] if named else platform.processor() or platform.machine()
    return name + (" with bf16 arithmetic" if "avx512_bf16" in text else "")
