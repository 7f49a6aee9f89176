"""The HTTP protocol of a connection: uvicorn's with timers and limits that it lacks."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from resnext.serving.guard import SECURITY, SMALL, record
from resnext.serving.problems import MEDIA_TYPE, Problem, unavailable
from resnext.serving.routes import WORK
from resnext.serving.service import Service

_MOST_HEADER = 64 * 1024  # bytes
_UNUSUAL = {b"expect", b"origin", b"transfer-encoding"}


class Connection(HttpToolsProtocol):
    """A connection that ends when a header does not come, or a response is not taken.

    Args:
        service: The service: its limits, and what it has to do.
        *args: Those of uvicorn's protocol.
        **options: Those of uvicorn's protocol.
    """

    def __init__(self, service: Service, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.service, self.settings = service, service.settings
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0  # of an incomplete header or trailer
        self._in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for a header."""
        super().connection_made(transport)
        if len(self.connections) > 2 * self.settings.connections:
            transport.abort()
            return
        self._await_header()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        if self._header_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_header()
        self._header_bytes += len(data)
        super().data_received(data)
        if self._header_bytes > _MOST_HEADER:
            self.send_400_response("The header is too large.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, but none that stands behind a body."""
        if not self._in_body:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Keep a part of a body."""
        self._header_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request; one that was answered already leaves the connection idle."""
        self._header_bytes, self._in_body = 0, False
        super().on_message_complete()
        if self.cycle.response_complete:
            self._stop_timers()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_headers_complete(self) -> None:
        """Begin a request; refuse it if there are too many connections, or too much to do."""
        self._stop_timers()
        self._unset_keepalive_if_required()
        self._header_bytes, self._in_body = 0, True
        if self._refused():
            return
        usual = self.app
        if len(self.connections) > self.settings.connections:
            self.app = _full  # type: ignore[assignment]
        try:
            super().on_headers_complete()
        finally:
            self.app = usual

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        self._stop_timers()
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for a client that does not read its response, but not for ever."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.settings.whole, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP with a problem, and close the connection."""
        self._stop_timers()
        self._answer(Problem(400, msg, "http", {"Connection": "close"}))
        self.transport.close()

    def _refused(self) -> bool:
        """Refuse work that a full server cannot take, if that is simple.

        Under overload most requests are refused, and what they cost is lost for the others. All
        the rest is refused by its route, as is what browsers send for other pages.
        """
        names = dict(self.headers)
        length = names.get(b"content-length", b"")
        size = int(length) if length.isdigit() and len(length) < 10 else SMALL + 1
        problem = self.service.admission.refusal(1, size)
        if problem is None or size > SMALL or self.service.state != "ready":
            return False
        path = self.url.partition(b"?")[0].decode("ascii", "replace")
        idle = self.cycle is None or self.cycle.response_complete
        parser = self.parser
        assert parser is not None  # until the connection is lost
        usual = parser.should_keep_alive() and not _UNUSUAL & names.keys()
        if parser.get_method() != b"POST" or path not in WORK or not (idle and usual):
            return False
        self.cycle = _ANSWERED  # its body will be thrown away
        self._answer(problem)
        self._await_header()  # and must come as quickly as a header
        record(self.service.metrics, "POST", path, problem.status)
        return True

    def _answer(self, problem: Problem) -> None:
        """Send a response without the application."""
        body = json.dumps(problem.to_dict()).encode()
        usual = {name.decode(): value.decode() for name, value in self.server_state.default_headers}
        headers = usual | SECURITY | problem.headers
        headers |= {"content-type": MEDIA_TYPE, "content-length": str(len(body))}
        lines = "".join(f"{name.lower()}: {value}\r\n" for name, value in headers.items())
        title = HTTPStatus(problem.status).phrase
        head = f"HTTP/1.1 {problem.status} {title}\r\n{lines}\r\n"
        self.transport.write(head.encode() + body)

    def _await_header(self) -> None:
        self._header_timer = self.loop.call_later(self.settings.header, self.transport.abort)

    def _stop_timers(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


class _Answered:
    """Stands for a request that was answered as soon as its header had come."""

    response_complete = True
    message_event = asyncio.Event()


_ANSWERED: Any = _Answered()


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a request because there are too many connections."""
    response = unavailable("There are too many connections.", "connections").response()
    response.headers["connection"] = "close"
    await response(scope, receive, send)
