"""The tables that commands print."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Column, Table

from resnext.system.terminal import new_console, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from resnext.evaluation.comparison import Comparison
    from resnext.evaluation.metrics import Evaluation
    from resnext.explanation import Explanation
    from resnext.neighbours.index import Neighbour
    from resnext.prediction.drift import Drift
    from resnext.prediction.images import Prediction
    from resnext.summary import Summary
    from resnext.weights.catalog import CatalogEntry
    from resnext.weights.diagnosis import Diagnosis

_ALL_CLASSES = 40  # with more classes, only the worst are printed
_WORST_CLASSES = 20
_FLIPS = 10  # flipped images that are printed
_CHANGED = 3.0  # standard deviations of chance
_NARROW = 90  # in a terminal with fewer columns, the catalog omits one


def plain(text: str) -> str:
    """Untrusted text, made safe to print: without markup and terminal control characters."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def variants_table(summaries: Iterable[tuple[str, Summary]]) -> Table:
    """All variants, with image size, parameters and cost."""
    table = _table("Variant", *_right("Size", "Parameters", "GMACs"))
    for name, summary in summaries:
        macs = f"{summary.macs / 1e9:.2f}"
        table.add_row(name, str(summary.size[0]), f"{summary.parameters:,}", macs)
    return table


def network_table(summary: Summary, *, classifier: bool = True) -> Table:
    """The stages of a network and their total; without the last row for a backbone."""
    output = Column("Output", justify="right", no_wrap=True)
    names = ("Blocks", "Width", "Groups", "Parameters", "GMACs", "Receptive\nfield")
    table = _table("Stage", output, *_right(*names))
    stages = summary.rows if classifier else summary.rows[:-1]
    for stage in stages:
        h, w = stage.size
        table.add_row(
            stage.name,
            f"{stage.channels:,} × {h}×{w}",
            str(stage.blocks or ""),
            f"{stage.width:,}" if stage.width else "",
            str(stage.groups if stage.blocks else ""),
            f"{stage.parameters:,}",
            f"{stage.macs / 1e9:.3f}",
            str(stage.receptive_field or "image"),
        )
    table.add_section()
    parameters = sum(stage.parameters for stage in stages)
    totals = f"{parameters:,}", f"{summary.macs / 1e9:.2f}", str(summary.receptive_field)
    table.add_row("total", "", "", "", "", *totals, style="bold")
    return table


def print_evaluation(result: Evaluation) -> None:
    """Print the classes, the most frequent confusions and the overall numbers."""
    console = new_console()
    classes, shown = _classes_table(result)
    console.print(classes)
    if shown < len(result.labels):
        print(f"The {shown} classes with the lowest F1, of {len(result.labels):,}")
    if frequent := result.confusions(5):
        confusions = _table("Actual", "Predicted", *_right("Images"))
        for actual, predicted, count in frequent:
            confusions.add_row(plain(actual), plain(predicted), f"{count:,}")
        console.print("\nMost frequent confusions", style="bold")
        console.print(confusions)
    low, high = result.interval()
    top5 = "" if result.top5 is None else f", top-5 {result.top5:.2%}"
    console.print(
        f"\n{plain(result.data)}: {result.count:,} images, accuracy "
        f"[bold]{result.accuracy:.2%}[/] (95% interval {low:.2%} to {high:.2%}){top5}, "
        f"negative log-likelihood {result.nll:.4f}, calibration error {result.ece:.2%}",
        highlight=False,
    )
    _print_skipped(console, result)


def _print_skipped(console: Console, result: Evaluation) -> None:
    """Print the names of the first images that could not be read."""
    if result.skipped:
        more = f" and {len(result.skipped) - 5:,} more" if len(result.skipped) > 5 else ""
        names = ", ".join(plain(name) for name in result.skipped[:5])
        console.print(f"Skipped, could not be read: {names}{more}", highlight=False)


