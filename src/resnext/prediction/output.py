"""Output of folder prediction: first a journal, then a table.

OUT.part    a line of settings, then one line of JSON per image, in order
X.npy.part  embeddings, one row per image, written before its line
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float32

from resnext.errors import CheckpointError, InputError
from resnext.system.atomic import write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

KINDS = (".csv", ".jsonl", ".parquet")
_FORMAT = 1
_SYNC_SECONDS = 30.0  # between fsyncs: as much as a power cut can lose
_CONTINUES = "Finished predictions are kept; the same command continues from there."
_GROUP = 20_000  # rows per Parquet row group, held in memory


class Journal:
    """The predictions made so far, on disk, from which an interrupted call continues.

    Args:
        out: The table that will be written.
        settings: Everything that predictions depend on; "count" is the number of images.
        embeddings: File of the embeddings, or None.
        width: Length of an embedding.
        step: Of an earlier journal, a multiple of this many images is kept, or all.
        overwrite: Whether a journal with other settings may be discarded.

    Raises:
        CheckpointError: The journal cannot be written.
        InputError: The journal has other settings, or another process is writing it.
    """

    def __init__(
        self,
        out: Path,
        settings: dict[str, Any],
        embeddings: Path | None,
        width: int,
        step: int,
        overwrite: bool,
    ) -> None:
        self.path, self.count = journal_of(out), int(settings["count"])
        self.done = self.unreadable = 0
        self.first = ""
        """The first problem."""
        self._array: IO[bytes] | None = None
        self._synced = time.monotonic()
        with _writing(self.path):
            self._file = self.path.open("a+b")
        try:
            with _writing(self.path):
                _lock(self._file, self.path)
                resumed = self._resumes(settings, overwrite)
                if not resumed:
                    self._file.truncate(0)
                    line = json.dumps({"resnext": _FORMAT, **settings})
                    self._file.write(f"{line}\n".encode())
                    self._file.flush()
            header = _header(self.count, width)
            kept = self._open_array(embeddings, header, width, resumed)
            with _writing(self.path):
                if resumed:
                    self._keep(kept, step)
                if self._array:
                    self._array.truncate(len(header) + self.done * width * 4)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def begun(out: Path) -> bool:
        """Whether a journal for this table exists."""
        path = journal_of(out)
        return path.is_file() and path.stat().st_size > 0

    def add(
        self,
        rows: list[str],
        problems: list[str | None],
        embeddings: Float32[np.ndarray, "n d"] | None,
    ) -> None:
        """Append the next images. Once this returns, only a power cut can lose them.

        Raises:
            CheckpointError: The journal cannot be written.
        """
        if self._array and embeddings is not None:
            with _writing(Path(self._array.name)):
                self._array.write(embeddings.astype("<f4", copy=False).tobytes())
                self._array.flush()
        with _writing(self.path):
            self._file.write("".join(f"{row}\n" for row in rows).encode())
            self._file.flush()
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self._fsync()
        self.done += len(rows)
        for row, problem in zip(rows, problems, strict=True):
            if problem is not None:
                self._count_error(json.loads(row))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Read all rows."""
        with self.path.open("rb") as file:
            file.readline()
            yield from map(json.loads, file)

    def end(self) -> None:
        """Give the embeddings their final name and remove the journal."""
        with _writing(self.path):
            self._fsync()
            self.close()
            if self._array:
                unfinished = Path(self._array.name)
                unfinished.replace(unfinished.with_suffix(""))
            self.path.unlink()

    def close(self) -> None:
        """Close the files and leave them as they are."""
        for file in (self._array, self._file):
            if file:
                with suppress(OSError):  # reported when it was written
                    file.close()

    def _fsync(self) -> None:
        """Make both files survive a power cut: embeddings first, as every row needs its own."""
        for file in (self._array, self._file):
            if file:
                os.fsync(file.fileno())
        self._synced = time.monotonic()

    def _resumes(self, settings: dict[str, Any], overwrite: bool) -> bool:
        """Whether the journal was started with these settings; False if it is to be discarded.

        Raises:
            InputError: The journal has other settings and may not be discarded.
        """
        self._file.seek(0)
        line = self._file.readline()
        if not line:
            return False
        old = _parsed(line)
        if old is None or "resnext" not in old:
            wrong = "is not a file of unfinished predictions"
        elif old["resnext"] != _FORMAT:
            wrong = "was started by another version of resnext"
        else:
            del old["resnext"]
            other = [x for x in {**settings, **old} if old.get(x) != settings.get(x)]
            if not other:
                return True
            names = [_NAMES[name].format(old.get(name)) for name in other if name in _NAMES]
            wrong = f"was started with {' and '.join(names)}"
        if overwrite:
            return False
        raise InputError(
            f"{self.path} {wrong}. To continue, use the same arguments; to start over, use "
            f"--overwrite or another output file."
        )

    def _open_array(self, path: Path | None, header: bytes, width: int, resumed: bool) -> int:
        """Open the file of embeddings; returns how many are usable, `count` if none are wanted."""
        if path is None:
            return self.count
        unfinished = path.with_name(f"{path.name}.part")
        with _writing(unfinished):
            size = len(header) + self.count * width * 4
            if (
                resumed
                and not unfinished.exists()
                and path.exists()
                and path.stat().st_size == size
            ):
                return self.count  # killed just before the journal was removed
            self._array = unfinished.open("a+b")
            self._array.seek(0)
            if resumed and self._array.read(len(header)) == header:
                return (unfinished.stat().st_size - len(header)) // (width * 4)
            self._array.truncate(0)
            self._array.write(header)
            self._array.flush()
        return 0

    def _keep(self, limit: int, step: int) -> None:
        """Count the first `limit` rows, and cut off everything after the last complete batch."""
        self._file.seek(0)
        end = kept = len(self._file.readline())
        errors = list[dict[str, Any]]()
        for done, line in enumerate(islice(self._file, min(limit, self.count)), 1):
            row = _parsed(line)
            if row is None:
                break
            end += len(line)
            if "error" in row:
                errors.append(row)
            if done % step == 0 or done == self.count:
                self.done, kept = done, end
                for bad in errors:
                    self._count_error(bad)
                errors.clear()
        self._file.truncate(kept)

    def _count_error(self, row: dict[str, Any]) -> None:
        self.unreadable += 1
        self.first = self.first or f"{row['path']}: {row['error']}"


