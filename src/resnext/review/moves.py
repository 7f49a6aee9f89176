"""Files of class folders moved as was decided, with a journal to move them back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from resnext.data.passed_over import hidden
from resnext.data.sources.csv_list import LEFT_OUT
from resnext.errors import DataError
from resnext.review.decisions import LabelList
from resnext.system.atomic import fsync

ASIDE = ".left-out"
"""Folder in the data for images that were left out. It is hidden, so `train` passes it over."""


class Moves:
    """Moves between the class folders of a data set.

    Every move is in the journal before it is made, so that an interruption loses nothing.

    Args:
        labels: The list with the decisions; its paths follow the moves.
        root: The data: class folders, or `train`, `val` and `test` with class folders inside.
        classes: Class of each image as its folder says, by path.
        parts: The folders that hold class folders; by default, only the data.
    """

    def __init__(
        self, labels: LabelList, root: Path, classes: dict[str, str], parts: Sequence[Path] = ()
    ) -> None:
        self.labels, self.classes = labels, classes
        self.root, *self._parts = (Path(os.path.abspath(x)) for x in (root, *(parts or [root])))  # noqa: PTH100
        self.journal = journal_of(labels.file)
        self._folders: dict[tuple[Path, str], str] = {}  # names may have spaces around the class
        for path, label in classes.items():
            part = self._part(Path(path))
            self._folders.setdefault((part, label), Path(path).relative_to(part).parts[0])

    def apply(self) -> int:
        """Move every image to the folder of its class, or aside; return how many were moved.

        Raises:
            DataError: The journal or a file cannot be written. What was moved is in the journal.
        """
        moved = 0
        for path, new in [*self._wanted()]:
            target = _free(new)
            self._record({"from": str(path), "to": str(target)})
            _move(path, target)
            self.labels.move(str(path), str(target))
            self.labels.write()
            moved += 1
        return moved

    def undo(self) -> int:
        """Move all files back, the last one first; return how many were moved.

        The decisions in the list stay.

        Raises:
            DataError: There is nothing to undo, a file cannot be moved back, or another one is in
                its place; the journal keeps what is left.
        """
        moves, done = read_moves(self.journal), 0
        if not moves:
            raise DataError(f"{self.journal} holds no move, so there is nothing to undo.")
        while moves:
            old, new = Path(moves[-1]["from"]), Path(moves[-1]["to"])
            if os.path.lexists(new) == os.path.lexists(old):
                why = "there is another file" if os.path.lexists(new) else "it is not there"
                raise DataError(
                    f"{new} cannot be moved back to {old}: {why}. Move it by hand, or remove the "
                    f"last line of {self.journal}; then --undo goes on."
                )
            if os.path.lexists(new):  # else the move was never made
                _move(new, old)
                done += 1
            if str(new) in self.labels:
                self.labels.move(str(new), str(old))
                self.labels.write()
            moves.pop()
            self._rewrite(moves)
        return done

    def _wanted(self) -> Iterator[tuple[Path, Path]]:
        """Each file that is in a wrong place, and its right place."""
        for entry in self.labels.entries:
            path = Path(entry.path)
            folder_class = self.classes.get(entry.path)
            if folder_class is None or not path.exists():
                continue
            if entry.decision == LEFT_OUT:
                yield path, self.root / ASIDE / path.relative_to(self.root)
            elif entry.label != folder_class:
                yield path, self._in_class_folder(path, entry.label)

    def _in_class_folder(self, path: Path, label: str) -> Path:
        """The place of a file in the folder of another class, at the same depth."""
        part = self._part(path)
        folder = self._folders.get((part, label), label)
        if "/" in folder or os.sep in folder or hidden(folder):
            raise DataError(
                f"{path} is of class {label!r} in {self.labels.file}, which cannot be the name of "
                f"a folder of images. Nothing moved; correct it there."
            )
        return part.joinpath(folder, *path.relative_to(part).parts[1:])

    def _part(self, path: Path) -> Path:
        return next(part for part in self._parts if path.is_relative_to(part))

    def _record(self, move: dict[str, str]) -> None:
        try:
            with self.journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(move) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"{self.journal} cannot be written: {error}. Nothing moved.") from error

    def _rewrite(self, moves: list[dict[str, str]]) -> None:
        if not moves:
            self.journal.unlink()
            return
        text = "".join(json.dumps(move) + "\n" for move in moves)
        temporary = self.journal.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        fsync(temporary)
        temporary.replace(self.journal)


def journal_of(file: Path) -> Path:
    """The journal of the moves of a list."""
    return file.with_suffix(".moves.jsonl")


def read_moves(journal: Path) -> list[dict[str, str]]:
    """The moves in a journal, each with its paths "from" and "to"; none without a journal."""
    moves: list[dict[str, str]] = []
    with suppress(FileNotFoundError):
        for line in journal.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):  # cut off by a power failure
                move = json.loads(line)
                moves.append({"from": move["from"], "to": move["to"]})
    return moves


def _move(old: Path, new: Path) -> None:
    try:
        new.parent.mkdir(parents=True, exist_ok=True)
        if old.is_symlink() and not old.readlink().is_absolute():
            folder = os.path.realpath(new.parent)  # from there, the link must lead to its file
            new.symlink_to(os.path.relpath(os.path.realpath(old), folder))
            old.unlink()
        else:
            old.rename(new)
        fsync(new.parent)
    except OSError as error:
        raise DataError(
            f"{old} cannot be moved to {new}: {error.strerror}. What was moved before is in the "
            f"journal; --undo moves it back."
        ) from error


def _free(path: Path) -> Path:
    """A path at which nothing is yet: the same, or with a number."""
    number, free = 2, path
    while os.path.lexists(free):
        free = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return free
