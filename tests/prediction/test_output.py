"""Tables and the journal: formats, interruptions, full disks."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import CARD, DIM, KINDS, Fake, fill, left, lines, naive
from helpers import wait_until

from resnext.data.sources.folders import image_files
from resnext.errors import CheckpointError, InputError
from resnext.prediction.files import predict_files
from resnext.prediction.output import journal_of

# -- tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize("top", [1, 2])
def test_every_kind_of_table_says_the_same(
    tmp_path: Path, top: int, threshold: float | None
) -> None:
    """One format lost a column, a row, or everything behind a comma or a new line."""
    from pyarrow import parquet

    fill(tmp_path / "in", 9)
    (tmp_path / "in" / "b" / 'x, "y"\nz\r.jpg').write_text("no image")
    card = replace(CARD, threshold=threshold)
    for kind in KINDS:
        predict_files(Fake(card), [tmp_path / "in"], tmp_path / f"p{kind}", top=top)
    wanted = lines(tmp_path / "p.jsonl")
    names = ["path", "error", "label", "probability", "label_2", "probability_2"][: 2 + 2 * top]
    names += ["sure"] if threshold else []
    flat = []
    for row in wanted:
        pairs = zip(row.get("labels", [None] * 2), row.get("probabilities", [None] * 2))  # noqa: B905
        cells = [row["path"], row.get("error"), *(x for pair in pairs for x in pair)]
        flat.append([*cells[: 2 + 2 * top], *([row.get("sure")] if threshold else [])])
    assert [row[1] is None for row in flat].count(False) == 1
    table = parquet.read_table(tmp_path / "p.parquet")
    assert table.column_names == names
    assert [list(row.values()) for row in table.to_pylist()] == flat
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file, strict=True)
    assert head == names
    text = {None: "", True: "true", False: "false"}
    assert rows == [
        [text[x] if x is None or isinstance(x, bool) else str(x) for x in row] for row in flat
    ]


def test_many_groups_of_parquet_rows_are_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the last group was written, or a group where no row has an error was of no type."""
    from pyarrow import parquet

    monkeypatch.setattr("resnext.prediction.output._GROUP", 4)
    predict_files(Fake(), fill(tmp_path / "in", 9), tmp_path / "p.parquet")
    read = parquet.ParquetFile(tmp_path / "p.parquet")
    assert read.num_row_groups == 3
    assert read.read()["path"].to_pylist() == [str(p) for p in image_files(tmp_path / "in")]


# -- continuing -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fail", [0, 1, 4])
def test_a_second_call_continues_where_the_first_broke(
    tmp_path: Path, kind: str, fail: int
) -> None:
    """What was answered was lost, answered twice, or written with other digits."""
    folder = fill(tmp_path / "in")
    (folder / "a" / "003.png").write_text("no image")
    out, array = tmp_path / f"p{kind}", tmp_path / "e.npy"
    whole = predict_files(Fake(), folder, tmp_path / f"w{kind}", embeddings=tmp_path / "w.npy")
    with pytest.raises(RuntimeError, match="the engine broke"):
        predict_files(Fake(fail=fail), folder, out, embeddings=array)
    assert not out.exists()
    assert len(journal_of(out).read_bytes().splitlines()) == 1 + 4 * fail
    again = Fake()
    done = predict_files(again, folder, out, embeddings=array)
    assert (done.count, done.unreadable, done.resumed) == (23, 1, 4 * fail)
    assert whole.unreadable == 1
    assert sum(again.sizes) == 22 - max(4 * fail - 1, 0)
    assert out.read_bytes() == (tmp_path / f"w{kind}").read_bytes()
    assert array.read_bytes() == (tmp_path / "w.npy").read_bytes()
    assert left(tmp_path) == {"in", out.name, f"w{kind}", "e.npy", "w.npy"}


