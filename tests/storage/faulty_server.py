"""A real HTTP server over a folder that drops, truncates, stalls and fails as it is told."""

import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Fault = Callable[["Handler", bytes], None]  # what to do instead of sending the body


class FaultyServer(ThreadingHTTPServer):
    """Serves a folder on this machine.

    Attributes:
        faults: what happens at the next GETs, one after the other; then all goes well.
        always: what happens at every GET after those, if anything.
        ranges: whether parts of a file can be asked for.
        requests: how often each path was asked for by GET.
    """

    request_queue_size = 64
    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path) -> None:
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.ranges = True
        self.requests: Counter[str] = Counter()
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), partial(Handler, folder=folder))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self, path: str) -> Fault | None:
        with self.lock:
            self.requests[path] += 1
            return self.faults.pop(0) if self.faults else self.always


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def __init__(self, *args, folder: Path) -> None:
        self.folder = folder
        super().__init__(*args)

    def do_HEAD(self) -> None:
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        self._headers(200, path, path.stat().st_size)

    def do_GET(self) -> None:
        path, fault = self.folder / self.path.lstrip("/"), self.server.next_fault(self.path)
        if not path.is_file():
            self.send_error(404)
            return
        content, status, asked = path.read_bytes(), 200, self.headers.get("Range")
        if asked and self.server.ranges:
            first, last = asked.removeprefix("bytes=").split("-")
            content, status = content[int(first) : int(last) + 1], 206
        if fault is server_error:
            fault(self, content)
            return
        self._headers(status, path, len(content))
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content) if fault is None else fault(self, content)

    def _headers(self, status: int, path: Path, length: int) -> None:
        facts = path.stat()
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", f'"{facts.st_size}-{facts.st_mtime_ns}"')
        self.end_headers()

    def log_message(self, *args) -> None:
        """Quiet."""


def reset(handler: Handler, content: bytes) -> None:
    """The connection is reset in the middle."""
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def truncate(handler: Handler, content: bytes) -> None:
    """The connection is closed in the middle, as if all had been sent."""
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True


def stall(handler: Handler, content: bytes) -> None:
    """Nothing more comes after the middle, and the connection stays open."""
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    handler.server.stopped.wait(30)
    handler.close_connection = True


def garble(handler: Handler, content: bytes) -> None:
    """One byte arrives as another."""
    middle = len(content) // 2
    handler.wfile.write(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def server_error(handler: Handler, content: bytes) -> None:
    """Status 500."""
    handler.send_error(500)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[FaultyServer]:
    """A server while the block runs."""
    server = FaultyServer(folder)
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
