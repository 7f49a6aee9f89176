"""Network and image size for images, if the user names none."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np

from resnext.data.dataset import ImageSet, Splits
from resnext.data.decoding import open_lazily, read_source
from resnext.errors import DataError

SIZES = (64, 96, 128, 160, 224)
"""Image sizes to choose from, pixels, for images with a shorter side above `_SMALL_IMAGES`."""
_SMALL_IMAGES = 40
_LARGEST_ON_CPU = 128
_SAMPLE = 64


class Choice(NamedTuple):
    """A network and an image size for some images."""

    network: str
    """Name of a variant."""
    size: int
    """Image size, pixels."""


def default_choice(splits: Splits, device: str, size: int | None = None) -> Choice:
    """The network and size of a run without `model`, `weights` and `minutes`.

    Images are hardly enlarged. On a processor, the largest network is one that trains on a thousand
    photos in minutes; on a GPU it is resnext50_32x4d.

    Args:
        splits: The data; its own defaults come first.
        device: Type of the device, such as "cpu".
        size: Image size that the user gives, pixels.
    """
    chosen = size
    if chosen is None:
        chosen = splits.defaults.size or largest_size(typical_side(splits.train))
        if device == "cpu":
            chosen = min(chosen, _LARGEST_ON_CPU)
    if splits.defaults.network is not None:
        network = splits.defaults.network
    elif chosen <= _SMALL_IMAGES:
        network = "resnext_tiny_32px"
    elif device != "cpu":
        network = "resnext50_32x4d"
    else:
        network = "resnext_tiny" if chosen <= 64 else "resnext_small"
    return Choice(network, chosen)


def choices(side: int, device: str, size: int | None) -> list[Choice]:
    """Networks and sizes for a time budget, from the fastest to the slowest.

    Args:
        side: Typical shorter side of the images, pixels.
        device: Type of the device, such as "cpu".
        size: Image size that the user gives, pixels.
    """
    largest = largest_size(side) if size is None else size
    if largest <= _SMALL_IMAGES:
        return [Choice(f"resnext_{name}_32px", largest) for name in ("nano", "tiny", "small")]
    ladder = [
        Choice("resnext_nano", 64),
        Choice("resnext_tiny", 64),
        Choice("resnext_tiny", 96),
        Choice("resnext_small", 96),
        Choice("resnext_small", 128),
        Choice("resnext_medium", 128),
        Choice("resnext_medium", 160),
    ]
    if device != "cpu":
        ladder.append(Choice("resnext50_32x4d", 224))
    if size is not None:
        return [Choice(network, size) for network in dict.fromkeys(name for name, _ in ladder)]
    return [choice for choice in ladder if choice.size <= largest]


def largest_size(side: int) -> int:
    """The largest image size that enlarges images with this shorter side by a third at most."""
    if side <= _SMALL_IMAGES:
        return 32
    return max((size for size in SIZES if size <= 4 / 3 * side), default=SIZES[0])


def typical_side(images: ImageSet) -> int:
    """Median length of the shorter side of some images spread over the set, pixels.

    Unreadable images are skipped; 224 if all are.
    """
    sides: list[int] = []
    for index in np.linspace(0, len(images) - 1, min(_SAMPLE, len(images))).astype(int):
        try:
            sides.append(_shorter_side(images, int(index)))
        except DataError:
            continue
    return int(np.median(sides)) if sides else 224


def _shorter_side(images: ImageSet, index: int) -> int:
    """Length of an image's shorter side by its header, pixels."""
    data, title = images.read(index), images.title(index)
    if isinstance(data, np.ndarray):
        return min(data.shape[:2])

    def read(source: io.BytesIO) -> int:
        with open_lazily(source, title) as image:
            return min(image.size)

    return read_source(io.BytesIO(data), title, read)
