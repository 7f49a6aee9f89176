"""From images to tensors: preprocessing for evaluation, and random views for training.

Preprocessing equals torchvision's pipeline on Pillow images bit for bit, because public weights
were trained and measured with it.
"""

from __future__ import annotations

import io
import math
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from resnext.card import Preprocessing
from resnext.data.decoding import (
    FILTERS,
    convert,
    decode_image,
    open_lazily,
    pixels,
    read_source,
    resize_and_crop,
)


def prepare(image: Image.Image, preprocessing: Preprocessing) -> Float[Tensor, "c s s"]:
    """A decoded image as the network's input: resized, cropped and normalized."""
    return normalize(resize_and_crop(image, preprocessing), preprocessing)


def normalize(image: Image.Image, preprocessing: Preprocessing) -> Float[Tensor, "c h w"]:
    """Pixels of an "RGB" or "L" image over 255, minus the mean, over the standard deviation."""
    return normalized(torch.from_numpy(pixels(image, preprocessing)), preprocessing)


def normalized(
    values: UInt8[Tensor, "*n h w c"], preprocessing: Preprocessing
) -> Float[Tensor, "*n c h w"]:
    """Pixels over 255, minus the mean, over the standard deviation, on the device of `values`.

    Args:
        values: Pixels with channels last, in the network's order of channels.
        preprocessing: Its mean and standard deviation are used.
    """
    mean, std = (
        torch.tensor(x, dtype=torch.float32, device=values.device).view(-1, 1, 1)
        for x in (preprocessing.mean, preprocessing.std)
    )
    return values.movedim(-1, -3).contiguous().float().div(255).sub_(mean).div_(std)


def random_view(
    data: bytes | np.ndarray,
    name: str,
    preprocessing: Preprocessing,
    rng: np.random.Generator,
    *,
    min_area: float = 0.08,
    flip: bool = True,
    padding: int = 0,
    fast: bool = False,
) -> UInt8[Tensor, "s s c"]:
    """A random crop of an image, resized to the network's size (arXiv:1409.4842, section 6).

    A JPEG is decoded at a half, a quarter or an eighth of its size if the crop still has
    `preprocessing.size` pixels then.

    Args:
        data: Content of an image file, or an array `(h, w)` or `(h, w, 3)` of 8-bit values.
        name: Name of the image in messages.
        preprocessing: Its size, filter and whether it is grey are used.
        rng: Random number generator.
        min_area: Smallest area of a crop, as a fraction of the image's.
        flip: Whether to mirror the view with probability 1/2.
        padding: If above 0, no crop is taken: the whole image is resized to the network's size and
            shifted by up to this many pixels, with a black border.
        fast: Decode JPEG with simplejpeg and its fast transforms. Pixels differ from Pillow's by
            one or two levels on average.

    Returns:
        Pixels, RGB or grey.

    Raises:
        DataError: The image cannot be decoded.
    """
    if padding:
        image = _whole(data, name, preprocessing)
        square = image.resize(
            (preprocessing.size, preprocessing.size), FILTERS[preprocessing.interpolation]
        )
        pixels = np.asarray(square).reshape(preprocessing.size, preprocessing.size, -1)
        padded = np.pad(pixels, ((padding, padding), (padding, padding), (0, 0)))
        top, left = rng.integers(2 * padding + 1, size=2)
        view = torch.from_numpy(
            padded[top : top + preprocessing.size, left : left + preprocessing.size].copy()
        )
    else:

        def read(source: io.BytesIO | np.ndarray) -> UInt8[Tensor, "c h w"]:
            pixels, box = _random_crop(source, name, preprocessing, rng, min_area, fast)
            return _resized(pixels, box, preprocessing)

        view = read_source(io.BytesIO(data) if isinstance(data, bytes) else data, name, read)
    return view.flip(1) if flip and rng.random() < 0.5 else view