def _classes_table(result: Evaluation) -> tuple[Table, int]:
    """The scores of all classes, or only of the worst if there are many, and the number shown."""
    confusion = result.confusion
    columns = ("Images", "Recall", "Precision", "F1")
    table = _table("Class", *_right(*columns), "Mostly confused with")
    scores = [*zip(result.recall(), result.precision(), result.f1(), strict=True)]
    shown = list(range(len(scores)))
    if len(shown) > _ALL_CLASSES:
        with_images = (i for i in shown if confusion[i].any())
        shown = sorted(with_images, key=lambda i: scores[i][2])[:_WORST_CLASSES]
    for i in shown:
        wrong = confusion[i].copy()
        wrong[i] = 0
        other = f"{plain(result.labels[wrong.argmax()])} ({wrong.max():,})" if wrong.any() else ""
        numbers = ["–" if math.isnan(x) else f"{x:.1%}" for x in scores[i]]
        table.add_row(plain(result.labels[i]), f"{confusion[i].sum():,}", *numbers, other)
    return table, len(shown)


def print_drift(drift: Drift) -> None:
    """Print both tests, and the classes whose share changed by more than chance."""
    console = new_console()
    tests = _table("", *_right("Reference", "Answers", "Difference", "p"))
    for name, before, now, distance, p in (
        ("Answers", f"{drift.reference:,}", f"{drift.count:,}", "", ""),
        ("Classes", "", "", f"{drift.label_distance:.1%}", f"{drift.label_p:.2g}"),
        (
            "Mean probability",
            f"{drift.probability_before:.1%}",
            f"{drift.probability_now:.1%}",
            f"{drift.probability_distance:.1%}",
            f"{drift.probability_p:.2g}",
        ),
    ):
        tests.add_row(name, before, now, distance, p)
    console.print(tests, highlight=False)
    changed = [row for row in drift.classes if abs(row.z) > _CHANGED]
    if not drift.drifted or not changed:
        return
    classes = _table("Class", *_right("Reference", "Answers", "Change"))
    for row in changed:
        shares = f"{row.before:.1%}", f"{row.now:.1%}", f"{100 * (row.now - row.before):+.1f}"
        classes.add_row(plain(row.label), *shares)
    console.print("\nClasses whose share changed, those that grew most first", style="bold")
    console.print(classes, highlight=False)


def print_comparison(result: Comparison, megabytes: Sequence[float | None]) -> None:
    """Print both models side by side, the classes and images that changed, and McNemar's test."""
    console = new_console()
    a, b = result.a, result.b
    both = _table("", *_right("A", "B", "Change"))
    low, high = result.loss_interval
    both.add_row(
        "Accuracy",
        f"{a.accuracy:.2%}",
        f"{b.accuracy:.2%}",
        f"{0 - result.loss:+.2f} points ({0 - high:+.2f} to {0 - low:+.2f})",
    )
    both.add_row(
        "Calibration error", f"{a.ece:.2%}", f"{b.ece:.2%}", f"{100 * (b.ece - a.ece):+.2f}"
    )
    both.add_row("Negative log-likelihood", f"{a.nll:.4f}", f"{b.nll:.4f}", f"{b.nll - a.nll:+.4f}")
    if result.speeds is not None:
        first, second = result.speeds
        both.add_row("Images/s", f"{first:,.0f}", f"{second:,.0f}", f"× {second / first:.2f}")
    sizes = ["–" if size is None else f"{size:,.1f} MB" for size in megabytes]
    old, new = megabytes
    both.add_row("File", *sizes, f"× {new / old:.2f}" if old and new else "")
    console.print(both, highlight=False)
    _print_skipped(console, a)
    changed = [row for row in result.classes() if row.recall_a != row.recall_b]
    if changed:
        classes = _table("Class", *_right("Images", "Recall A", "Recall B", "Change"))
        for row in changed[:_WORST_CLASSES]:
            recalls = row.recall_a, row.recall_b
            change = f"{100 * (row.recall_b - row.recall_a):+.1f}"
            cells = (*(f"{recall:.1%}" for recall in recalls), change)
            classes.add_row(plain(row.label), f"{row.images:,}", *cells)
        console.print("\nClasses whose recall changed, the worst first", style="bold")
        console.print(classes, highlight=False)
    flips = result.flips()
    if flips:
        images = _table(Column("Image", overflow="fold"), "Actual", "A", "B")
        for flip in flips[:_FLIPS]:
            answers = (
                f"{plain(label)} {sure:.0%}"
                for label, sure in (
                    (flip.label_a, flip.confidence_a),
                    (flip.label_b, flip.confidence_b),
                )
            )
            images.add_row(plain(flip.name), plain(flip.actual), *answers)
        console.print(f"\n{len(flips):,} images got another class, lost ones first", style="bold")
        print_table(images, console)
    print(
        f"\nOnly A is right on {result.only_a:,} images, only B on {result.only_b:,}; "
        f"p = {result.p:.2g} (McNemar's exact test)"
    )


