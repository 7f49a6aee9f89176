"""The scan before training: damaged images, copies, and images in two classes."""

from __future__ import annotations

import csv
import io
import os
import tarfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles.originals import sklearn
from PIL import Image

from resnext.data import scan as module
from resnext.data import scan_cache
from resnext.data.dataset import ImageSet, Problem, Splits
from resnext.data.open import open_splits
from resnext.data.scan import Leak, Scan, scan, too_many, write_quarantine
from resnext.errors import DataError
from resnext.system.limits import DecodingRoom
from resnext.system.progress import SilentReporter


class Counting(SilentReporter):
    """Records what is reported."""

    def __init__(self) -> None:
        self.total, self.done, self.lines = 0, 0, list[str]()

    def start(self, title: str, total: int | None) -> None:
        """Note the total."""
        self.total, self.done = total or 0, 0

    def advance(self, images: int) -> None:
        """Count."""
        self.done += images

    def line(self, text: str) -> None:
        """Keep it."""
        self.lines.append(text)


def noise(seed: int, side: int = 100, kind: str = "PNG", **options: Any) -> bytes:
    """A smooth random image: like a photograph, it survives encoding."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    out = io.BytesIO()
    coarse.resize((side, side), Image.Resampling.BICUBIC).save(out, kind, **options)
    return out.getvalue()


def put(path: Path, content: bytes) -> Path:
    """A file; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def two_parts(root: Path, train: int = 20, val: int = 5, kind: str = "PNG") -> Path:
    """Different images in two classes, in `train` and `val`."""
    for part, count, first in (("train", train, 0), ("val", val, 500)):
        for k, label in enumerate(("a", "b")):
            for i in range(count):
                data = noise(first + 100 * k + i, 12, kind)
                put(root / part / label / f"{i:03}.{kind.lower()}", data)
    return root


def looked(root: Path | str | Splits, **options: Any) -> Scan:
    """A scan without a cache unless one is given."""
    splits = root if isinstance(root, Splits) else open_splits(root)
    return scan(splits, SilentReporter(), **{"cache": None, **options})


# -- damage -----------------------------------------------------------------------------------


def test_nothing_to_complain_about(tmp_path: Path) -> None:
    """A log full of zeros hides the line that matters; and nothing may be left out."""
    splits, report = open_splits(two_parts(tmp_path)), Counting()
    found = scan(splits, report, cache=None)
    assert found.lines() == []
    assert found.summary() == "40 train, 10 val images of 2 classes, 12×12 pixels."
    assert found.splits == splits
    assert (report.total, report.done) == (50, 50)
    assert {name: counts.tolist() for name, counts in found.counts.items()} == {
        "train": [20, 20],
        "val": [5, 5],
    }
    assert (found.unreadable, found.leaks, found.duplicates, found.conflicts) == ((), (), 0, ())
    assert found.sizes is not None
    assert found.sizes.smallest == found.sizes.largest == (12, 12)


def test_overview(tmp_path: Path) -> None:
    """Classes, images of each and what is not used: the mistakes of a folder show there."""
    two_parts(tmp_path)
    found = looked(tmp_path)
    assert found.overview() == [
        "Classes: 2 (a, b).",
        "Images: 40 train, 10 val; 25 of each class; 12×12 pixels.",
        "Passed over: nothing.",
    ]
    put(tmp_path / "train" / "b" / "more.png", noise(900, 16))
    put(tmp_path / "train" / "a" / "copy.png", (tmp_path / "val" / "a" / "000.png").read_bytes())
    put(tmp_path / "val" / "a" / "cut.png", noise(901, 12)[:50])
    put(tmp_path / "train" / "a" / "deep" / "film.mp4", b"?")
    (tmp_path / "notes").mkdir()
    (_, images, passed_over) = looked(tmp_path).overview()
    assert images == "Images: 41 train, 10 val; 25 (a) to 26 (b) per class; 12×12 to 16×16 pixels."
    assert passed_over == (
        "Passed over: 2 files and folders; 1 unreadable image; 1 training image equal to one of "
        "another part."
    )
    assert looked(tmp_path).lines()[:2] == [
        f"1 folder beside the splits passed over, {tmp_path / 'notes'}.",
        "1 .mp4 file passed over: save frames of videos as images.",
    ]


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (["a", "b"], "a, b"),
        ([f"class {i:03}" for i in range(200)], "class 000, class 001, class 002, class 003, …"),
        (["x" * 200, "y"], "x" * 200 + ", …, y"),
    ],
)
def test_many_class_names(labels: list[str], text: str) -> None:
    """A thousand names would hide the lines after them."""
    shown = module._shortened(labels)
    assert shown.startswith(text)
    assert labels[-1] in shown


