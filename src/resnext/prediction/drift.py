"""Whether a classifier's answers still look like those of a reference; needs no labels.

Two tests of the classifier's own outputs (arXiv:1810.11953): one of how often each class is
answered, one of the probabilities. Images of a new class, a broken camera or another mix of classes
change at least one of them. Nothing here needs torch.
"""

from __future__ import annotations

import csv
import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from resnext.checks import at_least
from resnext.errors import InputError
from resnext.prediction.output import KINDS, needs
from resnext.system.text import counted

ALPHA = 0.05
"""Share of false alarms among answers that are like the reference."""
WINDOW = 1000
"""Newest answers that a monitor looks at."""

_DIGITS = 4  # of a probability
_ROUNDS = 1999  # tables drawn for a p-value
_PARTS = 50  # a monitor computes again when one of so many parts of its window is new


class ClassShare(NamedTuple):
    """How often a class was answered."""

    label: str
    before: float
    """Share of the reference."""
    now: float
    """Share of the answers."""
    z: float
    """The change in standard deviations of chance; above 3 is a change that is not chance."""


@dataclass(frozen=True, eq=False)
class Answers:
    """The most likely class of each image, with its probability.

    Args:
        labels: The classes, each once.
        counts: How often each was answered.
        probabilities: Those of the answers, ascending.
        unreadable: Images without an answer.
    """

    labels: tuple[str, ...]
    counts: Int[np.ndarray, " k"]
    probabilities: Float[np.ndarray, " n"]
    unreadable: int = 0

    @property
    def count(self) -> int:
        """Number of answers."""
        return len(self.probabilities)


@dataclass(frozen=True)
class Drift:
    """Answers compared with a reference.

    Args:
        count: Number of answers.
        reference: Number of answers of the reference.
        label_distance: Half of the summed change of all classes' shares: the part of the answers
            that would have to change. From 0 to 1.
        label_p: Probability of classes that differ at least this much without drift.
        probability_distance: Largest difference of the two distributions of probabilities (that of
            Kolmogorov and Smirnov). From 0 to 1.
        probability_p: Probability of a difference at least as large without drift.
        probability_before: Mean probability of the reference.
        probability_now: Mean probability of the answers.
        classes: All classes, those that grew most first.
        alpha: Accepted share of false alarms.
    """

    count: int
    reference: int
    label_distance: float
    label_p: float
    probability_distance: float
    probability_p: float
    probability_before: float
    probability_now: float
    classes: tuple[ClassShare, ...]
    alpha: float = ALPHA

    @property
    def p(self) -> float:
        """The p-value of both tests together (Bonferroni)."""
        return min(1.0, 2 * min(self.label_p, self.probability_p))

    @property
    def drifted(self) -> bool:
        """Whether the answers differ from the reference by more than chance."""
        return self.p < self.alpha

    @property
    def verdict(self) -> str:
        """The result in one line."""
        rule = f"p = {self.p:.2g}, {'below' if self.drifted else 'not below'} {self.alpha:g}"
        if not self.drifted:
            return f"No drift found in {counted(self.count, 'answer')}: {rule}"
        tests = {"classes": self.label_p, "probabilities": self.probability_p}
        changed = [name for name, p in tests.items() if 2 * p < self.alpha]
        answers = counted(self.count, "answer")
        return f"Drift in {answers}, of the {' and the '.join(changed)}: {rule}"

    def to_dict(self) -> dict[str, Any]:
        """All numbers and the verdict, as JSON values."""
        values = {**self.__dict__, "p": self.p, "drifted": self.drifted, "verdict": self.verdict}
        return values | {"classes": [row._asdict() for row in self.classes]}


