"""How good a classifier is on images with known classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resnext.card import Preprocessing, card_of
from resnext.data.dataset import ImageSet
from resnext.data.loader import Classifier, EvalLoader, average_views, eval_loader
from resnext.data.open import open_for_evaluation
from resnext.errors import DataError, InputError
from resnext.evaluation.calibration import mcnemar
from resnext.evaluation.metrics import (
    Comparison,
    EvalOutputs,
    Evaluation,
    score,
)
from resnext.inference.engines.torch import evaluating
from resnext.inference.opener import open_planned
from resnext.inference.optimized import Optimized
from resnext.network import ResNeXt
from resnext.system.device import pick_device
from resnext.system.progress import reporter
from resnext.weights.load import load_classifier

Advance = Callable[[int], None]  # told how many images were just done


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
