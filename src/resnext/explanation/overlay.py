"""A map drawn over its image, with Pillow alone."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image, ImageDraw

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, as fractions of an image's width and height."""

FOR, AGAINST = "#e66100", "#2166f0"
"""Orange and blue: far apart for people with any common kind of colour blindness."""

_OUTLINE = "#ffffff", "#16181d"  # dashes of both show on every image
_STRONGEST = 0.85  # opacity of the largest value


def draw_overlay(
    image: Image.Image, values: Float32[np.ndarray, "h w"], crop: Box, side: int
) -> Image.Image:
    """The image with evidence for a class in orange and against it in blue.

    Args:
        image: The whole image, RGB.
        values: The map of the crop.
        crop: What the network saw of the image; may reach beyond it.
        side: Length of the longer side of the result, pixels.
    """
    base = enlarged(image, side)
    width, height = base.size
    left, top, right, bottom = _pixels(crop, width, height)
    strength = np.zeros((height, width))
    inside = _resized(values, max(right - left, 1), max(bottom - top, 1))
    rows = slice(max(top, 0), min(bottom, height))
    columns = slice(max(left, 0), min(right, width))
    strength[rows, columns] = inside[
        rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]
    picture = _blended(np.asarray(base, np.float64), strength)
    drawn = Image.fromarray(picture.round().clip(0, 255).astype(np.uint8))
    _outline(drawn, (columns.start, rows.start, columns.stop - 1, rows.stop - 1))
    return drawn


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """The image with its longer side of this length; pixels of tiny images stay sharp."""
    factor = side / max(image.size)
    size = (max(round(image.width * factor), 1), max(round(image.height * factor), 1))
    filter_ = Image.Resampling.NEAREST if factor >= 4 else Image.Resampling.LANCZOS
    return image.convert("RGB").resize(size, filter_)


def scale(values: Float32[np.ndarray, "h w"]) -> float:
    """The value that is drawn strongest: the largest, or for many values their 99.5th percentile.

    A few pixels of a fine map are often far above all others, which would then be invisible.
    """
    strengths = np.abs(values)
    return float(strengths.max() if values.size < 1024 else np.percentile(strengths, 99.5))


def _resized(values: Float32[np.ndarray, "h w"], w: int, h: int) -> Float[np.ndarray, "h2 w2"]:
    """The map at another size, its strongest value being 1."""
    shares = (values / (scale(values) or 1.0)).astype(np.float32)
    enlarged = Image.fromarray(shares).resize((w, h), Image.Resampling.BICUBIC)
    return np.asarray(enlarged, np.float64).clip(-1, 1)


def _blended(base: Float[np.ndarray, "h w 3"], strength: Float[np.ndarray, "h w"]) -> np.ndarray:
    grey = (base @ np.array([0.299, 0.587, 0.114]))[..., None]  # no colour but the evidence
    opacity = (_STRONGEST * np.abs(strength))[..., None]
    colour = np.where((strength > 0)[..., None], _rgb(FOR), _rgb(AGAINST))
    return (1 - opacity) * grey + opacity * colour


def _rgb(colour: str) -> Float[np.ndarray, " 3"]:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float64)


def _pixels(crop: Box, width: int, height: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = crop
    return round(left * width), round(top * height), round(right * width), round(bottom * height)


def _outline(image: Image.Image, box: tuple[int, int, int, int]) -> None:
    """A dashed frame, two pixels wide, inside the box."""
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = box
    dash, thick = 6, 2
    for start in range(left, right + 1, dash):
        colour, end = _OUTLINE[start // dash % 2], min(start + dash - 1, right)
        draw.rectangle((start, top, end, min(top + thick - 1, bottom)), fill=colour)
        draw.rectangle((start, max(bottom - thick + 1, top), end, bottom), fill=colour)
    for start in range(top, bottom + 1, dash):
        colour, end = _OUTLINE[start // dash % 2], min(start + dash - 1, bottom)
        draw.rectangle((left, start, min(left + thick - 1, right), end), fill=colour)
        draw.rectangle((max(right - thick + 1, left), start, right, end), fill=colour)
