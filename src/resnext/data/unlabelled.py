"""Images without classes, which a student learns from through its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from resnext.data.dataset import Files, ImageSet, Lazy, Splits, compact, fingerprint
from resnext.data.labels import as_spelled
from resnext.data.passed_over import PassedOver
from resnext.data.scan import Scan, scan
from resnext.data.sources.base import visible
from resnext.data.sources.folders import image_names
from resnext.errors import DataError
from resnext.system.progress import Reporter

T = TypeVar("T")
_CLASS = "unlabelled"


class Joined(Lazy[T]):
    """Two sequences, one after the other."""

    def __init__(self, first: Sequence[T], second: Sequence[T]) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def at(self, index: int) -> T:
        """One item."""
        count = len(self.first)
        return self.first[index] if index < count else self.second[index - count]


def open_unlabelled(
    folder: str | Path, labels: Sequence[str], passed_over: PassedOver | None = None
) -> ImageSet:
    """Every image in a folder, at any depth, as an image set with a single class.

    Args:
        folder: The folder.
        labels: Classes of the training images, which must not be folders here.
        passed_over: Counts the files and folders in it that are not read.

    Raises:
        DataError: The folder does not exist, holds no image, or holds folders of classes.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder. Give a folder of images without classes.")
    folders = [path.name for path in visible(root) if path.is_dir()]
    classes = [name for name in as_spelled(folders, labels) if name in labels]
    if classes:
        raise DataError(
            f"{root} has a folder for the class {classes[0]!r}, so its images have labels. Add "
            f"them to the training data, or give a folder of images without classes."
        )
    files = Files(root, image_names(root, passed_over))
    return ImageSet(files, compact(np.zeros(len(files))), (_CLASS,), str(root))


def _as_one_class(images: ImageSet) -> ImageSet:
    """Labelled images as one class, another one than that of the unlabelled ones."""
    return replace(images, targets=compact(np.zeros(len(images))), labels=("labelled",))


def scan_unlabelled(scanned: Scan, progress: Reporter) -> Scan:
    """Check the unlabelled images as the labelled ones, and add the findings.

    Images that cannot be read, and those that are also in a validation or test split, are left
    out.

    Args:
        scanned: The scan of the labelled images, whose splits have unlabelled images.
        progress: Shows progress.

    Raises:
        DataError: More than 5 % of the images cannot be read.
    """
    splits = scanned.splits
    assert splits.unlabelled is not None
    test = None if splits.test is None else _as_one_class(splits.test)
    found = scan(
        replace(
            splits,
            train=splits.unlabelled,
            val=_as_one_class(splits.val),
            test=test,
            problems=(),
        ),
        progress,
    )
    return replace(
        scanned,
        splits=replace(splits, unlabelled=found.splits.train),
        unreadable=(*scanned.unreadable, *found.unreadable),
        leaks=(*scanned.leaks, *found.leaks),
        duplicates=scanned.duplicates + found.duplicates,
    )


def training_pool(splits: Splits) -> ImageSet:
    """All images to learn from: the training images, then the unlabelled ones as another class."""
    train, unlabelled = splits.train, splits.unlabelled
    if unlabelled is None:
        return train
    targets = np.r_[
        np.asarray(train.targets, np.int64), np.full(len(unlabelled), len(train.labels))
    ]
    images = Joined(train.images, unlabelled.images)
    return ImageSet(images, compact(targets), (*train.labels, _CLASS), train.name)


def unlabelled_fingerprint(images: ImageSet) -> str:
    """A hash of the names and sizes of unlabelled images, wherever their folder is."""
    root = Path(images.name)
    files = (image for image in images.images if isinstance(image, Path))
    return fingerprint(f"{file.relative_to(root)} {file.stat().st_size}" for file in files)
