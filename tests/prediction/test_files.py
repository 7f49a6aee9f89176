"""Folder prediction: order, tables, interruptions, bounds."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnext.card import Card, Preprocessing
from resnext.config import ResNeXtConfig
from resnext.data.decoding import open_image, pixels, resize_and_crop
from resnext.data.sources import folders as files
from resnext.data.sources.folders import image_files
from resnext.errors import CheckpointError, DataError, InputError
from resnext.prediction import files as bulk
from resnext.prediction.files import predict_files
from resnext.prediction.output import journal_of

LABELS = ("coal", 'a "grey", dark', "grey\nmiddle", "bright", "snow", "été")
CARD = Card(LABELS, Preprocessing(size=8, resize=9), temperature=2.0, threshold=0.5)
CONFIG = ResNeXtConfig((1, 1, 1, 1), 1, 64, len(LABELS), channels=(1, 1, 1, 1))
DIM = 4  # of an embedding: the last channels, times the expansion
KINDS = (".csv", ".jsonl", ".parquet")


class Fake:
    """A model that classifies by brightness; it fails at the batch `fail`."""

    def __init__(self, card: Card | None = CARD, batch: int = 4, fail: int = -1) -> None:
        self.card, self.config, self.batch, self.fail = card, CONFIG, batch, fail
        self.sizes: list[int] = []
        self.before: Callable[[], object] = lambda: None

    def pixels(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits fall with the distance from each class's level; embeddings are mean colours."""
        self.before()
        if len(self.sizes) == self.fail:
            raise RuntimeError("the engine broke")
        self.sizes.append(len(x))
        level = x.astype(np.float64).mean((1, 2, 3))[:, None]
        logits = -np.abs(level - 50 * np.arange(len(LABELS))) / 10
        extra = np.concatenate([x.astype(np.float64).mean((1, 2)), level / 255], 1)
        return logits.astype(np.float32), extra[:, :DIM].astype(np.float32)


def fill(folder: Path, count: int = 23) -> Path:
    """Images of rising brightness in folders, big and small in turn."""
    for i in range(count):
        path = folder / f"{'abc'[3 * i // count]}" / f"{i:03}.{'png' if i % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = 400 if i % 3 == 0 else 9
        Image.new("RGB", (side, side), (i * 11 % 256,) * 3).save(path)
    return folder


