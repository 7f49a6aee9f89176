"""Numbers from the logits of a classifier: accuracy, confusion, calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from resnext.calibration import expected_calibration_error, interval
from resnext.data.dataset import ImageSet
from resnext.errors import DataError

_NONE = np.zeros(0, np.int32)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How well a classifier predicts `count` images of `data`.

    Args:
        data: Name of the images.
        count: Number of images.
        accuracy: Fraction whose right class has the highest logit.
        top5: Fraction whose right class is among the five highest; None with five classes or fewer.
        nll: Mean negative log-likelihood of the right class, in nats.
        confusion: `(k, k)` counts: rows are right classes, columns predicted ones.
        labels: Names of the classes.
        ece: Expected calibration error over 15 bins; NaN if a logit is not finite.
        targets: Right class of each image.
        predicted: Class with the highest logit, for each image.
        confidence: Probability of the predicted class, for each image.
        indices: Position of each image in the set; unreadable ones are left out.
        skipped: Names of the images that could not be read, and of samples without image or class.
        logits: Logits before calibration, if they were asked for.
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
        """Whether each prediction is right."""
        return self.predicted == self.targets

    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the accuracy."""
        return interval(self.right)

    def recall(self) -> list[float]:
        """Fraction of each class's images predicted right; NaN for a class without images."""
        return _fractions(self.confusion, self.confusion.sum(1))

    def precision(self) -> list[float]:
        """Fraction of each class's predictions that are right; NaN for a class never predicted."""
        return _fractions(self.confusion, self.confusion.sum(0))

    def f1(self) -> list[float]:
        """Harmonic mean of precision and recall; NaN for a class without images and predictions."""
        return _fractions(2 * self.confusion, self.confusion.sum(0) + self.confusion.sum(1))

    def confusions(self, limit: int | None = None) -> list[tuple[str, str, int]]:
        """The most frequent confusions: right class, predicted class, number of images."""
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        rows, columns = np.nonzero(wrong)
        order = np.argsort(-wrong[rows, columns], kind="stable")[:limit]
        return [
            (self.labels[i], self.labels[j], int(wrong[i, j]))
            for i, j in zip(rows[order], columns[order], strict=True)
        ]

    def metrics(self, prefix: str) -> dict[str, float]:
        """The numbers by name, as in a card: `{prefix}_accuracy`, …."""
        values = {"accuracy": self.accuracy, "nll": self.nll, "ece": self.ece}
        if self.top5 is not None:
            values["top5"] = self.top5
        return {
            f"{prefix}_{name}": round(value, 6)
            for name, value in values.items()
            if not (name == "ece" and math.isnan(value))
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but the predictions of single images, as JSON values; None for NaN.

        Each class has recall, precision and F1; `confusions` has every kind of mistake.
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
class EvalOutputs:
    """Logits for the images of a set, or for those that one of several processes computed.

    Args:
        logits: `(n, k)`, one row per image.
        targets: Right class of each image.
        indices: Position of each image in the set.
    """

    logits: Float[Tensor, "n k"]
    targets: Int[Tensor, " n"]
    indices: Int[Tensor, " n"]


def score(
    answers: EvalOutputs,
    images: ImageSet,
    *,
    temperature: float | Float[np.ndarray, " n"] = 1.0,
    keep_logits: bool = False,
) -> Evaluation:
    """Compare predictions with the right classes.

    Args:
        answers: Outputs for all `images` that could be read.
        images: The image set.
        temperature: Divides the logits before the softmax; one for all, or `(n,)` for each image.
        keep_logits: Whether the result holds the logits.

    Raises:
        DataError: No image could be read.
    """
    k, count = len(images.labels), len(answers.indices)
    missing = np.setdiff1d(np.arange(len(images)), answers.indices.numpy())
    skipped = (*images.lacking, *(images.title(i) for i in missing.tolist()))
    if not count:
        first = f", such as {skipped[0]}" if skipped else ""
        raise DataError(f"{images.name} has no image that can be read{first}. Give other images.")
    targets = answers.targets
    predicted = answers.logits.argmax(1)
    divisors = torch.as_tensor(temperature, dtype=torch.float64).expand(count)[:, None]
    chunks = zip(answers.logits.split(4096), divisors.split(4096), strict=True)
    log_p = torch.cat([(logits.double() / divisor).log_softmax(1) for logits, divisor in chunks])
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


def _fractions(numerator: np.ndarray, totals: np.ndarray) -> list[float]:
    with np.errstate(invalid="ignore"):
        return (np.diag(numerator) / totals).tolist()


def _number(value: Any) -> Any:
    """A JSON value: None instead of NaN or infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
