"""A server in a thread of the test's process, on a real socket, and clients for it."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from fakes import CARD, Fake
from helpers import wait_until
from PIL import Image

from resnext.card import Card
from resnext.serving.connection import Connection
from resnext.serving.run import listen, new_event_loop, new_server
from resnext.serving.service import Service
from resnext.serving.settings import Settings

TOKEN = "a long secret"
WAIT = 30  # seconds after which a test that hangs fails


class Gated(Fake):
    """A model whose engine waits at a gate until it is opened, and that remembers its batches."""

    def __init__(self, card: Card | None = CARD, batch: int = 4, *, shut: bool = False) -> None:
        super().__init__(card, batch)
        self.shut, self.opened = shut, threading.Event()
        self.start()
        self.opened.set()  # for warming

    def start(self) -> None:
        """Forget all batches, and shut the gate if it is to be."""
        self.entered = threading.Semaphore(0)
        self.batches: list[list[int]] = []
        if self.shut:
            self.opened.clear()

    def pixels(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Fake`, once the gate is open; the brightness of each image is kept."""
        self.entered.release()
        assert self.opened.wait(WAIT)
        self.batches.append(x.mean((1, 2, 3)).round().astype(int).tolist())
        return super().pixels(x)


class Served:
    """A running server and what tests ask of it."""

    def __init__(self, service: Service, listening: socket.socket) -> None:
        self.service, self.server, self.listening = service, new_server(service), listening
        self.port: int = listening.getsockname()[1]
        self.loop: asyncio.AbstractEventLoop | None = None

    def connect(self) -> socket.socket:
        """A connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)

    def send(
        self, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of the response to a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            method = named.pop("method", "GET" if body is None else "POST")
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of the response."""
        status, got, content = self.send(path, body, **headers)
        wanted = "application/json" if status == 200 else "application/problem+json"
        names = {name.lower(): value for name, value in got.items()}
        assert names["content-type"] == wanted, content
        return status, json.loads(content)

    def metric(self, line: str) -> float:
        """A metric by its name with labels; 0 if there is none."""
        _, _, content = self.send("/metrics")
        found = dict(
            text.rsplit(" ", 1) for text in content.decode().splitlines() if text[0] != "#"
        )
        return float(found.get(line, 0))

    def hurry(self, connections: int, **limits: float) -> None:
        """Give connections other limits once so many are there; what they await now keeps its own.

        So a test with a short limit does not depend on how quickly it has sent what comes before.
        """
        there = self.server.server_state.connections
        wait_until(lambda: len(there) == connections)
        for connection in list(there):
            assert isinstance(connection, Connection)
            connection.settings = replace(connection.settings, **limits)

    def call(self, function: Any, *args: Any) -> None:
        """Call a function in the event loop, and wait until it is done."""
        done = threading.Event()
        assert self.loop is not None

        def run() -> None:
            function(*args)
            done.set()

        self.loop.call_soon_threadsafe(run)
        assert done.wait(WAIT)


@contextmanager
def served(model: Any = None, *, load: bool = True, **settings: Any) -> Iterator[Served]:
    """A server in a thread; it ends as after SIGTERM."""
    listening = listen("127.0.0.1", 0)
    model = Gated() if model is None else model
    service = Service(model, Settings(**settings))
    one = Served(service, listening)
    ready, failure = threading.Event(), list[BaseException]()

    async def main() -> None:
        one.loop = asyncio.get_running_loop()
        if load:
            await asyncio.to_thread(service.load, one.loop)
            if isinstance(model, Gated):
                model.start()
        serving = one.loop.create_task(one.server.serve([listening]))
        while not one.server.started:
            await asyncio.sleep(0.001)
        ready.set()
        await serving

    def work() -> None:
        try:
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                runner.run(main())
        except BaseException as error:
            failure.append(error)
            ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(WAIT)
    try:
        yield one
    finally:
        if not failure:
            one.call(lambda: (service.drain(), setattr(one.server, "should_exit", True)))
        thread.join(WAIT)
        assert not thread.is_alive()
        assert not failure


def photo(level: int = 100, side: int = 40, kind: str = "PNG") -> bytes:
    """An image file of one brightness."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (level,) * 3).save(buffer, kind)
    return buffer.getvalue()


def form(images: Sequence[bytes], field: str = "images") -> tuple[bytes, str]:
    """A multipart body and its type."""
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="%s"; filename="secret name.png"\r\n'
        b"Content-Type: image/png\r\n\r\n%s\r\n" % (field.encode(), image)
        for image in images
    ]
    return b"".join(parts) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def read_response(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a response on a raw connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