def _whole(data: bytes | np.ndarray, name: str, preprocessing: Preprocessing) -> Image.Image:
    if isinstance(data, bytes):
        return decode_image(data, name, preprocessing.colour, preprocessing.value_range)
    return convert(Image.fromarray(data), preprocessing.colour)


def _random_crop(
    data: io.BytesIO | np.ndarray,
    name: str,
    preprocessing: Preprocessing,
    rng: np.random.Generator,
    min_area: float,
    fast: bool,
) -> tuple[UInt8[np.ndarray, "h w c"], tuple[int, int, int, int]]:
    """Decoded pixels, possibly at a reduced size, and the box of a random crop in them."""
    if isinstance(data, np.ndarray):
        grey = data.ndim == 2 and preprocessing.colour == "L"
        pixels = data[..., None] if grey else _pixels(_whole(data, name, preprocessing))
        return pixels, _random_box(pixels.shape[1], pixels.shape[0], rng, min_area)
    with open_lazily(data, name) as image:
        width, height = image.size
        is_rgb_jpeg = image.format == "JPEG" and image.mode == "RGB" and preprocessing.colour != "L"
        if not is_rgb_jpeg or image.getexif().get(_ORIENTATION, 1) != 1:
            image.load()
            upright = ImageOps.exif_transpose(image)
            whole = convert(upright, preprocessing.colour, preprocessing.value_range)
            return _pixels(whole), _random_box(whole.width, whole.height, rng, min_area)
        box = _random_box(width, height, rng, min_area)
        spare = min(box[2] - box[0], box[3] - box[1]) // preprocessing.size
        factor = max(f for f in (1, 2, 4, 8) if f <= max(spare, 1))
        smaller = width // factor, height // factor
        if fast and (decoder := fast_decoder()):
            pixels = decoder(
                data.getvalue(),
                min_width=smaller[0],
                min_height=smaller[1],
                min_factor=1,
                fastdct=True,
                fastupsample=True,
            )
        else:
            image.draft("RGB", smaller)
            pixels = np.asarray(image.convert("RGB"))
        h, w, _ = pixels.shape
        left, right = (round(x * w / width) for x in (box[0], box[2]))
        top, bottom = (round(y * h / height) for y in (box[1], box[3]))
        left, top = min(left, w - 1), min(top, h - 1)
        return pixels, (left, top, max(right, left + 1), max(bottom, top + 1))


_ORIENTATION = 0x0112  # the EXIF tag of the camera's orientation


@cache
def fast_decoder() -> Any:
    """simplejpeg's decoder, which is faster than Pillow's; None if it is not installed."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    return decode_jpeg


def _pixels(image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    return np.asarray(image).reshape(image.height, image.width, -1)


def _resized(
    pixels: UInt8[np.ndarray, "h w c"], box: tuple[int, int, int, int], preprocessing: Preprocessing
) -> UInt8[Tensor, "s s c"]:
    """A crop of an image, resized to the network's size with antialiasing."""
    left, top, right, bottom = box
    crop = pixels[top:bottom, left:right]
    size = (preprocessing.size, preprocessing.size)
    if preprocessing.interpolation in (
        "bilinear",
        "bicubic",
    ):  # torch is three times as fast as Pillow
        if not crop.flags.writeable:  # torch accepts only writable arrays
            crop = crop.copy()
        values = torch.from_numpy(crop).permute(2, 0, 1)[None]
        mode = preprocessing.interpolation
        view = torch.nn.functional.interpolate(values, size, mode=mode, antialias=True)
        return view[0].permute(1, 2, 0)
    image = Image.fromarray(crop.squeeze(2) if crop.shape[2] == 1 else crop)
    resized = image.resize(size, FILTERS[preprocessing.interpolation])
    return torch.from_numpy(np.array(resized).reshape(*size, -1))


def _random_box(
    width: int, height: int, rng: np.random.Generator, min_area: float
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random crop."""
    for _ in range(10):
        area = width * height * rng.uniform(min_area, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return int(left), int(top), int(left) + w, int(top) + h
    side = min(width, height)  # the image is very long: take its centre
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
