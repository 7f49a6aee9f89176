"""Middleware around all routes: deadlines, security, errors, headers and the line in the log."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import socket
import time
import traceback
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resnext.serving.metrics import Metrics
from resnext.serving.problems import Problem, unavailable
from resnext.serving.service import Service
from resnext.serving.settings import Settings

LOG = logging.getLogger("resnext.serving")
OPEN = {"/", "/docs", "/openapi.json", "/healthz", "/readyz"}
"""Paths that need no token: pages without data, and probes."""

SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Headers of every response that does not set them itself."""

_LEFT = 499  # as nginx logs a client that left
SMALL = 1_000_000
"""Bytes of a body that is thrown away to keep the connection."""
_LINGER = 2.0  # seconds in which a client may read the answer while it still sends


class Guard:
    """Middleware around all routes.

    Args:
        app: The routes.
        service: The service.
        settings: Options and limits.
    """

    def __init__(self, app: ASGIApp, service: Service, settings: Settings) -> None:
        self.app, self.service, self.settings = app, service, settings
        self._token = None if settings.token is None else settings.token.encode()
        self._names = {"localhost", socket.gethostname().lower(), settings.host.lower()}
        self._names |= {name.lower() for name in settings.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self.service)
        try:
            self._check(scope)
            await self.app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = _LEFT
        except Problem as problem:
            await exchange.refuse(problem)
        except asyncio.CancelledError:  # by the server, whose time is over
            await exchange.refuse(unavailable("The server had to end.", "draining"))
        except Exception:
            LOG.error("%s", traceback.format_exc())
            await exchange.refuse(unavailable("The server could not answer.", "internal"))
        finally:
            record(
                self.service.metrics,
                scope["method"],
                scope.get("resnext.route", "other"),
                exchange.status,
                exchange.bytes,
                time.perf_counter() - exchange.started,
                exchange.read,
            )

    def _check(self, scope: Scope) -> None:
        """Refuse requests that may come from other pages, and those without the token.

        Raises:
            Problem: 401 or 403.
        """
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_own(host):
            raise Problem(
                403,
                "The header Host does not name this server. Add the name with --allow-host.",
                "host",
            )
        origin = headers.get("origin")
        own = origin is None or origin.partition("://")[2].lower() == host.lower()
        if not own and origin not in self.settings.origins:
            raise Problem(
                403, "Another page may not use this server without --allow-origin.", "origin"
            )
        if self._token is not None and scope["path"] not in OPEN:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), self._token)
            if scheme.lower() != "bearer" or not right:
                raise Problem(
                    401,
                    "This server wants the header Authorization: Bearer TOKEN.",
                    "token",
                    {"WWW-Authenticate": "Bearer"},
                )

    def _is_own(self, host: str) -> bool:
        """Whether a header Host names this server. Addresses do: rebinding needs a name."""
        try:
            name = urlsplit(f"//{host}").hostname
            if name is None or name in self._names:
                return name is not None
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def record(
    metrics: Metrics,
    method: str,
    route: str,
    status: int,
    size: int = 0,
    seconds: float = 0.0,
    read: float | None = None,
) -> None:
    """Count a request, and write its line in the log.

    Args:
        metrics: Where it is counted.
        method: Its method.
        route: Its route.
        status: The status of its response.
        size: Bytes of its body that were read.
        seconds: From its header to the end of the response.
        read: Seconds for its body; None if that did not come completely.
    """
    metrics.count("resnext_requests_total", route=route, code=str(status))
    metrics.observe("resnext_stage_seconds", seconds, stage="whole")
    if read is not None:
        metrics.observe("resnext_stage_seconds", read, stage="read")
    LOG.info("%s %s %d %.1f ms %d bytes in", method, route, status, 1000 * seconds, size)


class _Exchange:
    """A request and its response: deadlines for its body, headers, and a polite end.

    A response to a request whose body is still coming must not end the connection at once: the
    client would get a reset instead of the response.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, service: Service) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._service, self._settings = service, service.settings
        self.started = time.perf_counter()
        self._end = asyncio.get_running_loop().time() + self._settings.whole
        self.status = 0
        self.bytes = 0
        self.read: float | None = None
        """Seconds for the body; None if it has not come completely."""
        self._begun = self._closing = False

    async def receive(self) -> Message:
        """The next part of the body.

        Raises:
            Problem: 408; it takes too long.
        """
        if self.read is not None:
            return await self._receive()
        settings, now = self._settings, asyncio.get_running_loop().time()
        end = min(self._end, now + settings.idle, self._service.last_bytes)
        try:
            async with asyncio.timeout_at(end) as limit:
                with self._service.receiving(limit):
                    message = await self._receive()
        except TimeoutError:
            raise Problem(
                408,
                f"The body must come within {settings.whole:g} seconds, without pauses above "
                f"{settings.idle:g} seconds.",
                "slow",
            ) from None
        self.bytes += len(message.get("body", b""))
        if message["type"] == "http.request" and not message.get("more_body", False):
            self.read = time.perf_counter() - self.started
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the response."""
        if message["type"] == "http.response.start":
            self._begun, self.status = True, message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY.items():
                headers.setdefault(name, value)
            self._closing = self._must_close()
            if self._closing:
                headers["connection"] = "close"
            await self._write(message)
            return
        last = not message.get("more_body", False)
        if not (last and self._closing):
            await self._write(message)
            return
        await self._write({**message, "more_body": True})
        await self._linger()
        await self._write({"type": "http.response.body", "body": b""})

    async def refuse(self, problem: Problem) -> None:
        """Answer with a problem, if nothing was answered yet."""
        if self._begun:
            raise problem  # uvicorn closes the connection
        with suppress(ClientDisconnect):
            await problem.response()(self._scope, self._receive, self.send)

    async def _write(self, message: Message) -> None:
        try:
            await self._send(message)
        except RuntimeError as error:
            if "is closed" not in str(error):  # as uvloop says of a connection that was aborted
                raise
            raise ClientDisconnect from error

    def _must_close(self) -> bool:
        """Whether the rest of the body is too large, or may never come."""
        headers = Headers(scope=self._scope)
        if self.read is not None or not ({"content-length", "transfer-encoding"} & {*headers}):
            return False
        length = headers.get("content-length", "")
        small = length.isdecimal() and int(length) <= SMALL
        return not small or "expect" in headers or self.status == 408

    async def _linger(self) -> None:
        """Throw away what the client still sends, until it has read the answer."""
        if "expect" in Headers(scope=self._scope):
            return
        try:
            async with asyncio.timeout(_LINGER):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body"):
                        return
        except TimeoutError:
            return
