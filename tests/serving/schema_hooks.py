"""Hooks of schemathesis: bytes are images, of which some are damaged. Needs nothing of resnext."""

import base64
import struct
import zlib

import schemathesis  # pyright: ignore[reportMissingImports]
from hypothesis import strategies as st


def _png(side, level):
    """A grey PNG."""

    def chunk(kind, body):
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress((b"\0" + bytes([level]) * side) * side))
    return b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IEND", b"")


IMAGES = st.builds(_png, st.integers(1, 60), st.integers(0, 255))

schemathesis.openapi.format("binary", IMAGES)
schemathesis.openapi.format("byte", IMAGES.map(lambda png: base64.b64encode(png).decode()))
for kind in ("image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, IMAGES)