def test_unreadable_images_are_left_out_and_listed(tmp_path: Path) -> None:
    """One damaged file among thousands ended a run in its first epoch."""
    root = two_parts(tmp_path / "set", train=50, val=30)
    put(root / "train" / "a" / "007.png", b"no image")
    put(root / "val" / "b" / "003.png", b"")
    splits = open_splits(root)
    gone = splits.train.title(60)
    Path(gone).unlink()
    found = looked(splits, quarantine=tmp_path / "quarantine.csv")
    assert not (tmp_path / "quarantine.csv").exists()  # the run may still be refused
    write_quarantine(tmp_path / "quarantine.csv", found.unreadable)
    assert [(p.part, p.title, p.label) for p in found.unreadable] == [
        ("train", str(root / "train" / "a" / "007.png"), "a"),
        ("train", gone, "b"),
        ("val", str(root / "val" / "b" / "003.png"), "b"),
    ]
    assert found.unreadable[0].reason.startswith("not a readable image")
    assert found.unreadable[1].reason == "no such file."
    assert (len(found.splits.train), len(found.splits.val)) == (98, 59)
    kept = {found.splits.train.title(i) for i in range(98)}
    assert kept == {splits.train.title(i) for i in range(100)} - {gone, found.unreadable[0].title}
    assert found.counts["train"].tolist() == [49, 49]
    assert all(
        found.splits.train.title(i).split("/")[-2] == "ab"[target]
        for i, target in enumerate(found.splits.train.targets)
    )
    with (tmp_path / "quarantine.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [tuple(row.values()) for row in rows] == [
        (p.part, p.title, p.label, p.reason) for p in found.unreadable
    ]
    assert [*rows[0]] == ["part", "image", "label", "reason"]
    first = found.unreadable[0].title
    wanted = f"3 images left out as unreadable, such as {first}: not a readable"
    assert found.lines()[0].startswith(wanted)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_cut_off_images_are_found(tmp_path: Path, kind: str) -> None:
    """Decoding at an eighth of the size must not stop before the end of the data."""
    root = two_parts(tmp_path, train=40)
    for cut in (0.97, 0.5):
        data = noise(1000, 300, kind)
        put(root / "train" / "a" / f"{cut}.png", data[: int(len(data) * cut)])
    found = looked(root)
    assert {Path(p.title).stem for p in found.unreadable} == {"0.97", "0.5"}


def test_jpegs_are_read_at_an_eighth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full decoding would make the scan take an hour. Sizes are those of the upright file."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    out = io.BytesIO()
    Image.new("RGB", (640, 320), "red").save(out, "JPEG", exif=exif)
    root = two_parts(tmp_path, kind="JPEG")
    put(root / "train" / "a" / "large.jpg", out.getvalue())
    loaded: list[tuple[int, int]] = []
    convert = Image.Image.convert
    monkeypatch.setattr(
        Image.Image, "convert", lambda image, *a: loaded.append(image.size) or convert(image, *a)
    )
    found = looked(root)
    assert found.sizes is not None
    assert found.sizes.largest == (320, 640)
    assert max(loaded) == (40, 80)


