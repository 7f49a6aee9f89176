"""Tar shards, near and far."""

from __future__ import annotations

import bz2
import gzip
import os
import pickle
import re
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_data import classes, levels, numbered, picture, tar, trained_on

from resnext.data.dataset import Stored
from resnext.data.open import open_for_evaluation, open_splits
from resnext.data.scan import scan
from resnext.errors import DataError
from resnext.system.progress import SilentReporter


@pytest.fixture(autouse=True)
def online(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, no proxy, and downloads allowed, whatever the user has set."""
    for name in ("RESNEXT_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "GOPEN_REWRITE"):
        monkeypatch.delenv(name, raising=False)


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
    measured = open_for_evaluation(tmp_path / "set", ("0", "1"), trained_on(splits, 4))
    assert levels(measured) == levels(splits.val)
    assert open_for_evaluation(tmp_path / "set", ("1", "0"), {}).counts().tolist() == [15, 15]


def test_names_of_shards_decide_the_split(tmp_path: Path) -> None:
    """Training on what the publisher holds out gives results that cannot be compared."""
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
    assert levels(open_for_evaluation(tmp_path / "set", ("0", "1"), trained_on(splits))) == [
        *range(30, 34)
    ]
    (tmp_path / "set" / "trainers.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"trainers\.tar belongs to no split, but 4 other"):
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
    with pytest.raises(DataError, match=r"train-003\.tar is missing, and 1 more\. Give"):
        open_splits(f"{tmp_path}/train-{{000..004}}.tar")
    with pytest.raises(DataError, match="a brace is not closed"):
        open_splits(f"{tmp_path}/train-{{000..004.tar")
    with pytest.raises(DataError, match=r"a\.zip is not a tar\. Give plain \.tar"):
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
    """ImageNet has two classes named crane; a model's labels do not say which is meant."""
    tar(tmp_path / "a.tar", numbered(0, 12, k=3))
    (tmp_path / "labels.txt").write_text("crane\ncrane\nfox\n")
    splits = open_splits(tmp_path / "a.tar")
    assert splits.train.counts().tolist() == [3, 3, 3]
    found = open_for_evaluation(tmp_path / "a.tar", splits.train.labels, {})
    assert found.counts().tolist() == [4, 4, 4]
    with pytest.raises(DataError, match="calls two classes 'crane'"):
        open_for_evaluation(tmp_path / "a.tar", ("fox", "crane"), {})


def test_incomplete_samples_are_reported(tmp_path: Path) -> None:
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
    with pytest.raises(DataError, match="only one class, '0'"):
        open_splits(tar(tmp_path / "a.tar", numbered(0, 5, k=1)))


@pytest.mark.parametrize("value", ["true", "1.5", '["x"]', '{"n": 1}'])
def test_labels_that_are_no_text(tmp_path: Path, value: str) -> None:
    """The line said that there is no class, though there is one of another kind."""
    members = numbered(0, 10) | {"z.png": picture(2), "z.json": f'{{"label": {value}}}'.encode()}
    [problem] = open_splits(tar(tmp_path / "a.tar", members)).problems
    assert problem.reason == (
        f"The sample has no class, but a .json whose label is {value}, not text or a whole number."
    )


DOTTED = "its name ends at the first dot"


@pytest.mark.parametrize(
    "stems",
    [
        [f"IMG_{i}.5m" for i in range(4)] + [f"IMG_{i}.9m" for i in range(4)],
        [f"scan 1.{i} (clean)" for i in range(8)],
        [f"v2.0/frame.{i:03}" for i in range(8)],
        ["cat", "cat.1", "cat.2", "cat.3"],
    ],
)
def test_names_with_dots_are_refused(tmp_path: Path, stems: list[str]) -> None:
    """A key ends at the first dot: half of such a shard was lost, or all but one image."""
    members = numbered(0, 20)
    for i, stem in enumerate(sorted(stems)):
        members |= {f"{stem}.jpg": picture(90 + i, "JPEG"), f"{stem}.cls": b"%d" % (i % 2)}
    splits = open_splits(tar(tmp_path / "a.tar", members))
    assert [p.title for p in splits.problems] == [f"a.tar:{stem}.jpg" for stem in sorted(stems)]
    total = 20 + len(stems)
    with pytest.raises(DataError, match=rf"{len(stems)} of {total} samples .*{DOTTED}") as caught:
        scan(splits, SilentReporter(), cache=None)
    assert "\n" not in str(caught.value)
    assert open_for_evaluation(tmp_path / "a.tar", ("0", "1"), {}).lacking == tuple(
        p.title for p in splits.problems
    )


@pytest.mark.parametrize(
    ("endings", "used", "reason"),
    [
        (("input.jpg", "cls"), "input.jpg", ""),
        (("input.jpg", "target.cls"), "input.jpg", ""),
        (("image.png", "mask.png", "target.cls"), "image.png", ""),
        (("jpg", "seg.png", "cls"), "jpg", ""),
        (("seg.png", "jpg", "meta.json"), "jpg", ""),
        (("jpg", "cls", "meta.json"), "jpg", ""),
        (("5m.jpg", "5m.cls"), "5m.jpg", ""),  # the only one of its key
        (("left.jpg", "right.jpg", "cls"), "", r"2 images \(\.left\.jpg, \.right\.jpg\): its name"),
        (("jpg", "coarse.cls", "fine.cls"), "", r"2 classes \(\.coarse\.cls, \.fine\.cls\): its"),
        (("jpg", "txt"), "", r"no class, but a \.txt\."),
        (("jxl", "cls"), "", r"no image, but a \.jxl\."),
    ],
)
def test_longer_endings(tmp_path: Path, endings: tuple[str, ...], used: str, reason: str) -> None:
    """`.input.jpg` is an image to WebDataset; of several, none may be taken at random."""
    content = {"cls": b"dog", "json": b'{"label": "dog"}'}
    members = {"z.png": picture(1), "z.cls": b"cat", "y.png": picture(2), "y.cls": b"dog"}
    for i, ending in enumerate(endings):
        kind = ending.rpartition(".")[2]
        data = content.get(kind, picture(10 * i, "JPEG"))
        members[f"a.{ending}"] = b"fox" if ending == "fine.cls" else data
    found = open_for_evaluation(tar(tmp_path / "a.tar", members), ("cat", "dog", "fox"), {})
    if used:
        assert found.title(2) == f"a.tar:a.{used}"
        assert (classes(found), found.lacking) == (["cat", "dog", "dog"], ())
    else:
        assert (len(found), len({*found.lacking})) == (2, len(found.lacking))
        more = {f"{i}.{end}": members[f"{i}.{end}"] for i in "zy" for end in ("png", "cls")}
        more = {f"{i}{name}": data for name, data in more.items() for i in range(2)}
        [*_, last] = open_splits(tar(tmp_path / "b.tar", members | more)).problems
        assert re.search(reason, last.reason)


def test_of_two_plain_images_the_second_is_named(tmp_path: Path) -> None:
    """A depth map, or the same photo again: nobody was told that it is not used."""
    members = numbered(0, 8) | {"0001.zzz": b"", "a.jpg": picture(9), "a.png": picture(8)}
    splits = open_splits(tar(tmp_path / "a.tar", members | {"a.cls": b"1"}))
    [note] = splits.notes
    assert note.startswith("1 image not used")
    assert "a.tar:a.png" in note


@pytest.mark.parametrize("order", ["by ending", "reversed", "shuffled"])
def test_files_that_are_not_neighbours(tmp_path: Path, order: str) -> None:
    """`tar` without `--sort=name` writes them as the folder lists them; they were all refused."""
    names = sorted(numbered(0, 12), key=lambda name: (name[-3:], name))
    if order == "reversed":
        names = [*names[:12][::-1], *names[12:]]
    elif order == "shuffled":
        names = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    content = numbered(0, 12)
    splits = open_splits(tar(tmp_path / "a.tar", {name: content[name] for name in names}))
    assert sorted(levels(splits.train) + levels(splits.val)) == [*range(12)]
    for part in (splits.train, splits.val):
        assert classes(part) == [str(level % 2) for level in levels(part)]
    assert splits.problems == ()
    [note] = splits.notes
    assert "tar --sort=name" in note
    assert note in scan(splits, SilentReporter(), cache=None).lines()
    sorted_splits = open_splits(tar(tmp_path / "b.tar", content))
    assert sorted_splits.notes == ()


def test_a_class_that_is_lost_with_its_samples_is_noticed(tmp_path: Path) -> None:
    """Three of a hundred samples are few, but they may be all of a class."""
    members = numbered(0, 100)
    for i in range(3):
        members |= {f"x{i}.jxl": b"?", f"x{i}.cls": b"2"}
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    splits = open_splits(tar(tmp_path / "a.tar", members))
    with pytest.raises(DataError, match=r"3 of 3 images of class 'cat' .* but a \.jxl"):
        scan(splits, SilentReporter(), cache=None)


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
    """Serves a folder and records the requests."""

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
        """Print nothing."""


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
    measured = open_for_evaluation(pattern, ("even", "odd"), trained_on(splits))
    assert levels(measured) == levels(splits.val)
    with pytest.raises(DataError, match="downloads are off"):
        open_splits(f"{address}/train-{{0..2}}.tar")


def test_what_cannot_be_fetched_is_not_kept(tmp_path: Path, fresh_cache: Path) -> None:
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
    kept = [path for path in fresh_cache.rglob("*") if path.is_file()]
    assert [path for path in kept if path.suffix != ".lock"] == []


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens data expects a DataError, on a full disk, too."""
    tar(tmp_path / "site" / "a.tar", numbered(0, 6))
    with serving(tmp_path / "site") as (address, _):

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("resnext.system.atomic.fsync", full)
            with pytest.raises(DataError, match=r"a\.tar cannot be kept in .*No space left"):
                open_splits(f"{address}/a.tar")
        fresh_cache.rename(tmp_path / "away")
        fresh_cache.write_text("a file where a folder should be")
        with pytest.raises(DataError, match=r"a\.tar cannot be kept in .*cache"):
            open_splits(f"{address}/a.tar")


def test_s3_is_read_by_the_aws_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WebDataset 1.0 does not read s3://; the address must not pass through a shell."""
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
