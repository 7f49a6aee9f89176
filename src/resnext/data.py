"""Where images come from: class folders, scikit-learn's digits, and how they are split.

folder/cat/1.jpg                     split by us, stratified
folder/train/cat/1.jpg, folder/val/… split by you, optionally with test/
digits                               scikit-learn's 1,797 handwritten digits
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from resnext.errors import DataError
from resnext.transforms import FORMATS, convert, open_image

EXTENSIONS = frozenset(
    end for end, kind in Image.registered_extensions().items() if kind in FORMATS
)
SplitName = Literal["train", "val", "test"]
_ALIASES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class ImageSet:
    """Images with the class of each.

    Args:
        images: Files, or arrays `(h, w)` or `(h, w, 3)` of 8-bit values.
        targets: Index into `labels` of each image.
        labels: Names of the classes.
        name: What to call it in messages.
    """

    images: Sequence[Path | np.ndarray]
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
        return open_image(image, colour)

    def select(self, indices: Iterable[int], name: str) -> ImageSet:
        """Some of the images, under another name."""
        chosen = list(indices)
        return ImageSet(
            [self.images[i] for i in chosen], [self.targets[i] for i in chosen], self.labels, name
        )

    def counts(self) -> np.ndarray:
        """Number of images of each class."""
        return np.bincount(np.asarray(self.targets, dtype=int), minlength=len(self.labels))


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
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet | None
    colour: str
    fingerprint: str
    val_fraction: float | None


def open_splits(source: str | Path, *, seed: int = 0, val_fraction: float = 0.2) -> Splits:
    """Open a data set for training.

    Args:
        source: A folder of class folders, one with `train` and `val` inside, or "digits".
        seed: Decides which images are held out where the data has no `val`.
        val_fraction: Part of each class that is then held out.

    Raises:
        DataError: There is nothing to train on, or too little.
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction must be between 0 and 1, not {val_fraction}.")
    if type(seed) is not int or seed < 0:
        raise DataError(f"seed must be 0 or a positive whole number, not {seed!r}.")
    if str(source) == "digits":
        rest, test = _digits()
        train, val = _held_out(rest, seed, val_fraction)
        return Splits(train, val, test, "L", "scikit-learn digits", val_fraction)
    root = Path(source)
    parts = _parts(root)
    if "train" not in parts:
        if parts:
            raise DataError(f"{root} has {', '.join(sorted(parts))} inside, but no train folder.")
        whole = _class_folders(root)
        train, val = _held_out(whole, seed, val_fraction)
        return Splits(train, val, None, "RGB", _fingerprint(whole, root), val_fraction)
    whole = _class_folders(parts["train"])
    fingerprint = _fingerprint(whole, parts["train"])
    test = _class_folders(parts["test"], whole.labels) if "test" in parts else None
    if "val" not in parts:
        train, val = _held_out(whole, seed, val_fraction)
        return Splits(train, val, test, "RGB", fingerprint, val_fraction)
    val = _class_folders(parts["val"], whole.labels)
    return Splits(whole, val, test, "RGB", fingerprint, None)


def open_for_evaluation(
    source: str | Path, labels: tuple[str, ...], trained_on: dict[str, object]
) -> ImageSet:
    """Open what a model has not learnt from: `test`, else `val`, else what training held out.

    Args:
        source: As for `open_splits`.
        labels: The model's classes; targets index into them.
        trained_on: `data`, `fingerprint`, `seed` and `val_fraction` of the training, if known. If
            the folder is the one trained on, the same images are held out again.

    Raises:
        DataError: There is nothing to evaluate, a class the model does not know, or nothing that
            it has not learnt from.
    """
    if str(source) == "digits":
        if labels != _DIGIT_LABELS:
            raise DataError(f"digits has the classes 0 to 9, but the model has {_some(labels)}.")
        return _digits()[1]
    root = Path(source)
    parts = _parts(root)
    for part in ("test", "val"):
        if part in parts:
            return _class_folders(parts[part], labels)
    folder = parts.get("train", root)
    whole = _class_folders(folder, labels)
    if _fingerprint(whole, folder) != trained_on.get("fingerprint"):
        if folder.resolve().name == trained_on.get("data"):
            raise DataError(
                f"{folder} has other files than when the model learnt from a folder of that name, "
                f"so nobody knows which are new. Put new images into a folder of another name."
            )
        return whole
    seed, fraction = trained_on.get("seed"), trained_on.get("val_fraction")
    if not isinstance(seed, int) or not isinstance(fraction, float):
        raise DataError(f"The model has learnt from every image of {folder}. Give it others.")
    return _held_out(whole, seed, fraction)[1]