def journal_of(out: Path) -> Path:
    """The journal of a table."""
    return out.with_name(f"{out.name}.part")


_NAMES = {
    "model": "another model",
    "top": "top {}",
    "images": "other images",
    "embeddings": "embeddings {}",
    "unknown": "another index",
}


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A row from a complete line; None if the line is torn or damaged."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:  # a power cut can leave anything
        return None
    return row if isinstance(row, dict) else None


def _header(count: int, width: int) -> bytes:
    file = io.BytesIO()
    array = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
    np.lib.format.write_array_header_1_0(file, array)
    return file.getvalue()


def _lock(file: IO[bytes], path: Path) -> None:
    """Lock the file against other processes until it is closed.

    Raises:
        InputError: Another process holds the lock.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"{path} is being written by another process. Wait until it ends."
        ) from error
    except OSError:  # a file system without locks
        return


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        name = path if error.filename is None else error.filename
        raise CheckpointError(
            f"{name} cannot be written: {error.strerror or error}. {_CONTINUES}"
        ) from error


# -- tables -----------------------------------------------------------------------------------


def needs(kind: str) -> None:
    """Require the library that a kind of table needs.

    Raises:
        InputError: The library is not installed.
    """
    if kind != ".parquet":
        return
    try:
        import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError('.parquet needs pyarrow: pip install "resnext[parquet]".') from error


def finish(journal: Journal, out: Path, top: int, marks: Sequence[str]) -> None:
    """Write the table of a complete journal, and remove the journal.

    Args:
        journal: A journal with all rows.
        out: The table; its suffix decides the format.
        top: Number of classes in each row.
        marks: The columns with a truth value: `sure` and `unknown`, or none.

    Raises:
        CheckpointError: The table cannot be written; the journal stays.
    """
    write = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[out.suffix]
    try:
        write_atomically(out, lambda temporary: write(journal, temporary, top, marks))
    except CheckpointError as error:
        raise CheckpointError(f"{error} {_CONTINUES}") from error
    journal.end()


def _jsonl(journal: Journal, temporary: str, top: int, marks: Sequence[str]) -> None:
    with journal.path.open("rb") as source, Path(temporary).open("wb") as target:
        source.readline()
        shutil.copyfileobj(source, target)


def _csv(journal: Journal, temporary: str, top: int, marks: Sequence[str]) -> None:
    """Write CSV as RFC 4180 defines it."""
    with Path(temporary).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(_columns(top, marks))
        for row in journal.rows():
            cells = _cells(row, top, marks)
            table.writerow(str(x).lower() if isinstance(x, bool) else x for x in cells)


def _parquet(journal: Journal, temporary: str, top: int, marks: Sequence[str]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    def kind(name: str) -> Any:
        if name in marks:
            return pa.bool_()
        return pa.float64() if name.startswith("probability") else pa.string()

    schema = pa.schema([(name, kind(name)) for name in _columns(top, marks)])
    rows = journal.rows()
    with parquet.ParquetWriter(temporary, schema) as writer:
        while cells := [_cells(row, top, marks) for row in islice(rows, _GROUP)]:
            columns = dict(zip(schema.names, zip(*cells, strict=True), strict=True))
            writer.write_table(pa.table(columns, schema=schema))


def _columns(top: int, marks: Sequence[str]) -> list[str]:
    names = ["path", "error", "label", "probability"]
    for i in range(2, top + 1):
        names += [f"label_{i}", f"probability_{i}"]
    return [*names, *marks]


def _cells(row: dict[str, Any], top: int, marks: Sequence[str]) -> list[Any]:
    """The cells of a row; None where it has no value."""
    cells = [row["path"], row.get("error")]
    pairs = zip(
        row.get("labels", [None] * top), row.get("probabilities", [None] * top), strict=True
    )
    for pair in pairs:
        cells += pair
    return [*cells, *map(row.get, marks)]
