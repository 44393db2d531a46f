"""Remote shards on this machine: a folder of bounded size that all ranks, workers and runs share.

Where it is and how large it may grow belongs to the machine and not to the run, so the environment says it:

    VQVAE2_CACHE_DIR   the folder (`vqvae2` in $XDG_CACHE_HOME or ~/.cache; without a home, in $TMPDIR)
    VQVAE2_CACHE_GB    its bound in GB of 10⁹ bytes (100)

A shard is downloaded aside, checked, and renamed into its place, so what lies there is whole. When there is
no room, what was used longest ago goes first, never what somebody has open: who reads or writes a file holds
a lock on the file itself, which the system takes back from a process that is killed.

By hand, because fsspec's `filecache` has no bound and no lock between processes, and WebDataset's takes all
shards of one name for the same. The locks of `filelock` cannot be shared by readers.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from vqvae2.storage.remote import RemoteFile, Unreachable, download, setting

log = logging.getLogger(__name__)

_SHARDS, _LOCK = "shards", "shards.lock"
_IN_USE = ".in_use"  # in a folder of shards: carries the lock
_TOUCH_EVERY_S = 1.0  # how exactly the last use is known
_THRASHING_S = 10.0  # who removes what was used so recently will soon want it again
_held: dict[Path, int] = {}  # folders of shards in use, to the end of the process


def cache_folder() -> Path:
    """Where the cache is; nothing is made. A user without a home has it in the system's temporary folder."""
    try:
        if named := os.environ.get("VQVAE2_CACHE_DIR"):
            return Path(named).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "vqvae2").expanduser()
    except RuntimeError:  # such as the number of a user that the container's /etc/passwd does not know
        if named:
            raise ValueError(
                f"VQVAE2_CACHE_DIR is {named}, but this user has no home folder. Name one without ~."
            ) from None
        return Path(tempfile.gettempdir(), f"vqvae2-{os.getuid()}", "cache")


def cache_bytes() -> int:
    """How large its shards may grow together."""
    return int(setting("VQVAE2_CACHE_GB", 100) * 1e9)


def opened(file: RemoteFile) -> BinaryIO:
    """The whole shard, open for reading; it is downloaded if it is not here. Nobody removes it until closed.

    Raises:
        Unreachable: it cannot be downloaded, or the cache cannot be used or has no room.
    """
    path = cache_folder() / _SHARDS / f"{_digest(*map(str, file))}.tar"
    try:
        while (stream := _hold(path, file.size)) is None:
            fetch(file, path)
    except OSError as error:
        raise Unreachable(f"{path}, the local copy of {file.url}, cannot be read: {error}.") from error
    return stream


