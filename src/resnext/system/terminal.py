"""Text and tables as wide as the terminal."""

from __future__ import annotations

import shutil

from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_WHOLE = 100_000  # columns


def columns() -> int:
    """Columns of the terminal, or those in the variable COLUMNS.

    Without a terminal, as many as any line needs: what a program or an editor reads is not broken.
    """
    return shutil.get_terminal_size((_WHOLE, 24)).columns


def new_console() -> Console:
    """Standard output."""
    return Console(width=columns())


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table whose first column holds names, if its overflow is "fold".

    If the table is too wide, each name stands whole in a line above its row, so it can be copied.
    """
    console = console or new_console()
    whole = console.options.update(width=_WHOLE)
    wanted = Measurement.get(console, whole, table).maximum
    if wanted <= console.width or table.columns[0].overflow != "fold":
        console.print(table, highlight=False)
        return
    names, *others = table.columns
    widths = [
        max(Measurement.get(console, whole, cell).maximum for cell in (one.header, *one.cells))
        for one in others
    ]
    indent, gap = 2, 2
    excess = indent + sum(widths) + gap * (len(widths) - 1) - console.width
    widest = widths.index(max(widths))
    widths[widest] = max(widths[widest] - max(excess, 0), 1)

    def print_row(name: str, *cells: object, style: str = "") -> None:
        if name:
            console.print(Text.from_markup(name, style=style), soft_wrap=True)
        row = Table(box=None, show_header=False, pad_edge=False)
        for one, width in zip(others, widths, strict=True):
            row.add_column(justify=one.justify, width=width)
        row.add_row(*cells, style=style)
        console.print(Padding.indent(row, indent), highlight=False)

    print_row(*(one.header for one in table.columns), style="bold")
    for cells in zip(*(one.cells for one in (names, *others)), strict=True):
        print_row(*cells)
