"""A server that fails in the middle, as a test plans it."""

from __future__ import annotations

import hashlib
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from helpers import wait_until

from resnext.errors import CheckpointError
from resnext.system.cache import cache_folder
from resnext.system.download import fetch

OLD = Random(1).randbytes(2_500_000)
NEW = Random(2).randbytes(2_500_000)
HALF = 1_300_000
SHA256 = hashlib.sha256(OLD).hexdigest()
SMALL = b"small"
TIMEOUT = 120.0


@dataclass(frozen=True)
class Answer:
    """What a server does with one request; by default what it should."""

    content: bytes = OLD
    status: int = 0
    """Another one than that of a download."""
    mark: str = '"old"'
    mark_is: str = "ETag"
    cut: int | None = None
    """The bytes after which the connection ends."""
    end: str = "close"
    """How it ends: `close`, `reset`, or `stall`, which is never."""
    silent: bool = False
    """Whether not even a status is sent before it ends."""
    announced: int | None = None
    """The announced length of the whole file, if it is wrong."""
    chunked: bool = False
    ranges: bool = True
    if_range: bool = True
    """Whether If-Range is obeyed."""
    shift: int = 0
    """How many bytes too early a range begins."""
    headers: dict[str, str] = field(default_factory=dict)


class Asked(NamedTuple):
    """A request, as the server got it."""

    path: str
    headers: dict[str, str]
    sent: list[int]

    @property
    def range(self) -> str | None:
        """What was asked for."""
        return self.headers.get("range")


class Server(ThreadingHTTPServer):
    """Answers as planned, and then as usual."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.usual = Answer()
        self.plan: list[Answer] = []
        self.asked: list[Asked] = []
        self.released = threading.Event()
        self.stalled = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.url = f"{self.address}/models/model.pth"

    @property
    def sent(self) -> int:
        """The bytes of all contents together."""
        return sum(sum(asked.sent) for asked in self.asked)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about clients that went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Does what the server's plan says."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Send, or fail."""
        asked = Asked(self.path, {k.lower(): v for k, v in self.headers.items()}, [])
        self.server.asked.append(asked)
        answer = self.server.plan.pop(0) if self.server.plan else self.server.usual
        self.close_connection = True
        if answer.silent:
            return self.finish_with(answer.end)
        start, content = 0, answer.content
        same = asked.headers.get("if-range") in (None, answer.mark) or not answer.if_range
        if answer.ranges and not answer.status and asked.range and same:
            start = int(asked.range.removeprefix("bytes=").rstrip("-")) - answer.shift
        total = len(content) if answer.announced is None else answer.announced
        status = answer.status or (206 if start else 200)
        if start and start >= len(content):
            status, start = 416, 0
        if status >= 300:
            content, total = b"an error", len(b"an error")
        self.send_response(status)
        self.send_header("Connection", "close")
        if answer.mark and status < 300:
            self.send_header(answer.mark_is, answer.mark)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{total}")
        if answer.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif total >= 0:
            self.send_header("Content-Length", str(total - start))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        content = content[start:]
        data = content if answer.cut is None else content[: answer.cut]
        asked.sent.append(len(data))
        if answer.chunked:
            self.wfile.write(b"%x\r\n" % len(content))
        self.wfile.write(data)
        self.wfile.flush()
        if answer.chunked and data == content:
            self.wfile.write(b"\r\n0\r\n\r\n")
        return self.finish_with(answer.end, len(data))

    def finish_with(self, end: str, sent: int = 0) -> None:
        """End the connection."""
        if end == "stall":
            self.server.stalled.set()
            self.server.released.wait()
        if end == "reset":
            # a reset destroys what is still on its way
            wait_until(lambda: sum(p.stat().st_size for p in kept(".part")) >= sent - 10_000)
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()


@contextmanager
def serving() -> Iterator[Server]:
    """A server, as long as it is needed."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


def get(url: str, **options: Any) -> Path:
    """`fetch` with few tries; the timeout only ends a test that would hang."""
    return fetch(url, **{"timeout": TIMEOUT, "tries": 2, **options})


def kept(suffix: str = ".pth") -> list[Path]:
    """The files in the cache that end so."""
    return sorted(cache_folder().rglob(f"*{suffix}"))


def unusable(path: Path) -> None:
    """A check that nothing passes."""
    raise CheckpointError(f"{path} is not a model.")
