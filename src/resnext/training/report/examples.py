"""Pictures for the report: confident mistakes, doubtful labels, and examples of each class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from resnext.card import Preprocessing
from resnext.data.dataset import ImageSet
from resnext.data.transforms import prepare
from resnext.errors import DataError
from resnext.evaluation.label_doubts import Doubt
from resnext.evaluation.metrics import Evaluation
from resnext.inference.engines.torch import evaluating
from resnext.network import ResNeXt

_SIDE = 224  # minimum size of a picture in the gallery, pixels
_MOST_CLASSES = 40  # with more classes, only the worst have examples


@dataclass(frozen=True, eq=False)
class Mistake:
    """An image that was classified, mostly wrongly.

    Args:
        image: The image after preprocessing.
        truth: True class.
        predicted: Predicted class.
        confidence: Probability of the predicted class, from 0 to 1.
        heat: The image with its Grad-CAM overlay; None if the map has one pixel.
        title: File or number of the image.
    """

    image: Image.Image
    truth: str
    predicted: str
    confidence: float
    heat: Image.Image | None
    title: str


@dataclass(frozen=True, eq=False)
class ClassExamples:
    """Images of one class; None where there is no such image.

    Args:
        label: The class.
        typical: The validation image of it that was recognised with the highest confidence.
        doubtful: The image with its most doubtful label; `predicted` is the suggestion.
        wrong: Its validation image that was taken for another class with the highest confidence.
    """

    label: str
    typical: Mistake | None
    doubtful: Mistake | None
    wrong: Mistake | None


def confident_mistakes(
    network: ResNeXt,
    images: ImageSet,
    evaluation: Evaluation,
    preprocessing: Preprocessing,
    count: int = 12,
) -> list[Mistake]:
    """The most confident mistakes, with Grad-CAM overlays.

    Args:
        network: The classifier; its training mode is restored.
        images: The evaluated images.
        evaluation: Result on these images.
        preprocessing: How images become input.
        count: Largest number of mistakes.
    """
    wrong = np.flatnonzero(~evaluation.right)
    order = wrong[np.argsort(-evaluation.confidence[wrong], kind="stable")][:count]
    with evaluating(network):
        shown = (_shown(network, images, evaluation, i, preprocessing) for i in order.tolist())
        return [mistake for mistake in shown if mistake is not None]


def doubtful_labels(
    parts: Mapping[str, ImageSet], doubts: Iterable[Doubt], preprocessing: Preprocessing
) -> list[Mistake]:
    """The images of doubts, without maps."""
    shown = (_doubtful(parts, doubt, preprocessing) for doubt in doubts)
    return [doubt for doubt in shown if doubt is not None]


def class_examples(
    network: ResNeXt,
    parts: Mapping[str, ImageSet],
    evaluation: Evaluation,
    doubts: Sequence[Doubt],
    preprocessing: Preprocessing,
) -> list[ClassExamples]:
    """A typical, a doubtful and a wrong image of each class, the lowest recall first.

    Args:
        network: The classifier; its training mode is restored.
        parts: The images by split.
        evaluation: Result on the images of `val`.
        doubts: Doubtful labels, the most doubtful first.
        preprocessing: How images become input.
    """
    recall, labels = np.array(evaluation.recall()), evaluation.labels
    first = {doubt.label: doubt for doubt in reversed(doubts)}
    order = [i for i in np.argsort(recall, kind="stable").tolist() if np.isfinite(recall[i])]
    found: list[ClassExamples] = []
    with evaluating(network):
        for c in order[:_MOST_CLASSES]:
            shown: list[Mistake | None] = []
            for wanted in (True, False):
                rows = np.flatnonzero((evaluation.targets == c) & (evaluation.right == wanted))
                best = rows[evaluation.confidence[rows].argmax()] if len(rows) else None
                shown.append(
                    None
                    if best is None
                    else _shown(network, parts["val"], evaluation, int(best), preprocessing)
                )
            doubt = first.get(labels[c])
            doubtful = None if doubt is None else _doubtful(parts, doubt, preprocessing)
            found.append(ClassExamples(labels[c], shown[0], doubtful, shown[1]))
    return found


def _shown(
    network: ResNeXt,
    images: ImageSet,
    evaluation: Evaluation,
    row: int,
    preprocessing: Preprocessing,
) -> Mistake | None:
    """An evaluated image with the map of its predicted class; None if it became unreadable."""
    index, predicted = int(evaluation.indices[row]), int(evaluation.predicted[row])
    try:
        x = _input(images, index, preprocessing)
    except DataError:
        return None
    heat, seen = grad_cam(network, x, predicted), denormalize(x, preprocessing)
    return Mistake(
        image=seen,
        truth=evaluation.labels[int(evaluation.targets[row])],
        predicted=evaluation.labels[predicted],
        confidence=float(evaluation.confidence[row]),
        heat=None if heat.size == 1 else overlay(seen, heat),
        title=images.title(index),
    )


def _doubtful(
    parts: Mapping[str, ImageSet], doubt: Doubt, preprocessing: Preprocessing
) -> Mistake | None:
    """The image of a doubt; None if it became unreadable."""
    try:
        x = _input(parts[doubt.split], doubt.index, preprocessing)
    except DataError:
        return None
    seen = denormalize(x, preprocessing)
    return Mistake(seen, doubt.label, doubt.suggestion, doubt.score, None, doubt.path)


def _input(
    images: ImageSet, index: int, preprocessing: Preprocessing
) -> Float[torch.Tensor, "c h w"]:
    return prepare(
        images.open(index, preprocessing.colour, preprocessing.value_range), preprocessing
    )


@torch.no_grad()
def grad_cam(
    network: ResNeXt, x: Float[torch.Tensor, "c h w"], label: int
) -> Float[np.ndarray, "h2 w2"]:
    """Grad-CAM of the last stage for a class, from 0 to 1 (arXiv:1610.02391).

    Only average pooling and the classifier follow that stage, so the gradient by which Grad-CAM
    weights channels is the classifier's row (section 3.1), and no backward pass is needed.

    Args:
        network: The classifier, in evaluation mode.
        x: One preprocessed image.
        label: Index of the class.
    """
    weights = network.fc.weight
    batch = x[None].to(weights.device, weights.dtype)
    features = network.features(batch)[-1][0].float()
    heat = torch.einsum("chw,c->hw", features, weights[label].float()).relu().cpu().numpy()
    top = heat.max(initial=0)
    return heat / top if math.isfinite(top) and top > 0 else np.zeros_like(heat)


def overlay(image: Image.Image, heat: Float[np.ndarray, "h w"]) -> Image.Image:
    """The image in grey, coloured from violet to yellow by the heat map."""
    width, height = (max(side, _SIDE) for side in image.size)
    small = max(image.size) < _SIDE
    resampling = Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC
    grey = np.asarray(image.convert("L").resize((width, height), resampling), np.float32)[..., None]
    values = Image.fromarray(heat.astype(np.float32))
    smooth = values.resize((width, height), Image.Resampling.BICUBIC)
    warmth = np.asarray(smooth).clip(0, 1)[..., None]
    stops = np.array([[40, 18, 80], [168, 46, 104], [238, 110, 60], [255, 214, 102]], np.float32)
    position = warmth[..., 0] * (len(stops) - 1)
    colour = np.stack([np.interp(position, range(len(stops)), stops[:, c]) for c in range(3)], -1)
    amount = 0.72 * np.sqrt(warmth)
    mixed = 0.85 * grey * (1 - amount) + (0.35 * grey / 255 + 0.65) * colour * amount
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def denormalize(x: Float[torch.Tensor, "c h w"], preprocessing: Preprocessing) -> Image.Image:
    """The image before normalization."""
    mean, std = (
        torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )
    pixels = ((x * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    if preprocessing.colour == "BGR":
        pixels = pixels.flip(0)
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())
