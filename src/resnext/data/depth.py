"""The values that images of more than 8 bits use: cameras fill 16 bits only in part."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from resnext.data.dataset import ImageSet, Stored
from resnext.data.decoding import has_16_bits, open_lazily
from resnext.errors import DataError

_SAMPLE = 500  # images to look at
_PIXELS = 4096  # pixels to look at in each
_STRAY = 1e-4  # fraction of the pixels at either end that are ignored, such as broken ones
_ENOUGH = 1 << 15  # values; of fewer, the upper 8 bits keep less than 128
_EIGHT_BITS = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".avif", ".heic")


def used_range(images: ImageSet) -> tuple[int, int] | None:
    """The lowest and the highest value of grey images of 16 or 32 bits.

    Looks at images spread over the set, and at pixels spread over each.

    Returns:
        The values; None if there are no such images, or if they fill 16 bits well.

    Raises:
        DataError: Colour images of 16 bits use so few values that their upper 8 bits hold little.
    """
    values: list[np.ndarray] = []
    colours = -1  # the highest upper byte of colour images
    for index in np.linspace(0, len(images) - 1, min(_SAMPLE, len(images))).astype(int):
        source = images.images[index]
        if isinstance(source, np.ndarray):
            return None  # arrays have 8 bits
        title = images.title(int(index))
        if title.lower().endswith(_EIGHT_BITS):
            continue
        try:
            with open_lazily(_file(source), title) as image:
                if image.mode.startswith("I"):
                    pixels = np.asarray(image).ravel()
                    values.append(pixels[:: -(-len(pixels) // _PIXELS)].astype(np.int64))
                elif has_16_bits(image):
                    highest = np.asarray(image.convert("RGB")).max()
                    colours = max(colours, int(highest))
        except Exception:  # Pillow's decoders raise almost anything on damaged files
            continue  # the scan reports it
    if 0 <= colours < 64:
        above = f"{256 * (colours + 1):,}"
        raise DataError(
            f"{images.name}: colour images of 16 bits use only values below {above}, and only "
            f"their upper 8 bits are read. Convert them to 8 bits."
        )
    return _range(np.sort(np.concatenate(values))) if values else None


def _file(source: Path | Stored) -> Path | io.BytesIO:
    return source if isinstance(source, Path) else io.BytesIO(source.read())


def _range(values: np.ndarray) -> tuple[int, int] | None:
    """The range of sorted values without stray ones; None if it fills 16 bits well."""
    stray = int(len(values) * _STRAY)
    low, high = int(values[stray]), int(values[len(values) - 1 - stray])
    fits = low >= 0 and high < 1 << 16
    return None if low == high or (fits and high - low >= _ENOUGH) else (low, high)
