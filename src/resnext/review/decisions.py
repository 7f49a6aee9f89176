"""labels.csv: a list of images with their classes that `train` reads, and what was decided."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from resnext.data.labels import as_spelled
from resnext.data.sources.csv_list import DECISION, LEFT_OUT, readings, separated
from resnext.errors import DataError
from resnext.system.atomic import check_writable, locked, make_folder, write_bytes_atomically

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

    Rows and columns that are in the file already are kept, and so is what other programs change in
    it: a second review, or a spreadsheet, which may save it with semicolons or in another encoding.

    Args:
        file: The list.
        images: The images of the data, with the classes that the data gives them. The file decides
            about those that it has.
        moved: New path of files that were moved, for rows that an interruption left behind.
        classes: All classes. The file may have them in another Unicode form.

    Raises:
        DataError: The file is there, and is another kind of table.
        CheckpointError: The file could not be written.
    """

    def __init__(
        self,
        file: Path,
        images: Iterable[Entry],
        moved: Mapping[str, str] | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        self.file, self._moved, self._classes = file, moved or {}, classes
        check_writable(file)
        self._folder = os.path.abspath(file.parent)  # noqa: PTH100
        self._images = [*images]
        self._load()

    def __getitem__(self, path: str) -> Entry:
        return self.entries[self._row(path)]

    def __contains__(self, path: str) -> bool:
        return path in self._index

    def update(self, *entries: Entry) -> None:
        """Replace the entries of some images, and write the file.

        Raises:
            CheckpointError: The file cannot be written. Nothing has changed.
            DataError: Another program made another kind of table of it, or moved an image.
        """
        with locked(Path(self._folder), wait=True):
            self.refresh()
            rows = [self._row(entry.path) for entry in entries]
            before = [self.entries[i] for i in rows]
            self._replace(rows, entries)
            try:
                self.write()
            except Exception:
                self._replace(rows, before)
                raise

    def refresh(self) -> None:
        """Take over what another program changed in the file.

        Raises:
            DataError: It is another kind of table now.
        """
        if self._state() != self._known:
            self._load(again=True)

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
        text = self._mark + self._text(self._header()) + "".join(self._lines)
        write_bytes_atomically(self.file, text.encode("utf-8", "surrogateescape"))
        self._known = self._state()

    def _load(self, *, again: bool = False) -> None:
        """Take over the file, and the images that it lacks; later, those that are still there.

        Raises:
            DataError: It is another kind of table.
        """
        self._known = self._state()
        self._separator, self._mark = ",", ""
        self._more: tuple[str, ...] = ()
        self.entries: list[Entry] = []
        self._extra: list[Sequence[str]] = []
        self._index: dict[str, int] = {}
        if self._known is not None:
            self._read()
        for entry in self._images:
            if entry.path not in self._index and (not again or os.path.lexists(entry.path)):
                self._add(entry, ())
        self._splits = any(entry.split for entry in self.entries)
        self._lines = [self._line(i) for i in range(len(self.entries))]

    def _state(self) -> tuple[int, int, int] | None:
        """What changes if another program writes the file; None without a file."""
        try:
            found = self.file.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _row(self, path: str) -> int:
        if path not in self._index:
            raise DataError(
                f"{path} is not in {self.file} any more: another program moved it. Start the "
                f"review again."
            )
        return self._index[path]

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
        return self._text([path, entry.label, *split, entry.decision, *extra])

    def _text(self, row: Sequence[str]) -> str:
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=self._separator).writerow(row)
        return text.getvalue()

    def _read(self) -> None:
        """Take over the rows of the file.

        Raises:
            DataError: It is another kind of table.
        """
        try:
            data = self.file.read_bytes()
            (text, encoding), *others = readings(data)
            if others and not self._finds_files(text):
                text, encoding = others[-1]
            header, rows = self._cells(text)
        except (OSError, ValueError, csv.Error) as error:
            raise self._other(str(error)) from error
        plain = encoding in ("utf-8", "bytes") and not data.startswith(codecs.BOM_UTF8)
        self._mark = "" if plain else "\ufeff"  # tells spreadsheets that it is UTF-8
        self._more = tuple(name for name in header if name not in _OWN)
        found = dict.fromkeys(row[header.index("label")] for row in rows)
        spelled = dict(zip(found, as_spelled(map(str.strip, found), self._classes), strict=True))
        for row in rows:
            values = dict(zip(header, row, strict=True))
            values["label"] = spelled[values["label"]]
            path = self._path(values["path"])
            entry = Entry(path, *(values.get(name, "") for name in _OWN[1:]))
            if path in self._moved and not os.path.exists(path):  # noqa: PTH110
                entry = entry._replace(path=self._moved[path])
            self._add(entry, [values[name] for name in self._more])

    def _finds_files(self, text: str) -> bool:
        """Whether files of the names in a text exist, so that its encoding is right."""
        header, rows = self._cells(text)
        names = (row[header.index("path")] for row in rows)
        return all(os.path.exists(self._path(x)) for x in names if not x.isascii())  # noqa: PTH110

    def _cells(self, text: str) -> tuple[list[str], list[list[str]]]:
        """The names of the columns, and the cells of each row.

        Raises:
            DataError: It is another kind of table.
        """
        text, self._separator = separated(text)
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=self._separator, strict=True)
        header, *rows = lines
        if not {"path", "label"} <= {*header} or len({*header}) < len(header):
            raise self._other(f"its columns are {', '.join(header)}")
        needed = max(header.index("path"), header.index("label")) + 1
        for number, row in enumerate(rows, 2):
            if any(row) and not needed <= len(row) <= len(header):
                raise self._other(f"row {number} has {len(row)} fields instead of {len(header)}")
            row += [""] * (len(header) - len(row))  # spreadsheets drop them at the end
        return header, [row for row in rows if any(row)]

    def _path(self, name: str) -> str:
        return os.path.abspath(os.path.join(self._folder, name))  # noqa: PTH100, PTH118

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
