"""Contact sheets: images in a grid, each with its prediction below."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from resnext.data.decoding import ValueRange
from resnext.errors import DataError, InputError
from resnext.prediction.images import Prediction
from resnext.prediction.inputs import decode
from resnext.prediction.lettering import Lettering
from resnext.system.atomic import check_writable, make_folder

if TYPE_CHECKING:
    from resnext.neighbours.index import Neighbour
    from resnext.prediction.inputs import Picture

_SIDE, _GAP, _TEXT = 168, 20, 52  # pixels: an image, the space around it, text and bar below
_FLIP_TEXT = 72  # pixels: the text below an image with two answers
_STRIP = 52  # pixels: a similar image; three fit below an image
_PAPER, _INK, _FAINT, _BAR = "#ffffff", "#1d2330", "#8b93a3", "#2f6fde"
_WARNING = "#b3261e"


def draw_sheet(
    pictures: Sequence[Picture],
    predictions: Sequence[Prediction],
    *,
    columns: int = 5,
    values: ValueRange = None,
) -> Image.Image:
    """Draw images in a grid, each with its most likely class and a bar of the probability.

    The bar is grey where the model is not sure, and images that are like none of the classes are
    marked as unknown. Below are similar images, if the predictions have
    some: at most three of each class, with their distance.

    Args:
        pictures: The images given to `predict`, with folders expanded.
        predictions: The predictions for them.
        columns: Images per row.
        values: As in a card's `value_range`.

    Raises:
        DataError: No images are given, their number differs from that of the predictions, or one
            cannot be read.
        InputError: `columns` is less than 1.
    """
    if columns < 1:
        raise InputError(f"columns must be at least 1, not {columns}.")
    if not pictures or len(pictures) != len(predictions):
        raise DataError(
            f"A sheet needs at least one image and a prediction for each, not "
            f"{len(pictures)} images and {len(predictions)} predictions."
        )
    decoded = (  # one at a time in memory
        decode(picture, "RGB", values=values) for picture in pictures
    )
    strips = [by_class(prediction.like) for prediction in predictions]
    height = _TEXT + max(map(len, strips)) * (_STRIP + 20)
    sheet, corners = _grid(decoded, len(pictures), columns, height)
    draw, small = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    letters = Lettering(prediction.label for prediction in predictions)
    for (left, bottom), rows in zip(corners, strips, strict=True):
        for j, row in enumerate(rows):
            draw_strip(sheet, left, bottom + _TEXT + j * (_STRIP + 20), row[:3], _STRIP)
    for (left, bottom), prediction in zip(corners, predictions, strict=True):
        probability = prediction.probabilities[0]
        percent = f"{probability:.1%}"
        below = bottom + 8
        right = left + _SIDE - draw.textlength(percent, font=small)
        draw.text((right, below + 6), percent, _FAINT, font=small)
        letters.write(draw, (left, below), prediction.label, right - left - 8, 22, _INK)
        bar = below + 34
        draw.rectangle((left, bar, left + _SIDE - 1, bar + 4), fill="#e8ebf1")
        filled = left + round(probability * (_SIDE - 1))
        draw.rectangle((left, bar, filled, bar + 4), fill=_BAR if prediction.sure else _FAINT)
        if prediction.unknown:
            edge = left, bottom - _SIDE, left + _SIDE - 1, bottom - 1
            draw.rectangle(edge, outline=_WARNING, width=3)
            end = left + 12 + draw.textlength("unknown", font=small)
            draw.rectangle((left, bottom - 22, end, bottom - 1), fill=_WARNING)
            draw.text((left + 6, bottom - 20), "unknown", _PAPER, font=small)
    return sheet


def draw_neighbours(
    picture: Image.Image, neighbours: Sequence[Neighbour], *, columns: int = 5
) -> Image.Image:
    """Draw an image and those of an index that are most like it, each with class and distance.

    Args:
        picture: The image, RGB.
        neighbours: The others, nearest first.
        columns: Images per row.
    """
    pictures = [picture, *(one.thumbnail.convert("RGB") for one in neighbours)]
    sheet, corners = _grid(pictures, len(pictures), columns, _TEXT)
    draw, small = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    texts = [(one.label or Path(one.name).name, f"{one.distance:.3f}") for one in neighbours]
    letters = Lettering(label for label, _ in texts)
    for (left, bottom), (label, far) in zip(corners[1:], texts, strict=True):
        right = left + _SIDE - draw.textlength(far, font=small)
        draw.text((right, bottom + 14), far, _FAINT, font=small)
        letters.write(draw, (left, bottom + 8), label, right - left - 8, 22, _INK)
    return sheet


def by_class(neighbours: Sequence[Neighbour]) -> list[list[Neighbour]]:
    """Similar images, class by class."""
    return [[*group] for _, group in groupby(neighbours, key=lambda one: one.label)]


def draw_strip(
    sheet: Image.Image, left: int, top: int, neighbours: Sequence[Neighbour], side: int
) -> None:
    """Draw similar images in a row, with their distance below.

    Args:
        sheet: Where to draw.
        left: Left edge, pixels.
        top: Upper edge, pixels.
        neighbours: The images.
        side: Side of each, pixels.
    """
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, one in enumerate(neighbours):
        x = left + i * (side + 6)
        sheet.paste(_thumbnail(one.thumbnail.convert("RGB"), side), (x, top))
        draw.text((x, top + side + 1), f"{one.distance:.3f}", _FAINT, font=font)


def draw_flips(
    pictures: Sequence[Image.Image],
    actual: Sequence[str],
    before: Sequence[Prediction],
    after: Sequence[Prediction],
    *,
    columns: int = 5,
) -> Image.Image:
    """Draw images with the answers of two models, A and B, and the right one.

    A filled mark is at a right answer, an empty one at a wrong answer.

    Args:
        pictures: The images, RGB.
        actual: The right class of each.
        before: What A predicted.
        after: What B predicted.
        columns: Images per row.

    Raises:
        DataError: No images are given.
    """
    if not pictures:
        raise DataError("A sheet needs at least one image.")
    sheet, corners = _grid(pictures, len(pictures), columns, _FLIP_TEXT)
    draw, small = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    letters = Lettering([*actual, *(one.label for one in (*before, *after))])
    for (left, bottom), right, *answers in zip(corners, actual, before, after, strict=True):
        below = bottom + 6
        letters.write(draw, (left, below), right, _SIDE, 20, _INK)
        for j, (name, one) in enumerate(zip("AB", answers, strict=True)):
            line = below + 28 + 20 * j
            mark = (left + 16, line + 5, left + 24, line + 13)
            draw.ellipse(mark, fill=_BAR if one.label == right else _PAPER, outline=_BAR, width=2)
            percent = f"{one.probabilities[0]:.0%}"
            end = left + _SIDE - draw.textlength(percent, font=small)
            draw.text((left, line), name, _FAINT, small)
            draw.text((end, line), percent, _FAINT, small)
            letters.write(draw, (left + 31, line), one.label, end - left - 38, 15, _INK)
    return sheet


def _grid(
    pictures: Iterable[Image.Image], count: int, columns: int, text: int
) -> tuple[Image.Image, list[tuple[int, int]]]:
    """A sheet with images in a grid, and the lower left corner of each.

    Args:
        pictures: The images, RGB.
        count: Their number.
        columns: Images per row, if there are as many.
        text: Height of the space below each image, pixels.
    """
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    cell_w, cell_h = _SIDE + _GAP, _SIDE + text + _GAP
    sheet = Image.new("RGB", (columns * cell_w + _GAP, rows * cell_h + _GAP), _PAPER)
    draw, corners = ImageDraw.Draw(sheet), list[tuple[int, int]]()
    for i, picture in enumerate(pictures):
        left, top = _GAP + i % columns * cell_w, _GAP + i // columns * cell_h
        sheet.paste(_thumbnail(picture), (left, top))
        draw.rectangle((left, top, left + _SIDE - 1, top + _SIDE - 1), outline="#d9dde5")
        corners.append((left, top + _SIDE))
    return sheet, corners


def check_sheet(path: str | Path) -> None:
    """Refuse a file that a contact sheet could not be written to.

    Raises:
        DataError: The suffix is not that of an image format, or the file cannot be written.
    """
    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    if kind not in Image.SAVE:
        raise DataError(f"{path} cannot be written: give a suffix such as .png.")
    check_writable(Path(path), DataError)


def save_sheet(sheet: Image.Image, path: str | Path) -> None:
    """Write a contact sheet to an image file; the suffix decides the format.

    Its folder is created.

    Raises:
        DataError: The suffix is not that of an image format, or the file cannot be written.
    """
    make_folder(Path(path), DataError)
    try:
        sheet.save(path)
    except (OSError, ValueError, KeyError) as error:  # KeyError: a format Pillow only reads
        raise DataError(f"{path} cannot be written: {error}.") from error


def _thumbnail(image: Image.Image, length: int = _SIDE) -> Image.Image:
    """The middle square of an image, resized; the pixels of a tiny image stay sharp."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    tiny = side * 4 <= length
    filter_ = Image.Resampling.NEAREST if tiny else Image.Resampling.LANCZOS
    return square.resize((length, length), filter_)
