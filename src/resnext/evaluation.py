"""How good a classifier is on images with known classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from resnext.card import Card, Preprocessing
from resnext.data import ImageSet, open_for_evaluation
from resnext.device import pick_device
from resnext.errors import DataError, InputError
from resnext.network import ResNeXt
from resnext.progress import reporter
from resnext.transforms import prepare
from resnext.weights.loading import load_classifier

Classifier = Callable[[Float[Tensor, "n c h w"]], Float[Tensor, "n k"]]
Advance = Callable[[int], None]  # told how many images were just done


@dataclass(frozen=True)
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
    """

    data: str
    count: int
    accuracy: float
    top5: float | None
    nll: float
    confusion: Int[np.ndarray, "k k"]
    labels: tuple[str, ...]

    def recall(self) -> list[float]:
        """Part of each class that was recognised; NaN for a class without images."""
        totals = self.confusion.sum(1)
        with np.errstate(invalid="ignore"):
            return (np.diag(self.confusion) / totals).tolist()

    def metrics(self, prefix: str) -> dict[str, float]:
        """The numbers by name, for a card."""
        values = {"accuracy": self.accuracy, "nll": self.nll}
        if self.top5 is not None:
            values["top5"] = self.top5
        return {f"{prefix}_{name}": round(value, 6) for name, value in values.items()}


def evaluate(
    model: ResNeXt | str | Path,
    data: str | Path,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: str = "auto",
    progress: bool = False,
) -> Evaluation:
    """Measure a classifier on images it has not learnt from.

    Args:
        model: A network with a card, or a model file.
        data: A folder of class folders, one with `val` or `test` inside, or "digits". If it is
            the folder the model was trained on, only what training held out is used.
        batch_size: Images at a time.
        workers: Processes that decode images.
        device: "auto", or a torch device.
        progress: Whether to show how far it is, on standard error.

    Raises:
        CheckpointError: The file is no model.
        DataError: The data is missing, damaged, or has classes the model does not know.
        InputError: The model has no card with labels, or an argument makes no sense.
    """
    place = pick_device(device)
    network = load_classifier(model, progress=progress) if isinstance(model, str | Path) else model
    card = card_of(network)
    if batch_size < 1 or workers < 0:
        raise InputError(
            f"batch_size must be at least 1 and workers at least 0, not {batch_size} and {workers}."
        )
    images = open_for_evaluation(data, card.labels, card.provenance)
    loader = batches(images, card.preprocessing, batch_size=batch_size, workers=workers)
    report, dtype = reporter(progress), network.fc.weight.dtype
    report.start("Evaluating", len(images))
    try:
        with evaluating(network.to(place)):
            return measure(lambda x: network(x.to(dtype)), loader, images, place, report.advance)
    finally:
        report.stop()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.inference_mode()
def measure(
    classify: Classifier,
    loader: Iterator[tuple[Tensor, Tensor]],
    images: ImageSet,
    device: torch.device,
    advance: Advance | None = None,
) -> Evaluation:
    """Run a classifier over batches of `images` and count."""
    k = len(images.labels)
    confusion = torch.zeros(k, k, dtype=torch.int64)
    nll, in_top5 = 0.0, 0
    for x, targets in loader:
        logits = classify(x.to(device)).float().cpu()
        nll += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        flat = targets * k + logits.argmax(1)
        confusion += torch.bincount(flat, minlength=k * k).view(k, k)
        if k > 5:
            in_top5 += int((logits.topk(5).indices == targets[:, None]).any(1).sum())
        if advance:
            advance(len(x))
    count = len(images)
    return Evaluation(
        data=images.name,
        count=count,
        accuracy=int(confusion.trace()) / count,
        top5=in_top5 / count if k > 5 else None,
        nll=nll / count,
        confusion=confusion.numpy(),
        labels=images.labels,
    )


class Prepared(Dataset[tuple[Tensor, int]]):
    """Images as the network takes them, with their targets."""

    def __init__(self, images: ImageSet, how: Preprocessing) -> None:
        self.images = images
        self.how = how

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One prepared image and its target."""
        image = self.images.open(index, self.how.colour)
        return prepare(image, self.how), self.images.targets[index]


def batches(
    images: ImageSet, how: Preprocessing, *, batch_size: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Prepared batches in order.

    Raises:
        DataError: An image cannot be read.
    """
    loader = DataLoader(Prepared(images, how), batch_size=batch_size, num_workers=workers)
    yield from own_errors(loader)


def own_errors(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """A loader's batches; an image that fails in a worker process raises here what it raised."""
    try:
        yield from loader
    except DataError as error:  # torch wraps the message of a worker's error in its traceback
        error.__traceback__ = None  # torch's frames hold it and the workers, until they time out
        raise DataError(str(error).strip().rpartition("DataError: ")[2]) from None


def card_of(model: ResNeXt) -> Card:
    """The card, complete enough to use the model with image files.

    Raises:
        InputError: It is missing, or has not one label for each class.
    """
    if model.card is None or not model.card.labels:
        raise InputError(
            "The model has no labels. Set model.card = resnext.Card(labels=…, preprocessing=…), or "
            "add them with resnext convert --labels."
        )
    if len(model.card.labels) != model.config.num_classes:
        raise InputError(
            f"The card has {len(model.card.labels)} labels, the network "
            f"{model.config.num_classes} classes. Give model.card one label for each."
        )
    return model.card