def find_drift(answers: Answers, reference: Answers, *, alpha: float = ALPHA) -> Drift:
    """Compare answers with a reference.

    Args:
        answers: The answers.
        reference: Answers of the same model to images as they should be, which it was not trained
            on.
        alpha: Accepted share of false alarms.

    Raises:
        InputError: There are no answers, or `alpha` is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha must be between 0 and 1, not {alpha}.")
    for one, name in ((answers, "The answers"), (reference, "The reference")):
        if not one.count:
            raise InputError(f"{name} must hold at least one answer, not 0.")
    labels = tuple(dict.fromkeys((*reference.labels, *answers.labels)))
    before, now = (_aligned(one, labels) for one in (reference, answers))
    n, m = answers.count, reference.count
    distance, p = _same_probabilities(answers.probabilities, reference.probabilities)
    shares = now / n - before / m
    pooled = (now + before) / (n + m)
    deviation = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    z = np.divide(shares, deviation, out=np.zeros_like(shares), where=deviation > 0)
    order = np.argsort(-shares, kind="stable")
    rows = zip(*(x[order].tolist() for x in (before / m, now / n, z)), strict=True)
    return Drift(
        n,
        m,
        float(np.abs(shares).sum() / 2),
        _same_classes(now, before),
        distance,
        p,
        float(reference.probabilities.mean()),
        float(answers.probabilities.mean()),
        tuple(ClassShare(labels[i], *row) for i, row in zip(order, rows, strict=True)),
        alpha,
    )


class DriftMonitor:
    """The drift of the newest answers of a server, in constant memory. Safe in threads.

    Args:
        reference: Answers of the same model to images as they should be.
        window: Number of newest answers that are compared.

    Raises:
        InputError: The reference is empty, or `window` is less than 1.
    """

    def __init__(self, reference: Answers, window: int = WINDOW) -> None:
        at_least("window", window, 1, error=InputError)
        if not reference.count:
            raise InputError("The reference must hold at least one answer, not 0.")
        self.reference = reference
        self._number = {label: i for i, label in enumerate(reference.labels)}
        self._labels = np.zeros(window, np.int32)
        self._probabilities = np.zeros(window)
        self._added = self._computed = 0
        self._drift: Drift | None = None
        self._lock = threading.Lock()

    def add(self, label: str, probability: float) -> None:
        """Count one answer."""
        with self._lock:
            i = self._added % len(self._labels)
            # classes that the reference never answered count as one
            self._labels[i] = self._number.get(label, len(self._number))
            self._probabilities[i] = probability
            self._added += 1

    def drift(self) -> Drift | None:
        """The result for the newest answers; None before there are as many as the window holds.

        It is computed again when a fiftieth of the window is new. Each result has the accepted
        share of false alarms, so an alarm should need several windows, or a smaller p.
        """
        with self._lock:
            size = len(self._labels)
            if self._added < size:
                return None
            if self._drift is None or self._added - self._computed >= max(1, size // _PARTS):
                counts = np.bincount(self._labels, minlength=len(self._number) + 1)
                labels = (*self.reference.labels, "others")
                newest = Answers(labels, counts, np.sort(self._probabilities))
                self._drift, self._computed = find_drift(newest, self.reference), self._added
            return self._drift


# -- the tests ----------------------------------------------------------------------------------


def _aligned(answers: Answers, labels: tuple[str, ...]) -> Int[np.ndarray, " k"]:
    """Counts in the order of these labels."""
    counts = dict(zip(answers.labels, answers.counts.tolist(), strict=True))
    return np.array([counts.get(label, 0) for label in labels], np.int64)


def _same_classes(now: Int[np.ndarray, " k"], before: Int[np.ndarray, " k"]) -> float:
    """The p-value of Pearson's chi-square for two rows of counts, by drawing tables.

    Tables with the same margins are drawn, so the value also holds for classes with few answers,
    for which the chi-square distribution is wrong.
    """
    total = now + before
    total, now = total[total > 0], now[total > 0]
    n, m = int(now.sum()), int(total.sum() - now.sum())
    expected = total * (n / (n + m))
    drawn = np.random.default_rng(0).multivariate_hypergeometric(
        total, n, _ROUNDS, method="marginals"
    )
    # with fixed margins, the second row's part is the first one's times a constant
    observed = ((now - expected) ** 2 / expected).sum()
    chance = ((drawn - expected) ** 2 / expected).sum(1)
    return float((1 + (chance >= observed - 1e-9).sum()) / (1 + _ROUNDS))


def _same_probabilities(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]
) -> tuple[float, float]:
    """Statistic and p-value of the two-sample Kolmogorov–Smirnov test; both sorted.

    The p-value is that of large samples with Stephens's correction; equal values make it larger.
    Digits that differ between engines and formats do not count.
    """
    a, b = a.round(_DIGITS), b.round(_DIGITS)
    both = np.concatenate([a, b])
    steps = [np.searchsorted(x, both, side="right") / len(x) for x in (a, b)]
    distance = float(np.abs(steps[0] - steps[1]).max())
    root = math.sqrt(len(a) * len(b) / (len(a) + len(b)))
    x = (root + 0.12 + 0.11 / root) * distance
    if x < 0.2:  # the series converges slowly, to 1
        return distance, 1.0
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 101))
    return distance, min(1.0, max(0.0, sum(terms)))


# -- tables ---------------------------------------------------------------------------------------


def read_answers(path: str | Path) -> Answers:
    """The answers in a table that `predict --out` wrote, in memory of a few bytes a row.

    Raises:
        InputError: The file is missing, no such table, or holds no answer.
    """
    path = Path(path)
    read = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}.get(path.suffix)
    if read is None:
        raise InputError(f"{path} must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}.")
    needs(path.suffix)
    counts: dict[str, int] = {}
    probabilities: list[np.ndarray] = []
    unreadable = 0
    try:
        for labels, values in _blocks(read, path):
            good = [(label, x) for label, x in zip(labels, values, strict=True) if label]
            unreadable += len(labels) - len(good)
            for label, _ in good:
                counts[label] = counts.get(label, 0) + 1
            probabilities.append(np.array([x for _, x in good], np.float64))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist. Write it with predict --out.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, TypeError, KeyError, IndexError, csv.Error) as error:
        raise InputError(
            f"{path} is not a table of answers ({error}). Write it with predict --out."
        ) from error
    ordered = np.sort(np.concatenate(probabilities or [np.zeros(0)]))
    if not len(ordered):
        only = f", only {counted(unreadable, 'image')} without one" if unreadable else ""
        raise InputError(f"{path} holds no answer{only}.")
    if not (ordered[0] >= 0 and ordered[-1] <= 1):  # NaN is last
        raise InputError(f"{path} has probabilities that are not from 0 to 1.")
    return Answers(tuple(counts), np.array([*counts.values()]), ordered, unreadable)


_Block = tuple[list[str | None], list[float | None]]
_ROWS = 65536


def _blocks(read: Callable[[Path], Iterator[_Block]], path: Path) -> Iterator[_Block]:
    """Blocks of labels and probabilities; each label needs its probability."""
    for labels, values in read(path):
        if any(label and value is None for label, value in zip(labels, values, strict=True)):
            raise ValueError("a label without a probability")
        yield labels, values


def _csv(path: Path) -> Iterator[_Block]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if missing := {"label", "probability"} - {*(rows.fieldnames or ())}:
            raise ValueError(f"no column {min(missing)}")
        yield from _grouped(
            (row["label"] or None, float(row["probability"]) if row["probability"] else None)
            for row in rows
        )


def _jsonl(path: Path) -> Iterator[_Block]:
    def one(line: str) -> tuple[str | None, float | None]:
        row = json.loads(line)
        return (None, None) if "error" in row else (row["labels"][0], row["probabilities"][0])

    with path.open(encoding="utf-8") as file:
        yield from _grouped(map(one, file))


def _parquet(path: Path) -> Iterator[_Block]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        if missing := {"label", "probability"} - {*file.schema_arrow.names}:
            raise ValueError(f"no column {min(missing)}")
        for batch in file.iter_batches(_ROWS, columns=["label", "probability"]):
            yield batch["label"].to_pylist(), batch["probability"].to_pylist()


def _grouped(rows: Iterator[tuple[str | None, float | None]]) -> Iterator[_Block]:
    labels, values = list[str | None](), list[float | None]()
    for label, value in rows:
        labels.append(label)
        values.append(value)
        if len(labels) == _ROWS:
            yield labels, values
            labels, values = [], []
    yield labels, values
