"""The report of a training run: one self-contained HTML file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnext.calibration import expected_calibration_error, interval, reliability
from resnext.evaluation.metrics import Evaluation
from resnext.explanation.page import image_url
from resnext.pages.template import read_template
from resnext.prediction.contact_sheet import by_class
from resnext.system.atomic import write_bytes_atomically
from resnext.training.report.charts import Line, bars, curves, reliability_diagram
from resnext.training.report.examples import ClassExamples, Mistake

_MOST_CLASSES = 40  # with more classes, the confusion matrix shows only the most confused
_MOST_CONFUSED = 25  # classes that it then shows


@dataclass(frozen=True, eq=False)
class Facts:
    """Everything a report shows.

    Args:
        title: Headline.
        data: Name of the data set.
        command: Command that repeats the run.
        created: Date and time.
        model: Name of the network.
        config: Config of the network, as text.
        parameters: Number of parameters.
        gmacs: Billions of multiply-accumulates per image.
        recipe: Fields of the recipe.
        hardware: Processor, threads, memory, GPU.
        versions: Versions of the software.
        seconds: Duration of the run under "total", and of its activities, which do not overlap:
            "training", "validating", "waiting for images", "checkpoints".
        history: One dictionary per epoch: `epoch`, `loss`, `val_accuracy`, `val_nll`,
            `ema_accuracy`, `rate`, `images_per_second` and more. A value may be None.
        best_epoch: Epoch whose weights were kept; None if none was completed.
        evaluation: The best epoch on the validation images, without temperature.
        temperature: Temperature fitted on the validation images.
        calibrated: Confidence of each prediction of `evaluation` after temperature scaling; None if
            there was none.
        threshold: Lowest calibrated confidence of a prediction that counts as sure; None if no
            threshold is reliable.
        summary: Number and size of the images.
        findings: Problems found in the data, one line each.
        train_counts: Training images of each class.
        val_counts: Validation images of each class.
        mistakes: The most confident mistakes.
        examples: Typical, doubtful and wrong images of each class.
        doubts: The most doubtful labels; `predicted` is the suggestion, `confidence` the score.
        doubt_count: Number of doubtful labels.
        undoubted: Why there is no list of doubtful labels, for the images of which this holds:
            "training" or "validation".
        review: Command that shows all doubts.
        map: Map of the images, as HTML; empty without one.
        events: Interruptions and retries of the run, one line each.
        strengths: For the recipe `probe`, which has no epochs: each strength that was tried, with
            its log loss in cross-validation. None for recipes with epochs.
        teacher: Comparison with the teacher, as one sentence; empty without a teacher.
    """

    title: str
    data: str
    command: str
    created: str
    model: str
    config: str
    parameters: int
    gmacs: float
    recipe: Mapping[str, Any]
    hardware: Mapping[str, Any]
    versions: Mapping[str, Any]
    seconds: Mapping[str, float]
    history: Sequence[Mapping[str, Any]]
    best_epoch: int | None
    evaluation: Evaluation
    temperature: float = 1.0
    calibrated: np.ndarray | None = None
    threshold: float | None = None
    summary: str = ""
    findings: Sequence[str] = ()
    train_counts: Sequence[int] = ()
    val_counts: Sequence[int] = ()
    mistakes: Sequence[Mistake] = ()
    examples: Sequence[ClassExamples] = ()
    doubts: Sequence[Mistake] = ()
    doubt_count: int = 0
    undoubted: Mapping[str, str] = field(default_factory=dict)
    review: str = ""
    map: str = ""
    events: Sequence[str] = ()
    strengths: Sequence[tuple[float, float]] | None = None
    teacher: str = ""


def write_report(facts: Facts, path: str | Path) -> None:
    """Write a report as one HTML file.

    Args:
        facts: Content of the report.
        path: The file; an existing one is replaced.

    Raises:
        CheckpointError: The file cannot be written; an existing file is unchanged.
    """
    page = render(facts).encode("utf-8", "backslashreplace")  # names of files
    write_bytes_atomically(Path(path), page)


def render(facts: Facts) -> str:
    """The report as HTML that loads nothing from elsewhere."""
    result = facts.evaluation
    calibrated = result.confidence if facts.calibrated is None else facts.calibrated
    chosen = _chosen_classes(result)
    return _template().render(
        facts=facts,
        result=result,
        interval=interval(result.right),
        best=facts.best_epoch,
        charts=_charts(facts),
        matrix=_matrix(result, chosen),
        confusions=result.confusions(8),
        classes=_classes(facts),
        balance=[
            (name, counts, bars(counts, f"{name} images of each class"))
            for name, counts in (("Training", facts.train_counts), ("Validation", facts.val_counts))
            if len(counts)
        ],
        before=_diagram(result.confidence, result.right, "As trained"),
        after=_diagram(calibrated, result.right, "After temperature scaling"),
        sure=_sure(facts, calibrated),
        pictures=[(mistake, _uri(mistake.image), _uri(mistake.heat)) for mistake in facts.mistakes],
        time=_time(facts.seconds),
        speed=_speed(facts.history),
    )


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "duration": duration,
        "percent": percent,
        "count": _count,
        "uri": _uri,
        "by_class": by_class,
    }
    return environment.from_string(read_template("resnext.training.report", "report.html"))


def duration(seconds: float) -> str:
    """Seconds in readable units: seconds, minutes or hours."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60:02} min"


