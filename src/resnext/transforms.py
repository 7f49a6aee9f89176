"""From image files to tensors: decoding, preprocessing as the card says, augmentation.

Preprocessing follows torchvision's pipeline on Pillow images to the last bit, because that is
what public weights were trained and measured with.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from resnext.card import Preprocessing
from resnext.errors import DataError

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF")
"""Formats of photographs. Pillow knows more; some, as EPS, run other programs."""

_MAX_PIXELS = 178_956_970  # Pillow's own bound against decompression bombs


def open_image(path: Path, colour: str) -> Image.Image:
    """Decode an image file completely, upright, in mode "RGB" or "L".

    Args:
        path: The file.
        colour: "L" for grey, else the result is "RGB" (also for "BGR").

    Raises:
        DataError: It is missing, no image, damaged or unreasonably large.
    """
    try:
        Image.init()
        with Image.open(path, formats=[kind for kind in FORMATS if kind in Image.OPEN]) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise DataError(
                    f"{path}: {image.width}×{image.height} pixels are more than "
                    f"{_MAX_PIXELS:,}; such files are refused as decompression bombs."
                )
            image.load()
            return convert(ImageOps.exif_transpose(image), colour)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder, not an image.") from error
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path}: not a readable image ({reason}).") from error


def convert(image: Image.Image, colour: str) -> Image.Image:
    """The image in mode "L" or "RGB"; 16-bit grey keeps its upper 8 bits.

    Raises:
        DataError: It has no pixels, or floating-point ones.
    """
    if 0 in image.size:
        raise DataError(f"An image must have pixels, not {image.width}×{image.height}.")
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.uint32)
        shift = 8 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 0
        image = Image.fromarray((values >> shift).clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise DataError("Images of floating-point values are not read: their range is unknown.")
    elif image.mode == "P":
        image = image.convert("RGBA")
    return image.convert("L" if colour == "L" else "RGB")


def prepare(image: Image.Image, how: Preprocessing) -> Float[Tensor, "c s s"]:
    """One decoded image as the network's input."""
    width, height = image.size
    longer = int(how.resize * max(width, height) / min(width, height))
    size = (how.resize, longer) if width <= height else (longer, how.resize)
    if size[0] * size[1] > _MAX_PIXELS:
        raise DataError(
            f"An image of {width}×{height} pixels is too long: with its shorter side resized to "
            f"{how.resize} it would have {size[0] * size[1]:,}."
        )
    if size != image.size:
        image = image.resize(size, _FILTERS[how.interpolation])
    return normalize(_centre_crop(image, how.size), how)


def _centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The square in the middle, black where the image is smaller."""
    width, height = image.size
    if min(width, height) < size:
        grown = Image.new(image.mode, (max(width, size), max(height, size)))
        grown.paste(image, (max(size - width, 0) // 2, max(size - height, 0) // 2))
        image, (width, height) = grown, grown.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def normalize(image: Image.Image, how: Preprocessing) -> Float[Tensor, "c h w"]:
    """Pixels of an "RGB" or "L" image, scaled, minus mean, over standard deviation."""
    pixels = np.array(image, dtype=np.uint8)  # a copy: torch wants to be allowed to write
    values = torch.from_numpy(pixels).reshape(image.height, image.width, -1).permute(2, 0, 1)
    if how.colour == "BGR":
        values = values.flip(0)
    mean, std = (torch.tensor(x, dtype=torch.float32).view(-1, 1, 1) for x in (how.mean, how.std))
    return values.contiguous().float().div(255).sub_(mean).div_(std)


def augment(
    image: Image.Image,
    how: Preprocessing,
    rng: np.random.Generator,
    *,
    min_area: float = 0.08,
    flip: bool = True,
) -> Float[Tensor, "c s s"]:
    """A random part of the image as the network's input (arXiv:1409.4842, section 6).

    Args:
        image: A decoded image.
        how: Preprocessing; `resize` is not used.
        rng: Where chance comes from.
        min_area: Smallest part of the image's area that is cut out.
        flip: Whether to mirror every other image.
    """
    box = _random_box(image.width, image.height, rng, min_area)
    image = image.resize((how.size, how.size), _FILTERS[how.interpolation], box=box)
    if flip and rng.random() < 0.5:
        image = ImageOps.mirror(image)
    return normalize(image, how)


def _random_box(
    width: int, height: int, rng: np.random.Generator, min_area: float
) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = width * height * rng.uniform(min_area, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return int(left), int(top), int(left) + w, int(top) + h
    side = min(width, height)  # a very long image: its middle
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