def predictions_table(predictions: Sequence[Prediction]) -> Table:
    """The most likely classes of each image, marked if not sure, or like none of the classes."""
    table = _table(Column("Image", overflow="fold"), "Class", *_right("Probability"))
    for prediction in predictions:
        pairs = zip(prediction.labels, prediction.probabilities, strict=True)
        for i, (label, probability) in enumerate(pairs):
            name = "" if i else plain(prediction.name)
            mark = "" if i or prediction.sure else " ?"
            mark += " (unknown)" if i == 0 and prediction.unknown else ""
            table.add_row(name, plain(label) + mark, f"{probability:.2%}")
        for one in prediction.like:
            table.add_row(*_similar_row(one))
    return table


def neighbours_table(neighbours: Iterable[Neighbour]) -> Table:
    """Images of an index, with their distance."""
    table = _table(Column("Image", overflow="fold"), "Class", *_right("Distance"))
    for one in neighbours:
        table.add_row(plain(one.name), plain(one.label or "–"), f"{one.distance:.3f}")
    return table


def _similar_row(one: Neighbour) -> tuple[str, str, str]:
    """The row of a similar image below that of a prediction."""
    return f"  like {plain(one.name)}", plain(one.label or "–"), f"{one.distance:.3f} away"


def explanations_table(explanations: Sequence[Explanation]) -> Table:
    """What each explained number is made of, and whether its map passed the check."""
    from resnext.explanation.deletion import RANDOM_MAPS
    from resnext.explanation.sheet import signed, title

    numbers = ("Probability", "For", "Against", "Bias", "Sum", "Off by", "Check")
    table = _table(Column("Image", overflow="fold"), "Class", *_right(*numbers))
    for one in explanations:
        error, check = one.completeness_error, one.check
        adds_up = error is not None
        parts = one.evidence_for, one.evidence_against, one.bias, one.score
        table.add_row(
            plain(one.name),
            plain(title(one)),
            f"{one.probability:.2%}",
            *(signed(x) if adds_up else "–" for x in parts),
            f"{error:.0e}" if adds_up else "–",
            "–" if check is None else f"{'' if check.passed else '! '}{check.beaten}/{RANDOM_MAPS}",
        )
        for similar in one.like:
            table.add_row(*_similar_row(similar))
    return table


def catalog_table(checkpoints: Sequence[CatalogEntry], width: int) -> Table:
    """Public checkpoints, with a mark at those that no cheaper one beats.

    Names are never cut, because they are copied; a narrow terminal shows no top-5 accuracy.
    """
    from resnext.weights.catalog import frontier

    best = {checkpoint.name for checkpoint in frontier(checkpoints)}
    accuracies = ("Top-1", "Top-5") if width >= _NARROW else ("Top-1",)
    name = Column("Name", overflow="fold")
    table = _table("", name, *_right(*accuracies, "GMACs", "Size"), "Licence")
    for checkpoint in checkpoints:
        values = (checkpoint.top1, checkpoint.top5)[: len(accuracies)]
        table.add_row(
            "●" if checkpoint.name in best else "",
            checkpoint.name,
            *("–" if x is None else f"{x:.2f}" for x in values),
            f"{checkpoint.gmacs:.1f}",
            str(checkpoint.size),
            checkpoint.licence or "not stated",
        )
    return table


def diagnosis_table(diagnosis: Diagnosis) -> Table:
    """The facts about a file, then notes, problems and the next steps."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in diagnosis.facts():
        table.add_row(name, plain(value))
    if diagnosis.tensors and not diagnosis.problems:
        table.add_row("Health", "✓ every number is finite, every norm is alive")
    for title, lines, mark in (
        ("Notes", diagnosis.notes, "·"),
        ("Problems", diagnosis.problems, "✗"),
        ("Next", diagnosis.advice, "→"),
    ):
        for i, line in enumerate(lines):
            table.add_row("" if i else title, f"{mark} {plain(line)}")
    return table


def _table(*columns: str | Column) -> Table:
    return Table(*columns, box=None, header_style="bold", pad_edge=False)


def _right(*names: str) -> list[Column]:
    """Columns of numbers."""
    return [Column(name, justify="right") for name in names]
