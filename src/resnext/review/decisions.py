"""labels.csv: a list of images with their classes that `train` reads, and what was decided."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from resnext.data.sources.csv_list import DECISION, LEFT_OUT
from resnext.errors import DataError
from resnext.system.atomic import check_writable, make_folder, write_bytes_atomically

KEPT, CHANGED = "kept", "changed"
_OWN = ("path", "label", "split", DECISION)


class Entry(NamedTuple):
    """An image in the list.

    Args:
        path: Its file, absolute.
        label: Its class.
        split: Its split; empty if the data has none.
        decision: "kept", "changed", "left out", or empty.
    """

    path: str
    label: str
    split: str = ""
    decision: str = ""


class LabelList:
    """The list, which is in memory and in a file that is written after every change.

    Rows and columns that are in the file already are kept.

    Args:
        file: The list.
        images: The images of the data, with the classes that the data gives them. The file decides
            about those that it has.
        moved: New path of files that were moved, for rows that an interruption left behind.

    Raises:
        DataError: The file is there, and is another kind of table.
        CheckpointError: The file could not be written.
    """

    def __init__(
        self, file: Path, images: Iterable[Entry], moved: Mapping[str, str] | None = None
    ) -> None:
        self.file, self._moved = file, moved or {}
        check_writable(file)
        self._folder = os.path.abspath(file.parent)  # noqa: PTH100
        self._more: tuple[str, ...] = ()
        self.entries: list[Entry] = []
        self._extra: list[Sequence[str]] = []
        self._index: dict[str, int] = {}
        if file.exists():
            self._read()
        for entry in images:
            if entry.path not in self._index:
                self._add(entry, ())
        self._splits = any(entry.split for entry in self.entries)
        self._lines = [self._line(i) for i in range(len(self.entries))]

    def __getitem__(self, path: str) -> Entry:
        return self.entries[self._index[path]]

    def __contains__(self, path: str) -> bool:
        return path in self._index

    def update(self, *entries: Entry) -> None:
        """Replace the entries of some images, and write the file.

        Raises:
            CheckpointError: The file cannot be written. Nothing has changed.
        """
        rows = [self._index[entry.path] for entry in entries]
        before = [self.entries[i] for i in rows]
        self._replace(rows, entries)
        try:
            self.write()
        except Exception:
            self._replace(rows, before)
            raise

    def move(self, old: str, new: str) -> None:
        """Give an image another path; the file is not written."""
        i = self._index.pop(old)
        self._index[new] = i
        self._replace([i], [self.entries[i]._replace(path=new)])

    def write(self) -> None:
        """Write the file.

        Raises:
            CheckpointError: It cannot be written; an existing one is unchanged.
        """
        make_folder(self.file)
        text = _text([self._header()]) + "".join(self._lines)
        write_bytes_atomically(self.file, text.encode("utf-8", "surrogateescape"))

    def _replace(self, rows: Sequence[int], entries: Sequence[Entry]) -> None:
        for i, entry in zip(rows, entries, strict=True):
            self.entries[i] = entry
            self._lines[i] = self._line(i)

    def _add(self, entry: Entry, extra: Sequence[str]) -> None:
        self._index[entry.path] = len(self.entries)
        self.entries.append(entry)
        self._extra.append(extra)

    def _header(self) -> list[str]:
        own = _OWN if self._splits else [name for name in _OWN if name != "split"]
        return [*own, *self._more]

    def _line(self, i: int) -> str:
        entry, extra = self.entries[i], self._extra[i] or [""] * len(self._more)
        inside = entry.path.startswith(self._folder + os.sep)
        path = os.path.relpath(entry.path, self._folder) if inside else entry.path
        split = [entry.split or "train"] if self._splits else []
        return _text([[path, entry.label, *split, entry.decision, *extra]])

    def _read(self) -> None:
        """Take over the rows of the file.

        Raises:
            DataError: It is another kind of table.
        """
        try:
            with self.file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                header, *rows = csv.reader(file, strict=True)
        except (OSError, ValueError, csv.Error) as error:
            raise self._other(str(error)) from error
        if not {"path", "label"} <= {*header} or len({*header}) < len(header):
            raise self._other(f"its columns are {', '.join(header)}")
        self._more = tuple(name for name in header if name not in _OWN)
        for number, row in enumerate(rows, 2):
            if not row:
                continue
            if len(row) != len(header):
                raise self._other(f"row {number} has {len(row)} fields instead of {len(header)}")
            values = dict(zip(header, row, strict=True))
            path = os.path.abspath(os.path.join(self._folder, values["path"]))  # noqa: PTH100, PTH118
            entry = Entry(path, *(values.get(name, "") for name in _OWN[1:]))
            if path in self._moved and not os.path.exists(path):  # noqa: PTH110
                entry = entry._replace(path=self._moved[path])
            self._add(entry, [values[name] for name in self._more])

    def _other(self, reason: str) -> DataError:
        return DataError(
            f"{self.file} is not a list of labels in CSV with the columns path and label: "
            f"{reason}. It is left as it is; choose another file with --out."
        )


def decided(entry: Entry, label: str | None) -> Entry:
    """An entry after a decision: a class, or None to leave the image out."""
    if label is None:
        return entry._replace(decision=LEFT_OUT)
    changed = label != entry.label or entry.decision == CHANGED
    return entry._replace(label=label, decision=CHANGED if changed else KEPT)


def _text(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()
