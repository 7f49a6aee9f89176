"""Explanations as one picture: each image beside its map, with the numbers below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from resnext.errors import DataError
from resnext.explanation.deletion import RANDOM_MAPS
from resnext.explanation.explanation import Explanation
from resnext.explanation.overlay import AGAINST, FOR, enlarged
from resnext.prediction.contact_sheet import by_class, draw_strip
from resnext.prediction.lettering import Lettering

if TYPE_CHECKING:
    from resnext.neighbours.index import Neighbour

_SIDE, _GAP, _BETWEEN, _TEXT = 240, 20, 8, 78  # pixels: image, gaps, text below
_STRIP = 72  # pixels: a similar image
_PAPER, _INK, _FAINT, _WARNING = "#ffffff", "#1d2330", "#5f6775", "#b3261e"


def draw_explanations(explanations: Sequence[Explanation], *, columns: int = 2) -> Image.Image:
    """Draw explanations in a grid.

    Args:
        explanations: What to draw, in order.
        columns: Explanations per row.

    Raises:
        DataError: No explanations are given.
    """
    if not explanations:
        raise DataError("A picture needs at least one explanation.")
    columns = min(columns, len(explanations))
    rows = [explanations[i : i + columns] for i in range(0, len(explanations), columns)]
    heights = [max(enlarged(one.image, _SIDE).height for one in row) for row in rows]
    cell_w = 2 * _SIDE + _BETWEEN
    text = _TEXT + (_STRIP + 20 + _GAP) * any(one.like for one in explanations)
    height = sum(heights) + len(rows) * (text + _GAP) + _GAP
    sheet = Image.new("RGB", (columns * (cell_w + _GAP) + _GAP, height), _PAPER)
    similar = (_similar(neighbour) for one in explanations for neighbour in one.like)
    letters = Lettering([*map(title, explanations), *similar])
    top = _GAP
    for row, tallest in zip(rows, heights, strict=True):
        for i, explanation in enumerate(row):
            _draw(sheet, letters, explanation, _GAP + i * (cell_w + _GAP), top, tallest)
        top += tallest + text + _GAP
    return sheet


def _draw(
    sheet: Image.Image,
    letters: Lettering,
    explanation: Explanation,
    left: int,
    top: int,
    tallest: int,
) -> None:
    """Draw one explanation; its text begins below the tallest image of the row."""
    for i, picture in enumerate((enlarged(explanation.image, _SIDE), explanation.overlay(_SIDE))):
        corner = left + i * (_SIDE + _BETWEEN) + (_SIDE - picture.width) // 2
        sheet.paste(picture, (corner, top + (tallest - picture.height) // 2))
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(20), ImageFont.load_default(14)
    right, below = left + 2 * _SIDE + _BETWEEN, top + tallest + 6
    percent = f"{explanation.probability:.1%}"
    edge = right - draw.textlength(percent, font=large)
    draw.text((edge, below), percent, _FAINT, font=large)
    letters.write(draw, (left, below), title(explanation), edge - left - 8, 20, _INK)
    x: float = left
    for colour, text in legend(explanation):
        if colour:
            draw.rectangle((x, below + 32, x + 10, below + 42), fill=colour)
            x += 15
        draw.text((x, below + 29), text, _FAINT, font=small)
        x += draw.textlength(text, font=small) + 14
    if explanation.check is not None:
        colour = _FAINT if explanation.check.passed else _WARNING
        draw.text((left, below + 51), verdict(explanation), colour, font=small)
    for j, similar in enumerate(by_class(explanation.like)[:2]):
        x = left + j * (_SIDE + _BETWEEN)
        letters.write(draw, (x, below + 74), _similar(similar[0]), _SIDE, 14, _FAINT)
        draw_strip(sheet, int(x), below + 96, similar[:3], _STRIP)


def _similar(one: Neighbour) -> str:
    """What stands above similar images."""
    return "Similar" if one.label is None else f"Similar: {one.label}"


def title(explanation: Explanation) -> str:
    """The class, and the one that it is compared with."""
    if explanation.against is None:
        return explanation.label
    return f"{explanation.label} rather than {explanation.against}"


def legend(explanation: Explanation) -> list[tuple[str, str]]:
    """The parts of the explained number: a colour, or none, and what it stands for."""
    if explanation.how == "layercam":
        return [(FOR, "for, without a unit")]
    parts = [
        (FOR, f"for {signed(explanation.evidence_for)}"),
        (AGAINST, f"against {signed(explanation.evidence_against)}"),
    ]
    if explanation.completeness_error is None:
        return [(FOR, "hiding it lowers the logit"), (AGAINST, "raises it")]
    name = "bias" if explanation.how == "map" else "start"
    whole = "logit" if explanation.against is None else "difference"
    rest = f"{name} {signed(explanation.bias)}", f"= {whole} {signed(explanation.score)}"
    return [*parts, *(("", text) for text in rest)]


def verdict(explanation: Explanation) -> str:
    """The result of the self-check in a few words; empty if there was none."""
    if explanation.check is None:
        return ""
    result = f"better than {explanation.check.beaten} of {RANDOM_MAPS} random maps"
    return result if explanation.check.passed else f"not reliable here: {result}"


def signed(value: float) -> str:
    """A number with its sign and two decimals."""
    return f"{value:+.2f}" if abs(value) >= 0.005 else "0.00"
