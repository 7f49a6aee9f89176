"""Classify images in memory or in files, with helpers that folder prediction shares."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from resnext.card import Card, Described, Preprocessing, card_of
from resnext.checks import at_least
from resnext.data.decoding import (
    MAX_PIXELS,
    convert,
    load_pixels,
    open_lazily,
    pixels,
    read_source,
    resize_and_crop,
)
from resnext.data.open import open_for_evaluation
from resnext.data.passed_over import PassedOver
from resnext.errors import DataError, InputError
from resnext.foreign_names import answering_call
from resnext.inference.opener import evaluation_mode, open_runner
from resnext.inference.runner import Runner, check_finite, top_classes
from resnext.neighbours.index import Index, Neighbour, find_index, open_index
from resnext.neighbours.unknown import UnknownScore
from resnext.prediction.inputs import decode, expand_images
from resnext.system.progress import reporter

if TYPE_CHECKING:
    from resnext.network import ResNeXt
    from resnext.prediction.inputs import Picture


Unreadable = Callable[[str, DataError], object]
"""Called with the name of an image that cannot be read, and why."""


class Prediction(NamedTuple):
    """The most likely classes of one image, most likely first."""

    name: str
    """File name, or position in the input."""
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    threshold: float | None = None
    """Lowest probability that counts as sure, from the model's card."""
    like: tuple[Neighbour, ...] = ()
    """The nearest images of the index, of each of the two most likely classes."""
    unknown_score: float | None = None
    """How unlike the training images it is; None without index or threshold."""
    unknown_threshold: float | None = None
    """Highest score of an image that counts as one of the classes."""

    @property
    def label(self) -> str:
        """The most likely class."""
        return self.labels[0]

    @property
    def sure(self) -> bool:
        """Whether the most likely class reaches the threshold; True without a threshold."""
        return self.threshold is None or self.probabilities[0] >= self.threshold

    @property
    def unknown(self) -> bool | None:
        """Whether it is like none of the classes; None if that is not known."""
        if self.unknown_score is None or self.unknown_threshold is None:
            return None
        return self.unknown_score > self.unknown_threshold


@answering_call
def predict(
    model: ResNeXt | Runner | str | Path,
    images: Picture | Iterable[Picture],
    *,
    top: int = 1,
    batch_size: int | None = None,
    device: str = "auto",
    plan: bool = True,
    like: int = 0,
    index: Index | None = None,
    unreadable: Unreadable | None = None,
    progress: bool = False,
) -> list[Prediction]:
    """Classify images.

    Args:
        model: A network with a card, the result of `resnext.optimize`, a model file or a catalog
            name.
        images: A file; a folder (searched for images at any depth); the content of a file, as
            bytes or opened in binary mode; a Pillow image; an array `(h, w)` or `(h, w, 3)` of
            8-bit values; a tensor `(c, h, w)` or `(n, c, h, w)`, RGB or grey, of uint8 from 0 to
            255 or of floats from 0 to 1, not normalized; or several of these, as a list or
            another iterable. A generator is read batch by batch.
        top: Number of classes to report for each image.
        batch_size: Images per batch; None for the runner's own.
        device: "auto", or a torch device.
        plan: Whether to use the plan that `resnext optimize` saved next to a model file.
        like: Number of similar images to return for each of the two most likely classes.
        index: Where to search for them, and what images are compared with to find those that are
            like none of the classes; None for the index next to the model file.
        unreadable: Called with the name of each image that cannot be read and the `DataError`;
            such images then have no prediction. None to raise the error.
        progress: Whether to show progress on standard error.

    Returns:
        A prediction for each image, in order.

    Raises:
        CheckpointError: The file holds no usable model, or the index is missing or of another one.
        DataError: An image cannot be read or is of another type, or no images are given.
        InputError: The model has no card with labels, or an argument is out of range.
        ResNeXtError: The model's output is NaN or infinite.
    """
    if batch_size is not None:
        at_least("batch_size", batch_size, 1, error=InputError)
    at_least("like", like, 0, error=InputError)
    passed_over = PassedOver()
    named, total = expand_images(images, passed_over), None
    if not isinstance(images, Iterator):
        known = [*named]  # a missing file is reported before anything is computed
        named, total = iter(known), len(known)
    expected = min(batch_size or 64, total or 64)
    with evaluation_mode(model):
        runner = open_runner(model, device=device, batch=expected, plan=plan, progress=progress)
        card = card_of(runner)
        check_top(top, card)
        predictions: list[Prediction] = []
        shown = reporter(progress)
        if index is None and like:
            index = open_index(model, runner=runner)
        elif index is None:
            index = find_index(model, runner, shown.line)
        else:
            index.check(card.preprocessing)
        unknown = None if index is None else index.unknown_score(card)
        for line in passed_over.lines():
            shown.line(line)
        shown.start("Predicting", total)
        try:
            while batch := [*islice(named, batch_size or runner.batch)]:
                names, x = _read(batch, card.preprocessing, unreadable)
                if names:
                    logits, embeddings = runner.pixels(np.stack(x))
                    ranked = rank(names, logits, card, top)
                    if unknown is not None:
                        ranked = with_scores(ranked, logits, embeddings, unknown)
                    if like and index is not None:
                        ranked = with_neighbours(ranked, logits, embeddings, index, card, like)
                    predictions += ranked
                shown.advance(len(batch))
        finally:
            shown.stop()
    return predictions


