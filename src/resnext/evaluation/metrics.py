"""Numbers from the logits of a classifier: accuracy, confusion, calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from resnext.data.dataset import ImageSet
from resnext.errors import DataError
from resnext.evaluation.calibration import expected_calibration_error, interval

_NONE = np.zeros(0, np.int32)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured, over `count` images of `data`.

    Args:
        data: The images, by name.
        count: How many.
        accuracy: Part whose class had the highest logit.
        top5: Part whose class was among the five highest; None with five classes or fewer.
        nll: Mean negative log-likelihood of the right class, nats.
        confusion: `(k, k)` counts: row the right class, column the predicted one.
        labels: Names of the classes.
        ece: Expected calibration error over 15 bins; NaN if a logit is not finite.
        targets: Right class of each image.
        predicted: Class with the highest logit.
        confidence: Its probability.
        indices: Position of each image in the set; those that could not be read are left out.
        skipped: Images that could not be read, by name.
        logits: Answers before any calibration, if they were asked for.
    """

    data: str
    count: int
    accuracy: float
    top5: float | None
    nll: float
    confusion: Int[np.ndarray, "k k"]
    labels: tuple[str, ...]
    ece: float = math.nan
    targets: Int[np.ndarray, " n"] = field(default_factory=lambda: _NONE, repr=False)
    predicted: Int[np.ndarray, " n"] = field(default_factory=lambda: _NONE, repr=False)
    confidence: Float[np.ndarray, " n"] = field(
        default_factory=lambda: _NONE.astype(np.float32), repr=False
    )
    indices: Int[np.ndarray, " n"] = field(default_factory=lambda: _NONE, repr=False)
    skipped: tuple[str, ...] = ()
    logits: Float[np.ndarray, "n k"] | None = field(default=None, repr=False)

    @property
    def right(self) -> np.ndarray:
        """Whether each image was recognised."""
        return self.predicted == self.targets

    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the accuracy."""
        return interval(self.right)

    def recall(self) -> list[float]:
        """Part of each class that was recognised; NaN for a class without images."""
        return _parts(self.confusion, self.confusion.sum(1))

    def precision(self) -> list[float]:
        """Part of the answers with each class that is right; NaN for a class never answered."""
        return _parts(self.confusion, self.confusion.sum(0))

    def f1(self) -> list[float]:
        """Harmonic mean of precision and recall; NaN for a class without images and answers."""
        return _parts(2 * self.confusion, self.confusion.sum(0) + self.confusion.sum(1))

    def confusions(self, limit: int | None = None) -> list[tuple[str, str, int]]:
        """The most frequent mistakes: right class, predicted class, how often."""
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        rows, columns = np.nonzero(wrong)
        order = np.argsort(-wrong[rows, columns], kind="stable")[:limit]
        return [
            (self.labels[i], self.labels[j], int(wrong[i, j]))
            for i, j in zip(rows[order], columns[order], strict=True)
        ]

    def metrics(self, prefix: str) -> dict[str, float]:
        """The numbers by name, for a card."""
        values = {"accuracy": self.accuracy, "nll": self.nll, "ece": self.ece}
        if self.top5 is not None:
            values["top5"] = self.top5
        return {
            f"{prefix}_{name}": round(value, 6)
            for name, value in values.items()
            if not (name == "ece" and math.isnan(value))
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but the answer to each image, as plain values; None where there is no number.

        Classes have recall, precision and F1; `confusions` has every kind of mistake.
        """
        rows = zip(
            self.labels,
            self.confusion.sum(1).tolist(),
            *(self.recall(), self.precision(), self.f1()),
            strict=True,
        )
        names = ("label", "images", "recall", "precision", "f1")
        numbers = ("accuracy", "top5", "nll", "ece")
        return {
            "data": self.data,
            "count": self.count,
            **{name: _number(getattr(self, name)) for name in numbers},
            "interval": list(self.interval()),
            "skipped": list(self.skipped),
            "classes": [dict(zip(names, map(_number, row), strict=True)) for row in rows],
            "confusions": [list(row) for row in self.confusions()],
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two classifiers on the same images.

    Args:
        a: What one was measured to be.
        b: The other.
        only_a: Images that only the first has right.
        only_b: Images that only the second has right.
        p: How likely so uneven a division is if both are equally good (McNemar's exact test).
    """

    a: Evaluation
    b: Evaluation
    only_a: int
    only_b: int
    p: float

    def to_dict(self) -> dict[str, Any]:
        """Both evaluations and their difference, as plain values."""
        both = {"a": self.a.to_dict(), "b": self.b.to_dict()}
        return {**both, "only_a": self.only_a, "only_b": self.only_b, "p": self.p}


@dataclass(frozen=True, eq=False)
class EvalOutputs:
    """Logits for images of a set, or for the part of it that one process measured.

    Args:
        logits: A row for each image.
        targets: Right class of each.
        indices: Position of each image in the set.
    """

    logits: Float[Tensor, "n k"]
    targets: Int[Tensor, " n"]
    indices: Int[Tensor, " n"]


def score(
    answers: EvalOutputs, images: ImageSet, *, temperature: float = 1.0, keep_logits: bool = False
) -> Evaluation:
    """Compare answers with the right classes.

    Args:
        answers: Those to all of `images` that could be read.
        images: What was measured on.
        temperature: What logits are divided by before softmax.
        keep_logits: Whether the result holds the logits.

    Raises:
        DataError: There is no answer.
    """
    k, count = len(images.labels), len(answers.indices)
    missing = np.setdiff1d(np.arange(len(images)), answers.indices.numpy())
    skipped = tuple(images.title(i) for i in missing.tolist())
    if not count:
        first = f", such as {skipped[0]}" if skipped else ""
        raise DataError(f"{images.name} has no image that can be read{first}. Nothing is measured.")
    targets = answers.targets
    predicted = answers.logits.argmax(1)
    log_p = torch.cat(
        [(part.double() / temperature).log_softmax(1) for part in answers.logits.split(4096)]
    )
    confidence = log_p.gather(1, predicted[:, None])[:, 0].exp()
    confusion = torch.bincount(targets * k + predicted, minlength=k * k).view(k, k)
    top5 = (answers.logits.topk(5).indices == targets[:, None]).any(1) if k > 5 else None
    right = (predicted == targets).numpy()
    finite = bool(confidence.isfinite().all())
    return Evaluation(
        data=images.name,
        count=count,
        accuracy=int(confusion.trace()) / count,
        top5=None if top5 is None else int(top5.sum()) / count,
        nll=-log_p.gather(1, targets[:, None]).mean().item(),
        confusion=confusion.numpy(),
        labels=images.labels,
        ece=expected_calibration_error(confidence.numpy(), right) if finite else math.nan,
        targets=targets.numpy().astype(np.int32),
        predicted=predicted.numpy().astype(np.int32),
        confidence=confidence.numpy().astype(np.float32),
        indices=answers.indices.numpy().astype(np.int32),
        skipped=skipped,
        logits=answers.logits.numpy() if keep_logits else None,
    )


def _parts(numerator: np.ndarray, totals: np.ndarray) -> list[float]:
    with np.errstate(invalid="ignore"):
        return (np.diag(numerator) / totals).tolist()


def _number(value: Any) -> Any:
    """A value that JSON knows."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
