"""Images in arrays: scikit-learn's digits, and the idx files of MNIST and its relatives."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from functools import partial
from pathlib import Path

import numpy as np

from resnext.data.dataset import (
    Chosen,
    Classes,
    ImageSet,
    Part,
    Source,
    SourceDefaults,
    SplitName,
    compact,
    held_out,
    some,
)
from resnext.errors import DataError

DIGITS = tuple("0123456789")
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_PREFIX: dict[SplitName, str] = {"train": "train", "test": "t10k"}


def digits() -> Source:
    """Four fifths to learn from, and a fifth that never changes to test on."""
    parts: dict[SplitName, int] = {"train": 0, "test": 1}
    read = {part: partial(_digits, i) for part, i in parts.items()}
    return Source("digits", read, "L", SourceDefaults("digits", 8, "resnext11_8x16d"))


def _digits(side: int, labels: tuple[str, ...] | None) -> Part:
    if labels not in (None, DIGITS):
        raise DataError(f"digits has the classes 0 to 9, but the model has {some(labels)}.")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            'digits come with scikit-learn, which is not installed: pip install "resnext[digits]".'
        ) from error
    values, targets = load_digits(return_X_y=True)
    images = np.rint(np.reshape(values, (-1, 8, 8)) * (255 / 16)).astype(np.uint8)
    pixels = Chosen[np.ndarray](images, np.arange(len(images)))
    whole = ImageSet(pixels, compact(np.asarray(targets)), DIGITS, "digits")
    part = held_out(whole, seed=0, fraction=0.2)[side]
    if side:
        part = part.select(range(len(part)), "digits, test part")
    return Part(part, DIGITS, lambda: "scikit-learn digits")


def is_idx(folder: Path) -> bool:
    """Whether a folder holds MNIST's files."""
    return any(_idx_path(folder, part, "labels") for part in _PREFIX)


def idx_files(folder: Path) -> Source:
    """A folder of `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same of `t10k`.

    Files may be compressed (.gz). Images of 10 classes in a folder with "fashion" in its path get
    Fashion-MNIST's class names; all others are called by their numbers.
    """
    found: list[SplitName] = [part for part in _PREFIX if _idx_path(folder, part, "labels")]
    return Source(str(folder), {part: partial(_idx, folder, part) for part in found}, "L")


def _idx_path(folder: Path, part: SplitName, what: str) -> Path | None:
    kind = "idx3" if what == "images" else "idx1"
    for between in ("-", "."):
        for end in ("", ".gz"):
            path = folder / f"{_PREFIX[part]}-{what}{between}{kind}-ubyte{end}"
            if path.is_file():
                return path
    return None


def _idx(folder: Path, part: SplitName, labels: tuple[str, ...] | None) -> Part:
    name = str(folder) if part == "train" else f"{folder}, {part} part"
    paths = [_idx_path(folder, part, what) for what in ("images", "labels")]
    if paths[0] is None or paths[1] is None:
        raise DataError(f"{folder} has no {_PREFIX[part]}-images-idx3-ubyte, only its labels.")
    images, numbers = _idx_array(paths[0], 3), _idx_array(paths[1], 1)
    if len(images) != len(numbers):
        raise DataError(
            f"{paths[0]} has {len(images)} images, {paths[1].name} {len(numbers)} labels. They "
            f"do not belong together; download both again."
        )
    if not len(images) or 0 in images.shape:
        raise DataError(f"{paths[0]} holds no image: its shape is {images.shape}.")
    fashion = any("fashion" in text.lower() for text in folder.resolve().parts)
    classes = Classes()
    for number in numbers.tolist():
        classes.add(str(number))
    known = FASHION if fashion and numbers.max() < len(FASHION) else None
    targets, labels, own = classes.finish(name, known, labels)
    pixels = Chosen[np.ndarray](images, np.arange(len(images)))
    whole = ImageSet(pixels, targets, labels, name)

    def digest() -> str:
        together = hashlib.sha256(images.data)
        together.update(numbers.data)
        return together.hexdigest()[:16]

    return Part(whole, own, digest)


def _idx_array(path: Path, dimensions: int) -> np.ndarray:
    """The bytes of an idx file in their shape."""
    header = 4 + 4 * dimensions
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(header)
            if len(start) < header or start[:4] != bytes([0, 0, 8, dimensions]):
                raise DataError(
                    f"{path} is no idx file of bytes in {dimensions} dimension"
                    f"{'s' * (dimensions > 1)}: it begins with {start[:4].hex(' ') or 'nothing'}. "
                    f"Download it again."
                )
            shape = tuple(np.frombuffer(start, ">u4", offset=4).tolist())
            wanted = int(np.prod(shape, dtype=object))
            content = bytearray()  # block by block: a damaged header may announce terabytes
            while len(content) <= wanted and (block := file.read(1 << 22)):
                content += block
    except (OSError, EOFError, zlib.error) as error:  # a BadGzipFile is an OSError
        raise DataError(f"{path} cannot be read: {error}. Download it again.") from error
    if len(content) != wanted:
        came = f"more than {wanted:,}" if len(content) > wanted else f"{len(content):,}"
        raise DataError(
            f"{path} should hold {wanted:,} bytes {shape} after its header, but holds {came}. "
            f"Download it again."
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
