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
from resnext.neighbours.index import Index, Neighbour
from resnext.network import ResNeXt

_SIDE = 224  # minimum size of a picture in the gallery, pixels
_LIKE = 3  # training images of each of two classes
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
        like: The nearest training images of the predicted and of the true class.
    """

    image: Image.Image
    truth: str
    predicted: str
    confidence: float
    heat: Image.Image | None
    title: str
    like: tuple[Neighbour, ...] = ()


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


@dataclass(frozen=True, eq=False)
class Pictures:
    """What pictures are made from.

    Args:
        network: The classifier; its training mode is restored.
        parts: The images by split.
        preprocessing: How images become input.
        index: The index of the training images; None without one.
    """

    network: ResNeXt
    parts: Mapping[str, ImageSet]
    preprocessing: Preprocessing
    index: Index | None = None

    def evaluated(self, evaluation: Evaluation, row: int) -> Mistake | None:
        """A validation image with the map of its predicted class; None if it became unreadable."""
        labels, predicted = evaluation.labels, int(evaluation.predicted[row])
        truth, index = labels[int(evaluation.targets[row])], int(evaluation.indices[row])
        classes, title = (labels[predicted], truth), self.parts["val"].title(index)
        if (x := self._input("val", index)) is None:
            return None
        with evaluating(self.network):
            heat = grad_cam(self.network, x, predicted)
            like = () if predicted == evaluation.targets[row] else self._like(x, classes, title)
        return Mistake(
            image=(seen := denormalize(x, self.preprocessing)),
            truth=truth,
            predicted=labels[predicted],
            confidence=float(evaluation.confidence[row]),
            heat=None if heat.size == 1 else overlay(seen, heat),
            title=title,
            like=like,
        )

    def doubtful(self, doubt: Doubt) -> Mistake | None:
        """The image of a doubt, without a map; None if it became unreadable."""
        if (x := self._input(doubt.split, doubt.index)) is None:
            return None
        with evaluating(self.network):
            like = self._like(x, (doubt.suggestion, doubt.label), doubt.path)
        seen = denormalize(x, self.preprocessing)
        return Mistake(seen, doubt.label, doubt.suggestion, doubt.score, None, doubt.path, like)

    def _input(self, split: str, index: int) -> Float[torch.Tensor, "c h w"] | None:
        preprocessing = self.preprocessing
        try:
            image = self.parts[split].open(index, preprocessing.colour, preprocessing.value_range)
        except DataError:
            return None
        return prepare(image, preprocessing)

    @torch.no_grad()
    def _like(
        self, x: Float[torch.Tensor, "c h w"], classes: tuple[str, str], title: str
    ) -> tuple[Neighbour, ...]:
        """The nearest training images of two classes, except the image itself."""
        if self.index is None:
            return ()
        weights = self.network.fc.weight
        embedding = self.network.embed(x[None].to(weights.device, weights.dtype))[0].float()
        return tuple(self.index.of_classes(embedding.cpu().numpy(), classes, _LIKE, but=title))


def confident_mistakes(
    pictures: Pictures, evaluation: Evaluation, count: int = 12
) -> list[Mistake]:
    """The most confident mistakes, with Grad-CAM overlays.

    Args:
        pictures: Makes the pictures.
        evaluation: Result on the images of `val`.
        count: Largest number of mistakes.
    """
    wrong = np.flatnonzero(~evaluation.right)
    order = wrong[np.argsort(-evaluation.confidence[wrong], kind="stable")][:count]
    shown = (pictures.evaluated(evaluation, row) for row in order.tolist())
    return [mistake for mistake in shown if mistake is not None]


def doubtful_labels(pictures: Pictures, doubts: Iterable[Doubt]) -> list[Mistake]:
    """The images of doubts, without maps."""
    shown = map(pictures.doubtful, doubts)
    return [doubt for doubt in shown if doubt is not None]


def class_examples(
    pictures: Pictures, evaluation: Evaluation, doubts: Sequence[Doubt]
) -> list[ClassExamples]:
    """A typical, a doubtful and a wrong image of each class, the lowest recall first.

    Args:
        pictures: Makes the pictures.
        evaluation: Result on the images of `val`.
        doubts: Doubtful labels, the most doubtful first.
    """
    recall, labels = np.array(evaluation.recall()), evaluation.labels
    first = {doubt.label: doubt for doubt in reversed(doubts)}
    order = [i for i in np.argsort(recall, kind="stable").tolist() if np.isfinite(recall[i])]
    found: list[ClassExamples] = []
    for c in order[:_MOST_CLASSES]:
        shown: list[Mistake | None] = []
        for wanted in (True, False):
            rows = np.flatnonzero((evaluation.targets == c) & (evaluation.right == wanted))
            best = rows[evaluation.confidence[rows].argmax()] if len(rows) else None
            shown.append(None if best is None else pictures.evaluated(evaluation, int(best)))
        doubt = first.get(labels[c])
        doubtful = None if doubt is None else pictures.doubtful(doubt)
        found.append(ClassExamples(labels[c], shown[0], doubtful, shown[1]))
    return found


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
