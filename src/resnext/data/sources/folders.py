"""Folders of images: one folder per class, or any folder to predict."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from resnext.data.dataset import (
    EXTENSIONS,
    Files,
    ImageSet,
    SplitName,
    compact,
    fingerprint,
)
from resnext.data.labels import (
    as_spelled,
    class_names,
    in_order,
    one_class,
    refuse_unknown,
    shortened,
)
from resnext.data.passed_over import (
    BESIDE_SPLITS,
    NO_IMAGES,
    WITHOUT_CLASS,
    PassedOver,
    Reason,
    hidden,
)
from resnext.data.sources.base import LoadedSplit, Source, split_of, visible
from resnext.errors import DataError

_AT_ONCE = 500_000  # names of one folder to hold; a larger folder is listed again
_ENDINGS = tuple(EXTENSIONS)


def image_files(folder: Path) -> list[Path]:
    """Image files under a folder, at any depth, in a fixed order.

    Raises:
        DataError: The folder holds no images.
    """
    return [folder / name for name in image_names(folder)]


def image_names(folder: Path, passed_over: PassedOver | None = None) -> list[str]:
    """Paths of the image files under a folder, relative to it, in a fixed order.

    Args:
        folder: The folder, searched at any depth.
        passed_over: Counts the files and folders in it that are not read.

    Raises:
        DataError: The folder holds no images.
    """
    return list(images_in(folder, passed_over))


def images_in(folder: Path, passed_over: PassedOver | None = None) -> Iterator[str]:
    """What `image_names` returns, one by one.

    Raises:
        DataError: The folder holds no images, with what is there instead.
    """
    others, name = PassedOver(), None
    for name in walk_images(folder, passed_over=others):
        yield name
    if name is None:
        reasons = others.lines() or ["Images have endings such as .jpg or .png."]
        raise DataError(f"{folder} holds no image. {' '.join(reasons)}")
    if passed_over is not None:
        passed_over.update(others)


def walk_images(
    folder: Path, above: str = "", passed_over: PassedOver | None = None
) -> Iterator[str]:
    """Paths of the image files under a folder, relative to it, one by one in a fixed order.

    Holds at most `_AT_ONCE` names of a folder, whatever its size. Hidden files and folders are
    skipped, and links to folders are not followed.

    Args:
        folder: The folder.
        above: Folder inside it to start in: "" or a path with a slash at the end.
        passed_over: Counts the files and folders that are not read.

    Raises:
        DataError: A folder cannot be listed.
    """
    last = ""
    while True:
        try:
            with os.scandir(folder / above) as entries:
                others = None if last else passed_over  # a folder that is listed again
                found = _names(entries, others)
                names = heapq.nsmallest(_AT_ONCE, (n for n in found if n > last))
        except OSError as error:
            raise DataError(f"{folder / above} cannot be listed: {error.strerror}.") from error
        for name in names:
            if name.endswith("\0"):
                yield from walk_images(folder, f"{above}{name[:-1]}/", passed_over)
            else:
                yield above + name
        if len(names) < _AT_ONCE:
            return
        last = names[-1]


def _names(entries: Iterable[os.DirEntry[str]], passed_over: PassedOver | None) -> Iterator[str]:
    """Names of images and folders; a zero byte after a folder sorts its content as paths sort."""
    for entry in entries:
        if not hidden(entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield f"{entry.name}\0"
                continue
            if _is_image(entry):
                yield entry.name
                continue
        if passed_over is not None:
            passed_over.add(entry)


def _is_image(entry: os.DirEntry[str] | Path) -> bool:
    """Whether a file is an image by its ending; a broken link is an unreadable one."""
    if not entry.name.lower().endswith(_ENDINGS):
        return False
    file = Path(entry) if entry.is_symlink() else entry  # an entry fails at links in a circle
    return file.is_file() or not Path(entry).exists()


def class_folders(root: Path) -> Source:
    """A folder of class folders, or a folder with `train` and `val` that hold them.

    Names that differ only in their Unicode form, as macOS and Linux write accents, are one class.

    Raises:
        DataError: Two folders are named after the same split.
    """
    splits = _split_folders(root)
    if not splits:
        return Source(str(root), {"train": partial(_class_folders, root)})
    beside = PassedOver()
    for path in visible(root, beside):
        if path not in splits.values():
            beside.add(path, _reason_outside(path))
    return Source(
        str(root),
        {split: partial(_class_folders, folder) for split, folder in splits.items()},
        passed_over=beside,
    )


def holds_classes(root: Path) -> bool:
    """Whether several folders hold images, in a folder or in its parts.

    A table beside them is not the data.
    """
    parts = (path for path in _folders(root) if split_of(path.name))
    return any(sum(map(_holds_images, _folders(part))) > 1 for part in (root, *parts))


def _split_folders(root: Path) -> dict[SplitName, Path]:
    """Folders of the splits; empty if the folders are classes."""
    folders = _folders(root)
    named = [path for path in folders if split_of(path.name) is not None]
    if len(folders) > len(named) == 1 and _holds_images(named[0]):
        return {}  # a class: "test" in medical data, "train" among vehicles
    splits: dict[SplitName, Path] = {}
    for path in named:
        split = split_of(path.name)
        assert split is not None, "it is named after a split"
        if split in splits:
            raise DataError(
                f"{root} has both {splits[split].name} and {path.name}, which both name the "
                f"{split} split. Merge them, or call one of them train, val or test."
            )
        splits[split] = path
    alone = len(splits) == len(folders)  # else `test` is a class
    return splits if alone or "train" in splits or "val" in splits else {}


def _folders(root: Path) -> list[Path]:
    return [path for path in visible(root) if path.is_dir()]


def _holds_images(folder: Path) -> bool:
    """Whether an image lies in a folder itself; looks no further than the first one."""
    try:
        with os.scandir(folder) as entries:
            return any(not hidden(entry.name) and _is_image(entry) for entry in entries)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}.") from error


def _is_no_class(folder: Path) -> bool:
    """Whether a folder holds, at any depth, neither images nor what should have been images."""
    if _holds_images(folder):
        return False
    others = PassedOver()
    return not any(walk_images(folder, passed_over=others)) and not others.may_be_images()


def _reason_outside(path: Path) -> Reason | None:
    """Why something that is in no class folder is not read; None if its name shows it.

    Raises:
        DataError: It is a broken link that may have been a class.
    """
    if path.is_dir():
        return BESIDE_SPLITS
    if path.is_symlink() and not path.exists() and not path.suffix:
        raise DataError(
            f"{path} is a link to {path.readlink()}, which does not exist. Repair or remove it."
        )
    return WITHOUT_CLASS if _is_image(path) else None


def _class_folders(root: Path, labels: tuple[str, ...] | None = None) -> LoadedSplit:
    """Every image in the class folders of `root`, whose names must be among `labels` if given."""
    passed_over = PassedOver()
    inside = visible(root, passed_over)
    folders: list[Path] = []
    for path in inside:
        if not path.is_dir():
            passed_over.add(path, _reason_outside(path))
        elif _is_no_class(path):
            passed_over.add(path, NO_IMAGES)
        else:
            folders.append(path)
    names = ("metadata.csv", "metadata.jsonl")
    lists = [path for at in (root, root.parent) for x in names if (path := at / x).is_file()]
    if lists and len(folders) < 2:
        raise DataError(f"{root} has no class folders. Give its list of images, {lists[0]}.")
    empty = "".join(f" {line}" for line in passed_over.lines(NO_IMAGES))
    if not folders:
        raise DataError(f"{_no_folders(root)}{empty}")
    titles = [folder.name.strip() or folder.name for folder in folders]  # as lists have them
    classes = class_names(titles)
    names = [classes[title] for title in titles]
    if labels is None:
        _refuse_parts(root, folders)
        labels = in_order(names)
        if len(labels) < 2:
            raise DataError(one_class(str(root), names[0]) + _hint(folders) + empty)
    try:
        refuse_unknown(str(root), set(names), labels)
    except DataError as error:
        raise DataError(f"{error}{_hint(folders)}") from None
    names = as_spelled(names, labels)
    counts: list[int] = []

    def paths() -> Iterator[str]:
        for folder in folders:
            inside = image_names(folder, passed_over)
            counts.append(len(inside))
            yield from (f"{folder.name}/{name}" for name in inside)

    files = Files(root, paths())
    positions = {label: i for i, label in reversed([*enumerate(labels)])}
    targets = np.repeat([positions[name] for name in names], counts)
    images = ImageSet(files, compact(targets), labels, str(root))
    return LoadedSplit(
        images,
        tuple(dict.fromkeys(names)),  # as text: the order in which earlier versions held out
        lambda: fingerprint(sorted(names_and_sizes(files))),
        passed_over=passed_over,
    )


# -- folders of another level -----------------------------------------------------------------


def _no_folders(root: Path) -> str:
    """What to do about a folder without class folders."""
    problem = f"{root} has no class folders"
    if not _holds_images(root):
        return f"{problem}. Put the images of each class in a folder."
    above = root.absolute().parent
    return (
        f"{problem}, only images. Put the images of each class in a folder; or, if {root.name} is "
        f"a class, give the folder that holds all classes, {above}."
    )


def _hint(folders: list[Path]) -> str:
    """Advice to give a folder further down; empty if the classes are not there."""
    inner = folders[0] if len(folders) == 1 else None
    for _ in range(9):  # links may run in a circle
        if inner is None or _holds_images(inner):
            return ""
        inside = _folders(inner)
        if len(inside) > 1:
            return (
                f" If the folders in {inner} ({shortened([path.name for path in inside])}) are "
                f"what you mean, give {inner}."
            )
        inner = inside[0] if inside else None
    return ""


def _refuse_parts(root: Path, folders: list[Path]) -> None:
    """Refuse folders that look like parts of a data set, not like classes.

    Raises:
        DataError: They have no images of their own, and at least two folders, or parts, of which
            most are in all of them.
    """
    inside = [{path.name for path in _folders(folder)} for folder in folders]
    shared, every = set.intersection(*inside), set.union(*inside)
    parts = bool(shared) and all(map(split_of, shared))
    if len(folders) < 2 or not (parts or len(shared) > 1) or 2 * len(shared) < len(every):
        return
    if any(_holds_images(folder) for folder in folders):
        return
    problem = (
        f"{root}: {' and '.join(folder.name for folder in folders[:2])} hold the same folders "
        f"({shortened(sorted(shared))})"
    )
    if parts:
        raise DataError(
            f"{problem}. Put the parts above the classes: {root / min(shared) / folders[0].name}."
        )
    raise DataError(
        f"{problem}, so they look like parts of the data, not like classes. "
        f"Call them train, val and test, or give one of them."
    )


def names_and_sizes(files: Files) -> Iterator[str]:
    """Name and size of each file; a missing file has size -1."""
    for name in files.names:
        try:
            size = (files.folder / name).stat().st_size
        except OSError:
            size = -1
        yield f"{name} {size}"
