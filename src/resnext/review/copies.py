"""Pairs of images that show the same picture: scaled, cropped a little, brighter, mirrored.

The network names candidates, as copies have similar embeddings; the pixels decide.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from resnext.errors import DataError
from resnext.review.layout import components
from resnext.system.progress import Reporter

_NEAREST = 3  # images that each one is compared with
_BLOCK = 1024
_LIKELY = 0.6  # least correlation of thumbnails; below, images are not decoded
_SIDE, _FINE = 32, 64  # pixels that are compared, and that crops are cut from
_MARGINS = (0.03, 0.06, 0.1)  # what a crop may lack of a side
_SAME = 0.96
"""Least correlation of two copies, see tests/review/test_copies.py."""


def find_copies(
    embeddings: Float[np.ndarray, "n d"],
    looks: UInt8[np.ndarray, "n s s"],
    open_image: Callable[[int], Image.Image],
    progress: Reporter,
) -> Iterator[tuple[int, int]]:
    """Pairs of positions, the lower one first; each pair once.

    Args:
        embeddings: Of all images.
        looks: Small grey thumbnails of all images.
        open_image: Opens an image; may raise DataError.
        progress: Advanced for each image.
    """
    if len(looks) < 2:
        return
    straight, mirrored = (_standard(x.reshape(len(x), -1)) for x in (looks, looks[:, :, ::-1]))

    @lru_cache(maxsize=10_000)
    def opened(image: int) -> np.ndarray:
        return thumbnail(open_image(image))

    seen: set[tuple[int, int]] = set()
    for image, others in _nearest(embeddings):
        progress.advance(1)
        for other in others:
            pair = min(image, other), max(image, other)
            likely = max(straight[image] @ x[other] for x in (straight, mirrored))
            if pair in seen or likely < _LIKELY:
                continue
            seen.add(pair)
            try:
                same = correlation(opened(image), opened(other))
            except DataError:
                continue
            if same >= _SAME:
                yield pair


def in_groups(
    pairs: Sequence[tuple[int, int]], size: Int[np.ndarray, " n"]
) -> Iterator[tuple[int, int]]:
    """Pairs that connect the same images with as few as possible, from the largest one outwards.

    Args:
        pairs: Pairs of images.
        size: Size of each image.
    """
    alike: dict[int, dict[int, None]] = {}
    for a, b in pairs:
        alike.setdefault(a, {})[b] = alike.setdefault(b, {})[a] = None
    reached: set[int] = set()
    for first in sorted(alike, key=lambda image: -size[image]):
        waiting = deque([] if first in reached else [first])
        reached.add(first)
        while waiting:
            image = waiting.popleft()
            for other in alike[image]:
                if other not in reached:
                    reached.add(other)
                    waiting.append(other)
                    yield image, other


def thumbnail(image: Image.Image) -> UInt8[np.ndarray, "s s"]:
    """A square grey copy, from which `correlation` cuts crops."""
    grey = image.convert("L")
    return np.asarray(grey.resize((_FINE, _FINE), Image.Resampling.BOX, reducing_gap=2.0))


def correlation(a: UInt8[np.ndarray, "s s"], b: UInt8[np.ndarray, "s s"]) -> float:
    """Largest correlation of one image with a crop of the other, mirrored or not.

    Args:
        a: What `thumbnail` returns for an image.
        b: The same for another one.
    """
    crops = [_crops(x) for x in (a, b)]
    best = 0.0
    for (whole, *_), others in zip(crops, reversed(crops), strict=True):
        both = np.stack([whole, whole.reshape(_SIDE, _SIDE)[:, ::-1].ravel()], 1)
        best = max(best, float((others @ both).max()))
    return best


def _crops(x: UInt8[np.ndarray, "s s"]) -> Float[np.ndarray, "c p"]:
    """An image and its crops as standardized rows, the whole image first."""
    rows = _CUTS.reshape(-1, _FINE) @ x.astype(np.float32)
    cut = rows.reshape(-1, _FINE) @ _CUTS.reshape(-1, _FINE).T  # cut, row, cut, column
    side = len(_CUTS)
    cut = cut.reshape(side, _SIDE, side, _SIDE).transpose(0, 2, 1, 3)
    return _standard(cut.reshape(-1, _SIDE * _SIDE))


def _cuts() -> Float[np.ndarray, "c i p"]:
    """Matrices that average a part of a side; the first one is the whole side."""
    edges = [(0.0, 1.0)]
    edges += [(m * at, 1 - m * (1 - at)) for m in _MARGINS for at in (0.0, 0.5, 1.0)]
    pixels = np.arange(_FINE)
    found: list[np.ndarray] = []
    for low, high in edges:
        ends = np.linspace(low, high, _SIDE + 1) * _FINE
        area = np.clip(ends[:, None] - pixels, 0, 1)  # of each pixel, below each end
        found.append(np.diff(area, axis=0) / np.diff(ends)[:, None])
    return np.stack(found).astype(np.float32)


_CUTS = _cuts()


def _standard(rows: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "n p"]:
    """Rows of mean 0 and length 1, so that a product of two is their correlation."""
    rows = np.asarray(rows, np.float32)
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1.0)


def _nearest(embeddings: Float[np.ndarray, "n d"]) -> Iterator[tuple[int, Sequence[int]]]:
    """Each image with those that the network finds most similar."""
    x = components(embeddings).astype(np.float32)
    count = min(_NEAREST, len(x) - 1)
    if count < 1:
        return
    lengths = (x**2).sum(1)
    for start in range(0, len(x), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(x)))
        distance = lengths - 2 * x[rows] @ x.T
        distance[np.arange(len(rows)), rows] = np.inf
        best: Int[np.ndarray, "m k"] = np.argpartition(distance, count - 1, axis=1)[:, :count]
        yield from zip(rows.tolist(), best.tolist(), strict=True)
