"""Sets of images, held compactly: a million images are a few arrays, not a million objects."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, overload

import numpy as np
from PIL import Image

from resnext.data.decoding import FORMATS, convert, decode_image, open_image
from resnext.errors import DataError

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
ALIASES: dict[str, SplitName] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
EXTENSIONS = frozenset(
    end for end, kind in Image.registered_extensions().items() if kind in FORMATS
)
T = TypeVar("T")


@dataclass(frozen=True)
class Stored:
    """An image inside a larger file.

    Args:
        file: The larger file.
        offset: Where the image begins, bytes.
        size: How long it is, bytes.
        name: What to call it: "train-000.tar:0001.jpg".
    """

    file: Path
    offset: int
    size: int
    name: str

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            DataError: The file is gone or has become shorter.
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


Picture = Path | np.ndarray | Stored


class Lazy(Sequence[T]):
    """A sequence that makes its items when they are asked for."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self.at(i) for i in range(*index.indices(len(self)))]
        return self.at(range(len(self))[index])

    def at(self, index: int) -> T:
        """The item at an index that is not negative."""
        raise NotImplementedError


class Names(Lazy[str]):
    """Texts one after the other in one block of memory.

    Worker processes share it with the main one; a list of `str` they would copy bit by bit.
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
        """One text."""
        start = self._ends[index - 1] if index else 0
        return self._text[start : self._ends[index]].decode("utf-8", "surrogateescape")


class Files(Lazy[Path]):
    """Files by their names below a folder."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.folder = folder
        self.names = Names(names)

    def __len__(self) -> int:
        return len(self.names)

    def at(self, index: int) -> Path:
        """One file."""
        return self.folder / self.names[index]


class Members(Lazy[Stored]):
    """Images inside some larger files.

    Args:
        files: The larger files.
        titles: What messages call each.
        which: Index into `files` of each image.
        offsets: Where each begins.
        sizes: How long each is.
        names: What each is called inside its file.
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
    """Some items of another sequence, in an order of their own, without a copy."""

    def __init__(self, items: Sequence[T] | np.ndarray, indices: np.ndarray) -> None:
        if isinstance(items, Chosen):
            items, indices = items.items, items.indices[indices]
        self.items: Any = items
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def at(self, index: int) -> T:
        """One of them."""
        return self.items[int(self.indices[index])]


@dataclass(frozen=True)
class ImageSet:
    """Images with the class of each.

    Args:
        images: Files, members of larger files, or arrays `(h, w)` or `(h, w, 3)` of 8-bit values.
        targets: Index into `labels` of each image.
        labels: Names of the classes.
        name: What to call it in messages.
    """

    images: Sequence[Picture]
    targets: Sequence[int]
    labels: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        return len(self.images)

    def open(self, index: int, colour: str) -> Image.Image:
        """Decode one image.

        Raises:
            DataError: It is damaged.
        """
        image = self.images[index]
        if isinstance(image, np.ndarray):
            return convert(Image.fromarray(image), colour)
        if isinstance(image, Stored):
            return decode_image(image.read(), image.name, colour)
        return open_image(image, colour)

    def read(self, index: int) -> bytes | np.ndarray:
        """One image as it is stored: encoded, or an array.

        Raises:
            DataError: Its file cannot be read.
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
        """What messages call one image: its file, or its number in the whole set."""
        image = self.images[index]
        if isinstance(image, np.ndarray):
            number = self.images.indices[index] if isinstance(self.images, Chosen) else index
            return f"{self.name} {number}"
        return image.name if isinstance(image, Stored) else str(image)

    def select(self, indices: Iterable[int], name: str) -> ImageSet:
        """Some of the images, under another name."""
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
        part: "train", "val" or "test".
        title: The image.
        label: Its class; empty if that is what is missing.
        reason: What is wrong, as a short sentence.
    """

    part: str
    title: str
    label: str
    reason: str


class SourceDefaults(NamedTuple):
    """What training uses for a kind of data unless the user chooses; None as for photographs."""

    recipe: str | None = None
    """Name of a recipe."""
    size: int | None = None
    """Side of the images the network sees, pixels."""
    network: str | None = None
    """Name of a variant."""


LIKE_PHOTOGRAPHS = SourceDefaults()


@dataclass(frozen=True)
class Splits:
    """A data set in parts that share no image.

    Args:
        train: What is learnt from.
        val: What the best epoch is chosen by.
        test: What is used neither for learning nor for choosing; None if there is none.
        colour: "L" if the images are grey by nature, else "RGB".
        fingerprint: Identifies the images `train` was taken from.
        val_fraction: Part of each class that was drawn as `val`; None if the data came with one.
        problems: Samples that were left out because image or class is missing.
        defaults: Recipe, size and network that suit the data.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet | None
    colour: str
    fingerprint: str
    val_fraction: float | None
    problems: tuple[Problem, ...] = ()
    defaults: SourceDefaults = LIKE_PHOTOGRAPHS

    def parts(self) -> dict[str, ImageSet]:
        """The parts there are, by name."""
        parts = {"train": self.train, "val": self.val}
        return parts if self.test is None else {**parts, "test": self.test}