def unreadable(images: ImageSet, colour: str, threads: int = 8) -> Iterator[tuple[int, str | None]]:
    """Decode every file once, in parallel: its index, and what is wrong with it or None."""

    def check(index: int) -> tuple[int, str | None]:
        try:
            images.open(index, colour)
        except DataError as error:
            return index, str(error)
        return index, None

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(check, range(len(images)))


def image_files(folder: Path) -> list[Path]:
    """Image files under a folder, at any depth, in a fixed order.

    Raises:
        DataError: There are none.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not files:
        raise DataError(f"{folder} holds no image. Images have endings such as .jpg or .png.")
    return files


_DIGIT_LABELS = tuple("0123456789")


def _digits() -> tuple[ImageSet, ImageSet]:
    """Four fifths to learn from, and a fifth that never changes to test on."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "digits come with scikit-learn, which is not installed: pip install resnext[digits]."
        ) from error
    values, targets = load_digits(return_X_y=True)
    images = np.rint(np.reshape(values, (-1, 8, 8)) * (255 / 16)).astype(np.uint8)
    whole = ImageSet(list(images), np.asarray(targets).tolist(), _DIGIT_LABELS, "digits")
    rest, test = _held_out(whole, seed=0, fraction=0.2)
    return rest, test.select(range(len(test)), "digits, test part")


def _parts(root: Path) -> dict[str, Path]:
    """Folders of the splits, by our name for them."""
    if not root.exists():
        raise DataError(f"{root} does not exist. Give a folder of class folders, or 'digits'.")
    if not root.is_dir():
        raise DataError(f"{root} is a file. Give a folder of class folders, or 'digits'.")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    found: dict[str, Path] = {}
    for path in folders:
        part = _ALIASES.get(path.name.lower())
        if part is None:
            continue
        if part in found:
            raise DataError(f"{root} has both {found[part].name} and {path.name}. Keep one.")
        found[part] = path
    alone = len(found) == len(folders)  # else `test` is a class
    return found if alone or "train" in found or "val" in found else {}


def _class_folders(root: Path, labels: tuple[str, ...] | None = None) -> ImageSet:
    """Every image in the class folders of `root`, whose names are among `labels` if given."""
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DataError(f"{root} has no class folders. Put each class's images in one of its own.")
    names = [folder.name for folder in folders]
    if labels is None:
        labels = tuple(names)
        if len(names) < 2:
            raise DataError(f"{root} has one class only, {names[0]!r}. Training needs two.")
    unknown = sorted(set(names) - set(labels))
    if unknown:
        raise DataError(f"{root} has a class {unknown[0]!r}; known are {_some(labels)}.")
    images: list[Path] = []
    targets: list[int] = []
    for folder in folders:
        files = image_files(folder)
        images += files
        targets += [labels.index(folder.name)] * len(files)
    return ImageSet(images, targets, labels, str(root))


def _held_out(whole: ImageSet, seed: int, fraction: float) -> tuple[ImageSet, ImageSet]:
    """Split each class by the same fraction, at least one image on either side."""
    rng = np.random.default_rng(seed)
    targets = np.asarray(whole.targets)
    kept: list[int] = []
    held: list[int] = []
    for target, label in enumerate(whole.labels):
        members = rng.permutation(np.flatnonzero(targets == target))
        if len(members) == 1:
            raise DataError(
                f"Class {label!r} of {whole.name} has one image; it takes two to hold one out."
            )
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held += members[:count].tolist()
        kept += members[count:].tolist()
    return (
        whole.select(sorted(kept), whole.name),
        whole.select(sorted(held), f"{whole.name}, held-out part"),
    )


def _fingerprint(images: ImageSet, root: Path) -> str:
    """Names and sizes of the files, as a short hash."""
    files = [path for path in images.images if isinstance(path, Path)]
    lines = sorted(f"{path.relative_to(root).as_posix()} {path.stat().st_size}" for path in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
    return ", ".join(labels[:5]) + more
