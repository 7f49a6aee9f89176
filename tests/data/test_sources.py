"""Data sets in other forms: tar shards near and far, idx files, lists, and Parquet."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnext.data.dataset import ImageSet, Splits, Stored
from resnext.data.open import open_for_evaluation, open_splits
from resnext.data.sources.arrays import FASHION
from resnext.errors import DataError


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may read or fill the cache of whoever runs it."""
    monkeypatch.setenv("RESNEXT_HOME", str(tmp_path / "home"))
    for name in ("RESNEXT_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "GOPEN_REWRITE"):
        monkeypatch.delenv(name, raising=False)


def picture(level: int, kind: str = "PNG") -> bytes:
    """A tiny image of one grey level."""
    out = io.BytesIO()
    Image.new("RGB", (3, 2), (level % 256,) * 3).save(out, kind)
    return out.getvalue()


def levels(images: ImageSet) -> list[int]:
    """The grey level of each image, decoded."""
    return [int(np.asarray(images.open(i, "L"))[0, 0]) for i in range(len(images))]


def classes(images: ImageSet) -> list[str]:
    """The class of each image, by name."""
    return [images.labels[target] for target in images.targets]


def memory(splits: Splits, seed: int = 0) -> dict[str, object]:
    """What training notes down for evaluation."""
    return {
        "data": Path(splits.train.name).resolve().name,
        "fingerprint": splits.fingerprint,
        "seed": seed,
        "val_fraction": splits.val_fraction,
    }


# -- tar shards -------------------------------------------------------------------------------


def tar(path: Path, members: Mapping[str, bytes], kind: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar with these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as out:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return path


def numbered(first: int, count: int, k: int = 2) -> dict[str, bytes]:
    """Samples whose grey level is their number, and whose class its remainder."""
    members: dict[str, bytes] = {}
    for i in range(first, first + count):
        members[f"{i:04}.png"] = picture(i)
        members[f"{i:04}.cls"] = str(i % k).encode()
    return members


def test_a_folder_of_shards_is_split_by_us(tmp_path: Path) -> None:
    """Shards are often sorted by class, so that holding out whole shards would lose classes."""
    for i in range(3):
        tar(tmp_path / "set" / f"{i:03}.tar", numbered(10 * i, 10))
    splits = open_splits(tmp_path / "set", seed=4)
    assert (len(splits.train), len(splits.val), splits.test) == (24, 6, None)
    assert splits.val.counts().tolist() == [3, 3]
    assert sorted(levels(splits.train) + levels(splits.val)) == [*range(30)]
    for part in (splits.train, splits.val):
        assert classes(part) == [str(level % 2) for level in levels(part)]
    measured = open_for_evaluation(tmp_path / "set", ("0", "1"), memory(splits, 4))
    assert levels(measured) == levels(splits.val)
    assert open_for_evaluation(tmp_path / "set", ("1", "0"), {}).counts().tolist() == [15, 15]


def test_names_of_shards_decide_the_split(tmp_path: Path) -> None:
    """Learning from what the publisher holds out makes results that nobody can compare."""
    for i, name in enumerate(("train-0", "train-1", "validation_0", "test.0")):
        tar(tmp_path / "set" / f"{name}.tar", numbered(10 * i, 4))
    splits = open_splits(tmp_path / "set")
    assert splits.test is not None
    assert [levels(part) for part in (splits.train, splits.val, splits.test)] == [
        [0, 1, 2, 3, 10, 11, 12, 13],
        [20, 21, 22, 23],
        [30, 31, 32, 33],
    ]
    assert splits.val_fraction is None
    assert levels(open_for_evaluation(tmp_path / "set", ("0", "1"), memory(splits))) == [
        *range(30, 34)
    ]
    (tmp_path / "set" / "trainers.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"trainers\.tar belongs to no part, but 4 other"):
        open_splits(tmp_path / "set")


def test_a_pattern_names_shards(tmp_path: Path) -> None:
    """A missing shard must not be noticed by a worse model only."""
    for i in range(3):
        tar(tmp_path / f"train-{i:03}.tar", numbered(4 * i, 4))
    pattern = f"{tmp_path}/train-{{000..002}}.tar"
    splits = open_splits(pattern)
    assert sorted(levels(splits.train) + levels(splits.val)) == [*range(12)]
    assert {splits.train.title(i).split(":")[0] for i in range(len(splits.train))} == {
        f"train-00{i}.tar" for i in range(3)
    }
    only = open_splits(tmp_path / "train-001.tar")
    assert sorted(levels(only.train) + levels(only.val)) == [4, 5, 6, 7]
    with pytest.raises(DataError, match=r"train-003\.tar is missing\. So are 1 others"):
        open_splits(f"{tmp_path}/train-{{000..004}}.tar")
    with pytest.raises(DataError, match="a brace is not closed"):
        open_splits(f"{tmp_path}/train-{{000..004.tar")
    with pytest.raises(DataError, match="no tar, so it cannot"):
        open_splits(f"{tmp_path}/train-{{a,b}}.zip")


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_grouped_as_webdataset_does(tmp_path: Path, kind: int) -> None:
    """Long names and names with several dots need care; a mask is not the picture."""
    long = "deep/" * 15 + "wörd" * (20 if kind != tarfile.USTAR_FORMAT else 1)
    members = {
        "v1.0/a.jpg": picture(10, "JPEG"),
        "v1.0/a.seg.png": picture(99),
        "v1.0/a.cls": b"cat\n",
        "._b.jpg": b"resource fork",
        f"{long}.json": b'{"label": "dog", "more": [1]}',
        f"{long}.JPEG": picture(20, "JPEG"),
        "c.json": b'{"cls": "cat"}',
        "c.png": picture(30),
        "c.txt": b"a caption",
        "d.webp": picture(40, "WEBP"),
        "d.cls": b"dog",
    }
    path = tar(tmp_path / "one.tar", members, kind)
    found = open_for_evaluation(path, ("dog", "cat", "eel"), {})
    assert classes(found) == ["cat", "dog", "cat", "dog"]
    assert np.allclose(levels(found), [10, 20, 30, 40], atol=2)
    assert found.title(0) == "one.tar:v1.0/a.jpg"
    assert found.read(2) == members["c.png"]
    with tarfile.open(path) as shard:
        offset = shard.getmember("c.png").offset_data
    stored = found.images[2]
    assert stored == Stored(path, offset, len(members["c.png"]), "one.tar:c.png")


def test_numbered_classes_get_their_names(tmp_path: Path) -> None:
    """Sorting "10" before "2" would give every class another's name."""
    members = numbered(0, 24, k=12)
    plain = open_splits(tar(tmp_path / "plain" / "a.tar", members))
    assert plain.train.labels == tuple(str(i) for i in range(12))
    words = [f"class {chr(120 - i)}" for i in range(12)]
    tar(tmp_path / "named" / "a.tar", members)
    (tmp_path / "named" / "classnames.txt").write_text("\n".join(words) + "\n\n")
    named = open_splits(tmp_path / "named")
    assert named.train.labels == tuple(words)
    assert all(
        int(level) % 12 == t for level, t in zip(levels(named.val), named.val.targets, strict=True)
    )
    found = open_for_evaluation(tmp_path / "named", tuple(sorted(words)), {})
    assert all(
        label == words[x % 12] for label, x in zip(classes(found), levels(found), strict=True)
    )
    (tmp_path / "named" / "classnames.txt").write_text("one\ntwo")
    with pytest.raises(DataError, match=r"class '2', but its 2 class names are one, two"):
        open_splits(tmp_path / "named")


def test_two_classes_of_one_name_stay_two(tmp_path: Path) -> None:
    """ImageNet has two kinds of crane; a model's labels cannot tell which is meant."""
    tar(tmp_path / "a.tar", numbered(0, 12, k=3))
    (tmp_path / "labels.txt").write_text("crane\ncrane\nfox\n")
    splits = open_splits(tmp_path / "a.tar")
    assert splits.train.counts().tolist() == [3, 3, 3]
    found = open_for_evaluation(tmp_path / "a.tar", splits.train.labels, {})
    assert found.counts().tolist() == [4, 4, 4]
    with pytest.raises(DataError, match="calls two classes 'crane'"):
        open_for_evaluation(tmp_path / "a.tar", ("fox", "crane"), {})


def test_incomplete_samples_are_told(tmp_path: Path) -> None:
    """A sample without a class must neither end the run nor vanish without a word."""
    members = numbered(0, 10)
    members |= {"x.png": picture(1), "y.cls": b"1", "z.json": b"{broken", "z.png": picture(2)}
    splits = open_splits(tar(tmp_path / "a.tar", members))
    assert len(splits.train) + len(splits.val) == 10
    assert [(p.part, p.title, p.label, p.reason) for p in splits.problems] == [
        ("train", "a.tar:x", "", "The sample has no class."),
        ("train", "a.tar:y", "1", "The sample has no image."),
        ("train", "a.tar:z", "", "The sample has no class."),
    ]
    with pytest.raises(DataError, match=r"none of 1 samples has an image .* a\.tar:x: The sample"):
        open_splits(tar(tmp_path / "a.tar", {"x.png": picture(1)}))
    with pytest.raises(DataError, match="one class only, '0'"):
        open_splits(tar(tmp_path / "a.tar", numbered(0, 5, k=1)))


@pytest.mark.parametrize("cut", [512 * 4 + 100, 512 * 4, 512 * 8 + 20, 512 * 8 + 512, 0, 100])
def test_cut_off_shards_are_refused(tmp_path: Path, cut: int) -> None:
    """An interrupted copy would silently train on half of the data; tarfile does not mind."""
    path = tar(tmp_path / "train-0.tar", numbered(0, 6))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"train-0\.tar .*(cut off|as a tar)") as caught:
        open_splits(path)
    assert str(caught.value).endswith("Copy or download it again.")
    assert "\n" not in str(caught.value)


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    """A flipped bit in a header makes tarfile end there as if all had been read."""
    path = tar(tmp_path / "a.tar", numbered(0, 6))
    content = bytearray(path.read_bytes())
    content[512 * 4 + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tar is damaged after 0000\.cls, byte 2,048"):
        open_splits(path)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_compressed_shards_are_refused(tmp_path: Path, pack: Any) -> None:
    """Reading one image would mean to unpack all before it."""
    path = tar(tmp_path / "a.tar", numbered(0, 6))
    path.write_bytes(pack(path.read_bytes()))
    with pytest.raises(DataError, match="is compressed, so single images"):
        open_splits(path)
    path.rename(tmp_path / "a.tar.gz")
    for source in (tmp_path, tmp_path / "a.tar.gz", f"{tmp_path}/{{a,b}}.tar.gz"):
        with pytest.raises(DataError, match=r"a\.tar\.gz is compressed, so single images"):
            open_splits(source)


def test_shards_that_shrink_are_noticed(tmp_path: Path) -> None:
    """A shard that is copied anew during a run must not give half an image."""
    path = tar(tmp_path / "a.tar", numbered(0, 6))
    images = open_splits(path).train
    path.write_bytes(path.read_bytes()[:1100])
    with pytest.raises(DataError, match=r"a\.tar:\d{4}\.png: .* has become shorter"):
        images.open(len(images) - 1, "RGB")
    path.unlink()
    with pytest.raises(DataError, match=r"a\.tar:\d{4}\.png: .*no such file"):
        images.read(len(images) - 1)


def test_the_fingerprint_of_shards_follows_their_content(tmp_path: Path) -> None:
    """The same seed holds out other images as soon as one was added, or got another class."""
    seen = {open_splits(tar(tmp_path / "a" / "x.tar", numbered(0, 6))).fingerprint}
    assert open_splits(tar(tmp_path / "b" / "x.tar", numbered(0, 6))).fingerprint in seen
    seen.add(open_splits(tar(tmp_path / "a" / "x.tar", numbered(0, 7))).fingerprint)
    seen.add(open_splits(tar(tmp_path / "a" / "x.tar", numbered(0, 6, k=3))).fingerprint)
    assert len(seen) == 3


def test_shards_can_be_sent_to_workers(tmp_path: Path) -> None:
    """An open file cannot be pickled, and a forked one would share its position."""
    images = open_splits(tar(tmp_path / "a.tar", numbered(0, 200))).train
    sent = pickle.dumps(images)
    assert len(sent) < 60 * 200
    assert levels(pickle.loads(sent)) == levels(images)


# -- shards at a URL --------------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder, and notes what it was asked for."""

    def do_GET(self) -> None:
        """Answer, or send half of what was announced."""
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        if self.path.startswith("/half"):
            content = (Path(self.directory) / self.path[1:]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            return
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Address of a folder, and the paths asked for so far."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        server.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", server.asked  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            thread.join()


def test_remote_shards_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every epoch would download the data set again; offline, what is there must do."""
    site = tmp_path / "site"
    for i in range(2):
        tar(site / f"train-{i}.tar", numbered(10 * i, 6))
    (site / "classes.txt").write_text("even\nodd\n")
    with serving(site) as (address, asked):
        pattern = f"{address}/train-{{0..1}}.tar"
        splits = open_splits(pattern)
        once = [*asked]
        again = open_splits(pattern)
        assert asked == once
    assert sorted(once).count("/train-0.tar") == sorted(once).count("/train-1.tar") == 1
    assert splits.train.labels == ("even", "odd")
    assert sorted(levels(splits.train) + levels(splits.val)) == [*range(6), *range(10, 16)]
    monkeypatch.setenv("RESNEXT_OFFLINE", "1")
    assert levels(open_splits(pattern).train) == levels(again.train) == levels(splits.train)
    measured = open_for_evaluation(pattern, ("even", "odd"), memory(splits))
    assert levels(measured) == levels(splits.val)
    with pytest.raises(DataError, match="downloads are off"):
        open_splits(f"{address}/train-{{0..2}}.tar")


def test_what_cannot_be_fetched_is_not_kept(tmp_path: Path) -> None:
    """Half a shard in the cache would be used from then on."""
    site = tmp_path / "site"
    whole = tar(site / "half.tar", numbered(0, 6)).read_bytes()
    (site / "odd.tar").write_bytes(whole[:2500])
    with serving(site) as (address, _):
        for name, reason in (
            ("half", "cannot be downloaded"),
            ("none", "cannot be downloaded: the server has no such file"),
            ("odd", "cut off"),
        ):
            with pytest.raises(DataError, match=rf"{name}\.tar .*{reason}") as caught:
                open_splits(f"{address}/{name}.tar")
            assert "\n" not in str(caught.value)
    kept = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert [path for path in kept if path.suffix != ".lock"] == []


def test_s3_is_read_by_the_aws_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WebDataset 1.0 knows no s3 of its own; the address must not pass through a shell."""
    tar(tmp_path / "a.tar", numbered(0, 6))
    command = tmp_path / "bin" / "aws"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/log\ncat {tmp_path}/a.tar\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    splits = open_splits(f"s3://bucket/a$(touch {tmp_path}/oops).tar")
    assert len(splits.train) + len(splits.val) == 6
    assert (tmp_path / "log").read_text().startswith("s3 cp --quiet s3://bucket/a$(touch")
    assert not (tmp_path / "oops").exists()


def test_unknown_addresses_are_refused(tmp_path: Path) -> None:
    """`pipe:` would run any command that a web page suggests."""
    with pytest.raises(DataError, match="no gopen handler"):
        open_splits("gopher://example.com/a.tar")
    with pytest.raises(DataError, match="does not exist"):
        open_splits(f"pipe:touch {tmp_path}/oops; cat http://example.com/a.tar")
    assert not (tmp_path / "oops").exists()


@pytest.mark.parametrize(
    ("module", "source", "extra"),
    [
        ("braceexpand", "{a,b}.tar", "shards"),
        ("webdataset.gopen", "http://x/a.tar", "shards"),
        ("pyarrow.parquet", "a.parquet", "parquet"),
    ],
)
def test_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, source: str, extra: str
) -> None:
    """ModuleNotFoundError names neither the extra nor the command."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf'pip install "resnext\[{extra}\]"'):
        open_splits(source)


# -- idx files --------------------------------------------------------------------------------


def idx(path: Path, array: np.ndarray) -> Path:
    """An idx file, compressed if it is called so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def mnist(folder: Path, train: int = 40, test: int = 10, end: str = ".gz") -> Path:
    """Images whose first pixel is their number, and whose class is its last digit."""
    for prefix, first, count in (("train", 0, train), ("t10k", 100, test)):
        numbers = np.arange(first, first + count)
        images = np.zeros((count, 5, 4))
        images[:, 0, 0] = numbers
        idx(folder / f"{prefix}-images-idx3-ubyte{end}", images)
        idx(folder / f"{prefix}-labels-idx1-ubyte{end}", numbers % 10)
    return folder


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_files(tmp_path: Path, end: str) -> None:
    """Held-out images come from the training file; those of t10k are for the very end."""
    root = mnist(tmp_path / "numbers", end=end)
    splits = open_splits(root, seed=2)
    assert splits.test is not None
    assert (splits.colour, splits.val_fraction) == ("L", 0.2)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [30, 10, 10]
    assert sorted(levels(splits.train) + levels(splits.val)) == [*range(40)]
    assert levels(splits.test) == [*range(100, 110)]
    for part in (splits.train, splits.val, splits.test):
        assert classes(part) == [str(level % 10) for level in levels(part)]
    assert splits.train.open(0, "L").size == (4, 5)
    assert levels(open_for_evaluation(root, splits.train.labels, {})) == levels(splits.test)
    other = open_splits(mnist(tmp_path / "other", train=41, end=end))
    assert other.fingerprint != splits.fingerprint
    for path in root.glob("t10k*"):
        path.unlink()
    alone = open_splits(root, seed=2)
    assert alone.test is None
    assert levels(open_for_evaluation(root, splits.train.labels, memory(alone, 2))) == levels(
        splits.val
    )


def test_fashion_has_names(tmp_path: Path) -> None:
    """A "9" says less than "Ankle boot", and a model keeps its labels for ever."""
    splits = open_splits(mnist(tmp_path / "Fashion-MNIST" / "raw"))
    assert splits.train.labels == FASHION
    assert classes(splits.val)[:1] == [FASHION[levels(splits.val)[0] % 10]]


def test_arrays_are_not_copied(tmp_path: Path) -> None:
    """70,000 arrays of 784 bytes take three times the memory of one."""
    splits = open_splits(mnist(tmp_path))
    one, other = (images.images[0] for images in (splits.train, splits.val))
    assert isinstance(one, np.ndarray)
    assert isinstance(other, np.ndarray)
    assert one.base is not None
    assert one.base is other.base


def wrong_magic(root: Path) -> None:
    """A label file under the name of an image file."""
    idx(root / "train-images-idx3-ubyte.gz", np.zeros(5))


def too_short(root: Path) -> None:
    """A file that ends early."""
    path = root / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


def too_long(root: Path) -> None:
    """A file that goes on."""
    path = root / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"x"))


def cut_gzip(root: Path) -> None:
    """An interrupted download."""
    path = root / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-10])


