"""Images in files of their own: in class folders, or listed in a table."""

from __future__ import annotations

import csv
import heapq
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from resnext.data.dataset import (
    ALIASES,
    EXTENSIONS,
    SPLITS,
    Classes,
    Files,
    ImageSet,
    Part,
    Source,
    compact,
    fingerprint,
    some,
)
from resnext.errors import DataError

_AT_ONCE = 500_000  # names of one folder; of more, it is listed again
_ENDINGS = tuple(EXTENSIONS)


def image_files(folder: Path) -> list[Path]:
    """Image files under a folder, at any depth, in a fixed order.

    Raises:
        DataError: There are none.
    """
    return [folder / name for name in _image_names(folder)]


def _image_names(folder: Path) -> list[str]:
    """Names of the image files below a folder, folder by folder."""
    names = list(walk_images(folder))
    if not names:
        raise DataError(f"{folder} holds no image. Images have endings such as .jpg or .png.")
    return names


def walk_images(folder: Path, above: str = "") -> Iterator[str]:
    """The same one by one, holding at most `_AT_ONCE` names of a folder, whatever its size.

    What is hidden is no data, and links to folders are not followed.

    Raises:
        DataError: A folder cannot be listed.
    """
    last = ""
    while True:
        try:
            with os.scandir(folder / above) as entries:
                names = heapq.nsmallest(_AT_ONCE, (n for n in _visible(entries) if n > last))
        except OSError as error:
            raise DataError(f"{folder / above} cannot be listed: {error.strerror}.") from error
        for name in names:
            if name.endswith("\0"):
                yield from walk_images(folder, f"{above}{name[:-1]}/")
            else:
                yield above + name
        if len(names) < _AT_ONCE:
            return
        last = names[-1]


def _visible(entries: Iterable[os.DirEntry[str]]) -> Iterator[str]:
    """Names of folders, with the zero that sorts what is inside where paths do, and of images."""
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield f"{entry.name}\0"
        elif entry.name.lower().endswith(_ENDINGS) and entry.is_file():
            yield entry.name


def class_folders(root: Path) -> Source:
    """A folder of class folders, or one with `train` and `val` inside.

    Raises:
        DataError: It has two folders for one part.
    """
    inside = _parts(root) or {"train": root}
    return Source(str(root), {part: partial(_class_folders, at) for part, at in inside.items()})


def _parts(root: Path) -> dict[str, Path]:
    """Folders of the splits, by our name for them."""
    folders = _folders(root)
    found: dict[str, Path] = {}
    for path in folders:
        part = ALIASES.get(path.name.lower())
        if part is None:
            continue
        if part in found:
            raise DataError(f"{root} has both {found[part].name} and {path.name}. Keep one.")
        found[part] = path
    alone = len(found) == len(folders)  # else `test` is a class
    return found if alone or "train" in found or "val" in found else {}


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _class_folders(root: Path, labels: tuple[str, ...] | None = None) -> Part:
    """Every image in the class folders of `root`, whose names are among `labels` if given."""
    folders = _folders(root)
    if not folders:
        raise DataError(f"{root} has no class folders. Put each class's images in one of its own.")
    names = [folder.name for folder in folders]
    if labels is None:
        labels = tuple(names)
        if len(names) < 2:
            raise DataError(f"{root} has one class only, {names[0]!r}. Training needs two.")
    unknown = sorted(set(names) - set(labels))
    if unknown:
        raise DataError(f"{root} has a class {unknown[0]!r}; known are {some(labels)}.")
    counts: list[int] = []

    def every() -> Iterator[str]:
        for folder in folders:
            inside = _image_names(folder)
            counts.append(len(inside))
            yield from (f"{folder.name}/{name}" for name in inside)

    files = Files(root, every())
    targets = np.repeat([labels.index(name) for name in names], counts)
    images = ImageSet(files, compact(targets), labels, str(root))
    return Part(images, tuple(names), lambda: fingerprint(sorted(_sizes(files))))


def manifest(path: Path) -> Source:
    """A table of images: columns `path` and `label`, and `split` if you have split them.

    Raises:
        DataError: It is no such table.
    """
    rows = _Rows(path)
    parts = {part: partial(rows.part, part) for part in SPLITS if part in rows.classes}
    return Source(str(path), parts)


class _Rows:
    """The rows of a manifest, by part."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.classes: dict[str, Classes] = {}
        self._names: dict[str, list[str]] = {}
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                self._read(csv.reader(file, strict=True))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} is no readable CSV file in UTF-8: {error}.") from error
        if not self.classes:
            raise DataError(f"{path} lists no image. Give one line with path and label for each.")

    def _read(self, table: Iterable[list[str]]) -> None:
        header: list[str] | None = None
        for row in table:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if header is None:
                header = [cell.lower() for cell in cells]
                for wanted in ("path", "label"):
                    if header.count(wanted) != 1:
                        raise DataError(
                            f"{self.path} must begin with a line that names the columns path, "
                            f"label and maybe split, once each; it has {', '.join(cells)}."
                        )
                continue
            line = getattr(table, "line_num", 0)
            if len(cells) != len(header):
                raise DataError(
                    f"{self.path}, line {line}: wanted {len(header)} fields "
                    f"({', '.join(header)}), found {len(cells)}. Put commas inside quotes."
                )
            self._add(dict(zip(header, cells, strict=True)), line)

    def _add(self, row: dict[str, str], line: int) -> None:
        part = ALIASES.get(row.get("split", "train").lower())
        if part is None:
            raise DataError(
                f"{self.path}, line {line}: split must be train, val or test, not {row['split']!r}."
            )
        for column in ("path", "label"):
            if not row[column]:
                raise DataError(f"{self.path}, line {line}: {column} is empty. Fill it in.")
        self._names.setdefault(part, []).append(row["path"])
        self.classes.setdefault(part, Classes()).add(row["label"])

    def part(self, part: str, labels: tuple[str, ...] | None) -> Part:
        """The images of one part."""
        name = str(self.path) if part == "train" else f"{self.path}, {part} part"
        files = Files(self.path.parent, self._names[part])
        targets, labels, own = self.classes[part].finish(name, None, labels)
        lines = (
            f"{labels[target]} {line}" for target, line in zip(targets, _sizes(files), strict=True)
        )
        return Part(ImageSet(files, targets, labels, name), own, lambda: fingerprint(lines))


def _sizes(files: Files) -> Iterator[str]:
    """Name and size of each file; one that is missing has size -1."""
    for name in files.names:
        try:
            size = (files.folder / name).stat().st_size
        except OSError:
            size = -1
        yield f"{name} {size}"
