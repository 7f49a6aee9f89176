"""From pictures to tensors: preprocessing as the card says, and random views for training.

Preprocessing follows torchvision's pipeline on Pillow images to the last bit, because that is
what public weights were trained and measured with.
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
    decoding_error,
    open_lazily,
    pixels,
    resize_and_crop,
)


def prepare(image: Image.Image, how: Preprocessing) -> Float[Tensor, "c s s"]:
    """One decoded image as the network's input."""
    return normalize(resize_and_crop(image, how), how)


def normalize(image: Image.Image, how: Preprocessing) -> Float[Tensor, "c h w"]:
    """Pixels of an "RGB" or "L" image, scaled, minus mean, over standard deviation."""
    return normalized(torch.from_numpy(pixels(image, how)), how)


def normalized(values: UInt8[Tensor, "*n h w c"], how: Preprocessing) -> Float[Tensor, "*n c h w"]:
    """The same for pixels in the network's order of channels, where they are."""
    mean, std = (
        torch.tensor(x, dtype=torch.float32, device=values.device).view(-1, 1, 1)
        for x in (how.mean, how.std)
    )
    return values.movedim(-1, -3).contiguous().float().div(255).sub_(mean).div_(std)


def random_view(
    data: bytes | np.ndarray,
    name: str,
    how: Preprocessing,
    rng: np.random.Generator,
    *,
    min_area: float = 0.08,
    flip: bool = True,
    padding: int = 0,
    fast: bool = False,
) -> UInt8[Tensor, "s s c"]:
    """A random part of an image at the network's size (arXiv:1409.4842, section 6).

    Only as much of a JPEG is decoded as the part needs: at a half, a quarter or an eighth of its
    size if the part still has `how.size` pixels then.

    Args:
        data: Content of an image file, or an array `(h, w)` or `(h, w, 3)` of 8-bit values.
        name: What to call it in messages.
        how: Preprocessing; of it size, filter and whether it is grey are used.
        rng: Where chance comes from.
        min_area: Smallest part of the image's area that is cut out.
        flip: Whether to mirror every other image.
        padding: If above 0, the image is instead resized to the network's size and shifted by up
            to so many pixels; the rim is black.
        fast: Decode JPEG with simplejpeg and its quick transforms. Pixels differ from Pillow's,
            by one or two levels on average.

    Returns:
        Pixels, RGB or grey.

    Raises:
        DataError: It is no readable image.
    """
    if padding:
        image = _whole(data, name, how.colour)
        square = image.resize((how.size, how.size), FILTERS[how.interpolation])
        pixels = np.asarray(square).reshape(how.size, how.size, -1)
        rim = np.pad(pixels, ((padding, padding), (padding, padding), (0, 0)))
        top, left = rng.integers(2 * padding + 1, size=2)
        view = torch.from_numpy(rim[top : top + how.size, left : left + how.size].copy())
    else:
        try:
            pixels, box = _random_part(data, name, how, rng, min_area, fast)
            view = _resized(pixels, box, how)
        except Exception as error:  # as above
            raise decoding_error(name, error) from error
    return view.flip(1) if flip and rng.random() < 0.5 else view


def _whole(data: bytes | np.ndarray, name: str, colour: str) -> Image.Image:
    if isinstance(data, bytes):
        return decode_image(data, name, colour)
    return convert(Image.fromarray(data), colour)


def _random_part(
    data: bytes | np.ndarray,
    name: str,
    how: Preprocessing,
    rng: np.random.Generator,
    min_area: float,
    fast: bool,
) -> tuple[UInt8[np.ndarray, "h w c"], tuple[int, int, int, int]]:
    """Decoded pixels, maybe at a reduced size, and the part of them to use."""
    if isinstance(data, np.ndarray):
        grey = data.ndim == 2 and how.colour == "L"
        pixels = data[..., None] if grey else _pixels(_whole(data, name, how.colour))
        return pixels, _random_box(pixels.shape[1], pixels.shape[0], rng, min_area)
    with open_lazily(io.BytesIO(data), name) as image:
        width, height = image.size
        plain = image.format == "JPEG" and image.mode == "RGB" and how.colour != "L"
        if not plain or image.getexif().get(_ORIENTATION, 1) != 1:
            image.load()
            whole = convert(ImageOps.exif_transpose(image), how.colour)
            return _pixels(whole), _random_box(whole.width, whole.height, rng, min_area)
        box = _random_box(width, height, rng, min_area)
        parts = min(box[2] - box[0], box[3] - box[1]) // how.size
        factor = max(f for f in (1, 2, 4, 8) if f <= max(parts, 1))
        smaller = width // factor, height // factor
        if fast and (decoder := fast_decoder()):
            pixels = decoder(
                data,
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


_ORIENTATION = 0x0112  # Exif's tag for how the camera was held


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
    pixels: UInt8[np.ndarray, "h w c"], box: tuple[int, int, int, int], how: Preprocessing
) -> UInt8[Tensor, "s s c"]:
    """A part of an image at the network's size, antialiased."""
    left, top, right, bottom = box
    part = pixels[top:bottom, left:right]
    size = (how.size, how.size)
    if how.interpolation in ("bilinear", "bicubic"):  # torch does it three times as fast as Pillow
        if not part.flags.writeable:  # torch takes only what it may write to
            part = part.copy()
        values = torch.from_numpy(part).permute(2, 0, 1)[None]
        mode = how.interpolation
        view = torch.nn.functional.interpolate(values, size, mode=mode, antialias=True)
        return view[0].permute(1, 2, 0)
    image = Image.fromarray(part.squeeze(2) if part.shape[2] == 1 else part)
    resized = image.resize(size, FILTERS[how.interpolation])
    return torch.from_numpy(np.array(resized).reshape(*size, -1))


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
