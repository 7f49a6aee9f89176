"""How good a classifier is on images with known classes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from resnext.card import Preprocessing, card_of
from resnext.data.dataset import ImageSet
from resnext.data.loader import Classifier, EvalLoader, average_views, eval_loader
from resnext.data.open import open_for_evaluation
from resnext.errors import DataError, InputError
from resnext.evaluation.calibration import expected_calibration_error, interval, mcnemar
from resnext.inference.engines.torch import evaluating
from resnext.inference.opener import open_planned
from resnext.inference.optimized import Optimized
from resnext.network import ResNeXt
from resnext.system.device import pick_device
from resnext.system.progress import reporter
from resnext.weights.load import load_classifier

Advance = Callable[[int], None]  # told how many images were just done
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


def evaluate(
    model: ResNeXt | Optimized | str | Path,
    data: str | Path,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: str = "auto",
    views: int = 1,
    keep_logits: bool = False,
    plan: bool = True,
    progress: bool = False,
) -> Evaluation:
    """Measure a classifier on images it has not learnt from.

    Probabilities are calibrated as the model's card says. Images that cannot be read are named in
    the result and left out.

    Args:
        model: A network with a card, or a model file.
        data: A folder of class folders, one with `val` or `test` inside, or "digits". If it is
            the folder the model was trained on, only what training held out is used.
        batch_size: Images at a time.
        workers: Processes that decode images.
        device: "auto", or a torch device.
        views: Test-time augmentation, which averages probabilities: 1 is none; 2 adds the mirror
            image; 10 takes the four corners and the centre of the resized image, and the same of
            its mirror image. Do not mirror what has a left and a right, such as digits and text.
        keep_logits: Whether the result holds the logits.
        plan: Whether to compute a model file as the plan says that `resnext optimize` left
            beside it.
        progress: Whether to show how far it is, on standard error.

    Raises:
        CheckpointError: The file is no model.
        DataError: The data is missing, wholly unreadable, or has classes the model does not know.
        InputError: The model has no card with labels, or an argument makes no sense.
    """
    place = pick_device(device)
    network = _opened(model, device, batch_size, plan, progress)
    card = card_of(network)
    _check(batch_size, workers, views, card.preprocessing)
    images = open_for_evaluation(data, card.labels, card.provenance)
    return _evaluated(network, images, place, batch_size, workers, views, keep_logits, progress)


def compare(
    model_a: ResNeXt | Optimized | str | Path,
    model_b: ResNeXt | Optimized | str | Path,
    data: str | Path,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: str = "auto",
    views: int = 1,
    plan: bool = True,
    progress: bool = False,
) -> Comparison:
    """Measure two classifiers on the same images, which neither has learnt from.

    Args:
        model_a: A network with a card, or a model file.
        model_b: Another. Its classes may be in another order.
        data: As for `evaluate`.
        batch_size: Images at a time.
        workers: Processes that decode images.
        device: "auto", or a torch device.
        views: As for `evaluate`.
        plan: As for `evaluate`.
        progress: Whether to show how far it is, on standard error.

    Raises:
        CheckpointError: A file is no model.
        DataError: As for `evaluate`, or one has learnt from each image that the other has not.
        InputError: A model has no card with labels, or an argument makes no sense.
    """
    place = pick_device(device)
    networks, sets = [], []
    for model in (model_a, model_b):
        network = _opened(model, device, batch_size, plan, progress)
        card = card_of(network)
        _check(batch_size, workers, views, card.preprocessing)
        networks.append(network)
        sets.append(open_for_evaluation(data, card.labels, card.provenance))
    a, b = (
        _evaluated(network, images, place, batch_size, workers, views, False, progress)
        for network, images in zip(networks, _in_common(*sets), strict=True)
    )
    both = np.intersect1d(a.indices, b.indices)
    right = (x.right[np.isin(x.indices, both)] for x in (a, b))
    return Comparison(a, b, *mcnemar(*right))


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


def collect_outputs(
    classify: Classifier,
    loader: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    advance: Advance | None = None,
) -> EvalOutputs:
    """Run a classifier over batches; the answers are in main memory, in single precision.

    Args:
        classify: Images to logits.
        loader: Batches of images and targets. Those that `eval_loader` makes know which images they
            hold; of others it is assumed that they hold all, in order.
        device: Where the classifier wants images.
        advance: Told how many images are done after each batch.
    """
    logits, targets = [torch.zeros(0, 0)], [torch.zeros(0, dtype=torch.int64)]
    with torch.inference_mode():
        for x, right in loader:
            logits.append(classify(x.to(device)).float().cpu())
            targets.append(right)
            if advance:
                advance(len(x))
    indices = loader.done if isinstance(loader, EvalLoader) else range(sum(map(len, targets)))
    table = torch.cat(logits[1:] or logits).clone()  # no inference tensor
    return EvalOutputs(table, torch.cat(targets), torch.tensor([*indices], dtype=torch.int64))


def merge_outputs(parts: Sequence[EvalOutputs]) -> EvalOutputs:
    """The answers of several processes as those of one, each image once, in the set's order."""
    some = [part for part in parts if len(part.indices)] or [*parts[:1]]
    indices = torch.cat([part.indices for part in some])
    order = torch.from_numpy(np.unique(indices.numpy(), return_index=True)[1])
    logits, targets = (
        torch.cat([getattr(x, name) for x in some]) for name in ("logits", "targets")
    )
    return EvalOutputs(logits[order], targets[order], indices[order])


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


