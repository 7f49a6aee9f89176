"""Classify images in memory or in files, with helpers that folder prediction shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from resnext.card import Card, Described, Preprocessing, card_of
from resnext.checks import at_least, brief
from resnext.data.decoding import (
    convert,
    open_image,
    open_lazily,
    pixels,
    read_source,
    resize_and_crop,
)
from resnext.data.open import open_for_evaluation
from resnext.data.passed_over import PassedOver
from resnext.data.sources.folders import no_image, walk_images
from resnext.errors import DataError, InputError
from resnext.inference.opener import evaluation_mode, open_runner
from resnext.inference.runner import Runner, top_classes
from resnext.system.progress import reporter

if TYPE_CHECKING:
    from resnext.network import ResNeXt

Picture = str | Path | Image.Image | np.ndarray
"""A file, a Pillow image, or an array `(h, w)` or `(h, w, 3)` of 8-bit values."""


class Prediction(NamedTuple):
    """The most likely classes of one image, most likely first."""

    name: str
    """File name, or position in the input."""
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    threshold: float | None = None
    """Lowest probability that counts as sure, from the model's card."""

    @property
    def label(self) -> str:
        """The most likely class."""
        return self.labels[0]

    @property
    def sure(self) -> bool:
        """Whether the most likely class reaches the threshold; True without a threshold."""
        return self.threshold is None or self.probabilities[0] >= self.threshold


def predict(
    model: ResNeXt | Runner | str | Path,
    images: Picture | Sequence[Picture],
    *,
    top: int = 1,
    batch_size: int = 64,
    device: str = "auto",
    plan: bool = True,
    progress: bool = False,
) -> list[Prediction]:
    """Classify images.

    Args:
        model: A network with a card, the result of `resnext.optimize`, a model file or a catalog
            name.
        images: A file, a folder (searched for images at any depth), a Pillow image, an array
            `(h, w)` or `(h, w, 3)` of 8-bit values, or a sequence of these.
        top: Number of classes to report for each image.
        batch_size: Images per batch.
        device: "auto", or a torch device.
        plan: Whether to use the plan that `resnext optimize` saved next to a model file.
        progress: Whether to show progress on standard error.

    Returns:
        A prediction for each image, in order.

    Raises:
        CheckpointError: The file holds no usable model.
        DataError: An image cannot be read, or no images are given.
        InputError: The model has no card with labels, or an argument is out of range.
    """
    at_least("batch_size", batch_size, 1, error=InputError)
    passed_over = PassedOver()
    named = expand_images(images, passed_over)
    batch = min(batch_size, len(named))
    with evaluation_mode(model):
        runner = open_runner(model, device=device, batch=batch, plan=plan, progress=progress)
        card = card_of(runner)
        check_top(top, card)
        predictions: list[Prediction] = []
        shown = reporter(progress)
        for line in passed_over.lines():
            shown.line(line)
        shown.start("Predicting", len(named))
        try:
            for start in range(0, len(named), batch_size):
                names, pictures = zip(*named[start : start + batch_size], strict=True)
                x = np.stack([to_pixels(picture, card.preprocessing) for picture in pictures])
                predictions += rank(names, runner.pixels(x)[0], card, top)
                shown.advance(len(names))
        finally:
            shown.stop()
    return predictions