@pytest.mark.parametrize(
    ("rows", "torn", "numbers", "kept"),
    [
        (12, b"", 12, 12),
        (12, b'{"path": "x', 12, 12),
        (11, b'{"path"', 12, 8),
        (12, b"\0\0\0\n", 12, 12),
        (12, b"", 7.5, 4),
        (12, b"", 0, 0),
        (23, b"", 22.5, 20),
        (23, b"", 23, 23),
    ],
)
def test_torn_ends_are_cut_to_whole_batches(
    tmp_path: Path, rows: int, torn: bytes, numbers: float, kept: int
) -> None:
    """Half a line, or lines without embeddings, moved everything behind them."""
    folder, out, array = fill(tmp_path / "in"), tmp_path / "p.jsonl", tmp_path / "e.npy"
    predict_files(Fake(), folder, out, embeddings=array)
    table, found = out.read_bytes(), array.read_bytes()
    out.unlink()
    array.unlink()
    with pytest.raises(RuntimeError):
        predict_files(Fake(fail=0), folder, out, embeddings=array)
    part, numbers_part = journal_of(out), tmp_path / "e.npy.part"
    head = numbers_part.stat().st_size
    whole = table.splitlines(keepends=True)
    part.write_bytes(part.read_bytes() + b"".join(whole[:rows]) + torn)
    numbers_part.write_bytes(found[: head + int(numbers * 4 * DIM)])
    again = Fake()
    assert predict_files(again, folder, out, embeddings=array).resumed == kept
    assert sum(again.sizes) == 23 - kept
    assert out.read_bytes() == table
    assert array.read_bytes() == found
    assert left(tmp_path) == {"in", "p.jsonl", "e.npy"}


SCRIPT = """
import signal, sys, threading
from pathlib import Path
from fakes import Fake
from resnext.prediction import predict_files
assert "torch" not in sys.modules
folder, out, hold = sys.argv[1:]
interrupted, fake = threading.Event(), Fake()

def interrupt(*_):
    interrupted.set()
    raise KeyboardInterrupt

def before():
    if len(fake.sizes) == int(hold):
        interrupted.wait()

signal.signal(signal.SIGINT, interrupt)
fake.before = before
done = predict_files(fake, [folder], Path(out) / "p.csv", embeddings=Path(out) / "e.npy")
assert "torch" not in sys.modules, "torch was imported"
assert "pyarrow" not in sys.modules, "pyarrow was imported"
print(done.resumed)
"""


