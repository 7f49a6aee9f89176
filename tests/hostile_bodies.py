"""Damaged, lying and oversized images, and the forms that carry them."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image
from sample_images import noise

FORM = "multipart/form-data; boundary=edge"
KINDS = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "TGA")


def sound_images() -> list[bytes]:
    """One file of each format, some of them with several frames."""
    frames = [Image.fromarray(noise(24, 20, i)) for i in range(3)]
    found = [encoded(frames[0], kind) for kind in KINDS]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        found.append(file.getvalue())
    return found


def encoded(image: Image.Image, kind: str) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG with a right checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, *chunks: bytes) -> bytes:
    """A grey PNG of a size, whatever its data hold; `chunks` stand before them."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = [png_chunk(b"IHDR", head), *chunks, png_chunk(b"IDAT", data), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def bombs() -> list[bytes]:
    """Small files that say they are large, or become large."""
    zeros = zlib.compress(bytes(4_000_000), 9)
    tiff = encoded(Image.fromarray(noise(8, 8)), "TIFF")
    width_tag = tiff.index(struct.pack("<HHII", 256, 4, 1, 8)) if b"\x00\x01\x04\x00" in tiff else 0
    jpeg = bytearray(encoded(Image.fromarray(noise(16, 16)), "JPEG"))
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg[frame : frame + 4] = b"\xff\xff\xff\xff"
    gif = bytearray(encoded(Image.fromarray(noise(8, 8)).convert("P"), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    return [
        png(2**31 - 1, 2**31 - 1, zeros),
        png(0, 0, zeros),
        png(50_000, 50_000, zeros),
        png(8_000, 6_000, zeros),  # allowed, and most of its rows are missing
        png(50_000_000, 1, zlib.compress(bytes(50_000_001), 9)),  # allowed, and 50,000,000 : 1
        png(1, 4_000, zlib.compress(bytes(8_000), 9)),
        png(8, 8, zlib.compress(bytes(72)), png_chunk(b"zTXt", b"k\0\0" + zeros)),
        png(8, 8, zlib.compress(bytes(72)), png_chunk(b"iCCP", b"k\0\0" + zeros)),
        png(8, 8, zeros),
        png(8, 8, b""),
        bytes(jpeg),
        bytes(gif),
        tiff[: width_tag + 8] + b"\xff\xff\xff\x7f" + tiff[width_tag + 12 :],
        b"P6 2000000000 2000000000 255\n",
        b"P6 7000 7000 255\n",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, -1, 1, 24, *[0] * 6),
        b"RIFF\xff\xff\xff\xffWEBPVP8X\x0a\0\0\0\x12\0\0\0\xff\xff\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff" + bytes(40),
        b"II*\0\x08\0\0\0\0\0\x08\0\0\0",  # its next directory is itself
    ]


def _cut(body: bytearray, rng: random.Random) -> None:
    del body[rng.randrange(len(body) + 1) :]


def _flip(body: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 3, 30))):
        if body:
            body[rng.randrange(len(body))] = rng.randrange(256)


def _size(body: bytearray, rng: random.Random) -> None:
    """Four bytes, often of a size or an offset, become an extreme."""
    at = rng.randrange(min(len(body), 64) + 1)
    body[at : at + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4), b"\x80\0\0\0"))


def _drop(body: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(body) + 1)
    del body[at : at + rng.choice((1, 2, 100))]


def _double(body: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(body) + 1)
    body[at:at] = body[: rng.randrange(len(body) + 1)]


def _noise(body: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(body) + 1)
    body[at:at] = rng.randbytes(rng.choice((1, 8, 1000)))


DAMAGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(_cut, _flip, _size, _drop, _double, _noise),
)


def damaged(body: bytes, rng: random.Random) -> bytes:
    """A body with a few damages."""
    found = bytearray(body)
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(DAMAGES)(found, rng)
    return bytes(found)


def form(images: list[bytes], rng: random.Random) -> bytes:
    """A form with odd parts: without or with odd file names, other fields, other forms inside."""
    heads = (
        b'Content-Disposition: form-data; name="images"; filename="a.png"',
        b'Content-Disposition: form-data; name="images"',
        b'content-disposition: form-data; name=images; filename="../../\x00\xff"',
        b"Content-Disposition: form-data; name*=utf-8''images",
        b'Content-Disposition: form-data; name="other"',
        b'Content-Disposition: form-data; name="\xed\xa0\x80"',
        b'Content-Disposition: form-data; name="images"\r\nContent-Transfer-Encoding: base64',
        b'Content-Disposition: form-data; name="images"\r\nContent-Type: multipart/mixed;'
        b" boundary=edge",
        b"X: " + b"y" * 5000,
        b"",
    )
    weights = [20, 5, *[1] * (len(heads) - 2)]
    parts = [
        b"--edge\r\n%s\r\n\r\n%s\r\n" % (rng.choices(heads, weights)[0], image) for image in images
    ]
    return b"".join(parts) + rng.choice((b"--edge--\r\n", b"--edge--", b"--edge\r\n", b""))


def fuzzed(count: int, seed: int = 0) -> Iterator[tuple[bytes, str]]:
    """Bodies with their types: the bombs first, then random ones."""
    sound, rng = sound_images(), random.Random(seed)
    for bomb in bombs()[:count]:
        yield bomb, "application/octet-stream"
    for _ in range(count - len(bombs())):
        kind = rng.random()
        if kind < 0.6:
            yield damaged(rng.choice(sound), rng), rng.choice(("image/jpeg", "image/x", ""))
        elif kind < 0.7:
            yield rng.randbytes(rng.choice((0, 1, 10, 5000))), "application/octet-stream"
        else:
            many = rng.choice((0, 1, 1, 2, 4, 16, 17))
            images = [
                damaged(rng.choice(sound), rng) if rng.random() < 0.5 else rng.choice(sound)
                for _ in range(many)
            ]
            body = form(images, rng)
            yield (damaged(body, rng) if kind < 0.85 else body), FORM


def flat(side: int, level: int = 90) -> bytes:
    """A PNG of one brightness."""
    return encoded(Image.fromarray(np.full((side, side, 3), level, np.uint8)), "PNG")
