"""A server that fails as planned, and no real waiting."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from file_server import TIMEOUT, Server, serving

from resnext.system import download


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that answers as its plan says."""
    with serving() as one:
        yield one


@pytest.fixture
def waits(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """An empty cache, no settings, and no real waiting; returns the seconds that were asked for."""
    for name in os.environ:
        if name.lower().endswith("_proxy") or name.startswith(("HF_", "RESNEXT_OFFLINE")):
            monkeypatch.delenv(name)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        assert len(waited) < 30, "it retries forever"

    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=sleep))
    return waited


@pytest.fixture
def impatient(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times out at once, in place of `TIMEOUT` seconds later, when the server has stalled."""
    receive = socket.socket.recv_into

    def recv_into(self: socket.socket, *arguments: Any) -> int:
        while threading.current_thread() is threading.main_thread():  # the server's have no timeout
            assert self.gettimeout() == TIMEOUT
            stalled = server.stalled.is_set()
            if select.select([self], [], [], 0.01)[0]:
                break
            if stalled:
                server.stalled.clear()
                raise TimeoutError("timed out")
        return receive(self, *arguments)

    monkeypatch.setattr(socket.socket, "recv_into", recv_into)
