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
    figure, axes = plt.subplots(figsize=(10, 6.2), layout="constrained")
    for licence, colour in _COLOURS.items():
        own = [row for row in rows if row.licence == licence]
        axes.scatter(
            [row.gmacs for row in own],
            [row.top1 for row in own],  # pyright: ignore
            s=34,
            color=colour,
            alpha=0.85,
            linewidths=0,
            label=licence,
            zorder=3,
        )
    best = frontier(rows)
    axes.plot(
        [row.gmacs for row in best],
        [row.top1 for row in best],  # pyright: ignore
        color="#8a8a8a",
        linewidth=1,
        zorder=2,
    )
    for i, row in enumerate(best):
        _label(axes, row, left=i % 2 == 1)
    axes.set_xscale("log")
    ticks = [4, 8, 16, 32, 64, 128]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
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


def _label(axes: Axes, row: Checkpoint, *, left: bool) -> None:
    axes.annotate(
        row.name,
        (row.gmacs, row.top1 or 0),
        xytext=(-6, 5) if left else (6, -10),
        textcoords="offset points",
        ha="right" if left else "left",
        fontsize=7.5,
        color="#444444",
    )
