"""The measurements of a plan as a table."""

from __future__ import annotations

import io

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from resnext.inference.engines import ENGINES
from resnext.inference.plan import Measurement, Plan


def plan_table(plan: Plan) -> str:
    """All measurements, fastest first, and which of them was chosen."""
    base = next(row.images_per_second for row in plan.rows if row.form is None)
    numbers = [Column(name, justify="right") for name in ("Images/s", "×", "ms", "Agreement")]
    table = Table("Engine", "Precision", "At once", *numbers, "", box=None, header_style="bold")
    for row in plan.rows:
        form, speed = row.form, row.images_per_second
        if form is None:
            texts = "PyTorch, unmodified", "fp32", _images(plan.batch)
        else:
            texts = ENGINES[form.engine].title, form.precision, str(form) if speed else ""
        if speed:
            milliseconds = 1e3 * plan.batch / speed
            rates = f"{speed:,.1f}", f"{speed / base:.2f}", f"{milliseconds:.1f}"
        else:
            rates = ("–",) * 3
        table.add_row(
            *texts,
            *rates,
            _agreement(row),
            escape(row.verdict),
            style="bold" if row.verdict == "chosen" else "",
        )
    text = io.StringIO()
    console = Console(
        file=text, width=160, color_system=None, force_terminal=False, highlight=False
    )
    console.print(
        f"{plan.machine}, {_images(plan.batch)} of {plan.size}×{plan.size} pixels", markup=False
    )
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