def fetch(file: RemoteFile, path: Path, is_whole: Callable[[Path], bool] = lambda path: True) -> None:
    """Downloads a file to `path` in the cache, unless another process does so first.

    Args:
        is_whole: checks what was downloaded, before it is renamed into its place.

    Raises:
        Unreachable: it cannot be downloaded, is not whole even when downloaded again, or the cache cannot be
            written or has no room.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        make_once(path, lambda stream, part: _download(file, stream, part, is_whole))
    except OSError as error:
        raise Unreachable(
            f"{file.url} needs {_gb(file.size)} in the cache {cache_folder()}, which cannot be written "
            f"({error}). Make room or set VQVAE2_CACHE_DIR to another folder."
        ) from error


def hold_folder(path: Path) -> None:
    """Makes a folder in the cache that stays until this process and those it forks have ended."""
    while path not in _held:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / _IN_USE, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if is_at(path / _IN_USE, descriptor):
            _held[path] = descriptor
            os.utime(path)
        else:
            os.close(descriptor)


def folder_of(*identity: str) -> Path:
    """The place in the cache of a folder of shards."""
    return cache_folder() / _SHARDS / _digest(*identity)


def shards_at_once(sizes: Sequence[int], location: str) -> int:
    """How many shards of some sizes in bytes can be mixed; all of them if the cache can hold them.

    Raises:
        ValueError: the cache cannot even hold two.
    """
    if sum(sizes) <= cache_bytes():
        return len(sizes)
    at_once = cache_bytes() // (2 * max(sizes))  # twice, as some workers read the next ones already
    wanted = (
        f"{location} has {_gb(sum(sizes))} in {len(sizes)} shards, the cache may hold {_gb(cache_bytes())}"
    )
    if not at_once:
        raise ValueError(
            f"{wanted}, less than two shards: each would be downloaded again and again. "
            f"Raise VQVAE2_CACHE_GB to {2 * max(sizes) / 1e9:.3g} or, better, above {sum(sizes) / 1e9:.3g}."
        )
    log.warning(
        "%s: each epoch downloads them again and shuffles within %d shards at a time. Raise VQVAE2_CACHE_GB "
        "above %.3g to download them once and shuffle freely.",
        *(wanted, at_once, sum(sizes) / 1e9),
    )
    return at_once


def _download(file: RemoteFile, stream: BinaryIO, part: Path, is_whole: Callable[[Path], bool]) -> None:
    for _ in range(2):
        _reserve(file, stream)
        stream.seek(0)
        download(file, stream)
        stream.flush()
        os.fsync(stream.fileno())  # or a machine that loses power keeps the rename and not the content
        if is_whole(part):
            return
        log.warning("%s arrived damaged", file.url)
    raise Unreachable(
        f"{file.url} is damaged: it was downloaded twice with the right size, and both times its content was "
        "not that of the manifest. Write it again."
    )


def _reserve(file: RemoteFile, stream: BinaryIO) -> None:
    """Makes room for a file and gives its part the full size, so that others count it.

    Raises:
        Unreachable: there is no room.
    """
    stream.truncate(0)
    if file.size > cache_bytes():
        raise Unreachable(
            f"{file.url} has {_gb(file.size)}, the cache may hold {_gb(cache_bytes())}. "
            "Raise VQVAE2_CACHE_GB or use smaller shards."
        )
    deadline = time.monotonic() + setting("VQVAE2_GIVE_UP_S", 900)
    while not _make_room(file, stream):
        if time.monotonic() > deadline:
            raise Unreachable(
                f"{file.url} does not fit: the cache {cache_folder()} may hold {_gb(cache_bytes())}, and "
                "all that it holds is in use. Raise VQVAE2_CACHE_GB."
            )
        time.sleep(0.1)


def _make_room(file: RemoteFile, stream: BinaryIO) -> bool:
    with locked(cache_folder() / _LOCK):
        entries = [(*_facts(path), path) for path in (cache_folder() / _SHARDS).iterdir()]
        missing = sum(size for _, size, _ in entries) + file.size - cache_bytes()
        for used_at, size, path in sorted(entries):
            if missing > 0 and _remove(path):
                missing -= size
                _warn_of_thrashing(path, time.time() - used_at)
        if missing <= 0:
            stream.truncate(file.size)
        return missing <= 0


def _warn_of_thrashing(path: Path, unused_s: float) -> None:
    if unused_s < _THRASHING_S:
        log.warning(
            "The cache %s, of %g GB, is too small for the files in use: %s is removed although it was used "
            "%.1f s ago. Raise VQVAE2_CACHE_GB.",
            *(cache_folder(), cache_bytes() / 1e9, path.name, unused_s),
        )


def _facts(path: Path) -> tuple[float, int]:
    """When a shard or a folder of shards was last used, and its bytes."""
    try:
        files = [path] if path.is_file() else [entry for entry in path.rglob("*") if entry.is_file()]
        return path.stat().st_mtime, sum(entry.stat().st_size for entry in files)
    except FileNotFoundError:  # just renamed or removed
        return 0.0, 0


def _remove(path: Path) -> bool:
    """Removes a shard or a folder of shards that is not locked; returns whether it did."""
    lock, flags = (path / _IN_USE, os.O_CREAT | os.O_RDWR) if path.is_dir() else (path, os.O_RDWR)
    try:
        descriptor = os.open(lock, flags)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_at(lock, descriptor):
            return False
        if path.is_dir():  # renamed first: another process may want it back at once
            shutil.rmtree(path.rename(path.with_name(f"{path.name}.{os.getpid()}")))
        else:
            path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _hold(path: Path, size: int) -> BinaryIO | None:
    """The file with a shared lock; None if it is not there. A damaged one is removed."""
    try:
        stream = path.open("rb", buffering=0)
    except FileNotFoundError:
        return None
    fcntl.flock(stream, fcntl.LOCK_SH)
    found = os.fstat(stream.fileno())
    if found.st_size == size and is_at(path, stream.fileno()):
        if time.time() - found.st_mtime > _TOUCH_EVERY_S:
            _touch(stream.fileno())
        return stream
    if is_at(path, stream.fileno()):
        path.unlink()
    stream.close()
    return None


def _touch(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a cache that can only be read needs no order of removal
        os.utime(descriptor)


def make_once(path: Path, fill: Callable[[BinaryIO, Path], None]) -> None:
    """Has `fill` write a file aside and moves it to `path`, unless another process does so first.

    Who has waited for another may find that this one failed, and then has to try again itself.

    Args:
        fill: writes into a stream; the path is the stream's.
    """
    part = path.with_name(path.name + ".part")
    with locked(part) as stream:  # waits for whoever makes it just now
        if not is_at(part, stream.fileno()):
            return
        if path.exists():
            part.unlink()
            return
        try:
            fill(stream, part)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        os.replace(part, path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[BinaryIO]:
    """A file, made if need be, that only this process has open so."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _digest(*identity: str) -> str:
    return hashlib.sha256("\n".join(identity).encode()).hexdigest()[:32]


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.3g} GB"
