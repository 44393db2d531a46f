"""Files at addresses (https://, s3://, gs://, …), read through fsspec with time-outs and retries.

Every request has a time-out, whatever the protocol; what fails for a while is tried again after a growing,
jittered pause and goes on where it stopped, if the server can do that. How patient to be belongs to the
machine and not to the run, so the environment says it and the same YAML serves everywhere:

    VQVAE2_TIMEOUT_S    seconds that one request, for at most 8 MiB, may take (60)
    VQVAE2_GIVE_UP_S    seconds without any progress after which a file is given up (900)

By hand, because fsspec alone may wait for ever and begins a broken download anew, tenacity draws its pauses
from the generator that training draws from, and obstore needs a server that sends ranges.
"""

import logging
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple, TypeVar

import fsspec

log = logging.getLogger(__name__)

BLOCK = 8 * 2**20  # bytes of one request

_STREAMS = 8  # files that one process asks for at once
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 30.0
_VERSIONS = ("ETag", "etag", "Content-MD5", "md5Hash", "Last-Modified", "LastModified", "mtime", "created")
_ABOUT_HTTP = {408, 425, 429}  # of the statuses that blame the client, those that pass
# fsspec's file systems let some errors of these libraries through, which are no OSErrors.
_LIBRARIES = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "urllib3"}

_NO_RANGES = ("support range requests", "Cannot seek streaming")  # of fsspec's messages

_jitter = random.SystemRandom()  # the global generator is the training's: drawing from it would change runs

In, Out = TypeVar("In"), TypeVar("Out")


class Unreachable(ValueError):
    """A remote file cannot be downloaded. This must never be taken for one unreadable image."""


class RemoteFile(NamedTuple):
    """A file as its server describes it."""

    url: str
    size: int  # bytes
    version: str  # changes with the content, as far as the server tells