def no_gzip(root: Path) -> None:
    """A page that says that there is no such file."""
    (root / "train-labels-idx1-ubyte.gz").write_text("<html>404</html>")


def huge(root: Path) -> None:
    """A header that announces terabytes."""
    content = bytes([0, 0, 8, 3]) + struct.pack(">3I", *[4_000_000_000] * 3) + bytes(99)
    (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))


def other_count(root: Path) -> None:
    """Labels of other images."""
    idx(root / "train-labels-idx1-ubyte.gz", np.zeros(5))


def only_labels(root: Path) -> None:
    """Half of the download."""
    (root / "train-images-idx3-ubyte.gz").unlink()


def only_test(root: Path) -> None:
    """The smaller half."""
    for path in root.glob("train*"):
        path.unlink()


def none_inside(root: Path) -> None:
    """Complete, but empty."""
    mnist(root, train=0)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (wrong_magic, r"images.* is no idx file of bytes in 3 dimensions: .* 00 00 08 01"),
        (too_short, r"should hold 800 bytes \(40, 5, 4\) .* holds 799"),
        (too_long, "but holds more than 800"),
        (cut_gzip, "cannot be read: .*Download it again"),
        (no_gzip, "cannot be read: Not a gzipped file"),
        (huge, "but holds 99"),
        (other_count, "40 images, train-labels.* 5 labels"),
        (only_labels, "has no train-images-idx3-ubyte, only its labels"),
        (only_test, "has test inside, but no train"),
        (none_inside, "holds no image"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_damaged_idx_files(tmp_path: Path, damage: Any, problem: str) -> None:
    """A download that was cut short is the usual case; the file has to be named."""
    root = mnist(tmp_path / "set")
    damage(root)
    with pytest.raises(DataError, match=problem) as caught:
        open_splits(root)
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)


