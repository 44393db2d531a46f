"""Runs a function as several ranks of a gloo process group, in forked processes on this machine."""

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Autograd counts the devices in a process's first backward pass, and starts threads, after which no fork can
# go backward, if there are other than processors. FakeTensorMode, which `torch.compile` uses too, adds one.
torch.zeros((), requires_grad=True).backward()


def run_ranks(function: Callable[..., Any], world_size: int = 2, *args: Any, timeout_s: float = 60) -> list:
    """Calls `function(*args)` on every rank and returns the results in rank order.

    Forking keeps it fast and lets tests pass closures; what the function returns must pickle.

    Raises:
        AssertionError: a rank raised, died or took longer than `timeout_s`; holds the rank's own traceback.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_work, args=(function, args, rank, world_size, Path(folder), timeout_s))
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        _wait(ranks, timeout_s)
        failures = [path.read_text() for path in sorted(Path(folder).glob("*.error"))]
        if failures:
            raise AssertionError("\n".join(failures))
        codes = [process.exitcode for process in ranks]
        if any(codes):
            raise AssertionError(f"ranks ended with the exit codes {codes} within {timeout_s} s")
        return [pickle.loads(Path(folder, f"{rank}.result").read_bytes()) for rank in range(world_size)]


def _work(
    function: Callable[..., Any], args: tuple, rank: int, world_size: int, folder: Path, timeout_s: float
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # or Lightning sets another number, and OpenMP hangs in a fork
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
        result = function(*args)
        dist.barrier()
        dist.destroy_process_group()
        Path(folder, f"{rank}.result").write_bytes(pickle.dumps(result))
    except BaseException:  # also SystemExit: the parent has to hear of everything that ends a rank
        Path(folder, f"{rank}.error").write_text(f"rank {rank} of {world_size}:\n{traceback.format_exc()}")
        os._exit(1)


def _wait(ranks: list[BaseProcess], timeout_s: float) -> None:
    """Waits for all ranks to end; when one has failed, the others get a moment to say so themselves."""
    deadline = time.monotonic() + timeout_s
    while any(process.is_alive() for process in ranks) and time.monotonic() < deadline:
        if any(process.exitcode for process in ranks):
            deadline = min(deadline, time.monotonic() + 2)
        time.sleep(0.01)
    for process in ranks:
        if process.is_alive():
            process.kill()
        process.join()
