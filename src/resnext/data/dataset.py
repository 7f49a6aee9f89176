"""Sets of images, held compactly: a million images are a few arrays, not a million objects."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, overload

import numpy as np
from PIL import Image

from resnext.data.decoding import FORMATS, ValueRange, convert, decode_image, open_image
from resnext.data.passed_over import PassedOver
from resnext.errors import DataError

SplitName = Literal["train", "val", "test"]
EXTENSIONS = frozenset(
    end for end, kind in Image.registered_extensions().items() if kind in FORMATS
) | {".jif", ".jfi", ".pjpeg", ".pjp", ".jpg_large"}
"""Endings of image files, in lower case: those of Pillow's formats, and other names for JPEG."""
T = TypeVar("T")


@dataclass(frozen=True)
class Stored:
    """An image inside a larger file.

    Args:
        file: The larger file.
        offset: First byte of the image.
        size: Length of the image, bytes.
        name: Name of the image in messages: "train-000.tar:0001.jpg".
    """

    file: Path
    offset: int
    size: int
    name: str

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            DataError: The file does not exist, or has become shorter.
        """
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise DataError(f"{self.name}: {_reason(self.file, error)}") from error
        if len(data) < self.size:
            raise DataError(
                f"{self.name}: {self.file} has become shorter since it was opened. Start again."
            )
        return data


class Lazy(Sequence[T]):
    """A sequence that makes each item when it is accessed."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self.at(i) for i in range(*index.indices(len(self)))]
        return self.at(range(len(self))[index])

    def at(self, index: int) -> T:
        """The item at an index from 0 to `len(self) - 1`."""
        raise NotImplementedError


class Names(Lazy[str]):
    """Strings, concatenated in one block of memory.

    Forked workers share that block; of a list of `str` each would make its own copy over time,
    because reading an object writes to its reference count.
    """

    def __init__(self, names: Iterable[str]) -> None:
        text = bytearray()
        self._ends = array("q")
        for name in names:
            text += name.encode("utf-8", "surrogateescape")
            self._ends.append(len(text))
        self._text = bytes(text)

    def __len__(self) -> int:
        return len(self._ends)

    def at(self, index: int) -> str:
        """One string."""
        start = self._ends[index - 1] if index else 0
        return self._text[start : self._ends[index]].decode("utf-8", "surrogateescape")


class Files(Lazy[Path]):
    """Files, held as a folder and names relative to it."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.folder = folder
        self.names = Names(names)

    def __len__(self) -> int:
        return len(self.names)

    def at(self, index: int) -> Path:
        """One file."""
        return self.folder / self.names[index]


class Members(Lazy[Stored]):
    """Images inside larger files.

    Args:
        files: The larger files.
        titles: Name of each larger file in messages.
        which: Index into `files` for each image.
        offsets: First byte of each image.
        sizes: Length of each image, bytes.
        names: Name of each image inside its file.
    """

    def __init__(
        self,
        files: Sequence[Path],
        titles: Sequence[str],
        which: Sequence[int],
        offsets: Sequence[int],
        sizes: Sequence[int],
        names: Sequence[str],
    ) -> None:
        self.files, self.titles, self.names = tuple(files), tuple(titles), names
        self.which, self.offsets, self.sizes = which, offsets, sizes

    def __len__(self) -> int:
        return len(self.which)

    def at(self, index: int) -> Stored:
        """One image."""
        which = int(self.which[index])
        name = f"{self.titles[which]}:{self.names[index]}"
        return Stored(self.files[which], int(self.offsets[index]), int(self.sizes[index]), name)


class Chosen(Lazy[T]):
    """The items of another sequence at some indices, without a copy."""

    def __init__(self, items: Sequence[T] | np.ndarray, indices: np.ndarray) -> None:
        if isinstance(items, Chosen):
            items, indices = items.items, items.indices[indices]
        self.items: Any = items
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def at(self, index: int) -> T:
        """One chosen item."""
        return self.items[int(self.indices[index])]


@dataclass(frozen=True)
class ImageSet:
    """Images with the class of each.

    Args:
        images: Files, members of larger files, or arrays `(h, w)` or `(h, w, 3)` of 8-bit values.
        targets: Index into `labels` for each image.
        labels: Names of the classes.
        name: Name of the set in messages.
        lacking: Names of samples that are not in it, because they lack an image or a class.
    """

    images: Sequence[Path | np.ndarray | Stored]
    targets: Sequence[int]
    labels: tuple[str, ...]
    name: str
    lacking: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def open(self, index: int, colour: str, values: ValueRange = None) -> Image.Image:
        """Decode one image, upright, in mode "L" if `colour` is "L", else "RGB".

        Args:
            index: Position of the image.
            colour: "L" for grey.
            values: As in a card's `value_range`.

        Raises:
            DataError: The image is missing or damaged.
        """
        image = self.images[index]
        if isinstance(image, np.ndarray):
            return convert(Image.fromarray(image), colour)
        if isinstance(image, Stored):
            return decode_image(image.read(), image.name, colour, values)
        return open_image(image, colour, values)

    def read(self, index: int) -> bytes | np.ndarray:
        """One image as it is stored: encoded bytes, or an array.

        Raises:
            DataError: The file cannot be read.
        """
        image = self.images[index]
        if isinstance(image, np.ndarray):
            return image
        if isinstance(image, Stored):
            return image.read()
        try:
            return image.read_bytes()
        except OSError as error:
            raise DataError(_reason(image, error)) from error

    def title(self, index: int) -> str:
        """Name of one image in messages: its file, or its position in the set."""
        image = self.images[index]
        if isinstance(image, np.ndarray):
            number = self.images.indices[index] if isinstance(self.images, Chosen) else index
            return f"{self.name} {number}"
        return image.name if isinstance(image, Stored) else str(image)

    def select(self, indices: Iterable[int], name: str) -> ImageSet:
        """The images at some indices, as a set with another name."""
        if not isinstance(indices, np.ndarray):
            indices = np.fromiter(indices, dtype=np.int64)
        targets = np.asarray(self.targets, dtype=np.int64)[indices]
        return ImageSet(Chosen(self.images, indices), compact(targets), self.labels, name)

    def counts(self) -> np.ndarray:
        """Number of images of each class."""
        return np.bincount(np.asarray(self.targets, dtype=np.int64), minlength=len(self.labels))


@dataclass(frozen=True)
class Problem:
    """An image that cannot be used.

    Args:
        part: Its split: "train", "val" or "test".
        title: Name of the image.
        label: Its class; empty if the class is missing.
        reason: The fault, as a short sentence.
    """

    part: str
    title: str
    label: str
    reason: str


class SourceDefaults(NamedTuple):
    """Defaults of training on a data set; None for the defaults for photographs."""

    recipe: str | None = None
    """Name of a recipe."""
    size: int | None = None
    """Image size the network is trained with, pixels."""
    network: str | None = None
    """Name of a variant."""


LIKE_PHOTOGRAPHS = SourceDefaults()


@dataclass(frozen=True)
class Splits:
    """A data set in disjoint splits.

    Args:
        train: Images to train on.
        val: Images to choose the best epoch by.
        test: Images used for neither; None without a test split.
        colour: "L" if the images are grey by nature, else "RGB".
        fingerprint: Hash that identifies the images `train` was taken from.
        val_fraction: Fraction of each class drawn as `val`; None if the data has its own `val`.
        problems: Samples left out because they lack an image or a class.
        defaults: Recipe, size and network that suit the data.
        passed_over: Files and folders that are not read: they belong to no class or split, or have
            no image ending.
        unlabelled: Images without classes to learn from through a teacher; None for none.
        notes: What a reader should know about how the data was read, as sentences.
        value_range: Lowest and highest value of grey images of 16 or 32 bits; None without such
            images, or if they fill 16 bits.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet | None
    colour: str
    fingerprint: str
    val_fraction: float | None
    problems: tuple[Problem, ...] = ()
    defaults: SourceDefaults = LIKE_PHOTOGRAPHS
    passed_over: PassedOver = field(default_factory=PassedOver)
    unlabelled: ImageSet | None = None
    notes: tuple[str, ...] = ()
    value_range: ValueRange = None

    def by_name(self) -> dict[str, ImageSet]:
        """All splits that exist and have classes, by name."""
        splits = {"train": self.train, "val": self.val}
        return splits if self.test is None else {**splits, "test": self.test}


