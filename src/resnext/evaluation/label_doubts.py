"""Labels that are probably wrong, by confident learning (arXiv:1911.00068)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from resnext.data.dataset import ImageSet
from resnext.data.sources.csv_list import readings, separated
from resnext.errors import DataError
from resnext.system.atomic import write_bytes_atomically

COLUMNS = ("path", "label", "suggestion", "score")
"""Columns of the list of doubts."""
_DOUBTFUL = 0.75  # least score: the suggestion is three times as probable as the label
_FLOOR = 1e-3  # below this, probabilities say nothing
_LEARNED = 0.25
"""Least share of labels that a network must be clear about, and largest number of doubts for each
of these: a network whose doubts are mostly wrong labels reaches both well before the end."""


@dataclass(frozen=True, eq=False)
class Opinions:
    """What a network, which did not memorize the labels, says about images; NaN where unknown.

    Args:
        given: Probability of each image's label.
        other: Probability of its most likely other class.
        rival: That class.
    """

    given: Float[np.ndarray, " n"]
    other: Float[np.ndarray, " n"]
    rival: Int[np.ndarray, " n"]

    @staticmethod
    def of(probabilities: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"]) -> Opinions:
        """The opinions in the probabilities of images that were not trained on."""
        rows = np.arange(len(targets))
        others = np.array(probabilities)
        others[rows, targets] = -1.0
        rival = others.argmax(1)
        return Opinions(probabilities[rows, targets], others[rows, rival], rival)


@dataclass(frozen=True)
class Doubt:
    """An image whose label is probably wrong.

    Args:
        split: Its split.
        index: Its position there.
        path: Its file, or another name.
        label: Its label.
        suggestion: The class it seems to belong to.
        score: Probability of the suggestion if it is either that or the label.
    """

    split: str
    index: int
    path: str
    label: str
    suggestion: str
    score: float


@dataclass(frozen=True)
class Doubts:
    """The labels of a split that are probably wrong.

    Args:
        found: They, the most doubtful first; empty if the network has not learned enough.
        why_none: Then, why there is no list, as sentences; otherwise empty.
    """

    found: list[Doubt]
    why_none: str = ""


def find_doubts(
    split: str, images: ImageSet, opinions: Opinions, indices: Int[np.ndarray, " n"] | None = None
) -> Doubts:
    """The images whose label is probably wrong.

    A label is in doubt if another class is more than three times as probable, also in comparison
    with how probable each of the two is on average for the images labelled with it: what is usual
    for a class raises no doubt. Ratios find more flipped labels than differences
    (`benchmarks/label_doubts.py`): an unclear image has several likely classes, a wrong label none.

    There is no list before the network has learned enough. It must be clear about at least a
    quarter of the labels: give them three times the probability of any other class. And there must
    be four of these for each doubt, so that where the network is clear, it contradicts at most a
    fifth of the labels: the noise rate that confident learning estimates.

    Args:
        split: Name of the split.
        images: Its images.
        opinions: What the network says about them.
        indices: Which images the opinions are about; by default all, in order.
    """
    if indices is None:
        indices = np.arange(len(images))
    targets = np.asarray(images.targets, np.int64)[indices]
    known = np.isfinite(opinions.given) & np.isfinite(opinions.other)
    k = len(images.labels)
    total = np.bincount(targets[known], opinions.given[known], k)
    with np.errstate(invalid="ignore"):
        usual = total / np.bincount(targets[known], minlength=k)  # NaN for a class without images
    rows = np.flatnonzero(known)
    given, other = opinions.given[rows] + _FLOOR, opinions.other[rows] + _FLOOR
    score = other / (given + other)
    usual_ratio = usual[opinions.rival[rows]] / (usual[targets[rows]] + _FLOOR)
    doubtful = (score > _DOUBTFUL) & (other / given > usual_ratio)
    clear, doubts = np.count_nonzero(score < 1 - _DOUBTFUL), np.count_nonzero(doubtful)
    if clear < max(_LEARNED * len(rows), doubts / _LEARNED):
        return Doubts(
            [],
            f"The network is clear about {clear / len(rows):.0%} of the labels and contradicts "
            f"{doubts / len(rows):.0%}. A list needs at least {_LEARNED:.0%}, and four times as "
            f"many as it contradicts: a network that has learned less says little about labels. "
            f"Train for longer, with more images or from weights.",
        )
    rows, score = rows[doubtful], score[doubtful]
    found = [
        Doubt(
            split,
            int(indices[rows[i]]),
            images.title(int(indices[rows[i]])),
            images.labels[targets[rows[i]]],
            images.labels[opinions.rival[rows[i]]],
            float(score[i]),
        )
        for i in np.argsort(-score, kind="stable")
    ]
    return Doubts(found)


def ranked(doubts: Iterable[Doubt]) -> list[Doubt]:
    """Doubts of several splits, the most doubtful first."""
    return sorted(doubts, key=lambda doubt: -doubt.score)


def write_doubts(path: Path, doubts: Sequence[Doubt]) -> None:
    """Write a list of doubts as CSV with the columns path, label, suggestion and score.

    Raises:
        CheckpointError: The file cannot be written; an existing one is unchanged.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(COLUMNS)
    table.writerows((d.path, d.label, d.suggestion, f"{d.score:.4f}") for d in doubts)
    write_bytes_atomically(path, text.getvalue().encode("utf-8", "surrogateescape"))


def read_doubts(path: Path) -> list[tuple[str, str, str, float]]:
    """Path, label, suggestion and score of each doubt in a file that `write_doubts` wrote.

    A spreadsheet may have saved it, with its own separators and encoding.

    Raises:
        DataError: The file cannot be read, or is not such a list.
    """
    try:
        found: list[tuple[str, str, str, float]] = []
        for text, encoding in readings(path.read_bytes()):
            text, separator = separated(text)
            rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
            found = [(r["path"], r["label"], r["suggestion"], _number(r["score"])) for r in rows]
            if encoding != "cp1252" or all(Path(x).exists() for x, *_ in found if not x.isascii()):
                break
        return found
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist. Training writes it into its run folder."
        ) from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not a list of doubts ({error}). Wanted the columns {', '.join(COLUMNS)}; "
            f"training writes it again."
        ) from error


def _number(text: str | None) -> float:
    """A number, also as the spreadsheets of many countries write it."""
    return float(str(text).replace(",", "."))
