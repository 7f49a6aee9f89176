"""The return types of all sources, and helpers that several sources share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from resnext.data.dataset import (
    LIKE_PHOTOGRAPHS,
    ImageSet,
    Problem,
    SourceDefaults,
    SplitName,
)
from resnext.errors import DataError

SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
_SYNONYMS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training", "trainset"),
    "val": ("val", "valid", "validation", "validate", "valset", "dev"),
    "test": ("test", "testing", "testset"),
}
PATHS = (
    ("path",),
    ("file_name", "filename", "filenames", "file", "files", "file_path", "filepath", "filepaths"),
    ("image_path", "img_path", "image_file", "image_filename", "image_name", "img_name", "paths"),
    ("image", "images", "img"),
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
)
"""Names of the class in lists, tables and JSON, the best first."""
_WORDS: dict[str, SplitName] = {word: split for split, words in _SYNONYMS.items() for word in words}
_FILLERS = {"set", "split", "seg", "data", "dataset", "image", "images", "img", "imgs"}
_FILLERS |= {"photo", "photos", "pictures", "jpg", "jpeg", "png"}


@dataclass(frozen=True)
class LoadedSplit:
    """One split of a source, as it was read.

    Args:
        images: The images that have a class.
        own_labels: The data's own labels in order; `images.labels` may be those of a model.
        fingerprint: Computes a hash that identifies the images.
        problems: Samples that lack an image or a class.
        passed_over: Files and links that are not read, because they have no image ending.
        notes: What a reader should know about how the data was read, as sentences.
    """

    images: ImageSet
    own_labels: tuple[str, ...]
    fingerprint: Callable[[], str]
    problems: tuple[Problem, ...] = ()
    passed_over: tuple[str, ...] = ()
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
    passed_over: tuple[str, ...] = ()


def split_of(name: str) -> SplitName | None:
    """The split that a folder or a value in a list names; None if it names none.

    One word decides, such as "Training", and only words such as "set" and "images" may be beside
    it: `seg_train`, `train_images` and `test2017` are splits, `test_bench` is not.
    """
    words = re.findall(r"[^\W\d_]+", name.lower())
    found: list[SplitName] = [_WORDS[word] for word in words if word in _WORDS]
    others = [word for word in words if word not in _WORDS and word not in _FILLERS]
    return found[0] if len(found) == 1 and not others else None


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
        split = _WORDS.get(word[0] if word else "")
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


_OF_SYSTEMS = {"@eadir", "#recycle", "__macosx", "lost+found", "thumbs.db", "desktop.ini"}
_OF_SYSTEMS |= {"$recycle.bin", "system volume information"}


def hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or left by a system, such as a folder of thumbnails."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def visible(folder: Path) -> list[Path]:
    """Files and folders in a folder that are not `hidden`, sorted by name."""
    return sorted(path for path in folder.iterdir() if not hidden(path.name))


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
