"""The map of a data set: similar images near each other, as a part of a page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from resnext.explanation.page import image_url
from resnext.pages.template import fill, read_template

_TILE = 40  # side of a thumbnail in the sprite, pixels


@dataclass(frozen=True, eq=False)
class Points:
    """The images on a map.

    Args:
        places: Coordinates from 0 to 1.
        names: Files, or other names.
        classes: Names of the classes.
        labels: Class of each image.
        predicted: Class that the model gives each image; -1 if it cannot be read.
        confidence: Probability of that class.
        splits: Names of the splits.
        split: Split of each image.
        thumbnails: Small pictures, one per image; empty if a server has them.
        files: Whether the images are files, so that a list can name them.
    """

    places: Float[np.ndarray, "n 2"]
    names: Sequence[str]
    classes: Sequence[str]
    labels: Int[np.ndarray, " n"]
    predicted: Int[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]
    splits: Sequence[str]
    split: Int[np.ndarray, " n"]
    thumbnails: Sequence[Image.Image] = ()
    files: bool = True


def map_fragment(points: Points, nonce: str = "") -> str:
    """The map as a part of a page that has the shared `base.css`.

    Args:
        points: The images.
        nonce: Value of `nonce` of its style and scripts; empty for none.
    """
    values = {
        "x": _whole(points.places[:, 0] * 9999),
        "y": _whole(points.places[:, 1] * 9999),
        "names": [*points.names],
        "classes": [*points.classes],
        "label": _whole(points.labels),
        "predicted": _whole(points.predicted),
        "confidence": _whole(np.nan_to_num(points.confidence) * 100),
        "splits": [*points.splits],
        "split": _whole(points.split),
        "files": points.files,
        "tile": _TILE,
        "columns": _columns(points),
        "sprite": image_url(_sprite(points)) if points.thumbnails else "",
    }
    text = json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")
    attribute = f' nonce="{nonce}"' if nonce else ""
    template = read_template("resnext.review", "map.html")
    return fill(template, {"nonce": attribute, "data": text})


def thumbnail(image: Image.Image) -> Image.Image:
    """A picture of the size that the sprite takes."""
    image = image.convert("RGB")
    image.thumbnail((_TILE, _TILE))
    tile = Image.new("RGB", (_TILE, _TILE), (128, 128, 128))
    tile.paste(image, ((_TILE - image.width) // 2, (_TILE - image.height) // 2))
    return tile


def _columns(points: Points) -> int:
    return math.ceil(math.sqrt(max(len(points.thumbnails), 1)))


def _sprite(points: Points) -> Image.Image:
    """All thumbnails as one picture."""
    columns = _columns(points)
    rows = -(-len(points.thumbnails) // columns)
    sprite = Image.new("RGB", (columns * _TILE, max(rows, 2) * _TILE))
    for i, tile in enumerate(points.thumbnails):
        sprite.paste(tile, (i % columns * _TILE, i // columns * _TILE))
    return sprite


def _whole(values: np.ndarray) -> list[int]:
    return np.rint(values).astype(int).tolist()