def held_out_images(model: Described, data: str, limit: int | None = None) -> list[Picture]:
    """Images of a data set that the model was not trained on: all, or `limit` spread over it."""
    card = card_of(model)
    images = open_for_evaluation(data, card.labels, card.provenance)
    count = min(limit or len(images), len(images))
    pictures: list[Picture] = []
    for i in (i * len(images) // count for i in range(count)):
        image = images.images[i]
        usual = isinstance(image, Path | np.ndarray)
        pictures.append(image if usual else images.open(i, card.preprocessing.colour))
    return pictures


# -- shared with folder prediction and the contact sheet --------------------------------------


def check_top(top: int, card: Card) -> None:
    """Require a number of classes that the model has.

    Raises:
        InputError: `top` is larger than the number of classes, or less than 1.
    """
    if type(top) is not int or not 1 <= top <= len(card.labels):
        raise InputError(f"top must be from 1 to the {len(card.labels)} classes, not {top}.")


def expand_images(
    images: Picture | Sequence[Picture], passed_over: PassedOver | None = None
) -> list[tuple[str, Picture]]:
    """Every image with its name: the file name, or the position in `images`.

    Args:
        images: Files, folders and images.
        passed_over: Counts the files in folders that are not read.

    Raises:
        DataError: No images are given, or a file does not exist.
    """
    pictures = [images] if isinstance(images, str | Path | Image.Image | np.ndarray) else images
    named: list[tuple[str, Picture]] = []
    for i, picture in enumerate(pictures):
        if isinstance(picture, str | Path):
            named += ((name, name) for name in image_names([picture], passed_over))
        else:
            named.append((str(i), picture))
    if not named:
        raise DataError("No images were given to classify.")
    return named


def image_names(
    paths: Iterable[str | Path], passed_over: PassedOver | None = None
) -> Iterator[str]:
    """Names of image files: those given, and all in the folders given, in order, one by one.

    Args:
        paths: Files and folders.
        passed_over: Counts the files in folders that are not read.

    Raises:
        DataError: A file does not exist, or a folder holds no image or cannot be listed.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            if not path.exists():
                raise DataError(f"{path}: no such file.")
            yield str(path)
            continue
        above, name, others = str(path / "_")[:-1], None, PassedOver()
        for name in walk_images(path, passed_over=others):
            yield above + name
        if name is None:
            raise no_image(path, others)
        if passed_over is not None:
            passed_over.update(others)


def to_pixels(picture: Picture, preprocessing: Preprocessing) -> UInt8[np.ndarray, "h w c"]:
    """An image as a runner takes it: resized, cropped, with channels in the network's order.

    Raises:
        DataError: The picture is a damaged file, or an array of the wrong shape or type.
    """
    if isinstance(picture, str | Path):
        return read_pixels(picture, preprocessing)
    return _network_input(decode(picture, preprocessing.colour), preprocessing)


def read_pixels(
    file: str | Path,
    preprocessing: Preprocessing,
    reserve: Callable[[int], AbstractContextManager[object]] = nullcontext,
) -> UInt8[np.ndarray, "h w c"]:
    """An image file as a runner takes it.

    Args:
        file: The image file.
        preprocessing: Size, crop and colours.
        reserve: Called with the number of pixels once it is known; they are decoded inside.

    Raises:
        DataError: The file does not exist, is damaged, not an image or unreasonably large.
    """

    def read(source: Path | BytesIO) -> UInt8[np.ndarray, "h w c"]:
        with open_lazily(source, str(file)) as image:
            resized = preprocessing.resize**2 * max(image.size) // max(min(image.size), 1)
            with reserve(image.width * image.height + resized), closing(image):
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                ready = image.mode == "RGB" and preprocessing.colour != "L" and min(image.size) > 0
                converted = image if ready else convert(image, preprocessing.colour)
                return _network_input(converted, preprocessing)

    return read_source(Path(file), str(file), read)


def decode(picture: Picture, colour: str) -> Image.Image:
    """A picture as a Pillow image, not resized, upright, in mode "L" or "RGB".

    Raises:
        DataError: The picture is a damaged file, or an array of the wrong shape or type.
    """
    if isinstance(picture, str | Path):
        return open_image(Path(picture), colour)
    if isinstance(picture, Image.Image):
        try:
            return convert(ImageOps.exif_transpose(picture), colour)
        except OSError as error:  # Pillow decodes only now
            raise DataError(f"A Pillow image cannot be decoded: {error}.") from error
    known = isinstance(picture, np.ndarray) and picture.dtype == np.uint8
    if not known or not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)):
        got: Any = (picture.shape, picture.dtype) if isinstance(picture, np.ndarray) else picture
        raise DataError(
            f"An image must be a file, a Pillow image or an array (h, w) or (h, w, 3) of uint8, "
            f"not {brief(got)}."
        )
    return convert(Image.fromarray(picture), colour)


def rank(
    names: Iterable[str], logits: Float32[np.ndarray, "n k"], card: Card, top: int
) -> list[Prediction]:
    """Calibrated predictions from logits: the `top` most likely classes of each image."""
    classes, probabilities = top_classes(logits, card.temperature, top)
    return [
        Prediction(name, tuple(card.labels[i] for i in likely), tuple(p), card.threshold)
        for name, likely, p in zip(names, classes.tolist(), probabilities.tolist(), strict=True)
    ]


def _network_input(image: Image.Image, preprocessing: Preprocessing) -> UInt8[np.ndarray, "h w c"]:
    return pixels(resize_and_crop(image, preprocessing), preprocessing)
