"""Request bodies, read into memory within limits; nothing is written to disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from resnext.checks import brief
from resnext.serving.problems import Problem, damaged

if TYPE_CHECKING:
    from resnext.serving.admission import Ticket
    from resnext.serving.settings import Settings

FIELD = "images"
_CURL = "application/x-www-form-urlencoded"
_RAW = ("application/octet-stream", _CURL, "")
"""Taken as one image, besides `image/*`: `curl --data-binary` sends the second."""
_FORM = "multipart/form-data"


def check_length(request: Request, settings: Settings) -> int:
    """The bytes that a body is said to have; 0 if it comes in chunks.

    Raises:
        Problem: 413; it is too large. The body has not been asked for then.
    """
    text = request.headers.get("content-length", "0")
    length = int(text) if text.isdecimal() else 0
    if length > settings.body:
        raise too_large(settings)
    return length


def check_encoding(request: Request) -> None:
    """Refuse a compressed body.

    Raises:
        Problem: 415.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "The body must not be compressed: images are already.", "encoding")


def too_large(settings: Settings) -> Problem:
    """The problem of a body that is too large."""
    return Problem(
        413,
        f"A request may have {settings.body:,} bytes. Send smaller images, or fewer at once.",
        "too-large",
    )


async def read_body(request: Request, ticket: Ticket, settings: Settings) -> bytes:
    """The whole body of a request.

    Args:
        request: The request, whose length was checked and admitted.
        ticket: What it was admitted with; grows with a body that comes in chunks.
        settings: Limits.

    Raises:
        Problem: 413; it is too large. 429; the server is full.
    """
    parts: list[bytes] = []
    size, known = 0, ticket.bytes
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > settings.body:
            raise too_large(settings)
        if size > known:
            ticket.add(size=size - known)
            known = size
        if part:
            parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def read_images(request: Request, ticket: Ticket, settings: Settings) -> Sequence[bytes]:
    """The images of a request: its body is one, or it is multipart with several.

    Raises:
        Problem: 400, 413, 415, 422 or 429, as `docs/serve.md` lists them.
    """
    kind = request.headers.get("content-type", "")
    essence = kind.partition(";")[0].strip().lower()
    check_encoding(request)
    form = essence == _FORM
    if not form and essence not in _RAW and not essence.startswith("image/"):
        raise Problem(
            415,
            f"The body must be an image (image/*, application/octet-stream) or {_FORM}, not "
            f"{brief(essence)}.",
            "media-type",
            {"Accept": f"image/*, application/octet-stream, {_FORM}"},
        )
    body = await read_body(request, ticket, settings)
    if not form:
        if essence == _CURL and body and b"\0" not in body:
            raise damaged(
                "The image has no zero bytes: curl -d leaves them out. Send it with --data-binary."
            )
        return [body]
    images = _parts(kind, body, settings.per_request)
    ticket.add(images=len(images) - 1)
    return images


def _parts(kind: str, body: bytes, most: int) -> list[bytes]:
    """The parts of a multipart body that are called images."""
    boundary = parse_options_header(kind)[1].get(b"boundary")
    if not boundary:
        raise Problem(400, "multipart/form-data needs a boundary in Content-Type.", "multipart")
    images: list[bytes] = []
    headers: dict[bytes, bytes] = {}
    name, value = bytearray(), bytearray()
    spans: list[bytes] = []
    ended = False

    def end_header() -> None:
        headers[bytes(name).lower()] = bytes(value)
        name.clear()
        value.clear()

    def begin_data() -> None:
        _, options = parse_options_header(headers.get(b"content-disposition"))
        field = options.get(b"name", b"").decode("utf-8", "replace")
        if field != FIELD:
            raise Problem(
                400, f"Each part must be called {FIELD}, not {brief(field)}.", "multipart"
            )
        if len(images) == most:
            raise Problem(422, f"A request may have {most} images.", "too-many-images")

    def end_part() -> None:
        images.append(b"".join(spans))
        spans.clear()
        headers.clear()

    def end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_header_field": lambda data, start, end: name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: value.extend(data[start:end]),
                "on_header_end": end_header,
                "on_headers_finished": begin_data,
                "on_part_data": lambda data, start, end: spans.append(data[start:end]),
                "on_part_end": end_part,
                "on_end": end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, f"The multipart body is damaged: {error}.", "multipart") from error
    if not ended:
        raise Problem(400, "The multipart body ends too early.", "multipart")
    if not images:
        raise Problem(422, f"The request has no {FIELD}.", "no-images")
    return images