def held_out_images(model: Described, data: str, limit: int | None = None) -> list[Picture]:
    """Images of a data set that the model was not trained on: all, or `limit` spread over it."""
    card = card_of(model)
    images = open_for_evaluation(data, card.labels, card.provenance)
    count = min(limit or len(images), len(images))
    pictures: list[Picture] = []
    colour, values = card.preprocessing.colour, card.preprocessing.value_range
    for i in (i * len(images) // count for i in range(count)):
        image = images.images[i]
        usual = isinstance(image, Path | np.ndarray)
        pictures.append(image if usual else images.open(i, colour, values))
    return pictures


# -- shared with folder prediction and the contact sheet --------------------------------------


def check_top(top: int, card: Card) -> None:
    """Require a number of classes that the model has.

    Raises:
        InputError: `top` is larger than the number of classes, or less than 1.
    """
    if type(top) is not int or not 1 <= top <= len(card.labels):
        raise InputError(f"top must be from 1 to the {len(card.labels)} classes, not {top}.")


def to_pixels(
    name: str, picture: Picture, preprocessing: Preprocessing
) -> UInt8[np.ndarray, "h w c"]:
    """An image as a runner takes it: resized, cropped, with channels in the network's order.

    Args:
        name: Name of the image in messages, if it is not a file.
        picture: The image.
        preprocessing: Size, crop and colours.

    Raises:
        DataError: The picture is damaged, or of the wrong shape or type.
    """
    if isinstance(picture, str | os.PathLike):
        return read_pixels(picture, preprocessing)
    values = preprocessing.value_range
    image = decode(picture, preprocessing.colour, f"Image {name}", values)
    return _network_input(image, preprocessing)


def read_pixels(
    file: str | os.PathLike[str] | BytesIO,
    preprocessing: Preprocessing,
    reserve: Callable[[int], AbstractContextManager[object]] = nullcontext,
    *,
    name: str | None = None,
    most: int = MAX_PIXELS,
) -> UInt8[np.ndarray, "h w c"]:
    """An image file as a runner takes it.

    Args:
        file: The image file, or its content.
        preprocessing: Size, crop and colours.
        reserve: Called with the number of pixels once it is known; they are decoded inside.
        name: Name of the image in messages; None for the file's.
        most: Pixels of the largest image that is decoded.

    Raises:
        DataError: The file does not exist, is damaged, not an image or unreasonably large.
    """
    title = str(file) if name is None else name

    def read(source: Path | BytesIO) -> UInt8[np.ndarray, "h w c"]:
        with open_lazily(source, title, most) as image:
            resized = preprocessing.resize**2 * max(image.size) // max(min(image.size), 1)
            if resized > most:
                raise DataError(
                    f"{title}: {image.width}×{image.height} pixels are too long: with its shorter "
                    f"side resized to {preprocessing.resize} it would have {resized:,}."
                )
            with reserve(image.width * image.height + resized), closing(image):
                load_pixels(image, preprocessing.value_range)
                ImageOps.exif_transpose(image, in_place=True)
                ready = image.mode == "RGB" and preprocessing.colour != "L" and min(image.size) > 0
                colour, values = preprocessing.colour, preprocessing.value_range
                converted = image if ready else convert(image, colour, values)
                return _network_input(converted, preprocessing)

    return read_source(file if isinstance(file, BytesIO) else Path(file), title, read)


def rank(
    names: Iterable[str], logits: Float32[np.ndarray, "n k"], card: Card, top: int
) -> list[Prediction]:
    """Calibrated predictions from logits: the `top` most likely classes of each image.

    Raises:
        ResNeXtError: A logit is NaN or infinite.
    """
    names = [*names]
    check_finite(logits, lambda i: f"image {names[i]}")
    classes, probabilities = top_classes(logits, card.temperature, top)
    return [
        Prediction(name, tuple(card.labels[i] for i in likely), tuple(p), card.threshold)
        for name, likely, p in zip(names, classes.tolist(), probabilities.tolist(), strict=True)
    ]


def with_scores(
    predictions: Sequence[Prediction],
    logits: Float32[np.ndarray, "n k"],
    embeddings: Float32[np.ndarray, "n d"],
    unknown: UnknownScore,
) -> list[Prediction]:
    """Predictions that say whether the image is like none of the classes."""
    scores = unknown(logits, embeddings).tolist()
    return [
        one._replace(unknown_score=score, unknown_threshold=unknown.threshold)
        for one, score in zip(predictions, scores, strict=True)
    ]


def with_neighbours(
    predictions: Sequence[Prediction],
    logits: Float32[np.ndarray, "n k"],
    embeddings: Float32[np.ndarray, "n d"],
    index: Index,
    card: Card,
    count: int,
) -> list[Prediction]:
    """Predictions with the nearest images of each of the two most likely classes."""
    likely, _ = top_classes(logits, card.temperature, min(2, len(card.labels)))
    return [
        one._replace(like=tuple(index.of_classes(embedding, [card.labels[i] for i in two], count)))
        for one, two, embedding in zip(predictions, likely, embeddings, strict=True)
    ]


def _read(
    batch: Sequence[tuple[str, Picture]], how: Preprocessing, unreadable: Unreadable | None
) -> tuple[list[str], list[UInt8[np.ndarray, "h w c"]]]:
    """Names and pixels of the images that can be read."""
    names: list[str] = []
    x: list[np.ndarray] = []
    for name, picture in batch:
        try:
            x.append(to_pixels(name, picture, how))
        except DataError as error:
            if unreadable is None:
                raise
            unreadable(name, error)
        else:
            names.append(name)
    return names, x


def _network_input(image: Image.Image, preprocessing: Preprocessing) -> UInt8[np.ndarray, "h w c"]:
    return pixels(resize_and_crop(image, preprocessing), preprocessing)