def held_out(
    whole: ImageSet, seed: int, fraction: float, order: tuple[str, ...] | None = None
) -> tuple[ImageSet, ImageSet]:
    """Hold out the same fraction of each class, with at least one image on either side.

    Args:
        whole: The images.
        seed: Decides which images are held out.
        fraction: Fraction of each class to hold out.
        order: The data's own labels, if `whole` has those of a model: the order in which classes
            are drawn from, so that the same seed holds out the same images.

    Returns:
        The images kept, and those held out.

    Raises:
        DataError: A class has only one image.
    """
    rng = np.random.default_rng(seed)
    targets = np.asarray(whole.targets)
    kept: list[np.ndarray] = []
    held: list[np.ndarray] = []
    same = order is None or order == whole.labels
    for i, label in enumerate(whole.labels if order is None else order):
        target = i if same else whole.labels.index(label)
        members = rng.permutation(np.flatnonzero(targets == target))
        if len(members) == 1:
            raise DataError(
                f"Class {label!r} of {whole.name} has one image. Holding one out needs two."
            )
        count = max(min(max(round(len(members) * fraction), 1), len(members) - 1), 0)
        held.append(members[:count])
        kept.append(members[count:])
    return (
        whole.select(np.sort(np.concatenate(kept)), whole.name),
        whole.select(np.sort(np.concatenate(held)), f"{whole.name}, held-out images"),
    )


def fingerprint(lines: Iterable[str]) -> str:
    """A short hash of some lines of text."""
    digest = hashlib.sha256()
    for i, line in enumerate(lines):
        digest.update((f"\n{line}" if i else line).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def class_weights(targets: Sequence[int] | np.ndarray, k: int) -> np.ndarray:
    """Weight of each of `k` classes, inversely proportional to its number of images.

    The mean over the classes that have images is 1; a class without images has weight 0.
    """
    counts = np.bincount(np.asarray(targets, dtype=np.int64), minlength=k)
    weights = np.divide(1.0, counts, out=np.zeros(len(counts)), where=counts > 0)
    return weights / weights[counts > 0].mean() if counts.any() else weights


def compact(values: np.ndarray) -> array[int]:
    """Integers as an array of 8 bytes each, whose items are Python's integers."""
    result = array("q")
    result.frombytes(values.astype(np.int64).tobytes())
    return result


def _reason(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path}: no such file."
    if isinstance(error, IsADirectoryError):
        return f"{path}: is a folder, not an image."
    return f"{path}: cannot be read ({error.strerror or error})."