def is_remote(location: str) -> bool:
    """Whether a location is an address rather than a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", location) is not None


def setting(name: str, default: float) -> float:
    """A positive number from the environment.

    Raises:
        ValueError: it is none.
    """
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"The environment variable {name} is '{text}', wanted a number above 0.")
    return value


def look(url: str) -> RemoteFile:
    """Asks how large a file is and of which version, without reading it.

    Raises:
        Unreachable: it is not there, or no server answers.
        ValueError: a package for this kind of address is missing.
    """

    def ask() -> dict[str, Any]:
        file_system, path = _file_system(url)
        return file_system.info(path)

    patience, info = _Patience(url), None
    while info is None:
        try:
            info = _within(patience.timeout_s, ask)
        except _Failure as failure:
            patience.pause(failure)
    if not isinstance(info.get("size"), int) or info.get("type", "file") != "file":
        raise Unreachable(f"{url} is not a file, or its server does not say how many bytes it has.")
    return RemoteFile(url, info["size"], " ".join(str(info[name]) for name in _VERSIONS if name in info))


def download(file: RemoteFile, target: BinaryIO) -> None:
    """Writes a file's bytes into `target`, from its start.

    Raises:
        Unreachable: it is not there, is now another version, or nothing came for VQVAE2_GIVE_UP_S seconds.
        OSError: `target` cannot be written.
    """
    done, patience, reader = 0, _Patience(file.url), _Reader(file)
    while done < file.size:
        start = reader.position
        try:
            data = _within(patience.timeout_s, reader.read)
        except _Failure as failure:
            reader = _Reader(file, done, ranges=reader.ranges and not failure.lacks_ranges)
            patience.pause(failure)
            continue
        fresh = data[max(done - start, 0) :]  # a server without ranges began again
        target.write(fresh)
        done += len(fresh)
        if fresh:
            patience.renew()
    if look(file.url) != file:
        raise Unreachable(f"{file.url} was changed while it was read. Start again when it is complete.")


def in_parallel(function: Callable[[In], Out], items: Iterable[In]) -> list[Out]:
    """`function` of every item, in order, several at once; the first error ends it."""
    with ThreadPoolExecutor(_STREAMS) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Reader:
    """A remote file, block by block from a position on; from 0 on if its server sends no ranges."""

    def __init__(self, file: RemoteFile, position: int = 0, *, ranges: bool = True) -> None:
        self.file = file
        self.ranges = ranges
        self.position = position if ranges else 0
        self._stream: BinaryIO | None = None

    def read(self) -> bytes:
        if self._stream is None:
            file_system, path = _file_system(self.file.url)
            pieces = {"block_size": BLOCK, "cache_type": "none"} if self.ranges else {"block_size": 0}
            self._stream = file_system.open(path, "rb", **pieces)
            if self.position:
                self._stream.seek(self.position)
        data = self._stream.read(BLOCK)
        self.position += len(data)
        if not data or self.position > self.file.size:
            raise EOFError(f"{self.position:,} bytes came instead of {self.file.size:,}")
        return data


class _Failure(Exception):
    """An attempt that failed through the network or the server."""

    def __init__(self, error: BaseException) -> None:
        hidden = isinstance(error, FileNotFoundError) and error.__cause__ is not None  # any error of an info
        self.error = error.__cause__ if hidden else error
        super().__init__(f"{type(self.error).__name__}: {self.error}".rstrip(": "))

    @property
    def lacks_ranges(self) -> bool:
        return isinstance(self.error, ValueError)

    @property
    def is_final(self) -> bool:
        status = getattr(self.error, "status", None)
        if isinstance(status, int):
            return 400 <= status < 500 and status not in _ABOUT_HTTP
        return isinstance(self.error, FileNotFoundError | PermissionError | IsADirectoryError)


class _Patience:
    """How long a file is tried for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.timeout_s = setting("VQVAE2_TIMEOUT_S", 60)
        self.give_up_s = setting("VQVAE2_GIVE_UP_S", 900)
        self.renew()

    def renew(self) -> None:
        """Something came."""
        self.tries, self.since = 0, time.monotonic()

    def pause(self, failure: _Failure) -> None:
        """Waits before the next try.

        Raises:
            Unreachable: another try would not help, or there were enough.
        """
        self.tries += 1
        if failure.is_final:
            raise Unreachable(f"{self.url} cannot be read ({failure}). Check the address and your access.")
        waited_s = time.monotonic() - self.since
        longest_s = min(_FIRST_PAUSE_S * 2 ** min(self.tries - 1, 20), _LONGEST_PAUSE_S)
        pause_s = longest_s * _jitter.uniform(0.5, 1)
        if waited_s + pause_s > self.give_up_s:
            raise Unreachable(
                f"{self.url} cannot be read: {self.tries} tries in {waited_s:.0f} s without progress, the "
                f"last ended with {failure}. Check the server or the network, or raise VQVAE2_GIVE_UP_S."
            ) from failure
        log.warning("%s: %s; try %d follows in %.1f s", self.url, failure, self.tries + 1, pause_s)
        time.sleep(pause_s)


def _file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Asked for anew each time: fsspec keeps it, but not over a fork.

    Raises:
        ValueError: a package is missing, or such addresses are unknown.
    """
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"{url} cannot be read: {error}, with pip.") from error


def _within(seconds: float, call: Callable[[], Out]) -> Out:
    """The result of a call that has `seconds` to return; one that does not is left behind in its thread.

    Raises:
        _Failure: it did not, or it raised an error of the network or of the server.
    """
    outcome: queue.SimpleQueue = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put((call(), None))
        except BaseException as error:  # it belongs to the thread that waits
            outcome.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        result, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise _Failure(TimeoutError(f"no answer within {seconds:g} s")) from None
    if error is None:
        return result
    library = type(error).__module__.partition(".")[0]
    if isinstance(error, OSError | EOFError) or library in _LIBRARIES or _lacks_ranges(error):
        raise _Failure(error) from error
    raise error


def _lacks_ranges(error: BaseException) -> bool:
    """fsspec has no other sign of it."""
    return isinstance(error, ValueError) and any(text in str(error) for text in _NO_RANGES)