@dataclass(frozen=True)
class Part:
    """What was found under "train", "val" or "test".

    Args:
        images: The images that have a class.
        own: The labels that the data has by itself, in order.
        fingerprint: Computes what identifies them.
        problems: Samples without image or class.
    """

    images: ImageSet
    own: tuple[str, ...]
    fingerprint: Callable[[], str]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Source:
    """A data set nobody has split yet.

    Args:
        name: What to call it in messages.
        parts: Reads each part it came in; one that came in no parts has "train" only. Given
            labels, targets index into them, and other classes are refused.
        colour: "L" if the images are grey by nature, else "RGB".
        defaults: Recipe, size and network that suit the data.
    """

    name: str
    parts: Mapping[str, Callable[[tuple[str, ...] | None], Part]]
    colour: str = "RGB"
    defaults: SourceDefaults = LIKE_PHOTOGRAPHS


class Classes:
    """Collects the class of each image, as texts, and numbers them in the end."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._of = array("q")

    def add(self, text: str) -> None:
        """The class of the next image."""
        self._of.append(self._ids.setdefault(text, len(self._ids)))

    def finish(
        self, name: str, known: Sequence[str] | None, labels: tuple[str, ...] | None
    ) -> tuple[array[int], tuple[str, ...], tuple[str, ...]]:
        """Targets, labels, and the labels that the data has by itself.

        Args:
            name: Of the data, for messages.
            known: Names of the classes 0, 1, …; without, the texts are the names.
            labels: What targets must index into; without, all names in order.

        Raises:
            DataError: A class is not known, or there is only one.
        """
        own, index = _numbered(name, list(self._ids), known)
        if labels is None:
            if len(set(index)) < 2:
                only = own[index[0]] if index else "none"
                raise DataError(f"{name} has one class only, {only!r}. Training needs two.")
            labels = own
        if labels != own:
            for label in own:
                if own.count(label) > 1:
                    raise DataError(f"{name} calls two classes {label!r}. Give each its own name.")
            place = {label: i for i, label in enumerate(labels)}
            unknown = sorted({own[i] for i in index} - place.keys())
            if unknown:
                raise DataError(f"{name} has a class {unknown[0]!r}; known are {some(labels)}.")
            index = [place[own[i]] for i in index]
        return compact(np.asarray(index, dtype=np.int64)[np.asarray(self._of)]), labels, own


def _numbered(
    name: str, texts: list[str], known: Sequence[str] | None
) -> tuple[tuple[str, ...], list[int]]:
    """Names of the classes in order, and the number of each text's."""
    numbers = [_integer(text) for text in texts]
    if known is not None:
        place = {label: i for i, label in enumerate(known)}
        index = [place.get(t, -1) if i is None else i for t, i in zip(texts, numbers, strict=True)]
        for text, i in zip(texts, index, strict=True):
            if not 0 <= i < len(known):
                raise DataError(
                    f"{name} has a class {text!r}, but its {len(known)} class names are "
                    f"{some(known)} (numbers 0 to {len(known) - 1})."
                )
        return tuple(known), index
    if all(number is not None for number in numbers):
        order = sorted({number for number in numbers if number is not None})
        at = {number: i for i, number in enumerate(order)}
        return tuple(map(str, order)), [at[n] for n in numbers if n is not None]
    order = sorted(texts)
    at = {text: i for i, text in enumerate(order)}
    return tuple(order), [at[text] for text in texts]


def _integer(text: str) -> int | None:
    digits = text[1:] if text.startswith("-") else text
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) < 19 else None


def held_out(
    whole: ImageSet, seed: int, fraction: float, order: tuple[str, ...] | None = None
) -> tuple[ImageSet, ImageSet]:
    """Split each class by the same fraction, at least one image on either side.

    Args:
        whole: The images.
        seed: Decides which.
        fraction: How much of each class to hold out.
        order: The labels as the data has them, if `whole` has been given others: classes are
            drawn from in this order.

    Raises:
        DataError: A class has one image only.
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
                f"Class {label!r} of {whole.name} has one image; it takes two to hold one out."
            )
        count = max(min(max(round(len(members) * fraction), 1), len(members) - 1), 0)
        held.append(members[:count])
        kept.append(members[count:])
    return (
        whole.select(np.sort(np.concatenate(kept)), whole.name),
        whole.select(np.sort(np.concatenate(held)), f"{whole.name}, held-out part"),
    )


def fingerprint(lines: Iterable[str]) -> str:
    """A short hash of a description."""
    digest = hashlib.sha256()
    for i, line in enumerate(lines):
        digest.update((f"\n{line}" if i else line).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def class_weights(targets: Sequence[int] | np.ndarray, k: int) -> np.ndarray:
    """Weight of each of `k` classes, inverse to its number of images.

    The mean over the classes that have images is 1; a class without any has weight 0.
    """
    counts = np.bincount(np.asarray(targets, dtype=np.int64), minlength=k)
    weights = np.divide(1.0, counts, out=np.zeros(len(counts)), where=counts > 0)
    return weights / weights[counts > 0].mean() if counts.any() else weights


def compact(values: np.ndarray) -> array[int]:
    """Whole numbers in 8 bytes each, which are Python's own when taken out."""
    result = array("q")
    result.frombytes(values.astype(np.int64).tobytes())
    return result


def some(labels: Sequence[str]) -> str:
    """The first labels, and how many more there are."""
    more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
    return ", ".join(labels[:5]) + more


def _reason(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path}: no such file."
    if isinstance(error, IsADirectoryError):
        return f"{path}: is a folder, not an image."
    return f"{path}: cannot be read ({error.strerror or error})."
