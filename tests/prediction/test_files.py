"""Folder prediction: order, decoding, unreadable images, refusals, bounds."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import CARD, DIM, KINDS, LABELS, Fake, fill, left, lines, naive
from helpers import wait_until
from PIL import Image

from resnext.card import Card, Preprocessing
from resnext.data.decoding import open_image, pixels, resize_and_crop
from resnext.data.sources import folders as files
from resnext.data.sources.folders import image_files
from resnext.errors import CheckpointError, DataError, InputError
from resnext.prediction import files as bulk
from resnext.prediction.files import predict_files
from resnext.system.limits import DecodingRoom

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


# -- refusals ---------------------------------------------------------------------------------


def test_what_cannot_end_well_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After hours the table could not be written, for a reason known from the start."""
    folder, out = fill(tmp_path / "in", 3), tmp_path / "p.csv"
    (tmp_path / "empty").mkdir()
    (tmp_path / "d.csv").mkdir()
    (tmp_path / "e.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    cases: list[tuple[type[Exception], str, Any, Any, dict[str, Any]]] = [
        (InputError, r"p\.txt must end in \.csv, \.jsonl or \.parquet", folder, "p.txt", {}),
        (InputError, r"Not a directory", folder, "pipe.csv/no/p.csv", {}),
        (InputError, r"not a regular file", folder, "pipe.csv", {}),
        (InputError, r"is a folder", folder, out, {"embeddings": tmp_path / "e.npy"}),
        (InputError, r"d\.csv is a folder", folder, "d.csv", {"overwrite": True}),
        (InputError, r"must end in \.npy", folder, out, {"embeddings": "e.txt"}),
        (InputError, r"top must be from 1 to the 6 classes, not 7", folder, out, {"top": 7}),
        (InputError, r"top must be from 1 to the 6 classes, not True", folder, out, {"top": True}),
        (InputError, r"batch_size must be at least 1, not 0", folder, out, {"batch_size": 0}),
        (InputError, r"workers must be at least 1, not -1", folder, out, {"workers": -1}),
        (InputError, r"workers must be at most .* is a thread", folder, out, {"workers": 1000}),
        (DataError, r"No images were given", [], out, {}),
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
    assert left(tmp_path) == {"in", "empty", "d.csv", "e.npy", "pipe.csv"}


def test_folders_of_the_results_are_made(tmp_path: Path) -> None:
    """A folder for each run is what anyone wants; only a call that is refused leaves none."""
    folder = fill(tmp_path / "in", 3)
    out, embeddings = tmp_path / "a" / "b" / "p.csv", tmp_path / "c" / "e.npy"
    with pytest.raises(DataError, match="no such file"):
        predict_files(Fake(), tmp_path / "gone.png", out, embeddings=embeddings)
    assert left(tmp_path) == {"in"}
    predict_files(Fake(), folder, out, embeddings=embeddings)
    assert out.exists()
    assert embeddings.exists()


class Full:
    """A file on a disk that is full; what was written is in a buffer that cannot be emptied."""

    def write(self, text: str) -> None: ...  # noqa: D102

    def _fail(self, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    seek = close = _fail


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of images filled the disk, and all that was printed was the number of the error."""
    folder, out = fill(tmp_path / "in", 3), tmp_path / "p.csv"
    with monkeypatch.context() as patch:
        patch.setattr(bulk, "TemporaryFile", lambda *_, **__: Full())
        wanted = r"p\.csv cannot be written: No space left on device\. Make room"
        with pytest.raises(CheckpointError, match=wanted):
            predict_files(Fake(), folder, out)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", Full()._fail)
        wanted = r"p\.csv cannot be written: .*No space.* the same command continues from there\."
        with pytest.raises(CheckpointError, match=wanted):
            predict_files(Fake(), folder, out)
    predict_files(Fake(), folder, out)
    assert left(tmp_path) == {"in", "p.csv"}


# -- bounds -----------------------------------------------------------------------------------


def test_decoding_waits_for_a_slow_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole folder was decoded into memory while the engine was at its first batch."""
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
    room, entered = DecodingRoom(100), threading.Event()

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


@pytest.mark.parametrize(
    ("memory", "wanted"),
    [(None, 48_000_000), (10**12, 48_000_000), (480_000_000, 10_000_000), (0, 1)],
)
def test_decoding_fits_into_the_container(
    monkeypatch: pytest.MonkeyPatch, memory: int | None, wanted: int
) -> None:
    """600 MB of pixels at once ended a container with 512 MB."""
    monkeypatch.setattr("resnext.system.limits.available_memory", lambda: memory)
    assert DecodingRoom().size == wanted