def percent(part: float | None, digits: int = 1) -> str:
    """A fraction as a percentage; "–" for None or NaN."""
    return (
        "–"
        if part is None or not math.isfinite(part)
        else f"{100 * part:.{digits}f}\N{NO-BREAK SPACE}%"
    )


def _count(value: float) -> str:
    for size, unit in ((1e9, " billion"), (1e6, " M"), (1e4, " k")):
        if value >= size:
            return f"{value / (1e3 if size == 1e4 else size):.1f}{unit}"
    return f"{value:,.0f}"


def _diagram(confidence: np.ndarray, right: np.ndarray, name: str) -> dict[str, Any] | None:
    if not np.isfinite(confidence).all():
        return None
    table = reliability(confidence, right)
    error = expected_calibration_error(confidence, right)
    return {"name": name, "error": error, "svg": reliability_diagram(table, name)}


def _sure(facts: Facts, confidence: np.ndarray) -> dict[str, Any] | None:
    """Predictions above the threshold on the validation images, and their accuracy."""
    if facts.threshold is None:
        return None
    accepted = confidence >= facts.threshold
    right = facts.evaluation.right[accepted]
    return {
        "count": int(accepted.sum()),
        "right": int(right.sum()),
        "part": float(accepted.mean()),
        "accuracy": float(right.mean()) if len(right) else None,
    }


def _values(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [
        (float(row["epoch"]), math.nan if row.get(key) is None else float(row[key]))
        for row in history
    ]


def _charts(facts: Facts) -> list[tuple[str, list[Line], Any]]:
    history, best = facts.history, facts.best_epoch
    drawn = []
    for name, keys, form in (
        ("Loss", (("loss", "Training"), ("val_nll", "Validation")), lambda y: f"{y:.3g}"),
        (
            "Accuracy",
            (("val_accuracy", "Weights as trained"), ("ema_accuracy", "Averaged weights")),
            lambda y: f"{100 * y:.4g} %",
        ),
        ("Learning rate", (("rate", "Learning rate"),), lambda y: f"{y:.3g}"),
    ):
        lines = [
            Line(title, _values(history, key), style)
            for (key, title), style in zip(keys, ("first", "second"), strict=False)
        ]
        lines = [line for line in lines if line.finite]
        if lines:
            drawn.append((name, lines, curves(lines, form, mark=best)))
    return drawn


def _chosen_classes(result: Evaluation) -> list[int]:
    """Indices of all classes, or of those with the most errors if they are too many to show."""
    k = len(result.labels)
    if k <= _MOST_CLASSES:
        return list(range(k))
    wrong = result.confusion - np.diag(np.diag(result.confusion))
    return sorted(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:_MOST_CONFUSED])


def _matrix(result: Evaluation, chosen: list[int]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Rows of the confusion matrix: the class, and its cells."""
    totals = result.confusion.sum(1)
    rows = []
    for i in chosen:
        cells = []
        for j in chosen:
            count = int(result.confusion[i, j])
            part = count / totals[i] if count else 0.0
            strength = round((0.12 + 0.88 * math.sqrt(part)) * 100) if count else 0
            cells.append(
                {
                    "count": count,
                    "kind": "" if not count else "hit" if i == j else "miss",
                    "strength": strength,
                    "predicted": result.labels[j],
                }
            )
        rows.append((result.labels[i], cells))
    return rows


def _classes(facts: Facts) -> list[dict[str, Any]]:
    """Metrics of each class, the worst first; classes without images last."""
    result = facts.evaluation
    trained = list(facts.train_counts) or [None] * len(result.labels)
    columns = (result.labels, trained, result.confusion.sum(1).tolist())
    scores = (result.precision(), result.recall(), result.f1())
    names = ("label", "trained", "images", "precision", "recall", "f1")
    rows: list[dict[str, Any]] = [
        dict(zip(names, row, strict=True)) for row in zip(*columns, *scores, strict=True)
    ]
    return sorted(rows, key=lambda row: (not row["images"], math.isnan(row["f1"]), row["f1"]))


def _time(seconds: Mapping[str, float]) -> list[tuple[str, float, float, float]]:
    """Parts of the duration: name, seconds, fraction of the total, and opacity of the colour."""
    parts = {name: value for name, value in seconds.items() if name != "total"}
    total = max(seconds.get("total", 0.0), sum(parts.values()), 1e-9)
    rest = total - sum(parts.values())
    if rest > 0.005 * total:
        parts["everything else"] = rest
    shades = [round(0.62**i, 2) for i in range(len(parts))]
    return [
        (name, value, value / total, shade)
        for (name, value), shade in zip(parts.items(), shades, strict=True)
    ]


def _speed(history: Sequence[Mapping[str, Any]]) -> float | None:
    speeds = [row["images_per_second"] for row in history if row.get("images_per_second")]
    return float(np.median(speeds)) if speeds else None


def _uri(image: Image.Image | None) -> str:
    """An image as a data URI; empty for None."""
    return "" if image is None else image_url(image)
