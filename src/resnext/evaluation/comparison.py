"""Two classifiers on the same images: what changed, and whether the second is worse."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from resnext.calibration import loss_interval
from resnext.data.dataset import ImageSet
from resnext.data.decoding import ValueRange
from resnext.evaluation.metrics import Evaluation

SIGNIFICANT = 0.05
"""McNemar's p below which a difference counts, if no largest loss is given."""


@dataclass(frozen=True)
class Flip:
    """An image that got different classes."""

    index: int
    """Position in the images of the comparison."""
    name: str
    actual: str
    label_a: str
    confidence_a: float
    label_b: str
    confidence_b: float

    @property
    def effect(self) -> str:
        """Which is right: "lost" if only the first model, "gained" if only the second, "other"."""
        if self.actual == self.label_a:
            return "lost"
        return "gained" if self.actual == self.label_b else "other"


class ClassChange(NamedTuple):
    """The recall of a class in both models."""

    label: str
    images: int
    recall_a: float
    recall_b: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two classifiers on the same images.

    Args:
        a: Evaluation of the first.
        b: Evaluation of the second.
        only_a: Number of images that only the first has right.
        only_b: Number of images that only the second has right.
        p: Probability of a split at least this uneven if both are equally good (McNemar's exact
            test).
        images: The images, with the classes in the order of the first model.
        max_loss: Largest accepted loss of accuracy, percentage points; None to accept a loss unless
            it is significant.
        speeds: Images per second of both, measured in turns; None if they were not timed.
        value_range: That of the first model's card, to show images of more than 8 bits.
    """

    a: Evaluation
    b: Evaluation
    only_a: int
    only_b: int
    p: float
    images: ImageSet | None = field(default=None, repr=False)
    max_loss: float | None = None
    speeds: tuple[float, float] | None = None
    value_range: ValueRange = None

    @property
    def count(self) -> int:
        """Number of images that both could read."""
        return len(self._rows[0])

    @property
    def loss(self) -> float:
        """Accuracy of the first minus that of the second, percentage points, on the same images."""
        return 100 * (self.only_a - self.only_b) / self.count

    @property
    def loss_interval(self) -> tuple[float, float]:
        """95 % interval of the loss, percentage points."""
        a, b = self._rows
        low, high = loss_interval(self.a.right[a], self.b.right[b])
        return 100 * low, 100 * high

    @property
    def worse(self) -> bool:
        """Whether the second is worse: beyond `max_loss`, or without it, significantly."""
        if self.max_loss is not None:
            return self.loss > self.max_loss + 1e-9
        return self.loss > 0 and self.p < SIGNIFICANT

    @property
    def verdict(self) -> str:
        """The result in one line."""
        low, high = self.loss_interval
        change = f"{abs(self.loss):.2f} points {'lost' if self.loss > 0 else 'gained'}"
        if not self.loss:
            change = "no accuracy lost or gained"
        if self.max_loss is not None:
            rule = f"at most {self.max_loss:g} may be lost"
        else:
            rule = f"p = {self.p:.2g}, {'below' if self.p < SIGNIFICANT else 'not below'} 0.05"
        better = not self.worse and self.loss < 0 and self.p < SIGNIFICANT
        word = "worse" if self.worse else "better" if better else "not worse"
        return (
            f"B is {word} than A: {change} on {self.count:,} images (95% interval of the loss "
            f"{low:.2f} to {high:.2f}); {rule}"
        )

    def flips(self) -> list[Flip]:
        """The images that got different classes: those lost first, the most confident first."""
        rows_a, rows_b = self._rows
        found: list[Flip] = []
        for i, j in zip(rows_a.tolist(), rows_b.tolist(), strict=True):
            before = self.a.labels[self.a.predicted[i]]
            after = self.b.labels[self.b.predicted[j]]
            if before != after:
                index = int(self.a.indices[i])
                name = str(index) if self.images is None else self.images.title(index)
                actual = self.a.labels[self.a.targets[i]]
                sure = float(self.a.confidence[i]), float(self.b.confidence[j])
                found.append(Flip(index, name, actual, before, sure[0], after, sure[1]))
        order = ("lost", "other", "gained")
        return sorted(found, key=lambda flip: (order.index(flip.effect), -flip.confidence_b))

    def classes(self) -> list[ClassChange]:
        """The recall of each class that has images, those that lost most first."""
        after = dict(zip(self.b.labels, self.b.recall(), strict=True))
        counts = self.a.confusion.sum(1).tolist()
        rows = [
            ClassChange(label, count, recall, after.get(label, math.nan))
            for label, count, recall in zip(self.a.labels, counts, self.a.recall(), strict=True)
            if count
        ]
        return sorted(rows, key=lambda row: row.recall_b - row.recall_a)

    def to_dict(self) -> dict[str, Any]:
        """Both evaluations and their difference, as JSON values."""
        both = {"a": self.a.to_dict(), "b": self.b.to_dict()}
        return {**both, "only_a": self.only_a, "only_b": self.only_b, "p": self.p}

    def report(self) -> dict[str, Any]:
        """What `to_dict` returns, with the verdict, the flipped images and the speeds."""
        return {
            **self.to_dict(),
            "loss": self.loss,
            "loss_interval": list(self.loss_interval),
            "max_loss": self.max_loss,
            "worse": self.worse,
            "verdict": self.verdict,
            "images_per_second": None if self.speeds is None else list(self.speeds),
            "flips": [{**asdict(flip), "effect": flip.effect} for flip in self.flips()],
        }

    @cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        return common_rows(self.a, self.b)


def common_rows(a: Evaluation, b: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the images that both could read, in the same order."""
    both = np.intersect1d(a.indices, b.indices)
    return np.flatnonzero(np.isin(a.indices, both)), np.flatnonzero(np.isin(b.indices, both))
