"""The report of a training run: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from resnext.card import Preprocessing
from resnext.data.dataset import ImageSet
from resnext.data.transforms import prepare
from resnext.errors import DataError
from resnext.evaluation.calibration import expected_calibration_error, interval, reliability
from resnext.evaluation.classification import Evaluation
from resnext.inference.engines.torch import evaluating
from resnext.network import ResNeXt
from resnext.system.atomic import write_bytes_atomically
from resnext.training.report.charts import Line, bars, curves, reliability_diagram

_MOST_CLASSES = 40  # of a confusion matrix that shows them all
_MOST_CONFUSED = 25  # otherwise
_SIDE = 224  # of a picture in the gallery, at least


@dataclass(frozen=True, eq=False)
class Mistake:
    """An image that was taken for something else.

    Args:
        image: What the network saw.
        truth: Its class.
        predicted: What it was taken for.
        confidence: With which probability, from 0 to 1.
        heat: The image with what spoke for the answer; None where the map has one pixel.
        title: The image by name.
    """

    image: Image.Image
    truth: str
    predicted: str
    confidence: float
    heat: Image.Image | None
    title: str


@dataclass(frozen=True, eq=False)
class Facts:
    """What a report tells.

    Args:
        title: Headline.
        data: The data set by name.
        command: What to type to get the same network.
        created: Date and time.
        model: The network by name.
        config: Its config as text.
        parameters: How many numbers it has.
        gmacs: Multiply-accumulates for one image, billions.
        recipe: How it was trained, by name.
        hardware: What it was trained on: processor, cores, memory, GPU.
        versions: Of the software.
        seconds: Whole duration under "total"; beside it parts of that which do not overlap, such
            as "training", "validating", "waiting for data" and "checkpoints".
        history: A dictionary for each epoch: `epoch`, `loss`, `val_accuracy`, `val_nll`,
            `ema_accuracy`, `rate`, `images_per_second` and whatever else. A value may be None.
        evaluation: The best epoch on the validation images, uncalibrated, best with logits.
        temperature: What was fitted on them.
        threshold: Confidence, after the temperature, that makes an answer sure; None if none does.
        summary: How many images there are, and how large they are.
        findings: Problems of the data, a line each.
        train_counts: Images of each class to learn from.
        val_counts: Images of each class to validate with.
        mistakes: The most confident ones.
        events: When the run was stopped and taken up again, a line each.
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
    evaluation: Evaluation
    temperature: float = 1.0
    threshold: float | None = None
    summary: str = ""
    findings: Sequence[str] = ()
    train_counts: Sequence[int] = ()
    val_counts: Sequence[int] = ()
    mistakes: Sequence[Mistake] = ()
    events: Sequence[str] = ()


def write_report(facts: Facts, path: str | Path) -> None:
    """Write a report as one HTML file.

    Args:
        facts: What it tells.
        path: The file; one that exists is replaced.

    Raises:
        CheckpointError: It cannot be written; what was there before still is.
    """
    write_bytes_atomically(Path(path), render(facts).encode())


