"""Small SVG charts; the style sheet of the page sets their colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from resnext.calibration import Bin

_WIDTH, _HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 30


@dataclass(frozen=True)
class Line:
    """One curve.

    Args:
        name: Name of the curve.
        points: Epoch and value; non-finite values leave a gap.
        style: CSS class.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "first"

    @property
    def finite(self) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        return [(x, y) for x, y in self.points if math.isfinite(x) and math.isfinite(y)]


def curves(
    lines: Sequence[Line], form: Callable[[float], str], *, mark: float | None = None
) -> Markup:
    """Curves over epochs.

    Args:
        lines: The curves.
        form: Formats a value.
        mark: An epoch to mark.
    """
    points = [point for line in lines for point in line.finite]
    if not points:
        return Markup("")
    ticks = nice([y for _, y in points])
    low, high = ticks[0], ticks[-1]
    first, last = min(x for x, _ in points), max(x for x, _ in points)

    def across(x: float) -> float:
        inside = _WIDTH - _LEFT - _RIGHT
        return _LEFT + inside * ((x - first) / (last - first) if last > first else 0.5)

    def down(y: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (y - low) / (high - low)

    floor = _HEIGHT - _BOTTOM
    parts: list[str] = []
    for tick in ticks:
        y = down(tick)
        parts.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, "grid"))
        parts.append(_text(_LEFT - 7, y + 4, form(tick), "end"))
    for x in whole(first, last):
        parts.append(_text(across(x), floor + 19, f"{x:,}", "middle"))
    if mark is not None and first <= mark <= last:
        parts.append(_line(across(mark), _TOP, across(mark), floor, "mark"))
    for line in lines:
        for run in _runs(line.points):
            path = " ".join(f"{_n(across(x))},{_n(down(y))}" for x, y in run)
            parts.append(f'<polyline class="line {line.style}" points="{path}"/>')
        dots = len(line.finite) <= 12
        for x, y in line.finite:
            centre = f'cx="{_n(across(x))}" cy="{_n(down(y))}"'
            if dots:
                parts.append(f'<circle class="dot {line.style}" {centre} r="2.6"/>')
            tooltip = escape(f"{line.name}, epoch {x:g}: {form(y)}")
            parts.append(f'<circle class="hit" {centre} r="9"><title>{tooltip}</title></circle>')
    description = "; ".join(
        f"{line.name} from {form(line.finite[0][1])} to {form(line.finite[-1][1])}"
        for line in lines
        if line.finite
    )
    return _svg(_WIDTH, _HEIGHT, f"{description}, over epochs {first:g} to {last:g}", parts)


def reliability_diagram(bins: Sequence[Bin], name: str) -> Markup:
    """Accuracy by confidence, with a histogram of confidence below.

    Args:
        bins: Bins of equal width from 0 to 1.
        name: Name of the diagram.
    """
    side, left, top, low = 260, 44, 10, 54
    width = side / len(bins)
    most = max((row.count for row in bins), default=1) or 1
    parts: list[str] = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y, x = top + side * (1 - tick), left + side * tick
        parts.append(_line(left, y, left + side, y, "grid"))
        parts.append(_text(left - 7, y + 4, f"{100 * tick:.0f} %", "end"))
        parts.append(_text(x, top + side + low + 18, f"{100 * tick:.0f} %", "middle"))
    foot = top + side + low
    for i, row in enumerate(bins):
        if not row.count:
            continue
        x, high = left + i * width, side * row.accuracy
        tall = max(row.count / most * (low - 14), 1)
        tooltip = escape(
            f"{row.count:,} predictions with confidence {row.confidence:.1%} on average, "
            f"{row.accuracy:.1%} of them right"
        )
        parts.append(f"<g><title>{tooltip}</title>")
        bar = f'x="{_n(x + 1)}" width="{_n(width - 2)}"'
        parts.append(
            f'<rect class="bar" {bar} y="{_n(top + side - high)}" height="{_n(high)}" rx="1.5"/>'
        )
        parts.append(
            f'<rect class="count" {bar} y="{_n(foot - tall)}" height="{_n(tall)}" rx="1"/>'
        )
        point = f'cx="{_n(left + side * row.confidence)}" cy="{_n(top + side - high)}"'
        parts.append(f'<circle class="dot first" {point} r="3"/></g>')
    parts.append(_line(left, top + side, left + side, top, "ideal"))
    parts.append(_line(left, foot, left + side, foot, "grid"))
    count = sum(row.count for row in bins)
    return _svg(left + side + 16, foot + 26, f"{name}: {count:,} predictions", parts)


def bars(values: Sequence[int], name: str) -> Markup:
    """Counts as bars from the largest to the smallest.

    Args:
        values: The counts.
        name: Noun for the items that are counted.
    """
    width, height = 720, 90
    most = max(values, default=0)
    if not most:
        return Markup("")
    step = width / len(values)
    gap = min(2.0, step / 4)
    parts: list[str] = []
    for i, value in enumerate(sorted(values, reverse=True)):
        tall = height * value / most
        size = f'width="{_n(step - gap)}" height="{_n(tall)}"'
        parts.append(f'<rect class="bar" x="{_n(i * step)}" y="{_n(height - tall)}" {size}/>')
    description = f"{name}: from {max(values):,} to {min(values):,} in {len(values):,} classes"
    return _svg(width, height, description, parts, stretch=True)


def nice(values: Sequence[float]) -> list[float]:
    """Round numbers around some values, for an axis: at least two, evenly spaced."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = abs(high) / 10 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if min(values) >= 0:
        start = max(start, 0)
    return [i * step for i in range(start, stop + 1)]


def whole(first: float, last: float) -> list[int]:
    """A few integers from the first to the last."""
    span = max(int(last - first), 1)
    step = next(s for s in (m * 10**p for p in range(9) for m in (1, 2, 5)) if span / s <= 6)
    start = math.ceil(first)
    ticks = [x for x in range(start, int(last) + 1) if x % step == 0 or x == start]
    if len(ticks) > 1 and ticks[1] - ticks[0] < step / 2:
        del ticks[1]  # its label would touch the first one
    return ticks


def _runs(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The curve split at gaps; single points are dropped."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            runs[-1].append((x, y))
        else:
            runs.append([])
    return [run for run in runs if len(run) > 1]


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    ends = f'x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"'
    return f'<line class="{style}" {ends}/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(
    width: float, height: float, description: str, parts: Sequence[str], *, stretch: bool = False
) -> Markup:
    fit = ' preserveAspectRatio="none"' if stretch else ""
    box = f'viewBox="0 0 {_n(width)} {_n(height)}"'
    return Markup(
        f'<svg {box}{fit} role="img" aria-label="{escape(description)}">{"".join(parts)}</svg>'
    )


def _n(value: float) -> str:
    """A coordinate, to a hundredth of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
