"""What a classifier sees in images without known classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from resnext.card import Described, card_of
from resnext.data.decoding import convert, open_image, pixels, resize_and_crop
from resnext.data.open import open_for_evaluation
from resnext.data.sources.folders import image_files
from resnext.errors import DataError, InputError
from resnext.inference.opener import evaluation_mode, open_runner
from resnext.inference.runner import Runner, top_classes
from resnext.system.progress import reporter

if TYPE_CHECKING:
    from resnext.network import ResNeXt

Picture = str | Path | Image.Image | np.ndarray


class Prediction(NamedTuple):
    """The most likely classes of one image, most likely first."""

    name: str
    """File, or position in the input."""
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    threshold: float | None = None
    """Lowest probability that counts as sure, as the model's card has it."""

    @property
    def label(self) -> str:
        """The most likely class."""
        return self.labels[0]

    @property
    def sure(self) -> bool:
        """Whether the most likely class reaches the threshold; True if there is none."""
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
        model: A network with a card, what `resnext.optimize` gives, or a model file.
        images: A file, a folder (searched for images at any depth), a Pillow image, an array
            `(h, w)` or `(h, w, 3)` of 8-bit values, or several of these.
        top: Number of classes to report for each image.
        batch_size: Images at a time.
        device: "auto", or a torch device.
        plan: Whether to compute a model file as the plan says that `resnext optimize` left
            beside it.
        progress: Whether to show how far it is, on standard error.

    Raises:
        CheckpointError: The file is no model.
        DataError: An image cannot be read, or there is none.
        InputError: The model has no card with labels, or an argument makes no sense.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}.")
    pictures = expand_images(images)
    batch = min(batch_size, len(pictures))
    with evaluation_mode(model):
        runner = open_runner(model, device=device, batch=batch, plan=plan, progress=progress)
        card = card_of(runner)
        if type(top) is not int or not 1 <= top <= len(card.labels):
            raise InputError(f"top must be from 1 to the {len(card.labels)} classes, not {top}.")
        how, report = card.preprocessing, reporter(progress)
        report.start("Predicting", len(pictures))
        found: list[Prediction] = []
        try:
            for start in range(0, len(pictures), batch_size):
                part = pictures[start : start + batch_size]
                decoded = [decode(picture, how.colour) for _, picture in part]
                x = np.stack([pixels(resize_and_crop(image, how), how) for image in decoded])
                likely, values = top_classes(runner.pixels(x)[0], card.temperature, top)
                for (name, _), p, i in zip(part, values, likely, strict=True):
                    labels = tuple(card.labels[j] for j in i)
                    found.append(Prediction(name, labels, tuple(p.tolist()), card.threshold))
                report.advance(len(part))
        finally:
            report.stop()
    return found


def expand_images(images: Picture | Sequence[Picture]) -> list[tuple[str, Picture]]:
    """Every picture with its name; folders become their files.

    Raises:
        DataError: There is none, or something is no picture.
    """
    several = [images] if isinstance(images, str | Path | Image.Image | np.ndarray) else images
    pictures: list[tuple[str, Picture]] = []
    for i, picture in enumerate(several):
        if isinstance(picture, str | Path):
            path = Path(picture)
            files = image_files(path) if path.is_dir() else [path]
            pictures += [(str(file), file) for file in files]
        else:
            pictures.append((str(i), picture))
    if not pictures:
        raise DataError("There are no images to classify.")
    return pictures


def decode(picture: Picture, colour: str) -> Image.Image:
    """A picture as a Pillow image of the wanted colours.

    Raises:
        DataError: It is a damaged file, or an array of the wrong shape or type.
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
            f"not {got!r}."
        )
    return convert(Image.fromarray(picture), colour)


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
