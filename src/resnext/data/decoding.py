"""From image files to pixels: decoding, resizing and cropping as the preprocessing says.

Pillow does all of this, because public weights were trained and measured with Pillow. Loads no
torch.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from resnext.card import Preprocessing
from resnext.errors import DataError, ResNeXtWarning

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF"),
    "HEIF",  # with pillow-heif
)
"""Formats that are decoded. Pillow knows more, but some, such as EPS, run other programs."""

try:
    from pillow_heif import register_heif_opener
except ImportError:  # not installed, or without its libraries
    pass
else:
    register_heif_opener()

_PNG = b"\x89PNG\r\n\x1a\n"
S = TypeVar("S", bound=Path | io.BytesIO | np.ndarray)
T = TypeVar("T")
_FEW = 1 << 14  # values; of fewer, less than 64 are left in the upper 8 bits
MAX_PIXELS = 178_956_970  # Pillow's own bound against decompression bombs


ValueRange = tuple[int, int] | None
"""The values of 16-bit images that become 0 and 255; None for the upper 8 bits."""


def open_image(path: Path, colour: str, values: ValueRange = None) -> Image.Image:
    """Decode an image file completely, upright, in mode "RGB" or "L".

    Args:
        path: The file.
        colour: "L" for grey; otherwise the result is "RGB" (also for "BGR").
        values: As in a card's `value_range`.

    Raises:
        DataError: The file is missing, damaged, not an image or unreasonably large.
    """
    return _decode(path, str(path), colour, values)


def decode_image(
    data: bytes, name: str, colour: str, values: ValueRange = None, most: int = MAX_PIXELS
) -> Image.Image:
    """Decode the content of an image file completely, upright, in mode "RGB" or "L".

    Args:
        data: The content.
        name: Name of the image in messages.
        colour: "L" for grey; otherwise the result is "RGB" (also for "BGR").
        values: As in a card's `value_range`.
        most: Pixels of the largest image that is decoded.

    Raises:
        DataError: The content is damaged, not an image or unreasonably large.
    """
    return _decode(io.BytesIO(data), name, colour, values, most)


def _decode(
    source: Path | io.BytesIO, name: str, colour: str, values: ValueRange, most: int = MAX_PIXELS
) -> Image.Image:
    def read(source: Path | io.BytesIO) -> Image.Image:
        with open_lazily(source, name, most) as image:
            load_pixels(image, values)
            return convert(ImageOps.exif_transpose(image), colour, values)

    return read_source(source, name, read)


def read_source(source: S, name: str, read: Callable[[S | io.BytesIO], T]) -> T:
    """What a function reads from an image file, whatever metadata the file has.

    Args:
        source: The file, its content, or an array of pixels.
        name: Name of the image in messages.
        read: Reads the file, or its content.

    Raises:
        DataError: The file cannot be read, as one line that says why.
    """
    try:
        try:
            return read(source)
        except DataError:
            raise
        except ValueError:  # Pillow refuses long texts and large colour profiles in PNGs
            if _content(source, len(_PNG)) != _PNG:
                raise
            return read(io.BytesIO(_without_metadata(_content(source))))
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise _decoding_error(source, name, error) from error


def _without_metadata(png: bytes) -> bytes:
    """A PNG without its texts and colour profiles, which are not used."""
    kept, position = [png[:8]], 8
    while position + 8 <= len(png):
        size, kind = int.from_bytes(png[position : position + 4]), png[position + 4 : position + 8]
        end = position + size + 12  # with its length, kind and checksum
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(png[position:end])
        position = end
    return b"".join(kept)


def open_lazily(source: Path | io.BytesIO, name: str, most: int = MAX_PIXELS) -> Image.Image:
    """Open an image: its header is read, its pixels are not decoded yet.

    Args:
        source: The file, or its content.
        name: Name of the image in messages.
        most: Pixels of the largest image that is opened.

    Raises:
        DataError: The image has too many pixels.
        OSError: The image cannot be read; Pillow raises other errors for damaged files.
    """
    Image.init()
    image = Image.open(source, formats=[kind for kind in FORMATS if kind in Image.OPEN])
    if image.width * image.height > most:
        image.close()
        raise DataError(
            f"{name}: {image.width}×{image.height} pixels are more than "
            f"{most:,}; such files are refused as decompression bombs."
        )
    return image


def load_pixels(image: Image.Image, values: ValueRange) -> None:
    """Decode the pixels of an image that was opened.

    Args:
        image: The image.
        values: As in a card's `value_range`.

    Warns:
        ResNeXtWarning: The image has more than 8 bits, and next to nothing is left of them. The
            text is always the same, so that it is shown once.
    """
    grey, deep = image.mode.startswith("I"), has_16_bits(image)
    image.load()
    if not (grey or deep) or 0 in image.size:
        return
    pixels = np.asarray(image if grey else image.convert("RGB"))
    low, high = int(pixels.min()), int(pixels.max()) * (1 if grey else 256)
    if grey and values is not None:
        if low > values[1] or high < values[0]:
            warnings.warn(
                "An image has only values outside of the model's value_range, so it is all black "
                "or white. It is not scaled like the images of the training.",
                ResNeXtWarning,
                stacklevel=2,
            )
    elif deep and high < _FEW:
        warnings.warn(
            f"An image of 16 bits has only values below {_FEW:,}, of which the upper 8 bits are "
            f"read, because the model has no value_range for it: it is almost black. Convert such "
            f"images to 8 bits, or train on them.",
            ResNeXtWarning,
            stacklevel=2,
        )


def has_16_bits(image: Image.Image) -> bool:
    """Whether an image has 16 bits, by its mode or the layout that Pillow reads."""
    layouts = (tile[3] for tile in getattr(image, "tile", ()))
    names = (str(x[0] if isinstance(x, tuple) else x) for x in layouts)
    return image.mode.startswith("I;16") or any(";16" in name for name in names)


def _content(source: Path | io.BytesIO | np.ndarray, size: int | None = None) -> bytes:
    """The first bytes of a file, by default all; none for an array."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return file.read(size)
    return source.getbuffer()[:size].tobytes() if isinstance(source, io.BytesIO) else b""