def start(folder: Path, out: Path, hold: int) -> subprocess.Popen[str]:
    """Predict in another process, whose engine stops before the batch `hold`; -1 for never."""
    command = [sys.executable, "-c", SCRIPT, str(folder), str(out), str(hold)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_call_is_continued_without_torch(tmp_path: Path, number: signal.Signals) -> None:
    """Rows waited in memory for a flush; a start took seconds for torch, used or not."""
    folder, out = fill(tmp_path / "in"), tmp_path / "p.csv"
    predict_files(Fake(), [folder], tmp_path / "w.csv", embeddings=tmp_path / "w.npy")
    journal = journal_of(out)
    with start(folder, tmp_path, hold=3) as process:
        wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") == 1 + 3 * 4)
        process.send_signal(number)
        process.wait()
    assert process.returncode == -number
    assert journal.read_bytes().count(b"\n") == 1 + 3 * 4
    with start(folder, tmp_path, hold=-1) as process:
        assert process.communicate()[0] == "12\n"
    assert process.returncode == 0
    assert out.read_bytes() == (tmp_path / "w.csv").read_bytes()
    assert (tmp_path / "e.npy").read_bytes() == (tmp_path / "w.npy").read_bytes()
    assert left(tmp_path) == {"in", "p.csv", "e.npy", "w.csv", "w.npy"}


def test_other_arguments_do_not_continue(tmp_path: Path) -> None:
    """Half of a table was another model's, or the answers of a file stood beside another."""
    folder, out = fill(tmp_path / "in"), tmp_path / "p.csv"
    with pytest.raises(RuntimeError):
        predict_files(Fake(fail=2), folder, out)
    part = journal_of(out).read_bytes()
    other = Fake(replace(CARD, temperature=3.0))
    marked: Any = Fake()
    marked.fingerprint = "int8"
    (folder / "a" / "new.png").touch()
    cases: list[tuple[str, dict[str, Any], Fake]] = [
        ("with other images", {}, Fake()),
        ("with top 1 and other images", {"top": 2}, Fake()),
        ("with another model and other images", {}, other),
        ("with another model and other images", {}, marked),
        ("with other images and embeddings None", {"embeddings": tmp_path / "e.npy"}, Fake()),
    ]
    for message, arguments, fake in cases:
        with pytest.raises(InputError, match=rf"p\.csv\.part was started {message}\. To continue"):
            predict_files(fake, folder, out, **arguments)
    assert journal_of(out).read_bytes() == part
    (folder / "a" / "new.png").unlink()
    assert predict_files(Fake(), folder, out).resumed == 8


def test_overwrite_replaces_and_continues(tmp_path: Path) -> None:
    """A finished table was lost without a question, or an interrupted replacement began anew."""
    folder, out, array = fill(tmp_path / "in"), tmp_path / "p.csv", tmp_path / "e.npy"
    for path in (out, array):
        path.write_text("precious")
        with pytest.raises(InputError, match=rf"{path.name} exists; --overwrite replaces it\."):
            predict_files(Fake(), folder, out, embeddings=array)
        assert path.read_text() == "precious"
        path.unlink()
    out.write_text("precious")
    with pytest.raises(RuntimeError):
        predict_files(Fake(fail=2), folder, out, overwrite=True)
    assert out.read_text() == "precious"
    assert predict_files(Fake(), folder, out, overwrite=True).resumed == 8
    assert len(out.read_bytes().splitlines()) > 23
    with pytest.raises(RuntimeError):
        predict_files(Fake(fail=2), folder, out, overwrite=True)
    done = predict_files(Fake(), folder, out, overwrite=True, top=2)
    assert done.resumed == 0
    assert left(tmp_path) == {"in", "p.csv"}


def test_two_calls_do_not_write_one_table(tmp_path: Path) -> None:
    """Started twice by mistake, both wrote rows into one journal."""
    folder, out, fake = fill(tmp_path / "in", 6), tmp_path / "p.csv", Fake()
    errors: list[str] = []

    def second() -> None:
        with pytest.raises(InputError) as caught:
            predict_files(Fake(), folder, out)
        errors.append(str(caught.value))

    fake.before = second
    assert predict_files(fake, folder, out).count == 6
    assert len(errors) == 2
    assert all("is being written by another process" in error for error in errors)


def test_a_call_killed_at_its_very_end_can_be_called_again(tmp_path: Path) -> None:
    """With the embeddings in their place and the journal still there, all began anew."""
    folder, out, array = fill(tmp_path / "in", 6), tmp_path / "p.csv", tmp_path / "e.npy"
    fake, kept = Fake(), b""

    def keep() -> None:
        nonlocal kept
        kept = journal_of(out).read_bytes()

    predict_files(fake, folder, tmp_path / "p.jsonl")
    fake.before = keep
    predict_files(fake, folder, out, embeddings=array)
    head = kept.splitlines(keepends=True)[0]
    journal_of(out).write_bytes(head + (tmp_path / "p.jsonl").read_bytes())
    again, table, found = Fake(), out.read_bytes(), array.read_bytes()
    assert predict_files(again, folder, out, embeddings=array).resumed == 6
    assert again.sizes == []
    assert (out.read_bytes(), array.read_bytes()) == (table, found)
    assert left(tmp_path) == {"in", "p.csv", "p.jsonl", "e.npy"}


# -- disks -----------------------------------------------------------------------------------


def test_a_full_disk_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours of work ended in a traceback, and a torn row could not be continued from."""
    resource = pytest.importorskip("resource")
    monkeypatch.chdir(tmp_path)
    folder, out, array = fill(Path("in"), 9), Path("p.jsonl"), Path("e.npy")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1700, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"^[^\n]*p\.jsonl\.part cannot be written: .*$"):
            predict_files(Fake(batch=2), folder, out, top=6, embeddings=array)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert journal_of(out).stat().st_size == 1700
    done = predict_files(Fake(batch=2), folder, out, top=6, embeddings=array)
    assert 2 <= done.resumed < 8
    assert lines(out) == naive(CARD, image_files(folder), 6)
    assert len(np.load(array)) == 9


def test_a_table_that_cannot_be_written_keeps_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full when all was answered: everything had to be computed again."""
    folder, out = fill(tmp_path / "in", 9), tmp_path / "p.csv"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("resnext.prediction.output._columns", full)
        with pytest.raises(CheckpointError, match=r"p\.csv cannot be written: .*No space left"):
            predict_files(Fake(), folder, out)
    assert left(tmp_path) == {"in", "p.csv.part"}
    again = Fake()
    assert predict_files(again, folder, out).resumed == 9
    assert again.sizes == []
