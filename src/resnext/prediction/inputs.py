"""What `predict` takes as images, and how each becomes a Pillow image. Loads no torch."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard, cast

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps

from resnext.data.decoding import ValueRange, convert, decode_image, load_pixels, open_image
from resnext.data.passed_over import PassedOver
from resnext.data.sources.folders import images_in
from resnext.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    Picture = (
        str
        | os.PathLike[str]
        | bytes
        | bytearray
        | memoryview
        | BinaryIO
        | Image.Image
        | np.ndarray
        | Tensor
    )
    """A file; the content of one, as bytes or opened in binary mode; a Pillow image; an array
    `(h, w)` or `(h, w, 3)` of 8-bit values; or a tensor, as `decode` takes it."""

_KINDS = (
    "a file, its content (bytes, or opened in binary mode), a Pillow image, an array (h, w) or "
    "(h, w, 3) of uint8, or a tensor (c, h, w) or (n, c, h, w) of uint8 or of floats from 0 to 1 "
    "with 1 or 3 channels; grey also of uint16, int16 or int32"
)
_DEEP = ("uint16", "int16", "int32")  # types of grey that a card's value_range scales
_URL = re.compile(r"(?:data:|[a-z][a-z0-9+.-]+:/)", re.IGNORECASE)  # a Path has one slash only
_SLACK = 1e-3  # resizing a tensor may exceed 0 and 1 by rounding
_LONGEST = 160  # characters of a path in a message


def expand_images(
    images: Picture | Iterable[Picture], passed_over: PassedOver | None = None
) -> Iterator[tuple[str, Picture]]:
    """Every image with its name, one by one; folders and batches of tensors are expanded.

    The name is that of the file, or the position in `images`; in a batch that is one of several
    inputs, both positions: "3[0]".

    Args:
        images: Images and folders.
        passed_over: Counts the files in folders that are not read.

    Raises:
        DataError: No images are given, a file does not exist, or the images are a URL or of a type
            that holds none.
    """
    if is_one(images):
        pictures: Iterable[Any] = [images]
    elif isinstance(images, Iterable) and not isinstance(images, Mapping | Set):
        pictures = cast("Iterable[Any]", images)
    else:
        raise DataError(f"An image must be {_KINDS}, or a list of these, not {described(images)}.")
    several, name = not is_one(images), None
    for i, picture in enumerate(pictures):
        if isinstance(picture, str | os.PathLike):
            for name in image_names([picture], passed_over):
                yield name, name
        elif _is_tensor(picture) and picture.ndim == 4:
            for j in range(len(picture)):
                name = f"{i}[{j}]" if several else str(j)
                yield name, picture[j]
        else:
            name = str(i)
            yield name, picture
    if name is None:
        raise DataError("No images were given to classify.")


def is_one(images: Any) -> TypeGuard[Picture]:
    """Whether the argument of `predict` is a single image, folder or batch, not a list of them."""
    known = str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray
    return isinstance(images, known) or hasattr(images, "read") or _is_tensor(images)


def image_names(
    paths: Iterable[str | os.PathLike[str]], passed_over: PassedOver | None = None
) -> Iterator[str]:
    """Names of image files: those given, and all in the folders given, in order, one by one.

    Args:
        paths: Files and folders.
        passed_over: Counts the files in folders that are not read.

    Raises:
        DataError: A file does not exist, or is a URL; or a folder holds no image or cannot be
            listed.
    """
    for given in paths:
        if given == "":  # Path would take it for the current folder
            raise DataError("An empty path was given. Give an image file or a folder of images.")
        path = Path(given)
        try:
            folder, exists = path.is_dir(), path.exists()
        except (OSError, ValueError):  # longer than names may be, or with a zero byte
            folder = exists = False
        if not exists:
            raise _missing(str(path))
        if not folder:
            yield str(path)
            continue
        above = str(path / "_")[:-1]
        yield from (above + name for name in images_in(path, passed_over))


def _missing(path: str) -> DataError:
    """The error for a path that does not exist, which may be a URL or no path at all."""
    if path[:5].lower() == "data:":
        return DataError("A data: URL was given. Decode it, and pass the content as bytes.")
    if _URL.match(path):
        kind, _, rest = path.partition("?")[0].partition(":")  # what follows may be a key
        address = f"{kind}://{re.sub('^[^/]*@', '', rest.lstrip('/'))}"  # without a password
        return DataError(
            f"{_shortened(address)} is a URL, but images are read from files. Download it, or pass "
            f"its content as bytes."
        )
    return DataError(f"{_shortened(path)}: no such file.")


def decode(
    picture: Picture, colour: str, name: str = "An image", values: ValueRange = None
) -> Image.Image:
    """A picture as a Pillow image, not resized, upright, in mode "L" or "RGB".

    A tensor `(c, h, w)` holds RGB or grey: integers from 0 to 255 (uint8), or floats from 0 to 1,
    which are rounded to 8 bits as a file would hold them. It is not normalized.

    Args:
        picture: The image.
        colour: "L" for grey; otherwise the result is "RGB" (also for "BGR").
        name: Name of an image without a file, in messages.
        values: As in a card's `value_range`.

    Raises:
        DataError: The picture is damaged, or of the wrong shape or type.
    """
    if isinstance(picture, str | os.PathLike):
        return open_image(Path(picture), colour, values)
    if isinstance(picture, Image.Image):
        try:
            load_pixels(picture, values)
            return convert(ImageOps.exif_transpose(picture), colour, values)
        except OSError as error:  # Pillow decodes only now
            raise DataError(f"A Pillow image cannot be decoded: {error}.") from error
    if isinstance(picture, bytes | bytearray | memoryview):
        return decode_image(bytes(picture), f"{name} ({described(picture)})", colour, values)
    if hasattr(picture, "read"):
        content, title = _content(picture, name), f"{name} ({described(picture)})"
        return decode_image(content, title, colour, values)
    image = Image.fromarray(_array(picture, name))
    load_pixels(image, values)
    return convert(image, colour, values)


def described(value: Any) -> str:
    """Type and shape or length of a value, never its content."""
    kind = type(value).__name__
    if value is None:
        return "None"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{kind} of shape {tuple(value.shape)} and {value.dtype}"
    if isinstance(value, memoryview):
        return f"{kind} of {value.nbytes:,} bytes"
    if isinstance(value, bytes | bytearray):
        return f"{kind} of {len(value):,} bytes"
    try:
        return f"{kind} of length {len(value):,}"
    except TypeError:
        return f"an object of type {kind}"


def _content(file: Any, name: str) -> bytes:
    """Everything in an open file, from its beginning; its position is restored if it has one."""
    try:
        if not getattr(file, "seekable", lambda: False)():
            content = file.read()
        else:
            position = file.tell()
            file.seek(0)
            content = file.read()
            file.seek(position)
    except (OSError, ValueError) as error:  # ValueError: it is closed, or holds no text
        raise DataError(f"{name} ({described(file)}) cannot be read: {error}.") from error
    if not isinstance(content, bytes | bytearray):
        hint = " Open the file in binary mode ('rb')." if isinstance(content, str) else ""
        raise DataError(
            f"{name} ({described(file)}) must be read as bytes, not {type(content).__name__}.{hint}"
        )
    return bytes(content)


def _array(picture: Any, name: str) -> UInt8[np.ndarray, "h w *c"] | Int[np.ndarray, "h w"]:
    """An array, or a tensor `(c, h, w)`, as values `(h, w)`, or 8-bit values `(h, w, 3)`."""
    if _is_tensor(picture) and picture.ndim == 3 and str(picture.dtype)[6:] in _DEEP:
        picture = picture[0].detach().cpu().numpy() if len(picture) == 1 else picture
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8:
        if picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3):
            return picture
    elif isinstance(picture, np.ndarray) and picture.dtype.name in _DEEP and picture.ndim == 2:
        return picture if picture.dtype == np.uint16 else picture.astype(np.int32)
    elif _is_tensor(picture) and picture.ndim == 3 and picture.shape[0] in (1, 3):
        if picture.is_floating_point():
            picture = _eight_bits(picture, name)
        if str(picture.dtype) == "torch.uint8":
            values = picture.detach().cpu().numpy()
            return (
                values[0] if len(values) == 1 else np.ascontiguousarray(values.transpose(1, 2, 0))
            )
    raise DataError(f"{name}: an image must be {_KINDS}, not {described(picture)}.")


def _eight_bits(picture: Tensor, name: str) -> Tensor:
    """Floats from 0 to 1 as integers from 0 to 255."""
    low, high = (picture.min().item(), picture.max().item()) if picture.numel() else (0, 0)
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # also refuses NaN
        raise DataError(
            f"{name}: a tensor of floats must hold values from 0 to 1, before normalization, not "
            f"from {low:g} to {high:g}. Pass pixels from 0 to 255 as uint8."
        )
    return (picture.detach().double() * 255).round().clamp(0, 255).byte()


def _is_tensor(value: Any) -> TypeGuard[Tensor]:
    """Whether a value is a tensor; without torch, there are none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _shortened(text: str) -> str:
    """A path on one line, cut if it is too long for one."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:60]}… ({len(text):,} characters)"
