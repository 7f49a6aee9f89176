"""A CSV file that lists images, their classes and, optionally, their splits."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from resnext.data.dataset import Files, ImageSet, SplitName, fingerprint
from resnext.data.labels import Classes
from resnext.data.sources.base import SPLITS, LoadedSplit, Source, split_of, split_title
from resnext.data.sources.folders import names_and_sizes
from resnext.errors import DataError


def csv_list(path: Path) -> Source:
    """A table of images with columns `path` and `label`, and optionally `split`.

    Raises:
        DataError: The file is not such a table.
    """
    table = _Table(path)
    return Source(
        str(path),
        {split: partial(table.load, split) for split in SPLITS if split in table.classes},
    )


class _Table:
    """The rows of a list, by split."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.classes: dict[SplitName, Classes] = {}
        self._names: dict[SplitName, list[str]] = {}
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                self._read(csv.reader(file, strict=True))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} cannot be read as CSV in UTF-8: {error}.") from error
        if not self.classes:
            raise DataError(f"{path} lists no image. Give one line with path and label for each.")

    def _read(self, lines: Iterable[list[str]]) -> None:
        header: list[str] | None = None
        for values in lines:
            cells = [cell.strip() for cell in values]
            if not any(cells):
                continue
            if header is None:
                header = self._header(cells)
                continue
            line = getattr(lines, "line_num", 0)
            if len(cells) != len(header):
                raise DataError(
                    f"{self.path}, line {line}: wanted {len(header)} fields "
                    f"({', '.join(header)}), found {len(cells)}. Put commas inside quotes."
                )
            self._add(dict(zip(header, cells, strict=True)), line)

    def _header(self, cells: list[str]) -> list[str]:
        header = [cell.lower() for cell in cells]
        if header.count("path") != 1 or header.count("label") != 1:
            raise DataError(
                f"{self.path} must begin with a line that names the columns path, label and "
                f"optionally split, once each; it has {', '.join(cells)}."
            )
        return header

    def _add(self, cells: dict[str, str], line: int) -> None:
        split = split_of(cells.get("split", "train"))
        if split is None:
            raise DataError(
                f"{self.path}, line {line}: split must be train, val or test, "
                f"not {cells['split']!r}."
            )
        for column in ("path", "label"):
            if not cells[column]:
                raise DataError(f"{self.path}, line {line}: {column} is empty. Fill it in.")
        self._names.setdefault(split, []).append(cells["path"])
        self.classes.setdefault(split, Classes()).add(cells["label"])

    def load(self, split: SplitName, labels: tuple[str, ...] | None) -> LoadedSplit:
        """The images of one split."""
        name = split_title(self.path, split)
        files = Files(self.path.parent, self._names[split])
        targets, labels, own = self.classes[split].finish(name, None, labels)
        lines = (
            f"{labels[target]} {line}"
            for target, line in zip(targets, names_and_sizes(files), strict=True)
        )
        return LoadedSplit(ImageSet(files, targets, labels, name), own, lambda: fingerprint(lines))
