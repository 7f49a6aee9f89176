"""Pictures of numbers. They need matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnext.errors import InputError
from resnext.weights.catalog import Checkpoint, frontier

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"apache-2.0": "#1f6f8b", "bsd-3-clause": "#3a8f5c", "cc-by-nc-4.0": "#c2672d"}


def plot_catalog(rows: Sequence[Checkpoint], path: str | Path) -> None:
    """Draw accuracy against cost, with the line that nothing cheaper beats.

    Args:
        rows: Checkpoints; those without a published accuracy are left out.
        path: File to write: .png, .svg or .pdf.

    Raises:
        InputError: matplotlib is not installed, the file is of another kind, or nothing is left.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"A plot must be a .png, .svg or .pdf file, not {path.name!r}.")
    rows = [row for row in rows if row.top1 is not None]
    if not rows:
        raise InputError("No checkpoint with a published accuracy is left to draw.")
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise InputError("Plots need matplotlib: pip install 'resnext[plot]'.") from error
    figure, axes = plt.subplots(figsize=(11.5, 6), layout="constrained")
    for licence, colour in _COLOURS.items():
        own = [row for row in rows if row.licence == licence]
        if own:
            _dots(axes, own, colour, licence)
    best = frontier(rows)
    axes.step(*_points(best), where="post", color="#b0b0b0", linewidth=1.2, zorder=2)
    axes.set_xscale("log")
    low, high = min(row.gmacs for row in rows) / 1.25, max(row.gmacs for row in rows) * 1.25
    ticks = [tick for tick in (1, 2, 4, 8, 16, 32, 64, 128) if low <= tick <= high]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlim(low, high)
    axes.minorticks_off()
    for i, row in enumerate(best):
        place = (row.gmacs, row.top1 or 0)
        axes.annotate(str(i + 1), place, (-9, 4), textcoords="offset points", ha="center", size=9)
    names = "\n".join(f"{i + 1}  {row.name}" for i, row in enumerate(best))
    text = f"Nothing cheaper is better than\n\n{names}"
    axes.text(1.02, 1, text, transform=axes.transAxes, va="top", size=8.5, linespacing=1.6)
    axes.set_xlabel("GMACs for one image")
    axes.set_ylabel("ImageNet-1k top-1, %")
    axes.set_title("Public ResNeXt checkpoints", loc="left", fontweight="bold")
    axes.grid(color="#e6e6e6", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}.") from error
    finally:
        plt.close(figure)


def _points(rows: Sequence[Checkpoint]) -> tuple[list[float], list[float]]:
    return [row.gmacs for row in rows], [row.top1 or 0 for row in rows]


def _dots(axes: Axes, rows: Sequence[Checkpoint], colour: str, licence: str) -> None:
    x, y = _points(rows)
    axes.scatter(x, y, s=36, color=colour, alpha=0.85, linewidths=0, label=licence, zorder=3)