@pytest.mark.parametrize(
    ("kind", "options", "wanted"),
    [
        ("PNG", {}, 10_000),
        ("WEBP", {}, 10_000),
        ("JPEG", {}, 2_500),  # at a half; of a large one an eighth
        ("JPEG", {"progressive": True}, 5_000),
    ],
)
def test_pixels_decoded_at_once_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: Any, wanted: int
) -> None:
    """Eight threads, each with an image of 170 million pixels, ended a container."""
    reserved: list[int] = []
    reserve = DecodingRoom.reserve

    def counting(self: DecodingRoom, wanted: int) -> Any:
        reserved.append(wanted)
        return reserve(self, wanted)

    monkeypatch.setattr(DecodingRoom, "reserve", counting)
    root = two_parts(tmp_path / "set", kind=kind)
    path = next((root / "train" / "a").iterdir())
    path.write_bytes(noise(99, kind=kind, **options))
    monkeypatch.setattr("resnext.system.limits.available_memory", lambda: 0)  # one by one
    looked(root, cache=None)
    assert wanted in reserved
    assert len(reserved) >= 50


def test_bombs_are_refused(tmp_path: Path) -> None:
    """A small file of a billion pixels fills the memory of the machine."""
    root = two_parts(tmp_path, train=30)
    header = b"P5 40000 40000 255\n"
    put(root / "train" / "a" / "bomb.pgm", header)
    jpeg = bytearray(noise(1, 16, "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = b"\xff\x00\xff\x00"
    put(root / "train" / "b" / "bomb.jpg", bytes(jpeg))
    found = looked(root)
    assert [Path(p.title).name for p in found.unreadable] == ["bomb.pgm", "bomb.jpg"]
    assert all("decompression bomb" in p.reason for p in found.unreadable)


def test_losing_too_much_of_a_class_ends_it(tmp_path: Path) -> None:
    """A class that lost images while being copied trains badly, and nothing else reports it."""
    root = two_parts(tmp_path / "set", train=30, val=9)
    for i in (4, 5):
        put(root / "train" / "b" / f"{i:03}.png", b"no image")
    quarantine = tmp_path / "new" / "quarantine.csv"
    with pytest.raises(DataError, match=r"2 of 39 images of class 'b' .* 5 %") as caught:
        looked(root, quarantine=quarantine)
    assert f"{quarantine} lists all" in str(caught.value)
    assert len(quarantine.read_text().splitlines()) == 3
    with pytest.raises(DataError, match=r"The first: .*004\.png: not a readable image"):
        looked(root)
    put(root / "train" / "b" / "004.png", noise(9999, 12))
    assert len(looked(root).unreadable) == 1
    for i in range(9):
        put(root / "val" / "a" / f"{i:03}.png", b"no image")
    with pytest.raises(DataError, match="9 of 39 images of class 'a'"):
        looked(root)


def test_too_many_names_the_worst_class() -> None:
    """During a run, images become unreadable one by one; 5 % exactly is still allowed."""
    counts = np.array([100, 20, 0, 1000])
    assert too_many(np.array([0, 0, 0, 0]), counts) is None
    assert too_many(np.array([5, 1, 0, 50]), counts) is None
    assert too_many(np.array([6, 2, 0, 51]), counts) == 1
    assert too_many(np.array([6, 1, 0, 50]), counts) == 0


def test_samples_without_a_class_are_listed(tmp_path: Path) -> None:
    """They were found when the shard was indexed, and belong into the same list."""
    with tarfile.open(tmp_path / "a.tar", "w") as out:
        for i in range(24):
            for name, data in ((f"{i}.png", noise(i, 8)), (f"{i}.cls", b"%d" % (i % 2))):
                if name != "3.cls":
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    out.addfile(info, io.BytesIO(data))
    found = looked(tmp_path / "a.tar")
    assert found.unreadable == (Problem("train", "a.tar:3", "", "The sample has no class."),)


def test_quarantine_is_written_whole(tmp_path: Path) -> None:
    """Names may hold commas, quotes and bytes that are not UTF-8."""
    strange = os.fsdecode(b'a, "b"\xff.png')
    write_quarantine(tmp_path / "q.csv", [Problem("val", strange, "x,y", "bad\nluck")])
    assert (tmp_path / "q.csv").read_bytes() == (
        b'part,image,label,reason\r\nval,"a, ""b""\xff.png","x,y","bad\nluck"\r\n'
    )
    with pytest.raises(DataError, match="cannot be written"):
        write_quarantine(tmp_path / "q.csv" / "q.csv", [])


# -- copies -----------------------------------------------------------------------------------


def test_copies_in_two_parts_are_left_out_of_training(tmp_path: Path) -> None:
    """A training image in the test set makes the measured accuracy too high."""
    root = two_parts(tmp_path)
    for part, first in (("val", "a/000.png"), ("test", "a/001.png")):
        put(root / part / "a" / "copy.png", (root / "train" / first).read_bytes())
    put(root / "test" / "b" / "only.png", noise(4321))
    put(root / "train" / "a" / "again.png", (root / "train" / "a" / "000.png").read_bytes())
    splits = open_splits(root)
    found = looked(splits)
    train = root / "train" / "a"
    assert found.leaks == (
        Leak(str(train / "000.png"), "val", str(root / "val" / "a" / "copy.png"), True),
        Leak(str(train / "001.png"), "test", str(root / "test" / "a" / "copy.png"), True),
        Leak(str(train / "again.png"), "val", str(root / "val" / "a" / "copy.png"), True),
    )
    assert (found.splits.val, found.splits.test) == (splits.val, splits.test)
    assert len(found.splits.train) == len(splits.train) - 3 == 38
    left = {found.splits.train.title(i) for i in range(38)}
    assert not left & {leak.train for leak in found.leaks}
    assert found.duplicates == 0
    assert "3 training images equal to one of another part; left out" in found.lines()[0]


def test_a_class_that_leaks_completely_ends_it(tmp_path: Path) -> None:
    """It would have labels but nothing to learn from."""
    root = two_parts(tmp_path, train=3)
    for file in (root / "train" / "b").iterdir():
        put(root / "val" / "b" / f"copy{file.name}", file.read_bytes())
    with pytest.raises(DataError, match="All 3 training images of class 'b' are also in"):
        looked(root)


def test_copies_within_training_are_counted(tmp_path: Path) -> None:
    """They weigh double; that is for the user to know, and no reason to change anything."""
    root = two_parts(tmp_path)
    for i in range(3):
        put(root / "train" / "a" / f"x{i}.png", (root / "train" / "a" / "000.png").read_bytes())
    found = looked(root)
    assert (found.duplicates, len(found.splits.train)) == (3, 43)
    assert found.lines() == ["3 training images equal to another one."]


def test_images_in_two_classes_are_reported(tmp_path: Path) -> None:
    """Nothing can be right about both."""
    root = two_parts(tmp_path)
    put(root / "train" / "b" / "x.png", (root / "train" / "a" / "000.png").read_bytes())
    put(root / "val" / "b" / "y.png", (root / "train" / "a" / "001.png").read_bytes())
    found = looked(root)
    train = root / "train"
    assert sorted((c.titles, c.labels) for c in found.conflicts) == [
        ((str(train / "a" / "000.png"), str(train / "b" / "x.png")), ("a", "b")),
        ((str(train / "a" / "001.png"), str(root / "val" / "b" / "y.png")), ("a", "b")),
    ]
    assert any(line.startswith("2 images in two classes, such as") for line in found.lines())


def photographs() -> list[Image.Image]:
    """Forty different parts of two photographs."""
    parts = []
    for pixels in sklearn.datasets.load_sample_images().images:
        for left in range(0, 500, 120):
            for top in range(0, 240, 60):
                parts.append(Image.fromarray(pixels[top : top + 160, left : left + 140]))
    return parts


def test_changed_copies_are_reported_and_kept(tmp_path: Path) -> None:
    """Data sets from the web hold many images twice: smaller, or encoded anew."""
    images = photographs()
    for i, image in enumerate(images):
        for folder in (tmp_path / "train" / "ab"[i % 2], tmp_path / "val" / "ab"[i % 2]):
            folder.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "train" / "ab"[i % 2] / f"{i:02}.png")
        if i < 20:
            smaller = image.resize((100, 114), Image.Resampling.LANCZOS)
            smaller.save(tmp_path / "val" / "ab"[i % 2] / f"{i:02}.jpg", quality=85)
    found = looked(tmp_path)
    assert len(found.splits.train) == len(images)
    assert all(not leak.exact for leak in found.leaks)
    assert all(Path(leak.train).stem == Path(leak.other).stem for leak in found.leaks)
    assert len(found.leaks) >= 15  # some show nothing but sky
    assert "check whether they are copies" in found.lines()[0]


def test_simple_images_are_not_taken_for_copies(tmp_path: Path) -> None:
    """Digits and clean drawings are alike when made small; false alarms hide the true ones."""
    found = looked("digits")
    assert [leak for leak in found.leaks if not leak.exact] == []
    for part, first in (("train", 0), ("val", 100)):
        for i in range(20):
            level = first + i
            image = Image.new("L", (200, 200), level)
            folder = tmp_path / part / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"plain{i}.png")
            drawing = Image.new("L", (200, 200), 255)
            drawing.paste(0, (level, 90, level + 20, 110))
            drawing.save(folder / f"square{i}.png")
    assert looked(tmp_path).leaks == ()


