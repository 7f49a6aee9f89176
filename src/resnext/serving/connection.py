"""The HTTP protocol of a connection: uvicorn's with timers and limits that it lacks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from resnext.serving.problems import MEDIA_TYPE, Problem, unavailable
from resnext.serving.settings import Settings

_MOST_HEADER = 64 * 1024  # bytes


class Connection(HttpToolsProtocol):
    """A connection that ends when a header does not come, or a response is not taken.

    Args:
        settings: Limits.
        *args: Those of uvicorn's protocol.
        **options: Those of uvicorn's protocol.
    """

    def __init__(self, settings: Settings, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.settings = settings
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
        """Begin a request; refuse it if there are too many connections."""
        self._stop_timers()
        self._unset_keepalive_if_required()
        self._header_bytes, self._in_body = 0, True
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
        """Answer what is no HTTP with a problem, and close the connection."""
        self._stop_timers()
        body = json.dumps(Problem(400, msg, "http").to_dict()).encode()
        head = (
            f"HTTP/1.1 400 Bad Request\r\ncontent-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _await_header(self) -> None:
        self._header_timer = self.loop.call_later(self.settings.header, self.transport.abort)

    def _stop_timers(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a request because there are too many connections."""
    response = unavailable("There are too many connections.", "connections").response()
    response.headers["connection"] = "close"
    await response(scope, receive, send)
