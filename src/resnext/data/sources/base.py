"""The return types of all sources, and helpers that several sources share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from resnext.data.dataset import (
    LIKE_PHOTOGRAPHS,
    ImageSet,
    Problem,
    SourceDefaults,
    SplitName,
)
from resnext.data.passed_over import PassedOver, hidden
from resnext.errors import DataError

SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
_STEMS: dict[SplitName, str] = {
    "train": "training|train",
    "val": "validation|validate|valid|val|development|devel|dev|evaluation|eval",
    "test": "testing|test|holdout",
}
_FILLERS = (
    "datasets?|data|sets?|splits?|subsets?|parts?|seg|images?|imgs?|photos?|pictures?|pics?|files?|"
    "samples?|examples?|crops?|cropped|resized|folders?|dir|jpe?gs?|pngs?|ilsvrc|imagenet|the|for"
)
_SPLIT_NAME = re.compile(
    f"(?:{_FILLERS})*(?:{'|'.join(f'(?P<{k}>{v})' for k, v in _STEMS.items())})(?:{_FILLERS})*"
)
PATHS = (
    ("path",),
    ("file_name", "filename", "filenames", "file", "files", "file_path", "filepath", "filepaths"),
    ("image_path", "img_path", "image_file", "image_filename", "image_name", "img_name", "paths"),
    ("image", "images", "img", "fname"),
    ("image_id", "img_id", "file_id", "id"),
)
"""Names of the path of an image in lists and tables, the best first."""
LABELS = (
    ("label",),
    ("cls",),
    (
        *("labels", "label_name", "class", "classes", "class_name", "classname", "class_label"),
        *("category", "categories", "category_name", "target", "species"),
    ),
    ("class_id", "label_id", "category_id", "class_index"),
    ("y", "gt", "ground_truth"),
)
"""Names of the class in lists, tables and JSON, the best first."""


@dataclass(frozen=True)
class LoadedSplit:
    """One split of a source, as it was read.

    Args:
        images: The images that have a class.
        own_labels: The data's own labels in order; `images.labels` may be those of a model.
        fingerprint: Computes a hash that identifies the images.
        problems: Samples that lack an image or a class.
        passed_over: Files and folders that are not read.
        notes: What a reader should know about how the data was read, as sentences.
    """

    images: ImageSet
    own_labels: tuple[str, ...]
    fingerprint: Callable[[], str]
    problems: tuple[Problem, ...] = ()
    passed_over: PassedOver = field(default_factory=PassedOver)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A data set whose splits have not been read yet.

    Args:
        name: Name of the data, for messages.
        splits: Reads each split of the data; data without splits has "train" only. If
            labels are given, targets index into them and other classes are refused.
        colour: "L" if the images are grey by nature, else "RGB".
        defaults: Recipe, size and network that suit the data.
        passed_over: Files and folders beside the splits that belong to none of them.
    """

    name: str
    splits: Mapping[SplitName, Callable[[tuple[str, ...] | None], LoadedSplit]]
    colour: str = "RGB"
    defaults: SourceDefaults = LIKE_PHOTOGRAPHS
    passed_over: PassedOver = field(default_factory=PassedOver)


def split_of(name: str) -> SplitName | None:
    """The split that a folder or a value in a list names; None if it names none.

    Only its letters count: one word such as "training", and words such as "set" and "images" beside
    it. `seg_train`, `TrainImages`, `testdata` and `test2017` are splits, `test_bench` is not.
    """
    letters = "".join(character for character in name.lower() if character.isalpha())
    match = _SPLIT_NAME.fullmatch(letters)
    return next((split for split in SPLITS if match and match[split]), None)


def split_title(name: object, split: SplitName) -> str:
    """Name of a split in messages."""
    return str(name) if split == "train" else f"{name}, {split} split"


def by_split(name: str, files: Sequence[str]) -> dict[SplitName, list[str]]:
    """Files by the split that their names begin with; all are "train" if none does.

    Raises:
        DataError: Some names begin with a split and others do not.
    """
    splits: dict[SplitName, list[str]] = {}
    others: list[str] = []
    for file in files:
        word = re.match(r"[a-z]*", file_name(file).lower())
        split = split_of(word[0]) if word else None
        (others if split is None else splits.setdefault(split, [])).append(file)
    if splits and others:
        raise DataError(
            f"{name}: {file_name(others[0])} belongs to no split, but "
            f"{len(files) - len(others)} other files do. Begin every name with train, val or "
            f"test, or none."
        )
    return splits or {"train": others}


def is_url(source: str) -> bool:
    """Whether a text begins as a URL does."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def file_name(file: str) -> str:
    """Last component of a path or URL."""
    return (urlsplit(file).path if is_url(file) else file).rpartition("/")[2]


def visible(folder: Path, passed_over: PassedOver | None = None) -> list[Path]:
    """Files and folders in a folder that are not `hidden`, sorted by name.

    Args:
        folder: The folder.
        passed_over: Counts the hidden ones.

    Raises:
        DataError: The folder cannot be listed.
    """
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}.") from error
    if passed_over is not None:
        for path in inside:
            if hidden(path.name):
                passed_over.add(path)
    return [path for path in inside if not hidden(path.name)]


def named(columns: Iterable[str], names: Sequence[Sequence[str]]) -> list[str]:
    """The columns with one of the best names among those that any column has.

    Case does not count, and neither do spaces and hyphens: `Class Name` is `class_name`.

    Args:
        columns: Names of columns.
        names: Names that are equally good, the best first.
    """
    plain = [(column, re.sub(r"[\s_-]+", "_", column.strip().lower())) for column in columns]
    found = ([column for column, name in plain if name in equal] for equal in names)
    return next((matching for matching in found if matching), [])


def missing_package(package: str, extra: str) -> DataError:
    """The error for data that needs a package which is not installed."""
    return DataError(f'This data needs {package}: pip install "resnext[{extra}]".')