def test_arrays_are_compared(tmp_path: Path) -> None:
    """Small data sets come as arrays, with copies as often."""
    splits = open_splits("digits")
    image, other = splits.val.images[0], splits.val.images[1]
    doubled = ImageSet(
        [*splits.train.images, image, other.T if isinstance(other, np.ndarray) else other],
        [*splits.train.targets, splits.val.targets[0], splits.val.targets[1]],
        splits.train.labels,
        "digits",
    )
    report = Counting()
    found = scan(replace(splits, train=doubled), report, cache=tmp_path)
    assert [(leak.part, leak.exact) for leak in found.leaks] == [("val", True)]
    assert found.leaks[0].other == splits.val.title(0)
    assert len(found.splits.train) == len(splits.train) + 1
    assert report.done == report.total == 1799
    assert [*tmp_path.iterdir()] == []  # nothing was decoded, so nothing is remembered


# -- cache ------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images decoded so far."""
    names: list[str] = []
    original = scan_cache._decode
    monkeypatch.setattr(
        scan_cache, "_decode", lambda data, name, *x: names.append(name) or original(data, name, *x)
    )
    return names


def test_unchanged_images_are_not_decoded_again(tmp_path: Path, decoded: list[str]) -> None:
    """Continuing an interrupted run would begin with an hour of checking."""
    root, cache = two_parts(tmp_path / "set"), tmp_path / "cache"
    first = looked(root, cache=cache)
    assert len(decoded) == 50
    decoded.clear()
    again = looked(root, cache=cache)
    assert decoded == []
    assert (again.sizes, again.leaks, again.lines()) == (first.sizes, first.leaks, first.lines())
    changed = put(root / "train" / "a" / "003.png", (root / "val" / "a" / "000.png").read_bytes())
    later = changed.stat().st_mtime_ns + 1
    os.utime(changed, ns=(later, later))
    added = put(root / "train" / "b" / "new.png", noise(777))
    third = looked(root, cache=cache)
    assert sorted(decoded) == sorted([str(changed), str(added)])
    assert [(leak.train, leak.exact) for leak in third.leaks] == [(str(changed), True)]