# -- lists ------------------------------------------------------------------------------------


def table(path: Path, rows: list[list[str]], encoding: str = "utf-8") -> Path:
    """A CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_list_of_images(tmp_path: Path) -> None:
    """Spreadsheets write marks of byte order, quotes, blank lines and further columns."""
    rows = [["Label", "note", " path "], [], ["", "", ""]]
    for i in range(10):
        name = f"pics/n{i}, the {i}th \u00fc.png"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture(i))
        rows += [[("odd", "even")[i % 2 == 0], 'a "note"\nin two lines', name], []]
    path = table(tmp_path / "list.csv", rows, "utf-8-sig")
    splits = open_splits(path)
    assert splits.train.labels == ("even", "odd")
    assert (len(splits.train), len(splits.val), splits.test) == (8, 2, None)
    for part in (splits.train, splits.val):
        assert classes(part) == [("odd", "even")[level % 2 == 0] for level in levels(part)]
    assert levels(open_for_evaluation(path, ("odd", "even"), memory(splits))) == levels(splits.val)
    shuffled = table(tmp_path / "shuffled.csv", rows[:3] + rows[:2:-1])
    assert open_splits(shuffled).fingerprint != splits.fingerprint  # the seed draws by position


def test_a_list_with_splits(tmp_path: Path) -> None:
    """Numbers as classes sort as numbers, and a class is the same number in all parts."""
    rows = [["path", "label", "split"]]
    for i, part in enumerate(["train", "valid", "test", "Train"] * 3):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
        rows.append(
            [f"{i}.png", ("2", "10")[i // 2 % 2] if part.lower() == "train" else "10", part]
        )
    splits = open_splits(table(tmp_path / "list.csv", rows))
    assert splits.test is not None
    assert splits.train.labels == splits.val.labels == splits.test.labels == ("2", "10")
    assert [levels(part) for part in (splits.train, splits.val, splits.test)] == [
        [0, 3, 4, 7, 8, 11],
        [1, 5, 9],
        [2, 6, 10],
    ]
    assert (list(splits.val.targets), splits.val_fraction) == ([1, 1, 1], None)
    (tmp_path / "3.png").unlink()
    assert len(open_splits(tmp_path / "list.csv").train) == 6  # the scan counts it as unreadable


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "lists no image"),
        ("path,label\n\n", "lists no image"),
        ("file,label\na.png,a\n", r"must begin with .* it has file, label"),
        ("path,label,label\na.png,a,b\n", "once each; it has path, label, label"),
        ("path,label\na, b.png,a\n", r"line 2: wanted 2 fields \(path, label\), found 3"),
        ("path,label\na.png,a\nb.png\n", "line 3: wanted 2 fields"),
        ("path,label\na.png,\n", "line 2: label is empty"),
        ("path,label\n,a\n", "line 2: path is empty"),
        ("path,label,split\na.png,a,dev\n", "line 2: split must be train, val or test, not 'dev'"),
        ("path,label,split\na.png,a,\n", "line 2: split must be"),
        ("path,label\na.png,a\nb.png,a\n", "one class only, 'a'"),
        ("path,label\na.png,a\nb.png,a\nc.png,b\n", "Class 'b' of .* has one image"),
        ('path,label\n"a.png,a\n', "no readable CSV"),
        (b"path,label\n\xff\xfe.png,a\n", "no readable CSV file in UTF-8"),
        ("path,label,split\na.png,a,val\n", "has val inside, but no train"),
        (
            "path,label,split\na,a,train\nb,b,train\nc,eel,val\n",
            "has a class 'eel'; known are a, b",
        ),
    ],
)
def test_unusable_lists(tmp_path: Path, content: str | bytes, problem: str) -> None:
    """A list is edited by hand: the line must be named."""
    path = tmp_path / "list.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=problem) as caught:
        open_splits(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# -- Parquet ----------------------------------------------------------------------------------


def parquet(
    path: Path,
    rows: list[tuple[bytes | None, Any]],
    names: list[str] | None = None,
    image: str = "img",
    label: str = "label",
    rows_at_once: int = 3,
) -> Path:
    """A file as the `datasets` library writes it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [None if data is None else {"bytes": data, "path": "x.png"} for data, _ in rows]
    features: dict[str, Any] = {
        "id": {"dtype": "int64", "_type": "Value"},
        image: {"_type": "Image"},
    }
    features[label] = {"names": names, "_type": "ClassLabel"} if names else {"_type": "Value"}
    columns = {
        "id": pa.array(range(len(rows))),
        image: pa.array(images, kind),
        label: pa.array([value for _, value in rows]),
    }
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    whole = pa.table(columns).replace_schema_metadata(about)
    pq.write_table(whole, path, row_group_size=rows_at_once)
    return path


