"""The side of the loader's worker processes: which signals end them, and how they hand batches over."""

import multiprocessing.queues
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection

SHARED_MEMORY = Path("/dev/shm")  # of Linux; what others have cannot be asked for its size
LOOK_S = 1.0  # between two checks that the parent is alive
# Apple has no `sigtimedwait`: there workers leave the process group instead.
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1} if hasattr(signal, "sigtimedwait") else set()


class Piped(NamedTuple):
    """A batch that found no room in shared memory: its tensors are arrays."""

    batch: Any
    problem: str

    def unpacked(self) -> Any:
        return apply_to_collection(self.batch, np.ndarray, torch.from_numpy)


@contextmanager
def born_deaf() -> Iterator[None]:
    """Processes that are started within have the signals blocked from their first moment.

    A signal to the whole process group (Ctrl-C in a terminal, `timeout`, launchers) is for the process that
    trains: it still wants the batches of its workers, to finish its own.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin(_: int) -> None:
    """Called in each worker at first: it ends when its parent ends it, or is gone, and by no other signal."""
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_without_batch)
    sys.excepthook = _say_unless_disconnected
    if not _SIGNALS:
        os.setpgid(0, 0)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # a process that is not forked starts without
    threading.Thread(target=_wait_for_end, args=(os.getppid(),), daemon=True).start()


def hand_over(batch: Any) -> Any:
    """A worker's batch in shared memory, or `Piped` where that has no room for it.

    Here and not in the queue's own thread, where an error loses the batch, and the training waits for ever.
    At least as much as a batch takes is left to others, such as semaphores and NCCL.
    """
    num_bytes = 0

    def count(tensor: torch.Tensor) -> None:
        nonlocal num_bytes
        num_bytes += tensor.nbytes

    apply_to_collection(batch, torch.Tensor, count)
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None
    problem = f"a batch takes {_size(num_bytes)}"
    if free is None or 2 * num_bytes <= free:
        try:
            return apply_to_collection(batch, torch.Tensor, torch.Tensor.share_memory_)
        except RuntimeError as error:  # another process was faster, or a limit is in the way
            problem += f": {error}"
    problem = f"{'' if free is None else f'{_size(free)} are free in {SHARED_MEMORY}, '}{problem}"
    return Piped(apply_to_collection(batch, torch.Tensor, torch.Tensor.numpy), problem)


def _wait_for_end(parent: int) -> NoReturn:
    while os.getppid() == parent:
        caught = signal.sigtimedwait(_SIGNALS, LOOK_S)
        if caught is not None and caught.si_signo == signal.SIGTERM and caught.si_pid == parent:
            break  # so torch ends its workers
    os._exit(0)


def _end_without_batch(error: Exception, _: Any) -> NoReturn:
    """The batch is lost, and who waits for it would wait for ever; but a dead worker is noticed."""
    print(f"A loader worker cannot hand over its batch: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def _say_unless_disconnected(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """The thread that gives shared memory away complains when its parent is stopped while fetching some."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
