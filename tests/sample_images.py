"""Small images of every kind, as arrays and as files."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x112  # the EXIF tag


def noise(width: int, height: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Pixels in which no two rows or columns are alike."""
    shape = (height, width, 3) if channels == 3 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


STORED = {  # where the visual top left corner lies, by EXIF 2.32, table 6: upright → as stored
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[:, ::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[::-1].swapaxes(0, 1),
}

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def cmyk() -> tuple[Image.Image, str, Any]:
    """White, cyan, black and red fields of 16 pixels."""
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255), (0, 255, 255, 0)]
    pixels = np.repeat(np.repeat(np.array([inks], np.uint8), 16, 0), 16, 1)
    wanted = np.repeat(np.repeat(np.array([[WHITE, (0, 255, 255), BLACK, RED]]), 16, 0), 16, 1)
    return Image.frombytes("CMYK", (64, 16), pixels.tobytes()), ".jpg", wanted


def palette(transparency: Any) -> tuple[Image.Image, str, Any]:
    """Four colours, one of them transparent."""
    image = Image.frombytes("P", (2, 2), bytes([0, 1, 2, 3]))
    image.putpalette([*RED, *GREEN, *BLUE, *WHITE])
    image.info["transparency"] = transparency
    return image, ".png", [[RED, GREEN], [BLUE, WHITE]]


def sixteen_bits() -> tuple[Image.Image, str, Any]:
    """Grey from black to white in 16 bits."""
    values = np.array([[0, 255, 256, 0x7FFF], [0x8000, 0xABCD, 0xFF00, 0xFFFF]], np.uint16)
    wanted = np.array([[0, 0, 1, 0x7F], [0x80, 0xAB, 0xFF, 0xFF]])
    return Image.fromarray(values), ".png", np.repeat(wanted[..., None], 3, 2)


def with_alpha() -> tuple[Image.Image, str, Any]:
    """Colours under an alpha that hides some of them."""
    pixels = np.array([[(*RED, 0), (*GREEN, 128), (*BLUE, 255)]], np.uint8)
    return Image.fromarray(pixels), ".png", [[RED, GREEN, BLUE]]


def one_bit() -> tuple[Image.Image, str, Any]:
    """Black and white."""
    return Image.fromarray(np.array([[True, False, True]])), ".png", [[WHITE, BLACK, WHITE]]


def grey_alpha() -> tuple[Image.Image, str, Any]:
    """Grey with an alpha channel."""
    image = Image.frombytes("LA", (3, 1), bytes([7, 0, 99, 255, 201, 3]))
    return image, ".png", [[(7,) * 3, (99,) * 3, (201,) * 3]]


def lossless(ending: str) -> tuple[Image.Image, str, Any]:
    """Noise in a format that keeps it."""
    return Image.fromarray(noise(13, 7)), ending, noise(13, 7)


KINDS = {
    "cmyk.jpg": cmyk(),
    "palette, one transparent": palette(1),
    "palette, transparency in bytes": palette(bytes([255, 0, 128, 255])),
    "16 bits": sixteen_bits(),
    "RGBA": with_alpha(),
    "1 bit": one_bit(),
    "LA": grey_alpha(),
    **{ending: lossless(ending) for ending in (".webp", ".bmp", ".tif", ".ppm", ".png", ".tga")},
}


def encoded(ending: str, **options: Any) -> bytes:
    """A small image file."""
    file = io.BytesIO()
    Image.fromarray(noise(24, 20)).save(file, Image.registered_extensions()[ending], **options)
    return file.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """The smallest PNG that says it has so many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


WHOLE = {
    "jpg": encoded(".jpg"),
    "progressive.jpg": encoded(".jpg", progressive=True),
    "png": encoded(".png"),
    "gif": encoded(".gif"),
    "webp": encoded(".webp", lossless=True),
    "bmp": encoded(".bmp"),
    "tif": encoded(".tif"),
}