def naive(card: Card, names: list[Path], top: int) -> list[dict[str, Any]]:
    """The expected rows, from one image at a time and a softmax of our own."""
    rows = []
    for name in names:
        how = card.preprocessing
        x = pixels(resize_and_crop(open_image(name, how.colour), how), how)
        (logits,), _ = Fake(card).pixels(x[None])
        p = np.exp(logits.astype(float) / card.temperature)
        p /= p.sum()
        best = sorted(range(len(p)), key=lambda i: -p[i])[:top]
        row = {
            "path": str(name),
            "labels": [card.labels[i] for i in best],
            "probabilities": [float(f"{p[i]:.6g}") for i in best],
        }
        rows.append(row | ({"sure": bool(p[best[0]] >= card.threshold)} if card.threshold else {}))
    return rows


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_bytes().splitlines()]


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -- rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "workers"), [(1, 8), (4, 3), (7, 1), (64, 4)])
def test_rows_stand_in_the_order_of_the_files(
    tmp_path: Path, batch: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads finish in any order: a row with the answer of its neighbour looks right."""
    folder, out = fill(tmp_path / "in"), tmp_path / "p.jsonl"
    fake = Fake()
    ticks = iter((0.0, 2.0, 6.0, 7.0))  # starts, begins to predict, is done, returns
    monkeypatch.setattr(bulk, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    got = predict_files(fake, [folder], out, top=5, batch_size=batch, workers=workers)
    assert lines(out) == naive(CARD, image_files(folder), 5)
    assert len({row["labels"][0] for row in lines(out)}) >= 5
    assert sum(fake.sizes) == 23
    assert max(fake.sizes) == min(batch, 23)
    assert (got.out, got.count, got.unreadable, got.resumed) == (out, 23, 0, 0)
    assert (got.seconds, got.images_per_second) == (7.0, 23 / 4)


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


def test_pixels_are_those_of_a_single_prediction(tmp_path: Path) -> None:
    """Turned, palette, CMYK, 16-bit and one-pixel images took a second, different way here."""
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (20, 13, 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in ("t.jpg", "t.png", "t.webp", "t.tif"):
        colours.save(folder / name, exif=turned)
    colours.convert("CMYK").save(folder / "cmyk.jpg")
    colours.quantize(5).save(folder / "palette.png")
    colours.quantize(5).save(folder / "palette.gif")
    colours.convert("L").save(folder / "grey.jpg")
    colours.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(rng.integers(0, 65536, (9, 9)).astype(np.uint16)).save(folder / "deep.png")
    Image.new("RGB", (1, 1), (9, 99, 199)).save(folder / "dot.png")
    for colour in ("RGB", "BGR", "L"):
        n = 1 if colour == "L" else 3
        how = Preprocessing(8, 9, colour=colour, mean=(0.5,) * n, std=(0.5,) * n)
        seen: list[np.ndarray] = []

        class Keeps(Fake):
            def pixels(self, x: np.ndarray, seen=seen) -> tuple[np.ndarray, np.ndarray]:
                seen.extend(x.copy())
                return np.zeros((len(x), len(LABELS)), np.float32), np.zeros((len(x), 4), "f4")

        runner = Keeps(replace(CARD, preprocessing=how))
        predict_files(runner, folder, tmp_path / f"{colour}.csv")
        wanted = [
            pixels(resize_and_crop(open_image(p, colour), how), how) for p in image_files(folder)
        ]
        assert len(seen) == 11
        np.testing.assert_array_equal(np.stack(seen), np.stack(wanted))


def test_folders_files_and_repetitions_are_taken_as_given(tmp_path: Path) -> None:
    """Hidden files, notes and linked folders were predicted; a file without an ending was not."""
    folder = fill(tmp_path / "in", 6)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    for name in (".hidden/x.png", ".x.png"):
        Image.new("L", (2, 2)).save(folder / name)
    (folder / "loop").symlink_to(folder)
    odd = tmp_path / "odd"
    Image.new("L", (3, 3), 200).save(odd, "PNG")
    inside = [str(path) for path in image_files(folder)]
    assert len(inside) == 6
    predict_files(Fake(), [odd, folder, str(folder)], tmp_path / "p.jsonl")
    paths = [row["path"] for row in lines(tmp_path / "p.jsonl")]
    assert paths == [str(odd), *inside, *inside]


def test_a_folder_larger_than_what_is_held_keeps_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed in portions, names at their seams were lost or came twice."""
    for name in ("a-b/1.png", "a.png", "a/1.png", "a/2.JPG", "a!.png", "b/c/2.png", "b/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    wanted = sorted(p for p in tmp_path.rglob("*.*") if p.is_file())
    assert len(wanted) == 7
    for portion in (1, 2, 3, 100):
        monkeypatch.setattr(files, "_AT_ONCE", portion)
        assert [tmp_path / name for name in files.walk_images(tmp_path)] == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="needs names that are any bytes")
def test_a_name_that_is_no_text_is_written_with_escapes(tmp_path: Path) -> None:
    """One file from an old disk ended a run over millions, in whatever kind of table."""
    (tmp_path / "in").mkdir()
    good = os.fsdecode(os.fsencode(tmp_path / "in") + b"/caf\xe9 \xc3\xa9.png")
    Image.new("RGB", (9, 9), (250,) * 3).save(good)
    Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/\xff.png")).write_text("no image")
    for kind in KINDS:
        done = predict_files(Fake(), tmp_path / "in", tmp_path / f"p{kind}")
        assert (done.count, done.unreadable) == (2, 1)
    first, second = lines(tmp_path / "p.jsonl")
    assert Path(first["path"]).name == r"caf\xe9 é.png"
    assert first["labels"] == ["été"]
    assert Path(second["path"]).name == r"\xff.png"
    assert "format" in second["error"]
    assert r"caf\xe9 é.png" in (tmp_path / "p.csv").read_text("utf-8")


# -- what cannot be read ----------------------------------------------------------------------


def test_what_cannot_be_read_is_a_row_and_counted(tmp_path: Path) -> None:
    """One bad file ended the run, moved the answers behind it, or left no trace."""
    folder = fill(tmp_path / "in", 9)
    whole = (folder / "a" / "000.jpg").read_bytes()
    (folder / "a" / "0-cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "b" / "text.jpg").write_text("no image")
    (folder / "c" / "empty.png").touch()
    gone = folder / "c" / "gone.png"
    gone.touch()
    names = image_files(folder)
    fake = Fake()
    fake.before = lambda: gone.unlink(missing_ok=True)
    out, array = tmp_path / "p.jsonl", tmp_path / "e.npy"
    done = predict_files(fake, [folder], out, batch_size=2, workers=1, embeddings=array)
    assert (done.count, done.unreadable) == (13, 4)
    rows = lines(out)
    assert [row["path"] for row in rows] == [str(name) for name in names]
    bad = [i for i, row in enumerate(rows) if "error" in row]
    assert [names[i].name for i in bad] == ["0-cut.jpg", "text.jpg", "empty.png", "gone.png"]
    assert all(set(rows[i]) == {"path", "error"} and "\n" not in rows[i]["error"] for i in bad)
    assert rows[bad[3]]["error"] == "no such file."
    good = [i for i in range(13) if i not in bad]
    assert [rows[i] for i in good] == naive(CARD, [names[i] for i in good], 1)
    found = np.load(array)
    assert found.dtype == np.float32
    assert found.shape == (13, DIM)
    assert [*np.flatnonzero(np.isnan(found).all(1))] == bad
    for i in good:
        how = CARD.preprocessing
        x = pixels(resize_and_crop(open_image(names[i], how.colour), how), how)
        np.testing.assert_array_equal(found[i], Fake().pixels(x[None])[1][0])


def test_a_table_without_any_answer_is_an_error_but_kept(tmp_path: Path) -> None:
    """A run with the wrong folder, or a broken disk, ended as if it had worked."""
    (tmp_path / "in").mkdir()
    for i in range(10):
        (tmp_path / "in" / f"{i}.jpg").write_text("no image")
    fake, out = Fake(), tmp_path / "p.jsonl"
    with pytest.raises(
        DataError, match=r"None of 10 images .* has the reasons.*0\.jpg: not a readable"
    ):
        predict_files(fake, [tmp_path / "in"], out, embeddings=tmp_path / "e.npy")
    assert len(lines(out)) == 10
    assert np.isnan(np.load(tmp_path / "e.npy")).all()
    assert fake.sizes == []


def test_outputs_that_are_not_finite_are_errors_of_their_rows(tmp_path: Path) -> None:
    """A half-precision overflow became NaN, which is not JSON."""

    class Overflows(Fake):
        def pixels(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            logits, embeddings = super().pixels(x)
            logits[x.mean((1, 2, 3)) > 80] = np.inf
            return logits, embeddings

    fill(tmp_path / "in", 10)
    done = predict_files(Overflows(), tmp_path / "in", tmp_path / "p.jsonl")
    assert done.unreadable == 2
    assert [row.get("error") for row in lines(tmp_path / "p.jsonl")][7:] == [
        None,
        *["the model's output contains NaN or infinity"] * 2,
    ]


def test_a_folder_that_may_not_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images were left out without a word."""
    folder, scandir = fill(tmp_path / "in", 6), os.scandir

    def refuse(path: Any) -> Any:  # the administrator, who may run this, may read everything
        if isinstance(path, Path) and path.name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"in/b cannot be listed: Permission denied\."):
        predict_files(Fake(), [folder], tmp_path / "p.csv")
    assert left(tmp_path) == {"in"}


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
from test_files import Fake, predict_files
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
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_call_is_continued_without_torch(tmp_path: Path, number: signal.Signals) -> None:
    """Rows waited in memory for a flush; a start took seconds for torch, used or not."""
    from helpers import wait_until  # which loads torch, and the other process imports this file

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


# -- refusals ---------------------------------------------------------------------------------


def test_what_cannot_end_well_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After hours the table could not be written, for a reason known from the start."""
    folder, out = fill(tmp_path / "in", 3), tmp_path / "p.csv"
    (tmp_path / "empty").mkdir()
    (tmp_path / "d.csv").mkdir()
    cases: list[tuple[type[Exception], str, Any, Any, dict[str, Any]]] = [
        (InputError, r"p\.txt must end in \.csv, \.jsonl or \.parquet", folder, "p.txt", {}),
        (InputError, r"no is not a folder", folder, "no/p.csv", {}),
        (InputError, r"no is not a folder", folder, out, {"embeddings": tmp_path / "no" / "e.npy"}),
        (InputError, r"d\.csv is a folder", folder, "d.csv", {"overwrite": True}),
        (InputError, r"must end in \.npy", folder, out, {"embeddings": "e.txt"}),
        (InputError, r"top must be from 1 to the 6 classes, not 7", folder, out, {"top": 7}),
        (InputError, r"top must be from 1 to the 6 classes, not True", folder, out, {"top": True}),
        (InputError, r"batch_size must be at least 1, not 0", folder, out, {"batch_size": 0}),
        (InputError, r"workers must be at least 1, not -1", folder, out, {"workers": -1}),
        (DataError, r"There are no images", [], out, {}),
        (DataError, r"empty holds no image", [folder, tmp_path / "empty"], out, {}),
        (DataError, r"gone\.png: no such file", [folder / "gone.png"], out, {}),
    ]
    fake = Fake()
    for kind, message, images, target, arguments in cases:
        with pytest.raises(kind, match=message):
            predict_files(fake, images, tmp_path / target, **arguments)
    for card in (None, Card()):
        with pytest.raises(InputError, match="has no labels"):
            predict_files(Fake(card), folder, out)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r'pip install "resnext\[parquet\]"'):
        predict_files(fake, folder, tmp_path / "p.parquet")
    assert fake.sizes == []
    assert left(tmp_path) == {"in", "empty", "d.csv"}


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


# -- bounds -----------------------------------------------------------------------------------


def test_decoding_waits_for_a_slow_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole folder was decoded into memory while the engine was at its first batch."""
    from helpers import wait_until

    folder, batch = fill(tmp_path / "in", 80), 4
    bound = (bulk.AHEAD + 2) * batch
    decode, lock = bulk._decode, threading.Lock()
    decoded = computed = worst = 0

    def counts(*arguments: Any) -> str | None:
        nonlocal decoded, worst
        with lock:
            decoded += 1
            worst = max(worst, decoded - computed)
        return decode(*arguments)

    class Slow(Fake):
        def pixels(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            nonlocal computed
            wait_until(lambda: decoded - computed >= min(bound, 80 - computed))
            outputs = super().pixels(x)
            with lock:
                computed += len(x)
            return outputs

    monkeypatch.setattr(bulk, "_decode", counts)
    before = threading.active_count()
    predict_files(Slow(batch=batch), folder, tmp_path / "p.csv", workers=4)
    assert worst == bound
    assert threading.active_count() == before


def test_large_images_are_decoded_one_by_one() -> None:
    """Sixteen threads each with an image of 170 million pixels needed 20 GB."""
    from helpers import wait_until

    room, entered = bulk._Room(100), threading.Event()

    def take(count: int) -> None:
        with room.reserve(count):
            entered.set()

    for count in (30, 1000):  # one that fits beside two others, and one that only fits alone
        entered.clear()
        thread = threading.Thread(target=take, args=(count,))
        with ExitStack() as inside, ExitStack() as last:
            inside.enter_context(room.reserve(30))
            inside.enter_context(room.reserve(30))
            last.enter_context(room.reserve(40))  # 100 of 100 are taken
            thread.start()
            wait_until(lambda: room._changed._waiters)  # pyright: ignore
            assert not entered.is_set()
            last.close()
            if count == 30:
                wait_until(entered.is_set)
            else:
                wait_until(lambda: room._changed._waiters)  # pyright: ignore
                assert not entered.is_set()
        wait_until(entered.is_set)
        thread.join()
    with room.reserve(100):  # all of it was given back
        pass


def test_progress_counts_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of an earlier call counted as done in its first second: 1,000,000 images/s."""
    shown: list[Any] = []

    class Keeps:
        def start(self, title: str, total: int) -> None:
            shown.append((title, total))

        def advance(self, images: int) -> None:
            shown.append(images)

        def stop(self) -> None:
            shown.append("stop")

    monkeypatch.setattr(bulk, "reporter", lambda show: Keeps() if show else None)
    folder, out = fill(tmp_path / "in"), tmp_path / "p.csv"
    with pytest.raises(RuntimeError):
        predict_files(Fake(fail=4), folder, out, progress=True)
    predict_files(Fake(), folder, out, progress=True)
    first = [("Predicting", 23), 4, 4, 4, 4, "stop"]
    assert shown == [*first, ("Predicting", 7), 4, 3, "stop"]


# -- Ray --------------------------------------------------------------------------------------


def opens(model: str, plan: bool) -> Fake:
    assert model == "fake"
    return Fake()


ON_A_CLUSTER = """
import sys

import ray
from ray import cloudpickle

import test_files
from resnext.prediction import ray as bulk_ray

cloudpickle.register_pickle_by_value(test_files)
bulk_ray._BLOCK = 4
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
folder, out = sys.argv[1:]
done = bulk_ray.predict_files_with_ray("fake", folder, out, top=3, opener=test_files.opens)
ray.shutdown()
print(done.count, done.unreadable)
"""


def test_ray_writes_the_same_table(tmp_path: Path) -> None:
    """From several machines, rows came in the order they were finished, or of other digits.

    In a process of its own: one that has used Ray dies when later children of it end.
    """
    from resnext.prediction.ray import predict_files_with_ray

    folder, out = fill(tmp_path / "in"), tmp_path / "p.csv"
    (folder / "a" / "001.png").write_text("no image")
    plain = predict_files(Fake(), folder, tmp_path / "w.csv", top=3)
    with pytest.raises(InputError, match="embeddings are not collected"):
        predict_files_with_ray("fake", folder, out, embeddings="e.npy", opener=opens)
    done = subprocess.run(
        [sys.executable, "-c", ON_A_CLUSTER, str(folder), str(out)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0
    assert done.stdout.split()[-2:] == ["23", "1"]
    assert (plain.count, plain.unreadable) == (23, 1)
    assert out.read_bytes() == (tmp_path / "w.csv").read_bytes()
    assert left(tmp_path) == {"in", "p.csv", "w.csv"}


def test_ray_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare ModuleNotFoundError does not say what to install."""
    from resnext.prediction.ray import predict_files_with_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'pip install "resnext\[ray\]"'):
        predict_files_with_ray("fake", tmp_path, tmp_path / "p.csv", opener=opens)