def measure(
    classify: Classifier,
    loader: Iterable[tuple[Tensor, Tensor]],
    images: ImageSet,
    device: torch.device,
    advance: Advance | None = None,
) -> Evaluation:
    """Run a classifier over batches of `images` and count: `collect_outputs`, then `score`.

    Raises:
        DataError: No image can be read.
    """
    return score(collect_outputs(classify, loader, device, advance), images)


def _check(batch_size: int, workers: int, views: int, how: Preprocessing) -> None:
    if batch_size < 1 or workers < 0:
        raise InputError(
            f"batch_size must be at least 1 and workers at least 0, not {batch_size} and {workers}."
        )
    if type(views) is not int or views not in (1, 2, 10):
        raise InputError(f"views must be 1, 2 or 10, not {views!r}.")
    if views == 10 and how.resize < how.size:
        raise InputError(
            f"10 views cut corners of {how.size} pixels out of images resized to {how.resize}, "
            f"which have none. Use 1 or 2 views."
        )


def _opened(
    model: ResNeXt | Optimized | str | Path, device: str, batch: int, plan: bool, progress: bool
) -> ResNeXt | Optimized:
    if not isinstance(model, str | Path):
        return model
    found = open_planned(model, device, batch, progress) if plan else None
    return found or load_classifier(model, progress=progress)


def _evaluated(
    model: ResNeXt | Optimized,
    images: ImageSet,
    device: torch.device,
    batch_size: int,
    workers: int,
    views: int,
    keep_logits: bool,
    progress: bool,
) -> Evaluation:
    """A model with a complete card, measured."""
    card = card_of(model)
    at_once = max(batch_size // views, 1)
    loader = eval_loader(
        images, card.preprocessing, batch_size=at_once, workers=workers, views=views
    )
    network = model if isinstance(model, ResNeXt) else None
    dtype = torch.float32 if network is None else network.fc.weight.dtype

    def classify(x: Tensor) -> Tensor:
        return model(x.to(dtype))

    report = reporter(progress)
    report.start("Evaluating", len(images))
    try:
        with evaluating(network.to(device)) if network else nullcontext():
            one = classify if views == 1 else average_views(classify, card.temperature)
            answers = collect_outputs(one, loader, device, report.advance)
    finally:
        report.stop()
    return score(answers, images, temperature=card.temperature, keep_logits=keep_logits)


def _in_common(a: ImageSet, b: ImageSet) -> tuple[ImageSet, ImageSet]:
    """The images of two sets that are in both, in the same order.

    Raises:
        DataError: There are none.
    """
    names = [[_identity(x, i) for i in range(len(x))] for x in (a, b)]
    if names[0] == names[1]:
        return a, b
    place = {name: i for i, name in enumerate(names[1])}
    pairs = [(i, place[name]) for i, name in enumerate(names[0]) if name in place]
    if not pairs:
        raise DataError(f"Neither model is new to any image of {a.name}. Give them other images.")
    name = f"{a.name}, unseen by both"
    return a.select([i for i, _ in pairs], name), b.select([j for _, j in pairs], name)


def _identity(images: ImageSet, index: int) -> str:
    """The same for the same image in every set: its name, or its pixels where it has none."""
    image = images.images[index]
    if isinstance(image, np.ndarray):
        return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()
    return images.title(index)


def _parts(numerator: np.ndarray, totals: np.ndarray) -> list[float]:
    with np.errstate(invalid="ignore"):
        return (np.diag(numerator) / totals).tolist()


def _number(value: Any) -> Any:
    """A value that JSON knows."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
