"""One live run in a folder: a second one is refused."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from vqvae2.storage.cache import is_at

_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)
_NOT_HERE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EIO)  # of network file systems
# Whoever starts ranks numbers them by some of these, on each node and over all.
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "PMI_RANK")


@contextmanager
def locked(folder: Path, verb: str, mend: str) -> Iterator[None]:
    """Within, this run is the only one of its kind in a folder. Ranks of a run are one; the first holds it.

    The lock is the operating system's, of this process: it ends with the process, however that ends, and what
    is left of it then, a small file, locks nothing. Processes that are forked do not inherit it. Where the
    file system knows no locks, a warning says so.

    Args:
        folder: made if it is not there, and removed again if nothing came into it.
        verb: kind of the run.
        mend: what the user can do instead, for the message.

    Raises:
        ValueError: another process has it; names host and process.
    """
    if not _is_first_rank(os.environ):
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{verb}.lock"
    descriptor = None
    try:
        descriptor = _open_locked(path, verb, mend)
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)
        with suppress(OSError):  # what the run has written to stays
            for path in made:
                path.rmdir()


def _open_locked(path: Path, verb: str, mend: str) -> int | None:
    """The descriptor that holds the lock; None where there are no locks."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Not flock, whose locks children inherit: loader workers that outlive a killed run would hold it.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if error.errno in _HELD_BY_ANOTHER:
                raise ValueError(f"{path.parent} is in use: {holder}. {mend}") from None
            if error.errno not in _NOT_HERE:
                raise
            path.unlink(missing_ok=True)
            rank_zero_warn(
                f"{path.parent} is on a file system without locks ({error.strerror}): nothing keeps a second "
                f"'{verb}' from writing there at the same time."
            )
            return None
        if is_at(path, descriptor):
            facts = {"host": socket.gethostname(), "process": os.getpid(), "verb": verb}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({**facts, "since": time.strftime("%F %T")}).encode(), 0)
            return descriptor
        os.close(descriptor)  # its holder has just ended and removed it


def _holder(descriptor: int) -> str:
    try:
        facts = json.loads(os.pread(descriptor, 4096, 0))
        job = f"runs '{facts['verb']}' there since {facts['since']}"
        return f"process {facts['process']} on {facts['host']} {job}"
    except (ValueError, KeyError, TypeError):
        return "another process has just started there"


def _is_first_rank(environment: Mapping[str, str]) -> bool:
    """Before there is a process group, which would know."""
    return not any(int(environment.get(name) or 0) for name in _RANKS)