NAMES = ["zebra", "ant", "bee"]


def some_rows(first: int, count: int) -> list[tuple[bytes | None, Any]]:
    """Rows whose grey level is their number, and whose class its remainder."""
    return [(picture(i), i % 3) for i in range(first, first + count)]


@pytest.mark.parametrize("inner", ["", "data"])
def test_a_hugging_face_folder(tmp_path: Path, inner: str) -> None:
    """Labels are in the order of the features, not of the alphabet."""
    data = tmp_path / "set" / inner
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "README.md").write_text("# A data set")
    for i in range(2):
        parquet(data / f"train-0000{i}-of-00002.parquet", some_rows(10 * i, 7), NAMES)
    parquet(data / "validation-00000-of-00001.parquet", some_rows(30, 4), NAMES)
    parquet(data / "test-00000-of-00001.parquet", some_rows(40, 5), NAMES)
    splits = open_splits(tmp_path / "set")
    assert splits.test is not None
    parts = (splits.train, splits.val, splits.test)
    assert [levels(part) for part in parts] == [
        [*range(7), *range(10, 17)],
        [*range(30, 34)],
        [*range(40, 45)],
    ]
    for part in parts:
        assert part.labels == tuple(NAMES)
        assert list(part.targets) == [level % 3 for level in levels(part)]
    assert splits.train.title(8) == "train-00001-of-00002.parquet:1"
    assert splits.train.read(8) == picture(11)
    assert levels(open_for_evaluation(tmp_path / "set", tuple(NAMES), {})) == levels(splits.test)
    (data / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet is missing"):
        open_splits(tmp_path / "set")


def test_parquet_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copying at each start takes long; half a copy or one of another file must not be used."""
    import pyarrow.parquet as pq

    path = parquet(tmp_path / "a.parquet", some_rows(0, 12), NAMES)
    first = open_splits(path)
    [copy] = (tmp_path / "home" / "images").glob("*.bin")
    assert copy.stat().st_size == sum(len(picture(i)) for i in range(12))
    batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    again = open_splits(path)
    assert again.fingerprint == first.fingerprint
    assert levels(again.train) == levels(first.train)
    assert levels(open_for_evaluation(path, tuple(NAMES), memory(first))) == levels(first.val)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", batches)
    for damaged in (copy, copy.with_suffix(".npz")):
        damaged.write_bytes(damaged.read_bytes()[:-1])
        assert levels(open_splits(path).train) == levels(first.train)
    other = open_splits(parquet(path, some_rows(20, 12), NAMES))
    assert other.fingerprint != first.fingerprint
    assert sorted(levels(other.train) + levels(other.val)) == [*range(20, 32)]


def test_parquet_with_texts_and_gaps(tmp_path: Path) -> None:
    """Test sets are published with class -1, and exports with empty cells."""
    rows: list[tuple[bytes | None, Any]] = [(picture(i), ("b", "a")[i % 2]) for i in range(8)]
    rows += [(None, "a"), (picture(1), None), (picture(2), "")]
    splits = open_splits(parquet(tmp_path / "a.parquet", rows, label="label"))
    assert splits.train.labels == ("a", "b")
    assert len(splits.train) + len(splits.val) == 8
    assert [(p.title, p.reason) for p in splits.problems] == [
        ("a.parquet:8", "The row has no image."),
        ("a.parquet:9", "The row has no class."),
        ("a.parquet:10", "The row has no class."),
    ]
    root = tmp_path / "set"
    parquet(root / "train.parquet", some_rows(0, 9), NAMES, label="fine_label")
    assert open_splits(root).train.labels == tuple(NAMES)
    parquet(root / "test.parquet", [(picture(1), -1)] * 3, NAMES, label="fine_label")
    with pytest.raises(DataError, match=r"test part: none of 3 rows has an image and a class"):
        open_splits(root)


def test_unusable_parquet(tmp_path: Path) -> None:
    """Arrow's messages run over many lines and do not name the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = parquet(tmp_path / "a.parquet", some_rows(0, 6), NAMES)
    content = path.read_bytes()
    for damaged in (content[:-5], content[:50], b"", b"no table"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet: .") as caught:
            open_splits(path)
        assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"label": [0, 1], "x": [0, 1]}), path)
    with pytest.raises(DataError, match="needs a column of images; its columns are label, x"):
        open_splits(path)
    parquet(path, some_rows(0, 6), label="number")
    with pytest.raises(DataError, match="needs a column label, or one of type ClassLabel"):
        open_splits(path)
    parquet(tmp_path / "b.parquet", some_rows(0, 6), NAMES[::-1])
    parquet(path, some_rows(0, 6), NAMES)
    with pytest.raises(DataError, match="names its classes otherwise"):
        open_splits(tmp_path)
