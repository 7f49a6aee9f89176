"""The measurements of a plan as a table."""

from __future__ import annotations

import io

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from resnext.inference.engines import ENGINES
from resnext.inference.engines.base import EngineConfig
from resnext.inference.plan import Measurement, Plan, Tradeoff
from resnext.system.terminal import columns

_WIDTH = 160  # columns at least: narrower, the reasons in the last one are unreadable


def plan_table(plan: Plan) -> str:
    """All measurements, fastest first, and which of them was chosen."""
    size = plan.size if plan.tradeoff is None else plan.tradeoff.reference.size
    base = plan.rows[-1].images_per_second  # the network itself, or the usual way to run a file
    numbers = [Column(name, justify="right") for name in ("Images/s", "×", "ms", "Agreement")]
    table = Table("Engine", "Precision", "At once", *numbers, "", box=None, header_style="bold")
    for row in plan.rows:
        form, speed = row.form, row.images_per_second
        table.add_row(
            *_engine(form),
            _images(plan.batch) if form is None else str(form) if speed else "",
            *_rates(speed, base, plan.batch),
            _agreement(row),
            escape(row.verdict),
            style="bold" if row.verdict == "chosen" else "",
        )
    title = f"{plan.machine}, {_images(plan.batch)} of {size}×{size} pixels"
    text = _printed(title, table)
    return text if plan.tradeoff is None else f"{text}\n\n{_frontier(plan, plan.tradeoff)}"


def _frontier(plan: Plan, tradeoff: Tradeoff) -> str:
    """Accuracy and speed of smaller images and int8, and what the choice means."""
    names = ("Size", "Resized to", "Images/s", "×", "ms", "Accuracy", "95 %", "Loss", "95 %")
    numbers = [Column(name, justify="right") for name in names]
    table = Table("Engine", "Precision", *numbers, "", box=None, header_style="bold")
    base = tradeoff.reference.images_per_second
    for row in tradeoff.rows:
        table.add_row(
            *_engine(row.form),
            str(row.size),
            str(row.resize),
            *_rates(row.images_per_second, base, plan.batch),
            "" if row.accuracy is None else f"{row.accuracy:.2%}",
            _range(row.interval),
            "" if row.loss is None else f"{100 * row.loss:.2f}",
            _range(row.loss_interval),
            escape(row.verdict),
            style="bold" if row.verdict == "chosen" else "",
        )
    title = (
        f"Accuracy for speed: at most {tradeoff.max_loss:g} points of accuracy less than the last "
        f"row, on {tradeoff.deciding:,} images of {tradeoff.data}; "
        f"{tradeoff.calibrating:,} others timed and calibrated"
    )
    highest = tradeoff.chosen.loss_interval
    text = _printed(title, table)
    if highest is not None and 100 * highest[1] > tradeoff.max_loss:
        text += (
            f"\nOn new images the loss may reach {100 * highest[1]:.2f} points: the end of its "
            f"95 % interval. More labelled images narrow it."
        )
    return text


def _engine(form: EngineConfig | None) -> tuple[str, str]:
    """Title of the engine and precision; None for the unmodified network."""
    if form is None:
        return "PyTorch, unmodified", "fp32"
    return ENGINES[form.engine].title, form.precision


def _rates(speed: float, base: float, batch: int) -> tuple[str, str, str]:
    """Images per second, their ratio to `base`, and milliseconds of a batch."""
    if not speed:
        return "–", "–", "–"
    return f"{speed:,.1f}", f"{speed / base:.2f}", f"{1e3 * batch / speed:.1f}"


def _range(interval: tuple[float, float] | None) -> str:
    """An interval of fractions, in percent or points."""
    return "" if interval is None else f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f}"


def _printed(title: str, table: Table) -> str:
    """A title and a table as plain lines."""
    text = io.StringIO()
    console = Console(
        file=text,
        width=max(columns(), _WIDTH),
        color_system=None,
        force_terminal=False,
        highlight=False,
    )
    console.print(title, markup=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _agreement(row: Measurement) -> str:
    """Accuracy, largest difference, or classes in common, whatever decides for the precision."""
    if row.accuracy is not None:
        return f"{row.accuracy:.2%} right"
    if row.difference is None or row.agreement is None:
        return ""
    if row.form is not None and row.form.precision == "fp32":
        return f"±{row.difference:.1e}"
    return f"{row.agreement:.1%} same"


def _images(count: int) -> str:
    return f"{count} image{'s' if count > 1 else ''}"