def test_shards_are_remembered(tmp_path: Path, decoded: list[str]) -> None:
    """Members have no time of their own; that of the shard counts."""
    with tarfile.open(tmp_path / "a.tar", "w") as out:
        for i in range(12):
            for name, data in ((f"{i}.png", noise(i, 8)), (f"{i}.cls", b"%d" % (i % 2))):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
    looked(tmp_path / "a.tar", cache=tmp_path)
    looked(tmp_path / "a.tar", cache=tmp_path)
    assert len(decoded) == 12
    later = (tmp_path / "a.tar").stat().st_mtime_ns + 1
    os.utime(tmp_path / "a.tar", ns=(later, later))
    looked(tmp_path / "a.tar", cache=tmp_path)
    assert len(decoded) == 24


def test_damage_is_looked_at_again(tmp_path: Path) -> None:
    """A network drive that was away for a minute must not be remembered as damage."""
    root, cache = two_parts(tmp_path / "set", train=50), tmp_path / "cache"
    file = root / "train" / "a" / "003.png"
    aside = file.rename(tmp_path / "aside.png")
    splits = open_splits(root)
    aside.rename(file)
    splits = open_splits(root)
    file.rename(aside)
    assert len(looked(splits, cache=cache).unreadable) == 1
    aside.rename(file)
    assert looked(splits, cache=cache).unreadable == ()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"rubbish", b"half"])
