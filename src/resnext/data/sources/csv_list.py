"""A list of images, their classes and, optionally, their splits, as CSV or JSON Lines."""

from __future__ import annotations

import codecs
import csv
import io
import json
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from resnext.checks import brief
from resnext.data.dataset import EXTENSIONS, Files, ImageSet, SplitName, compact, fingerprint
from resnext.data.labels import Classes
from resnext.data.sources.base import (
    LABELS,
    PATHS,
    SPLITS,
    LoadedSplit,
    Source,
    named,
    split_of,
    split_title,
)
from resnext.data.sources.folders import names_and_sizes, walk_images
from resnext.errors import DataError

ENDINGS = (".csv", ".tsv", ".jsonl")
"""Endings of lists."""
_PARTS = (
    ("split",),
    ("data_split", "subset", "partition", "part", "set", "data_set", "dataset", "phase", "usage"),
)
DECISION, LEFT_OUT = "decision", "left out"
"""Column of what `resnext review` decided, and its value for images that are left out."""
_NO_TEXT = "\0"
"""Begins the cell of a JSON value that is neither text nor a whole number; its JSON follows."""
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
GUESSES = ("cp1252", "bytes")
"""Encodings of files that are not Unicode: that of spreadsheets, or the names of files as they are.

Names of files that exist must confirm them.
"""
_MARKS = {  # the longer ones first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def csv_list(path: Path) -> Source:
    """A table of images with their paths, their classes and, optionally, their splits.

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
        self.notes: tuple[str, ...] = ()
        self._stems: dict[str, list[str]] | None = None
        problems: list[DataError] = []
        try:
            for text, encoding in readings(path.read_bytes()):
                self.classes: dict[SplitName, Classes] = {}
                self._names: dict[SplitName, list[str]] = {}
                rows = self._objects(text) if path.suffix.lower() == ".jsonl" else self._lines(text)
                self._read(rows)
                if not self.classes:
                    raise DataError(
                        f"{path} lists no image. Give one line with path and label for each."
                    )
                if encoding not in GUESSES or (problem := self._wrong_names()) is None:
                    break
                problems.append(problem)
            else:
                raise problems[0]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise self._unreadable(str(error)) from error
        if encoding not in ("utf-8", "bytes"):
            self.notes = (f"{path} is read as {encoding}, not UTF-8.",)

    def _unreadable(self, reason: str) -> DataError:
        return DataError(f"{self.path} cannot be read as CSV in UTF-8: {reason}. Save it as that.")

    def _lines(self, text: str) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells of each row of a CSV that is not empty."""
        text, separator = separated(text)
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        header: list[str] = []
        for values in lines:
            if not any(map(str.strip, values)):
                continue
            header = header or [cell.strip() for cell in values]
            values += [""] * (len(header) - len(values))  # spreadsheets drop them at the end
            if len(values) != len(header):
                raise DataError(
                    f"{self.path}, line {lines.line_num}: wanted {len(header)} fields "
                    f"({', '.join(header)}), found {len(values)}. Put {_SEPARATORS[separator]} "
                    f"inside quotes."
                )
            yield lines.line_num, values

    def _objects(self, text: str) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells of each row of JSON Lines; the first are the keys."""
        header: list[str] | None = None
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except ValueError as error:
                raise DataError(f"{self.path}, line {number}: not JSON ({error}).") from error
            if not isinstance(values, dict):
                raise DataError(f"{self.path}, line {number}: give an object, not a list or text.")
            if header is None:
                header = [*values]
                yield number, header
            yield number, [_cell(values.get(key)) for key in header]

    def _read(self, rows: Iterator[tuple[int, list[str]]]) -> None:
        """Take over all rows, of which the first is the header."""
        header = [cell.strip() for cell in next(rows, (0, []))[1]]
        if not header:
            return
        path, label = self._column(header, "path", PATHS), self._column(header, "label", LABELS)
        split = next(iter(named(header, _PARTS)), None)
        part = None if split is None else header.index(split)
        left_out = header.index(DECISION) if DECISION in header else None
        for line, as_written in rows:
            cells = [cell.strip() for cell in as_written]
            if left_out is not None and cells[left_out] == LEFT_OUT:
                continue
            if part is not None and not self.classes and split_of(cells[part]) is None:
                exact = header[part].lower() == "split"  # a column `set` may mean another thing
                part = part if exact else None
            split = "train" if part is None else cells[part]
            self._add(line, as_written[path], cells[label], split)

    def _column(self, header: Sequence[str], what: str, names: Sequence[Sequence[str]]) -> int:
        """The column of the path or of the class."""
        found = named(header, names)
        if len(found) != 1:
            raise DataError(
                f"{self.path} must begin with a line that names the columns path, label and "
                f"optionally split, once each; it has {', '.join(header)}."
                + (f" Call one of them {what}." if found else "")
            )
        return header.index(found[0])

    def _add(self, line: int, path: str, label: str, part: str) -> None:
        split = split_of(part)
        if split is None:
            raise DataError(
                f"{self.path}, line {line}: split must be train, val or test, not "
                f"{part.removeprefix(_NO_TEXT)!r}."
            )
        for column, value in (("path", path), ("label", label)):
            if not value.strip():
                raise DataError(f"{self.path}, line {line}: {column} is empty. Fill it in.")
            if value.startswith(_NO_TEXT):
                raise DataError(
                    f"{self.path}, line {line}: {column} is {brief(value[1:])[1:-1]}, not text or "
                    f"a whole number. Write it as text."
                )
        self._names.setdefault(split, []).append(self._file(line, path))
        self.classes.setdefault(split, Classes()).add(label)

    def _file(self, line: int, name: str) -> str:
        """The file that a name means: itself, or the only image of that name with an ending."""
        folder = self.path.parent
        name = _on_disk(folder, name)
        if name.lower().endswith(tuple(EXTENSIONS)) or (folder / name).is_file():
            return name
        if self._stems is None:
            self._stems = {}
            for file in walk_images(folder):
                stem = file.rpartition(".")[0]
                for key in {stem, stem.rpartition("/")[2]}:
                    self._stems.setdefault(key, []).append(file)
        found = self._stems.get(name) or [name]
        if len(found) > 1:
            raise DataError(
                f"{self.path}, line {line}: {name} may be {found[0]} or {found[1]}. Give the paths "
                f"of the files."
            )
        return found[0]

    def _wrong_names(self) -> DataError | None:
        """The error if names of files do not confirm the encoding: others give other letters."""
        strange = [n for names in self._names.values() for n in names if not n.isascii()]
        missing = [name for name in strange if not (self.path.parent / name).exists()]
        if missing or not strange:
            example = f", and there is no file {missing[0]!r}" if missing else ""
            return self._unreadable(f"it has bytes of another encoding{example}")
        return None

    def load(self, split: SplitName, labels: tuple[str, ...] | None) -> LoadedSplit:
        """The images of one split, in the order of their paths, as a folder has them."""
        name, names = split_title(self.path, split), self._names[split]
        targets, labels, own = self.classes[split].finish(name, None, labels)
        order = sorted(range(len(names)), key=names.__getitem__)
        files = Files(self.path.parent, [names[i] for i in order])
        targets, as_text = compact(np.asarray(targets)[order]), tuple(sorted(own))

        def lines() -> Iterator[str]:
            if as_text != own:  # earlier versions held out other images
                yield "classes as text"
            for target, line in zip(targets, names_and_sizes(files), strict=True):
                yield f"{labels[target]} {line}"

        images = ImageSet(files, targets, labels, name)
        return LoadedSplit(images, as_text, lambda: fingerprint(lines()), notes=self.notes)


def readings(data: bytes) -> Iterator[tuple[str, str]]:
    """The text in a file, and the name of its encoding; two of `GUESSES` if it is not known.

    Raises:
        UnicodeDecodeError: The bytes are not of the encoding that the file begins with.
    """
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            yield data.decode(encoding), encoding
            return
    head = data[:1000]
    for encoding, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
        if zeros and zeros.count(0) > len(zeros) / 2:  # ASCII takes two bytes, one of them 0
            yield data.decode(encoding), "utf-16"
            return
    try:
        yield data.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError:
        with suppress(UnicodeDecodeError):
            yield data.decode("cp1252"), "cp1252"
        yield data.decode("utf-8-sig", "surrogateescape"), "bytes"


def separated(text: str) -> tuple[str, str]:
    """The text of a CSV without hints of spreadsheets, and what separates its cells."""
    text = text.removeprefix("\ufeff")
    if text[:4].lower() == "sep=":  # a hint of Excel
        text = text.partition("\n")[2]
    for separator in _SEPARATORS:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        first = next((cells for cells in lines if any(map(str.strip, cells))), [])
        if named(first, PATHS) and named(first, LABELS):
            return text, separator
    return text, ","


def _cell(value: Any) -> str:
    """A value of JSON as a cell: text and whole numbers as such, others marked as no text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    return "" if value is None else _NO_TEXT + json.dumps(value)


def _on_disk(folder: Path, name: str) -> str:
    """A name as the file has it: with slashes, in the Unicode form and with the spaces of the disk.

    Spaces around a name are dropped, unless only a file with them exists.
    """
    if (plain := name.strip()) != name:
        return name if (folder / name).is_file() else _on_disk(folder, plain)
    if name.isascii() and "\\" not in name:
        return name
    slashed = name.replace("\\", "/")
    forms = unicodedata.normalize("NFC", slashed), unicodedata.normalize("NFD", slashed)
    return next((n for n in (name, slashed, *forms) if (folder / n).exists()), slashed)
