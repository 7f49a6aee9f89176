"""Occlusion: by how much the explained number falls when a part of the image is hidden.

Zeiler and Fergus, Visualizing and understanding convolutional networks (arXiv:1311.2901). Parts are
hidden by a blurred copy of the image, which adds fewer edges than a grey square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Float32, UInt8

Score = Callable[[UInt8[np.ndarray, "n h w c"]], Float[np.ndarray, " n"]]
"""The explained number of each of several images."""

_PATCHES = 7  # side of the image in patches; each is moved by half of its side


def occlusion_map(
    x: UInt8[np.ndarray, "h w c"], score: Score, batch: int = 64
) -> Float32[np.ndarray, "h w"]:
    """For each pixel, the mean fall of the explained number over the patches that hide it.

    Args:
        x: Pixels as the network takes them.
        score: Computes the explained number.
        batch: Images per call.
    """
    side = max(round(len(x) / _PATCHES), 1)
    step = max(side // 2, 1)
    last = len(x) - side
    starts = sorted({*range(0, last + 1, step), last})
    boxes = [(top, left) for top in starts for left in starts]
    hidden = blurred(x)

    def variants() -> Iterator[np.ndarray]:
        for top, left in boxes:
            image = x.copy()
            place = slice(top, top + side), slice(left, left + side)
            image[place] = hidden[place]
            yield image

    falls = float(score(x[None])[0]) - in_batches(variants(), score, batch)
    total, count = np.zeros(x.shape[:2]), np.zeros(x.shape[:2])
    for (top, left), fall in zip(boxes, falls, strict=True):
        total[top : top + side, left : left + side] += fall
        count[top : top + side, left : left + side] += 1
    return (total / count).astype(np.float32)


def in_batches(images: Iterator[np.ndarray], score: Score, batch: int) -> Float[np.ndarray, " n"]:
    """The explained number of images that are made one by one, with `batch` of them in memory."""
    scores: list[np.ndarray] = []
    waiting: list[np.ndarray] = []
    for image in images:
        waiting.append(image)
        if len(waiting) == batch:
            scores.append(score(np.stack(waiting)))
            waiting = []
    if waiting:
        scores.append(score(np.stack(waiting)))
    return np.concatenate(scores)


def blurred(x: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
    """The image without details: a Gaussian mean over a quarter of its side.

    A weaker blur would leave the colour of a small part in its place. Places outside the image have
    no weight; Pillow repeats the border there, so that parts in a corner would not fade.
    """
    values = x.astype(np.float64)
    for axis in (0, 1):
        places = np.arange(x.shape[axis])
        weights = np.exp(-((places[:, None] - places) ** 2) / (2 * (len(places) / 4) ** 2))
        weights /= weights.sum(1, keepdims=True)
        values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return values.round().astype(np.uint8)
