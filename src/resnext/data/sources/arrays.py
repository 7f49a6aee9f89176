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
    ImageSet,
    SourceDefaults,
    SplitName,
    compact,
    held_out,
)
from resnext.data.labels import Classes, shortened
from resnext.data.sources.base import LoadedSplit, Source, split_title
from resnext.errors import DataError
from resnext.system.text import counted

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
    """scikit-learn's digits: four fifths to train on, and a fixed fifth to test on."""
    defaults = SourceDefaults("digits", 8, "resnext11_8x16d")
    return Source(
        "digits",
        {"train": partial(_digits, "train"), "test": partial(_digits, "test")},
        "L",
        defaults,
    )


def _digits(split: SplitName, labels: tuple[str, ...] | None) -> LoadedSplit:
    if labels not in (None, DIGITS):
        raise DataError(f"digits has the classes 0 to 9, but the model has {shortened(labels)}.")
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
    train, test = held_out(whole, seed=0, fraction=0.2)
    chosen = test.select(range(len(test)), "digits, test split") if split == "test" else train
    return LoadedSplit(chosen, DIGITS, lambda: "scikit-learn digits")


def is_idx(folder: Path) -> bool:
    """Whether a folder holds MNIST's files."""
    return any(_idx_path(folder, split, "labels") for split in _PREFIX)


def idx_files(folder: Path) -> Source:
    """A folder of `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, and the same for `t10k`.

    Files may be compressed (.gz). With "fashion" in the path of the folder and at most 10 classes,
    the class names are Fashion-MNIST's, otherwise the numbers.
    """
    splits: list[SplitName] = [split for split in _PREFIX if _idx_path(folder, split, "labels")]
    return Source(str(folder), {split: partial(_idx, folder, split) for split in splits}, "L")


def _idx_path(folder: Path, split: SplitName, content: str) -> Path | None:
    """The file of a split's "images" or "labels"; None if it does not exist."""
    kind = "idx3" if content == "images" else "idx1"
    for separator in ("-", "."):
        for end in ("", ".gz"):
            path = folder / f"{_PREFIX[split]}-{content}{separator}{kind}-ubyte{end}"
            if path.is_file():
                return path
    return None


def _idx(folder: Path, split: SplitName, labels: tuple[str, ...] | None) -> LoadedSplit:
    name = split_title(folder, split)
    image_file, label_file = (_idx_path(folder, split, x) for x in ("images", "labels"))
    if image_file is None or label_file is None:
        raise DataError(f"{folder} has no {_PREFIX[split]}-images-idx3-ubyte, only its labels.")
    images, numbers = _idx_array(image_file, 3), _idx_array(label_file, 1)
    if len(images) != len(numbers):
        raise DataError(
            f"{image_file} has {len(images)} images, {label_file.name} {len(numbers)} labels. They "
            f"do not belong together; download both again."
        )
    if not len(images) or 0 in images.shape:
        raise DataError(f"{image_file} holds no image: its shape is {images.shape}.")
    fashion = any("fashion" in text.lower() for text in folder.resolve().parts)
    classes = Classes()
    for number in numbers.tolist():
        classes.add(str(number))
    known = FASHION if fashion and numbers.max() < len(FASHION) else None
    targets, labels, own = classes.finish(name, known, labels)
    pixels = Chosen[np.ndarray](images, np.arange(len(images)))
    whole = ImageSet(pixels, targets, labels, name)

    def fingerprint() -> str:
        digest = hashlib.sha256(images.data)
        digest.update(numbers.data)
        return digest.hexdigest()[:16]

    return LoadedSplit(whole, own, fingerprint)


def _idx_array(path: Path, dimensions: int) -> np.ndarray:
    """The bytes of an idx file as an array with `dimensions` axes."""
    header = 4 + 4 * dimensions
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(header)
            if len(start) < header or start[:4] != bytes([0, 0, 8, dimensions]):
                raise DataError(
                    f"{path} is not an idx file of bytes in {counted(dimensions, 'dimension')}: "
                    f"it begins with {start[:4].hex(' ') or 'nothing'}. Download it again."
                )
            shape = tuple(np.frombuffer(start, ">u4", offset=4).tolist())
            wanted = int(np.prod(shape, dtype=object))
            content = bytearray()  # in blocks, because a damaged header may announce terabytes
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
