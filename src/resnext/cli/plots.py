"""Charts of the catalog and of benchmarks. They need matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnext.errors import InputError
from resnext.system.atomic import make_folder
from resnext.weights.catalog import CatalogEntry, frontier

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from resnext.benchmark.results import Benchmark, BenchmarkRow

_COLOURS = {"apache-2.0": "#1f6f8b", "bsd-3-clause": "#3a8f5c", "cc-by-nc-4.0": "#c2672d"}


def plot_catalog(rows: Sequence[CatalogEntry], path: str | Path) -> None:
    """Draw accuracy against cost, and a line through the checkpoints that nothing cheaper beats.

    Args:
        rows: Checkpoints; those without a published accuracy are left out.
        path: File to write: .png, .svg or .pdf.

    Raises:
        InputError: matplotlib is not installed, the suffix is not one of these, the file cannot
            be written, or no checkpoint has a published accuracy.
    """
    path = Path(path)
    check_plot(path)
    rows = [row for row in rows if row.top1 is not None]
    if not rows:
        raise InputError("No checkpoint here has a published accuracy to draw.")
    plt = _pyplot()
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
        point = (row.gmacs, row.top1 or 0)
        axes.annotate(str(i + 1), point, (-9, 4), textcoords="offset points", ha="center", size=9)
    names = "\n".join(f"{i + 1}  {row.name}" for i, row in enumerate(best))
    text = f"Best accuracy for the cost\n\n{names}"
    axes.text(1.02, 1, text, transform=axes.transAxes, va="top", size=8.5, linespacing=1.6)
    axes.set_xlabel("GMACs per image")
    axes.set_ylabel("ImageNet-1k top-1, %")
    axes.set_title("Public ResNeXt checkpoints", loc="left", fontweight="bold")
    axes.grid(color="#e6e6e6", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    _write(figure, path)


def _points(rows: Sequence[CatalogEntry]) -> tuple[list[float], list[float]]:
    return [row.gmacs for row in rows], [row.top1 or 0 for row in rows]


def _dots(axes: Axes, rows: Sequence[CatalogEntry], colour: str, licence: str) -> None:
    x, y = _points(rows)
    axes.scatter(x, y, s=36, color=colour, alpha=0.85, linewidths=0, label=licence, zorder=3)


_PRECISIONS = {"fp32": "#9db4c0", "bf16": "#6b8a9a", "int8": "#465f6d"}
_OURS = {"fp32": "#e8a87c", "bf16": "#d9773f", "int8": "#a8501f"}


def plot_benchmark(benchmark: Benchmark, path: str | Path) -> None:
    """Draw the images per second of every contender, one chart per batch size.

    Args:
        benchmark: The measurements; contenders that failed or gave wrong outputs are left out.
        path: File to write: .png, .svg or .pdf.

    Raises:
        InputError: matplotlib is not installed, the suffix is not one of these, the file cannot
            be written, or every contender failed.
    """
    path = Path(path)
    check_plot(path)
    rows = [row for row in benchmark.rows if not row.note]
    if not rows:
        raise InputError("Nothing to draw: no contender ran.")
    plt = _pyplot()
    batches = sorted({row.batch for row in rows})
    charts = [[row for row in rows if row.batch == batch] for batch in batches]
    height = 1.3 + sum(0.7 + 0.32 * len(chart) for chart in charts)
    figure, axes = plt.subplots(
        len(charts),
        squeeze=False,
        figsize=(9.5, height),
        layout="constrained",
        height_ratios=[len(chart) + 1 for chart in charts],
    )
    for ax, batch, chart in zip(axes[:, 0], batches, charts, strict=True):
        _bars(ax, benchmark, batch, chart)
    axes[-1, 0].set_xlabel("Images per second")
    title = f"{benchmark.name}, {benchmark.size}×{benchmark.size} pixels"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    footer = f"{benchmark.machine}, {benchmark.threads} threads. ms: median time per batch"
    figure.supxlabel(footer, x=0.01, ha="left", fontsize=8.5, color="#777777")
    _write(figure, path)


def _bars(ax: Axes, benchmark: Benchmark, batch: int, rows: list[BenchmarkRow]) -> None:
    """One chart: the fastest on top, resnext highlighted and compared with the best peer."""
    rows = sorted(rows, key=lambda row: row.images_per_second)
    ratios = {(r.batch, r.precision): r.times for r in benchmark.ratios()}
    speeds = [row.images_per_second for row in rows]
    for i, row in enumerate(rows):
        ours = row.who == "resnext"
        colour = (_OURS if ours else _PRECISIONS)[row.precision]
        ax.barh(i, row.images_per_second, 0.72, color=colour, zorder=2)
        text = f"{row.images_per_second:,.1f}   {row.p50:,.1f} ms"
        times = ratios.get((batch, row.precision)) if ours else None
        text += f"   {times:.2f}× the best peer" if times is not None else ""
        end = (row.images_per_second, i)
        weight = "bold" if ours else "normal"
        ax.annotate(
            text,
            end,
            (6, 0),
            textcoords="offset points",
            va="center",
            size=8.5,
            weight=weight,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    ax.set_yticks(range(len(rows)), [f"{row.who}  {row.precision}" for row in rows], size=9)
    for label, row in zip(ax.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.who == "resnext" else "normal")
    ax.set_xlim(0, 1.6 * max(speeds))
    ax.set_xticks([tick for tick in ax.get_xticks() if 0 <= tick <= 1.02 * max(speeds)])
    ax.tick_params(length=0)
    ax.grid(axis="x", color="#e6e6e6", zorder=0)
    ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
    ax.set_title(f"Batch size {batch}", loc="left", size=10)


def check_plot(path: Path) -> None:
    """Refuse what cannot be drawn, before the work whose result is drawn.

    Raises:
        InputError: The suffix is not that of a plot, or matplotlib is not installed.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"A plot must be a .png, .svg or .pdf file, not {path.name!r}.")
    _pyplot()


def _pyplot() -> Any:
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise InputError("Plots need matplotlib: pip install 'resnext[plot]'.") from error
    return plt


def _write(figure: Any, path: Path) -> None:
    plt = _pyplot()
    make_folder(path, InputError)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}.") from error
    finally:
        plt.close(figure)
