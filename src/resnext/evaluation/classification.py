"""`evaluate` and `compare`: run classifiers over labelled images."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resnext.calibration import mcnemar
from resnext.card import Preprocessing, card_of
from resnext.checks import at_least, check_max_loss
from resnext.data.dataset import ImageSet
from resnext.data.loader import Classifier, EvalLoader, average_views, eval_loader
from resnext.data.open import open_for_evaluation
from resnext.data.workers import check_workers, shared_memory_line
from resnext.errors import DataError, InputError
from resnext.evaluation.comparison import Comparison, common_rows
from resnext.evaluation.metrics import (
    EvalOutputs,
    Evaluation,
    score,
)
from resnext.foreign_names import answering_call
from resnext.inference.exported import Exported
from resnext.inference.opener import evaluation_mode, open_model
from resnext.inference.optimized import Optimized
from resnext.inference.runner import Runner, check_finite
from resnext.network import ResNeXt
from resnext.system.device import inference_batch, pick_device
from resnext.system.main_guard import refuse_in_new_process
from resnext.system.progress import reporter

_TURNS = 5  # batches to time each model with

Advance = Callable[[int], None]
"""Called with the number of images just finished."""


@answering_call
def evaluate(
    model: ResNeXt | Optimized | Exported | str | Path,
    data: str | Path,
    *,
    batch_size: int | None = None,
    workers: int = 0,
    device: str = "auto",
    views: int = 1,
    keep_logits: bool = False,
    plan: bool = True,
    progress: bool = False,
) -> Evaluation:
    """Measure a classifier on images it was not trained on.

    Probabilities are calibrated with the temperature of the model's card. Images that cannot be
    read are skipped and named in the result.

    Args:
        model: A network with a card, the result of `resnext.optimize`, a model file or a catalog
            name.
        data: A folder with one folder of images per class, or with `val` or `test` folders of that
            kind; any other data that `train` accepts; or "digits". From the data the model was
            trained on, only the held-out images are used.
        batch_size: Images per batch; None for the batch size of the plan, or 16 on a CPU and 64
            on a GPU.
        workers: Number of processes that decode images.
        device: "auto", or a torch device.
        views: Test-time augmentation, averaging probabilities: 1 is none; 2 adds the mirror image;
            10 takes the four corners and the centre of the resized image and of its mirror image.
            Do not mirror digits and text.
        keep_logits: Whether the result holds the logits.
        plan: Whether to use the plan that `resnext optimize` saved next to a model file.
        progress: Whether to show progress on standard error.

    Raises:
        CheckpointError: The file holds no usable model.
        DataError: The data does not exist, no image can be read, or the data has classes that
            the model lacks.
        InputError: The model has no card with labels, or an argument is out of range.
        ResNeXtError: The model's output is NaN or infinite.
    """
    refuse_in_new_process("evaluate")
    settings = _Settings(batch_size, workers, device, views, plan, progress)
    with evaluation_mode(model):
        classifier, images = _open(model, data, settings)
        return _run(classifier, images, settings, keep_logits)


@answering_call
def compare(
    model_a: ResNeXt | Optimized | Exported | str | Path,
    model_b: ResNeXt | Optimized | Exported | str | Path,
    data: str | Path,
    *,
    batch_size: int | None = None,
    workers: int = 0,
    device: str = "auto",
    views: int = 1,
    max_loss: float | None = None,
    speed: bool = False,
    plan: bool = True,
    progress: bool = False,
) -> Comparison:
    """Measure two classifiers on the same images, which neither was trained on.

    Args:
        model_a: A network with a card, the result of `resnext.optimize`, a model file or a catalog
            name.
        model_b: The model to compare with; its classes may be in another order.
        data: Labelled images, as for `evaluate`.
        batch_size: Images per batch; None for the batch size of the plan, or 16 on a CPU and 64
            on a GPU.
        workers: Number of processes that decode images.
        device: "auto", or a torch device.
        views: Views of each image to average over: 1, 2 or 10, as for `evaluate`.
        max_loss: Largest accepted loss of accuracy, percentage points, for the verdict; None to
            accept a loss unless it is significant (p below 0.05).
        speed: Whether to time both models, in turns.
        plan: Whether to use the plans that `resnext optimize` saved next to model files.
        progress: Whether to show progress on standard error.

    Raises:
        CheckpointError: A file holds no usable model.
        DataError: The data does not exist, no image can be read, the data has classes that a model
            lacks, or every image was used to train one of the models.
        InputError: A model has no card with labels, or an argument is out of range.
        ResNeXtError: A model's output is NaN or infinite.
    """
    refuse_in_new_process("compare")
    if max_loss is not None:
        check_max_loss(max_loss)
    settings = _Settings(batch_size, workers, device, views, plan, progress)
    with evaluation_mode(model_a), evaluation_mode(model_b):
        first, images_a = _open(model_a, data, settings)
        second, images_b = _open(model_b, data, settings, tell=False)
        images_a, images_b = _in_common(images_a, images_b)
        a, b = _run(first, images_a, settings), _run(second, images_b, settings)
        speeds = _speeds(first, second, len(images_a), settings) if speed else None
    rows_a, rows_b = common_rows(a, b)
    test = mcnemar(a.right[rows_a], b.right[rows_b])
    values = card_of(first).preprocessing.value_range
    return Comparison(a, b, *test, images_a, max_loss, speeds, values)


def collect_outputs(
    classify: Classifier,
    loader: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    advance: Advance | None = None,
) -> EvalOutputs:
    """Run a classifier over batches; the logits are returned on the CPU, in single precision.

    Args:
        classify: Turns images into logits.
        loader: Batches of images and targets. An `EvalLoader` knows which images it holds; any
            other is assumed to hold all images, in order.
        device: Device to move images to.
        advance: Called after each batch with its number of images.
    """
    logits, targets = [torch.zeros(0, 0)], [torch.zeros(0, dtype=torch.int64)]
    with torch.inference_mode():
        for x, right in loader:
            logits.append(classify(x.to(device)).float().cpu())
            targets.append(right)
            if advance:
                advance(len(x))
    indices = loader.done if isinstance(loader, EvalLoader) else range(sum(map(len, targets)))
    table = torch.cat(logits[1:] or logits).clone()  # a normal tensor, not an inference tensor
    return EvalOutputs(table, torch.cat(targets), torch.tensor([*indices], dtype=torch.int64))


def merge_outputs(parts: Sequence[EvalOutputs]) -> EvalOutputs:
    """The outputs of several processes as those of one: each image once, in order."""
    filled = [part for part in parts if len(part.indices)] or [*parts[:1]]
    indices = torch.cat([part.indices for part in filled])
    order = torch.from_numpy(np.unique(indices.numpy(), return_index=True)[1])
    logits, targets = (
        torch.cat([getattr(x, name) for x in filled]) for name in ("logits", "targets")
    )
    return EvalOutputs(logits[order], targets[order], indices[order])


def measure(
    classify: Classifier,
    loader: Iterable[tuple[Tensor, Tensor]],
    images: ImageSet,
    device: torch.device,
    advance: Advance | None = None,
) -> Evaluation:
    """Evaluate a classifier on batches of `images`: `collect_outputs`, then `score`.

    Raises:
        DataError: No image could be read.
    """
    return score(collect_outputs(classify, loader, device, advance), images)


class _Settings(NamedTuple):
    """How to open and run models: the arguments of `evaluate` with these names."""

    batch_size: int | None
    workers: int
    device: str
    views: int
    plan: bool
    progress: bool

    def check(self, preprocessing: Preprocessing) -> None:
        """Refuse invalid values.

        Raises:
            InputError: A value is out of range, or the resized images have no margin for ten views.
        """
        if self.batch_size is not None:
            at_least("batch_size", self.batch_size, 1, error=InputError)
        at_least("workers", self.workers, 0, error=InputError)
        check_workers(self.workers)
        if type(self.views) is not int or self.views not in (1, 2, 10):
            raise InputError(f"views must be 1, 2 or 10, not {self.views!r}.")
        size, resize = preprocessing.size, preprocessing.resize
        if self.views == 10 and resize < size:
            raise InputError(
                f"10 views cut corners of {size} pixels out of images resized to {resize}, which "
                f"are too small. Use 1 or 2 views."
            )


def _open(
    model: ResNeXt | Optimized | Exported | str | Path,
    data: str | Path,
    settings: _Settings,
    *,
    tell: bool = True,
) -> tuple[ResNeXt | Optimized | Exported, ImageSet]:
    """A classifier ready to run, and the images of the data that it was not trained on.

    Args:
        model: The model.
        data: The data.
        settings: How to open both.
        tell: Whether to say what is passed over in the data, if progress is shown.
    """
    pick_device(settings.device)  # a runner ignores it, but a typo must not pass
    classifier = open_model(
        model,
        device=settings.device,
        batch=settings.batch_size or 64,
        plan=settings.plan,
        progress=settings.progress,
    )
    card = card_of(classifier)
    settings.check(card.preprocessing)
    shown = reporter(settings.progress and tell)
    try:
        return classifier, open_for_evaluation(data, card.labels, card.provenance, shown.line)
    finally:
        shown.stop()


def _run(
    model: ResNeXt | Optimized | Exported,
    images: ImageSet,
    settings: _Settings,
    keep_logits: bool = False,
) -> Evaluation:
    """Run a classifier over images and evaluate its predictions."""
    card, device = card_of(model), pick_device(settings.device)
    own = model.batch if isinstance(model, Runner) else inference_batch(device)
    loader = eval_loader(
        images,
        card.preprocessing,
        batch_size=max((settings.batch_size or own) // settings.views, 1),
        workers=settings.workers,
        views=settings.views,
    )
    classify = _classifier(model, device)
    averaged = average_views(classify, card.temperature) if settings.views > 1 else classify
    shown = reporter(settings.progress)
    if line := shared_memory_line(settings.workers, loader.workers):
        shown.line(line)
    shown.start("Evaluating", len(images))
    try:
        outputs = collect_outputs(averaged, loader, device, shown.advance)
    finally:
        shown.stop()
    check_finite(outputs.logits.numpy(), lambda i: images.title(int(outputs.indices[i])))
    return score(outputs, images, temperature=card.temperature, keep_logits=keep_logits)


def _classifier(model: ResNeXt | Optimized | Exported, device: torch.device) -> Classifier:
    """A classifier of images in single precision, in the layout that is fast on a device."""
    layout = torch.channels_last if device.type == "cpu" else torch.preserve_format
    dtype = torch.float32 if isinstance(model, Runner) else model.fc.weight.dtype
    return lambda x: model(x.to(dtype, memory_format=layout))


def _speeds(
    a: ResNeXt | Optimized | Exported,
    b: ResNeXt | Optimized | Exported,
    images: int,
    settings: _Settings,
) -> tuple[float, float]:
    """Images per second of two classifiers: the best of several batches, timed in turns."""
    device = pick_device(settings.device)
    batch = min(settings.batch_size or inference_batch(device), images)
    best = [float("inf"), float("inf")]
    for turn in range(_TURNS + 1):
        for i, model in enumerate((a, b)):
            size, channels = card_of(model).preprocessing.size, model.config.in_channels
            x = torch.zeros(batch, channels, size, size, device=device)
            began = time.perf_counter()
            with torch.inference_mode():
                _classifier(model, device)(x).float().cpu()  # waits for a GPU
            if turn:  # the first call prepares the engine
                best[i] = min(best[i], time.perf_counter() - began)
    return batch / best[0], batch / best[1]


def _in_common(a: ImageSet, b: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Both sets reduced to the images they have in common, in the same order.

    Raises:
        DataError: No image is in both sets.
    """
    names = [[_identity(x, i) for i in range(len(x))] for x in (a, b)]
    if names[0] == names[1]:
        return a, b
    position = {name: i for i, name in enumerate(names[1])}
    pairs = [(i, position[name]) for i, name in enumerate(names[0]) if name in position]
    if not pairs:
        raise DataError(
            f"Every image in {a.name} was used to train one of the models. Give other images."
        )
    name = f"{a.name}, held out from both"
    return a.select([i for i, _ in pairs], name), b.select([j for _, j in pairs], name)


def _identity(images: ImageSet, index: int) -> str:
    """Identity of an image across sets: its name, or a hash of its pixels if it has none."""
    image = images.images[index]
    if isinstance(image, np.ndarray):
        return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()
    return images.title(index)