def render(facts: Facts) -> str:
    """The report as HTML, without anything from elsewhere."""
    result = facts.evaluation
    calibrated = _calibrated(facts)
    chosen = _chosen_classes(result)
    return _template().render(
        facts=facts,
        result=result,
        interval=interval(result.right),
        best=_best_epoch(facts),
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


@torch.no_grad()
def confident_mistakes(
    network: ResNeXt,
    images: ImageSet,
    evaluation: Evaluation,
    how: Preprocessing,
    count: int = 12,
) -> list[Mistake]:
    """The mistakes made with the highest confidence, and what in the image spoke for them.

    Args:
        network: The classifier; its modes and gradients stay as they are.
        images: What was evaluated on.
        evaluation: Its answers.
        how: Preprocessing.
        count: How many, at most.
    """
    wrong = np.flatnonzero(~evaluation.right)
    order = wrong[np.argsort(-evaluation.confidence[wrong], kind="stable")][:count]
    found: list[Mistake] = []
    with evaluating(network):
        for i in order.tolist():
            index, predicted = int(evaluation.indices[i]), int(evaluation.predicted[i])
            try:
                x = prepare(images.open(index, how.colour), how)
            except DataError:
                continue  # it was there a moment ago
            heat, seen = grad_cam(network, x, predicted), _seen(x, how)
            found.append(
                Mistake(
                    image=seen,
                    truth=evaluation.labels[int(evaluation.targets[i])],
                    predicted=evaluation.labels[predicted],
                    confidence=float(evaluation.confidence[i]),
                    heat=None if heat.size == 1 else overlay(seen, heat),
                    title=images.title(index),
                )
            )
    return found


@torch.no_grad()
def grad_cam(
    network: ResNeXt, x: Float[torch.Tensor, "c h w"], label: int
) -> Float[np.ndarray, "h2 w2"]:
    """Where the last stage's map speaks for a class, from 0 to 1 (Grad-CAM, arXiv:1610.02391).

    Between that map and the logits there are only an average and the classifier, so that the
    gradient that Grad-CAM weighs channels by is the classifier's row (section 3.1): no backward
    pass is needed.

    Args:
        network: The classifier, in evaluation mode.
        x: One prepared image.
        label: The class.
    """
    weights = network.fc.weight
    batch = x[None].to(weights.device, weights.dtype)
    features = network.features(batch)[-1][0].float()
    heat = torch.einsum("chw,c->hw", features, weights[label].float()).relu().cpu().numpy()
    top = heat.max(initial=0)
    return heat / top if math.isfinite(top) and top > 0 else np.zeros_like(heat)


def overlay(image: Image.Image, heat: Float[np.ndarray, "h w"]) -> Image.Image:
    """An image in grey, coloured from violet to yellow where the heat is."""
    width, height = (max(side, _SIDE) for side in image.size)
    small = max(image.size) < _SIDE
    resampling = Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC
    grey = np.asarray(image.convert("L").resize((width, height), resampling), np.float32)[..., None]
    values = Image.fromarray(heat.astype(np.float32))
    smooth = values.resize((width, height), Image.Resampling.BICUBIC)
    warmth = np.asarray(smooth).clip(0, 1)[..., None]
    stops = np.array([[40, 18, 80], [168, 46, 104], [238, 110, 60], [255, 214, 102]], np.float32)
    place = warmth[..., 0] * (len(stops) - 1)
    colour = np.stack([np.interp(place, range(len(stops)), stops[:, c]) for c in range(3)], -1)
    amount = 0.72 * np.sqrt(warmth)
    mixed = 0.85 * grey * (1 - amount) + (0.35 * grey / 255 + 0.65) * colour * amount
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": duration, "percent": percent, "count": _count}
    text = files("resnext.training.report").joinpath("report.html").read_text(encoding="utf-8")
    return environment.from_string(text)


def duration(seconds: float) -> str:
    """Seconds as somebody would say them."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60:02} min"


def percent(part: float | None, digits: int = 1) -> str:
    """A part as per cent."""
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


def _calibrated(facts: Facts) -> np.ndarray:
    """Confidence of each answer after temperature scaling."""
    logits = facts.evaluation.logits
    if logits is None or facts.temperature == 1:
        return facts.evaluation.confidence
    scaled = [
        (torch.from_numpy(part).double() / facts.temperature).softmax(1).amax(1).float().numpy()
        for part in np.array_split(logits, len(logits) // 4096 + 1)
    ]
    return np.concatenate(scaled)


def _diagram(confidence: np.ndarray, right: np.ndarray, name: str) -> dict[str, Any] | None:
    if not np.isfinite(confidence).all():
        return None
    table = reliability(confidence, right)
    error = expected_calibration_error(confidence, right)
    return {"name": name, "error": error, "svg": reliability_diagram(table, name)}


def _sure(facts: Facts, confidence: np.ndarray) -> dict[str, Any] | None:
    """What the threshold means on these images."""
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


def _best_epoch(facts: Facts) -> int | None:
    """The epoch whose accuracy is that of the evaluation, the last one if there are several."""
    wanted = facts.evaluation.accuracy
    return next(
        (
            int(row["epoch"])
            for key in ("ema_accuracy", "val_accuracy")
            for row in reversed(facts.history)
            if row.get(key) is not None and abs(row[key] - wanted) < 1e-9
        ),
        None,
    )


def _charts(facts: Facts) -> list[tuple[str, list[Line], Any]]:
    history, best = facts.history, _best_epoch(facts)
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
    """All classes, or those most often mistaken or answered by mistake, in their order."""
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
    """Numbers of each class, the worst first; classes without images last."""
    result = facts.evaluation
    learnt = list(facts.train_counts) or [None] * len(result.labels)
    columns = (result.labels, learnt, result.confusion.sum(1).tolist())
    scores = (result.precision(), result.recall(), result.f1())
    names = ("label", "learnt", "images", "precision", "recall", "f1")
    rows: list[dict[str, Any]] = [
        dict(zip(names, row, strict=True)) for row in zip(*columns, *scores, strict=True)
    ]
    return sorted(rows, key=lambda row: (not row["images"], math.isnan(row["f1"]), row["f1"]))


def _time(seconds: Mapping[str, float]) -> list[tuple[str, float, float, float]]:
    """Parts of the duration: name, seconds, part of all, and how strong their colour is."""
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


def _seen(x: Float[torch.Tensor, "c h w"], how: Preprocessing) -> Image.Image:
    """The image that a prepared one was made from."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (how.mean, how.std))
    pixels = ((x * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    if how.colour == "BGR":
        pixels = pixels.flip(0)
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())


def _uri(image: Image.Image | None) -> str:
    """An image as an address that holds it."""
    if image is None:
        return ""
    kind = "png" if max(image.size) < 64 else "jpeg"
    content = io.BytesIO()
    image.save(content, kind, **({"quality": 85} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
