"""The page of a review, on this machine only.

Other machines cannot reach it: it listens on loopback. Other pages in the browser cannot either:
the address holds a random token, and requests with another host or origin are refused, which also
defeats DNS rebinding.
"""

from __future__ import annotations

import base64
import hmac
import io
import json
import secrets
from functools import lru_cache
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

from resnext.data.decoding import ValueRange, open_image
from resnext.errors import DataError, InputError, ResNeXtError
from resnext.neighbours.index import Neighbour
from resnext.pages.template import fill, read_template
from resnext.review.map import map_fragment
from resnext.review.session import Session

_SIDE = 1200  # largest side of a picture that is sent, pixels
_MOST = 1 << 20  # bytes of a request


class ReviewServer(ThreadingHTTPServer):
    """Serves one review until it is closed.

    Args:
        session: The review.
        port: Port on loopback; 0 for any free one.
        values: What becomes 0 and 255 in 16-bit images, as in a card's `value_range`.
    """

    daemon_threads = True

    def __init__(self, session: Session, port: int = 0, values: ValueRange = None) -> None:
        self.session, self.token = session, secrets.token_urlsafe(24)
        self.picture = lru_cache(64)(lambda path: _picture(path, values))
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error).rstrip(".")
            raise InputError(
                f"Port {port} cannot be used: {reason}. Give another one with --port."
            ) from error

    @property
    def hosts(self) -> tuple[str, ...]:
        """Values of the header Host that name this server."""
        return tuple(f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost"))

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{self.hosts[0]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Be silent about browsers that close a connection early."""


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The page, its data and its pictures."""
        if (place := self._place()) is None:
            return
        session = self.server.session
        try:
            match place.split("/"):
                case [""]:
                    self._page()
                case ["cases.json"]:
                    self._json(session.state())
                case ["image", case, image] if case.isdecimal() and image.isdecimal():
                    path = session.path(int(case), int(image))
                    self._send(self.server.picture(path), "image/jpeg")
                case ["similar", case] if case.isdecimal():
                    self._json([*map(_similar, session.similar(int(case)))])
                case ["map"] if session.points is not None:
                    self._map()
                case ["picture", image] if image.isdecimal():
                    self._send(self.server.picture(session.mapped(int(image))), "image/jpeg")
                case _:
                    self._refuse(HTTPStatus.NOT_FOUND, "There is nothing here.")
        except ResNeXtError as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))

    def do_POST(self) -> None:
        """A decision, or taking one back."""
        if (place := self._place()) is None:
            return
        length = self.headers.get("Content-Length", "")
        json_type = self.headers.get_content_type() == "application/json"
        if not (json_type and length.isdecimal() and int(length) <= _MOST):
            self._refuse(HTTPStatus.BAD_REQUEST, "Wanted a short request in JSON.")
            return
        session = self.server.session
        try:
            values = json.loads(self.rfile.read(int(length)))
            if place == "decide":
                session.decide(int(values["case"]), list(values["labels"]))
                self._json({"decided": session.decided})
            elif place == "label":
                session.label([int(image) for image in values["images"]], values["label"])
                self._json({"decided": session.decided})
            elif place == "undo":
                self._json({"case": session.undo(), "decided": session.decided})
            else:
                self._refuse(HTTPStatus.NOT_FOUND, "There is nothing here.")
        except (ValueError, KeyError, TypeError, InputError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"Not understood: {error}")
        except (ResNeXtError, OSError) as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def log_message(self, format: str, *args: object) -> None:
        """The terminal is for the person at it."""

    def _place(self) -> str | None:
        """What follows the token in the address; None if the request was refused."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        known = self.server.hosts
        own = origin is None or origin in [f"http://{host}" for host in known]
        _, token, *rest = f"{self.path}/".split("/", 2)
        right = hmac.compare_digest(token.encode(), self.server.token.encode())
        if host not in known or not own or not right:
            self._refuse(HTTPStatus.FORBIDDEN, "Open the address that resnext review printed.")
            return None
        return rest[0].removesuffix("/")

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        self._html(fill(read_template("resnext.review", "page.html"), {"nonce": nonce}), nonce)

    def _map(self) -> None:
        session, nonce = self.server.session, secrets.token_urlsafe(16)
        assert session.points is not None  # checked by the caller
        values = {"nonce": f' nonce="{nonce}"', "title": escape(session.data)}
        values["map"] = map_fragment(session.points, nonce)
        self._html(fill(read_template("resnext.review", "map_page.html"), values), nonce)

    def _html(self, page: str, nonce: str) -> None:
        policy = (
            f"default-src 'none'; img-src 'self' data:; connect-src 'self'; "
            f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            f"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        content = page.encode("utf-8", "replace")
        self._send(content, "text/html; charset=utf-8", policy)

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), "application/json")

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # a body may be left unread
        content = reason.encode("utf-8", "backslashreplace")  # names of files
        self._send(content, "text/plain; charset=utf-8", status=status)

    def _send(
        self,
        content: bytes,
        kind: str,
        policy: str = "default-src 'none'",
        status: HTTPStatus = HTTPStatus.OK,
    ) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "private, max-age=3600" if kind == "image/jpeg" else "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _similar(one: Neighbour) -> dict[str, Any]:
    """A similar image, for the page."""
    jpeg = base64.b64encode(one.jpeg).decode()
    return {**one.to_dict(), "image": f"data:image/jpeg;base64,{jpeg}"}


def _picture(path: Path, values: ValueRange) -> bytes:
    """An image as JPEG, not larger than a screen."""
    if not path.exists():
        raise DataError(f"{path}: no such file.")
    image = open_image(path, "RGB", values)
    image.thumbnail((_SIDE, _SIDE))
    if max(image.size) < 200:  # small images are shown with their pixels
        factor = 400 // max(image.size)
        image = image.resize(
            (image.width * factor, image.height * factor), Image.Resampling.NEAREST
        )
    content = io.BytesIO()
    image.save(content, "JPEG", quality=88)
    return content.getvalue()