def _decoding_error(
    source: Path | io.BytesIO | np.ndarray, name: str, error: Exception
) -> DataError:
    """The error for an image that cannot be decoded, as one line that says why."""
    if isinstance(error, DataError):
        return error if str(error).startswith(name) else DataError(f"{name}: {error}")
    if isinstance(error, FileNotFoundError):
        return DataError(f"{name}: no such file.")
    if isinstance(error, IsADirectoryError):
        return DataError(f"{name}: is a folder, not an image.")
    if isinstance(error, UnidentifiedImageError):
        return DataError(f"{name}: not a readable image ({_kind(_content(source, 64))}).")
    if isinstance(error, Image.DecompressionBombError):
        return DataError(f"{name}: refused as a decompression bomb: it has too many pixels.")
    reason = str(error).partition("\n")[0] or type(error).__name__
    return DataError(f"{name}: not a readable image ({reason}).")


def _kind(head: bytes) -> str:
    """What a file is that no format recognizes, from its first bytes."""
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; run git lfs pull"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"mif1"):
        return "damaged HEIF" if "HEIF" in Image.OPEN else 'HEIF; pip install "resnext[heif]"'
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "JPEG XL, which is not read"
    return "unknown format"


def convert(image: Image.Image, colour: str, values: ValueRange = None) -> Image.Image:
    """The image in mode "L" or "RGB".

    Args:
        image: The image.
        colour: "L" for grey; otherwise the result is "RGB" (also for "BGR").
        values: What becomes 0 and 255 in grey of 16 and 32 bits, as in a card's `value_range`.

    Raises:
        DataError: The image has no pixels, floating-point pixels, or values beyond 16 bits while
            `values` is None.
    """
    if 0 in image.size:
        raise DataError(f"An image must have pixels, not {image.width}×{image.height}.")
    if image.mode.startswith("I"):
        image = _eight_bits(image, values)
    elif image.mode == "F":
        raise DataError("Images of floating-point values are not read: their range is unknown.")
    elif image.mode == "P":
        image = image.convert("RGBA")
    return image.convert("L" if colour == "L" else "RGB")


def _eight_bits(image: Image.Image, values: ValueRange) -> Image.Image:
    """Grey of 16 or 32 bits as grey of 8."""
    pixels = np.asarray(image).astype(np.int64)
    if values is not None:
        low, high = values
        scaled = np.rint((pixels.clip(low, high) - low) * (255 / (high - low)))
        return Image.fromarray(scaled.astype(np.uint8))
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise DataError(
            f"Its values from {pixels.min()} to {pixels.max()} are beyond 16 bits, and the model "
            f"was not trained on such images, so their range is unknown. Convert them to 8 bits."
        )
    shift = 8 if image.mode.startswith("I;16") or pixels.max() > 0xFF else 0
    return Image.fromarray((pixels >> shift).astype(np.uint8))


def resize_and_crop(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize a decoded image and crop its centre to the network's input size.

    Raises:
        DataError: The image is so long that the resized one would be a decompression bomb.
    """
    return _centre_crop(resize(image, preprocessing), preprocessing.size)


def resize(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize a decoded image so that its shorter side is `preprocessing.resize`.

    Raises:
        DataError: The image is so long that the resized one would be a decompression bomb.
    """
    width, height = image.size
    longer = int(preprocessing.resize * max(width, height) / min(width, height))
    size = (preprocessing.resize, longer) if width <= height else (longer, preprocessing.resize)
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(
            f"An image of {width}×{height} pixels is too long: with its shorter side resized to "
            f"{preprocessing.resize} it would have {size[0] * size[1]:,}."
        )
    return image if size == image.size else image.resize(size, FILTERS[preprocessing.interpolation])


def pixels(image: Image.Image, preprocessing: Preprocessing) -> UInt8[np.ndarray, "h w c"]:
    """Pixels of an "RGB" or "L" image as a new array, channels in the network's order."""
    values = np.array(image, dtype=np.uint8).reshape(image.height, image.width, -1)
    return np.ascontiguousarray(values[..., ::-1]) if preprocessing.colour == "BGR" else values


def _centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The square at the centre, padded with black where the image is smaller."""
    width, height = image.size
    if min(width, height) < size:
        padded = Image.new(image.mode, (max(width, size), max(height, size)))
        padded.paste(image, (max(size - width, 0) // 2, max(size - height, 0) // 2))
        image, (width, height) = padded, padded.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))
