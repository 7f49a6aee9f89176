"""A server in a process of its own, for signals. As a script, it serves a model without torch."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from fakes import Fake

WAIT = 120  # seconds after which a test that hangs fails


class Slow(Fake):
    """A model that takes its time for each batch, or for ever."""

    def __init__(self, seconds: float) -> None:
        super().__init__(batch=4)
        self.seconds = seconds

    def pixels(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Fake`, later; the first two batches warm it up."""
        if len(self.sizes) >= 2:
            time.sleep(self.seconds)
        return super().pixels(x)


class Process:
    """A server in a process and a process group of its own.

    Args:
        arguments: Those of Python.
        log: Where its standard error goes.
    """

    def __init__(self, *arguments: str, log: Path) -> None:
        self.log = log
        with log.open("wb") as errors:
            self.popen = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            )
        line = self.line("http://127.0.0.1:")
        self.port = int(line.rpartition(":")[2])

    def line(self, wanted: str) -> str:
        """The next line of its output that contains a text."""
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            if wanted in line:
                return line.strip()
        raise AssertionError(self.log.read_text())

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group, as a terminal does."""
        os.killpg(self.popen.pid, number)

    def end(self) -> int:
        """Its exit code."""
        return self.popen.wait(WAIT)


@contextlib.contextmanager
def process(*arguments: str, log: Path) -> Iterator[Process]:
    """A server in a process; it does not outlive the block."""
    one = Process(*arguments, log=log)
    try:
        yield one
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.popen.pid, signal.SIGKILL)
        one.popen.wait(WAIT)
        assert one.popen.stdout is not None
        one.popen.stdout.close()


class Load:
    """Clients that send one image after another, until the server lets nothing in any more.

    They ask with `Expect: 100-continue`: whoever is told to continue has been let in.

    Args:
        port: Where the server listens.
        image: What they send.
        clients: Their number.
    """

    def __init__(self, port: int, image: bytes, clients: int) -> None:
        self.port, self.image = port, image
        self.counts: Counter[str] = Counter()
        self.answers: set[bytes] = set()
        self.unanswered: list[bytes] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def end(self, stop: bool = False) -> None:
        """Wait until all clients have ended."""
        if stop:
            self._stop.set()
        for thread in self._threads:
            thread.join(WAIT)
            assert not thread.is_alive()

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                connection = socket.create_connection(("127.0.0.1", self.port), WAIT)
            except ConnectionError:
                return
            with connection:
                while not self._stop.is_set() and self._ask(connection):
                    pass

    def _ask(self, connection: socket.socket) -> bool:
        """Whether the connection can be used again."""
        head = (
            b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            b"Content-Length: %d\r\n\r\n" % len(self.image)
        )
        try:
            connection.sendall(head)
            first = connection.recv(65536)
        except ConnectionError:
            first = b""
        if not first.startswith(b"HTTP/1.1 100 "):
            self._count("refused")
            return False
        content = first.partition(b"\r\n\r\n")[2]
        try:
            connection.sendall(self.image)
            while not complete(content):
                part = connection.recv(65536)
                if not part:
                    break
                content += part
        except ConnectionError:
            pass
        with self._lock:
            if content.startswith(b"HTTP/1.1 200 ") and complete(content):
                self.counts["answered"] += 1
                self.answers.add(content.partition(b"\r\n\r\n")[2])
            else:
                self.unanswered.append(content)
        return b"connection: close" not in content and complete(content)

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


def listens(port: int) -> bool:
    """Whether a server takes new connections."""
    try:
        socket.create_connection(("127.0.0.1", port), WAIT).close()
    except OSError:
        return False
    return True


def complete(content: bytes) -> bool:
    """Whether a response has come whole."""
    head, found, body = content.partition(b"\r\n\r\n")
    if not found:
        return False
    sizes = [
        line[16:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
    ]
    return len(sizes) == 1 and len(body) >= int(sizes[0])


if __name__ == "__main__":
    from resnext.serving.run import serve

    serve(Slow(float(sys.argv[1])), port=0)