def test_a_damaged_memory_is_ignored(tmp_path: Path, content: bytes, decoded: list[str]) -> None:
    """It is there to save time, not to end a run."""
    root, cache = two_parts(tmp_path / "set", train=5), tmp_path / "cache"
    looked(root, cache=cache)
    [file] = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
    assert looked(root, cache=cache).lines() == []
    assert len(decoded) == 40
    assert len(file.read_bytes()) == len(whole)
    looked(root, cache=cache)
    assert len(decoded) == 40


def test_records_are_in_the_cache_folder(tmp_path: Path, fresh_cache: Path) -> None:
    """The cache does not belong in a folder of photographs; a full disk must not end the run."""
    splits, report = open_splits(two_parts(tmp_path / "set", train=5)), Counting()
    scan(splits, report)
    assert len([*(fresh_cache / "scans").iterdir()]) == 1
    put(tmp_path / "file", b"")
    assert scan(splits, report, cache=tmp_path / "file" / "cache").lines() == []
    assert len(report.lines) == 1
    assert report.lines[0].startswith("The next run will check all images again:")


def test_an_interrupted_scan_keeps_what_it_has(tmp_path: Path, decoded: list[str]) -> None:
    """Ctrl-C after 50 minutes of 60 must not mean to begin again."""

    class Impatient(Counting):
        def advance(self, images: int) -> None:
            super().advance(images)
            if self.done > 100:
                raise KeyboardInterrupt

    splits = open_splits(two_parts(tmp_path / "set", train=100))
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        scan(splits, Impatient(), cache=tmp_path / "cache", threads=1)
    assert threading.active_count() == before
    assert 100 < len(decoded) < 210
    looked(splits, cache=tmp_path / "cache")
    assert len(decoded) == 210


def test_work_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million waiting tasks take gigabytes."""
    ahead: list[int] = []
    begun: list[int] = []

    def work(item: int) -> list[tuple[int, str]]:
        begun.append(item)
        return [(item, "")]

    for i, result in enumerate(module._in_order(work, range(1000), 3)):
        assert result == [(i, "")]
        ahead.append(len(begun) - i)
    assert len(ahead) == 1000
    assert max(ahead) <= 8


def test_nothing_to_validate_on(tmp_path: Path) -> None:
    """Few damaged images can be all of `val`: a run failed after its first epoch."""
    for label in ("cat", "dog"):
        for i in range(25):
            put(tmp_path / "train" / label / f"{i}.png", noise(i, 8))
        put(tmp_path / "val" / label / "0.png", b"damaged")
    with pytest.raises(DataError, match=r"None of the 2 validation images .*val/cat/0\.png: not a"):
        scan(open_splits(tmp_path), SilentReporter(), cache=None)
