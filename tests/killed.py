"""Jobs that are killed as `kill -9` does, at a chosen moment."""

import multiprocessing
import os
import signal
from collections.abc import Callable

import torch


def kill_at_rename(number: int) -> None:
    """From now on this process dies instead of its `number`-th rename, with the file written aside."""
    rename, calls = os.replace, 0

    def replace(*args: object, **kwargs: object) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*args, **kwargs)

    os.replace = replace


def survives_rename(number: int, job: Callable[[], object]) -> bool:
    """Runs a job in a process that dies at its `number`-th rename; whether it ended before that.

    Raises:
        AssertionError: it ended in another way.
    """

    def work() -> None:
        torch.set_num_threads(1)
        kill_at_rename(number)
        job()

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0
