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
from resnext.data.sources.base import LoadedSplit, Source, hidden, split_of, visible
from resnext.errors import DataError

_AT_ONCE = 500_000  # names of one folder to hold; a larger folder is listed again
_ENDINGS = tuple(EXTENSIONS)


def image_files(folder: Path) -> list[Path]:
    """Image files under a folder, at any depth, in a fixed order.

    Raises:
        DataError: The folder holds no images.
    """
    return [folder / name for name in image_names(folder)]


def image_names(folder: Path, passed_over: list[str] | None = None) -> list[str]:
    """Paths of the image files under a folder, relative to it, in a fixed order.

    Args:
        folder: The folder, searched at any depth.
        passed_over: Receives the paths of all visible files and links that are no images.

    Raises:
        DataError: The folder holds no images.
    """
    names = list(walk_images(folder, passed_over=passed_over))
    if not names:
        raise DataError(f"{folder} holds no image. Images have endings such as .jpg or .png.")
    return names


def walk_images(
    folder: Path, above: str = "", passed_over: list[str] | None = None
) -> Iterator[str]:
    """Paths of the image files under a folder, relative to it, one by one in a fixed order.

    Holds at most `_AT_ONCE` names of a folder, whatever its size. Hidden files and folders are
    skipped, and links to folders are not followed.

    Args:
        folder: The folder.
        above: Folder inside it to start in: "" or a path with a slash at the end.
        passed_over: Receives the paths of all visible files and links that are no images.

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


def _names(entries: Iterable[os.DirEntry[str]], passed_over: list[str] | None) -> Iterator[str]:
    """Names of images and folders; a zero byte after a folder sorts its content as paths sort."""
    for entry in entries:
        if hidden(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield f"{entry.name}\0"
        elif entry.name.lower().endswith(_ENDINGS) and (
            entry.is_file() or not Path(entry.path).exists()  # a broken link is an unreadable image
        ):
            yield entry.name
        elif passed_over is not None:
            passed_over.append(entry.path)


def class_folders(root: Path) -> Source:
    """A folder of class folders, or a folder with `train` and `val` that hold them.

    Raises:
        DataError: Two folders are named after the same split.
    """
    splits = _split_folders(root)
    beside = [str(path) for path in visible(root) if path not in splits.values()]
    return Source(
        str(root),
        {
            split: partial(_class_folders, folder)
            for split, folder in (splits or {"train": root}).items()
        },
        passed_over=tuple(beside) if splits else (),
    )


def _split_folders(root: Path) -> dict[SplitName, Path]:
    """Folders of the splits; empty if the folders are classes."""
    folders = _folders(root)
    splits: dict[SplitName, Path] = {}
    for path in folders:
        split = split_of(path.name)
        if split is None:
            continue
        if split in splits:
            raise DataError(f"{root} has both {splits[split].name} and {path.name}. Keep one.")
        splits[split] = path
    alone = len(splits) == len(folders)  # else `test` is a class
    return splits if alone or "train" in splits or "val" in splits else {}


def _folders(root: Path) -> list[Path]:
    return [path for path in visible(root) if path.is_dir()]


def _class_folders(root: Path, labels: tuple[str, ...] | None = None) -> LoadedSplit:
    """Every image in the class folders of `root`, whose names must be among `labels` if given."""
    folders = _folders(root)
    lists = [path for path in visible(root) if path.name in ("metadata.csv", "metadata.jsonl")]
    if lists and len(folders) < 2:
        raise DataError(f"{root} has no class folders. Give its list of images, {lists[0]}.")
    if not folders:
        raise DataError(f"{root} has no class folders. Put the images of each class in a folder.")
    classes = class_names([folder.name for folder in folders])
    names = [classes[folder.name] for folder in folders]
    if labels is None:
        _refuse_parts(root, folders)
        labels = in_order(names)
        if len(labels) < 2:
            raise DataError(one_class(str(root), names[0]))
    refuse_unknown(str(root), set(names), labels)
    names = as_spelled(names, labels)
    counts: list[int] = []
    passed_over = [str(path) for path in visible(root) if not path.is_dir()]

    def paths() -> Iterator[str]:
        for folder in folders:
            inside = image_names(folder, passed_over)
            counts.append(len(inside))
            yield from (f"{folder.name}/{name}" for name in inside)

    files = Files(root, paths())
    targets = np.repeat([labels.index(name) for name in names], counts)
    images = ImageSet(files, compact(targets), labels, str(root))
    return LoadedSplit(
        images,
        tuple(dict.fromkeys(names)),  # as text: the order in which earlier versions held out
        lambda: fingerprint(sorted(names_and_sizes(files))),
        passed_over=tuple(passed_over),
    )


def _refuse_parts(root: Path, folders: list[Path]) -> None:
    """Refuse folders that look like parts of a data set, not like classes.

    Raises:
        DataError: All hold the same folders, at least two, and no images of their own.
    """
    inside = [{path.name for path in _folders(folder)} for folder in folders]
    if len(folders) < 2 or len(inside[0]) < 2 or any(names != inside[0] for names in inside):
        return
    if any(path.suffix.lower() in EXTENSIONS for folder in folders for path in visible(folder)):
        return
    raise DataError(
        f"{root}: {' and '.join(folder.name for folder in folders[:2])} hold the same folders "
        f"({shortened(sorted(inside[0]))}), so they look like parts of the data, not like classes. "
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
