"""Downloads that break, continue and are verified."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from file_server import (
    HALF,
    NEW,
    OLD,
    SHA256,
    SMALL,
    Answer,
    Server,
    get,
    kept,
    unusable,
)

from resnext.errors import CheckpointError
from resnext.system import download as module
from resnext.system.cache import cache_folder

pytestmark = pytest.mark.usefixtures("waits")


# -- what works -------------------------------------------------------------------------------


def test_a_file_is_downloaded_once(server: Server, waits: list[float]) -> None:
    """A model must not be downloaded, nor its server asked, at every start of a program."""
    path = get(server.url, sha256=SHA256)
    assert path.read_bytes() == OLD
    assert path.name == "model.pth"
    assert path.is_relative_to(cache_folder())
    assert [asked.path for asked in server.asked] == ["/models/model.pth"]
    assert not kept(".part")
    before = path.stat()
    for sha256 in (SHA256, SHA256.upper(), SHA256[:8], ""):
        assert get(server.url, sha256=sha256) == path
    assert len(server.asked) == 1
    assert path.stat() == before
    assert not waits


def test_addresses_do_not_share_files(server: Server) -> None:
    """Many models on the Hub have the file name model.safetensors."""
    server.plan = [Answer(OLD), Answer(NEW), Answer(SMALL)]
    urls = [f"{server.address}/{rest}" for rest in ("a/m.pth", "b/m.pth", "b/m.pth?revision=2")]
    assert [get(url).read_bytes() for url in urls] == [OLD, NEW, SMALL]
    assert [get(url).read_bytes() for url in urls] == [OLD, NEW, SMALL]
    assert len(server.asked) == 3


@pytest.mark.parametrize("content", [OLD, SMALL, b""], ids=len)
def test_without_a_length(server: Server, content: bytes) -> None:
    """GitHub and many proxies send chunks and no Content-Length."""
    server.usual = Answer(content, chunked=True)
    assert get(server.url).read_bytes() == content
    server.usual = Answer(content, announced=-1)
    assert get(f"{server.url}?again").read_bytes() == content


def test_a_redirection_is_followed(server: Server) -> None:
    """The Hub and GitHub redirect every download; the name is the one that was asked for."""
    server.plan = [Answer(status=302, headers={"Location": "/elsewhere/0a1b2c"})]
    path = get(server.url)
    assert path.read_bytes() == OLD
    assert path.name == "model.pth"
    assert [asked.path for asked in server.asked] == ["/models/model.pth", "/elsewhere/0a1b2c"]


def test_a_redirected_download_is_continued(server: Server) -> None:
    """A redirection that loses Range sends the whole file again."""
    moved = Answer(status=302, headers={"Location": "/elsewhere"})
    server.plan = [moved, Answer(cut=HALF), moved]
    assert get(server.url).read_bytes() == OLD
    assert server.asked[-1].range == f"bytes={HALF}-"
    assert sum(asked.sent[0] for asked in server.asked if asked.path == "/elsewhere") == len(OLD)


# -- connections that fail --------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("end", ["close", "reset", "stall"])
@pytest.mark.parametrize("cut", [HALF, 70_000])
def test_a_broken_download_is_continued(
    server: Server, cut: int, end: str, chunked: bool, waits: list[float]
) -> None:
    """On an unstable connection a large file never finishes if every attempt starts over."""
    server.plan = [Answer(cut=cut, end=end, chunked=chunked)]
    assert get(server.url).read_bytes() == OLD
    lost = server.sent - len(OLD)
    assert 0 <= lost < (10_000 if end == "reset" else 1)
    assert [asked.range for asked in server.asked] == [None, f"bytes={cut - lost}-"]
    assert server.asked[1].headers["if-range"] == '"old"'
    assert not kept(".part")
    assert waits == [0.2]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("end", ["close", "reset", "stall"])
def test_a_server_that_says_nothing(server: Server, end: str, waits: list[float]) -> None:
    """A server that accepts and never answers blocks the program forever."""
    server.plan = [Answer(silent=True, end=end)]
    assert get(server.url).read_bytes() == OLD
    server.plan = [Answer(silent=True, end=end)] * 2
    with pytest.raises(CheckpointError, match=r"model\.pth\?other cannot be downloaded.* 2 times"):
        get(f"{server.url}?other")
    assert len(server.asked) == 4
    assert len(waits) == 2


def test_progress_forgives_failures(server: Server, waits: list[float]) -> None:
    """A bad line that gets further each time must not end after `tries` interruptions."""
    server.plan = [Answer(cut=300_000)] * 6
    assert get(server.url).read_bytes() == OLD
    assert [asked.range for asked in server.asked[1:]] == [
        f"bytes={300_000 * i}-" for i in range(1, 7)
    ]
    assert server.sent == len(OLD)
    assert waits == [0.2] * 6


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EHOSTUNREACH, "No route to host"),
        ssl.SSLError(1, "record layer failure"),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["read1", "begin"])
def test_the_network_goes_away(
    server: Server, where: str, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a change of networks the message blamed the disk."""
    usual, calls = getattr(http.client.HTTPResponse, where), []

    def failing(self: http.client.HTTPResponse, *args: Any) -> Any:
        calls.append(where)
        if len(calls) == 1:
            raise error
        return usual(self, *args)

    monkeypatch.setattr(http.client.HTTPResponse, where, failing)
    assert get(server.url).read_bytes() == OLD
    assert len(server.asked) == 2


@pytest.mark.parametrize("sha256", ["", SHA256])
def test_less_than_announced(server: Server, sha256: str) -> None:
    """urllib takes a connection that ends early for the end of the file."""
    nothing = Answer(cut=0)
    server.plan = [Answer(cut=HALF), nothing, nothing]
    with pytest.raises(CheckpointError, match=r"ended early, 2 times .* 1,300,000 bytes are kept"):
        get(server.url, sha256=sha256)
    assert len(server.asked) == 3
    assert not kept()
    (part,) = kept(".part")
    assert part.read_bytes() == OLD[:HALF]
    path = get(server.url, sha256=sha256)
    assert path.read_bytes() == OLD
    assert server.asked[-1].range == f"bytes={HALF}-"
    assert server.sent == len(OLD)
    assert not kept(".part")


@pytest.mark.parametrize("failing", ["too long", "shifted", "no range", "other mark"])
def test_a_server_that_never_gets_it_right(server: Server, failing: str) -> None:
    """Discarded bytes are not progress: the download was retried forever."""
    server.usual = {
        "too long": Answer(announced=len(OLD) + 1000),
        "shifted": Answer(cut=HALF, shift=7),
        "no range": Answer(cut=HALF, ranges=False),
        "other mark": Answer(cut=HALF),
    }[failing]
    if failing == "other mark":
        server.plan = [
            Answer(cut=HALF + i % 2 * 1000, mark=f'"{i}"', if_range=bool(i % 3)) for i in range(60)
        ]
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        get(server.url)
    assert len(server.asked) < 12
    assert not kept()


def test_a_server_without_ranges(server: Server) -> None:
    """The server sends the whole file again; appended to the first half it would be garbage."""
    server.plan = [Answer(cut=HALF), Answer(ranges=False)]
    assert get(server.url).read_bytes() == OLD
    assert server.asked[1].range == f"bytes={HALF}-"
    assert server.sent == len(OLD) + HALF


def test_a_range_that_begins_elsewhere(server: Server) -> None:
    """A cache that rounds ranges to blocks puts bytes into the file twice."""
    server.plan = [Answer(cut=HALF), Answer(shift=300)]
    assert get(server.url).read_bytes() == OLD
    assert [asked.range for asked in server.asked] == [None, f"bytes={HALF}-", None]


# -- what changes while it is downloaded ------------------------------------------------------


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("mark_is", ["ETag", "Last-Modified"])
@pytest.mark.parametrize("calls", [1, 2])
def test_no_mixture_of_versions(server: Server, calls: int, mark_is: str, if_range: bool) -> None:
    """Half of the old and half of the new weights have the right size and the right header."""
    marks = {
        "ETag": ('"old"', '"new"'),
        "Last-Modified": ("Mon, 01 Jan 2024 00:00:00 GMT", "Tue, 02 Jan 2024 00:00:00 GMT"),
    }
    old, new = marks[mark_is]
    server.plan = [Answer(OLD, mark=old, mark_is=mark_is, cut=HALF)]
    server.usual = Answer(NEW, mark=new, mark_is=mark_is, if_range=if_range)
    if calls == 2:
        server.usual = replace(server.usual, status=503)
        with pytest.raises(CheckpointError, match="503"):
            get(server.url)
        assert [part.read_bytes() for part in kept(".part")] == [OLD[:HALF]]
        server.usual = replace(server.usual, status=0)
    assert get(server.url).read_bytes() == NEW
    assert server.asked[1].headers["if-range"] == old


@pytest.mark.parametrize("mark", ["", 'W/"old"'])
def test_without_a_reliable_mark_nothing_is_continued(server: Server, mark: str) -> None:
    """A weak ETag stays the same for contents that are not the same bytes."""
    server.plan = [Answer(OLD, mark=mark, cut=HALF)]
    server.usual = Answer(NEW, mark=mark, if_range=False)
    assert get(server.url).read_bytes() == NEW
    assert [asked.range for asked in server.asked] == [None, None]


def test_a_continuation_without_a_mark(server: Server) -> None:
    """A 206 need not repeat Last-Modified; the third piece is continued like the second."""
    when = "Mon, 01 Jan 2024 00:00:00 GMT"
    first = Answer(mark=when, mark_is="Last-Modified", cut=HALF)
    bare = Answer(mark=when, mark_is="X-Nothing", cut=700_000)
    server.plan = [first, bare, replace(bare, cut=None)]
    assert get(server.url).read_bytes() == OLD
    assert server.asked[2].range == f"bytes={HALF + 700_000}-"
    assert server.sent == len(OLD)


def test_an_old_part_does_not_spoil_a_published_file(server: Server) -> None:
    """A part of another version, with the same mark, would fail today and every day after."""
    nothing = Answer(cut=0)
    server.plan = [Answer(NEW, cut=HALF), nothing, nothing]
    with pytest.raises(CheckpointError, match="kept and will be continued"):
        get(server.url, sha256=SHA256)
    assert get(server.url, sha256=SHA256).read_bytes() == OLD
    assert [asked.range for asked in server.asked[-2:]] == [f"bytes={HALF}-", None]


def test_the_mark_is_never_newer_than_the_part(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between the new mark and the new part, the old part counted as the new version."""
    server.plan = [Answer(OLD, mark='"old"', cut=HALF)]
    server.usual = Answer(NEW, mark='"new"')
    usual = Path.open
    opened: list[Path] = []

    def stopping(self: Path, *args: Any, **options: Any) -> Any:
        if self.name.endswith(".part"):
            opened.append(self)
            if len(opened) == 2:
                raise KeyboardInterrupt
        return usual(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", stopping)
        with pytest.raises(KeyboardInterrupt):
            get(server.url)
    assert get(server.url).read_bytes() == NEW


# -- what was published, and what was not -----------------------------------------------------


@pytest.mark.parametrize("digits", [8, 64])
def test_another_content_than_published(server: Server, digits: int) -> None:
    """A file that was replaced on the server is loaded for the one that was measured."""
    came = hashlib.sha256(NEW).hexdigest()
    server.usual = Answer(NEW)
    with pytest.raises(CheckpointError) as caught:
        get(server.url, sha256=SHA256[:digits].upper())
    assert f"sha256 is {came[:digits]}, expected {SHA256[:digits]}." in str(caught.value)
    assert not kept()
    assert not kept(".part")
    server.usual = Answer(OLD)
    assert get(server.url, sha256=SHA256[:digits]).read_bytes() == OLD


def test_another_publication_does_not_cost_the_file(server: Server) -> None:
    """A wrong hash, typed once, must not throw away what was downloaded before."""
    path = get(server.url)
    with pytest.raises(CheckpointError, match="expected 00000000"):
        get(server.url, sha256="0" * 8)
    assert path.read_bytes() == OLD
    asked = len(server.asked)
    assert get(server.url) == path
    assert len(server.asked) == asked


@pytest.mark.parametrize("announced", [HALF, 0])
def test_more_than_announced(server: Server, announced: int) -> None:
    """A length that is too small makes a short file that looks complete."""
    server.usual = Answer(announced=announced)
    with pytest.raises(CheckpointError, match=f"expected {SHA256}"):
        get(server.url, sha256=SHA256)
    assert not kept()
    with pytest.raises(CheckpointError, match="is not a model"):
        get(server.url, check=unusable)
    assert not kept()
    assert not kept(".part")
    server.usual = Answer()
    assert get(server.url, check=Path.stat).read_bytes() == OLD


def test_the_check_sees_all_of_it_before_it_is_kept(server: Server) -> None:
    """A login page that was kept as model.pth is a broken model for ever."""
    seen: list[bytes] = []

    def check(path: Path) -> None:
        assert not kept()
        seen.append(path.read_bytes())
        if b"<html>" in seen[-1]:
            raise CheckpointError(f"{path} is a web page.")

    server.plan = [Answer(b"<html>Please log in</html>")]
    with pytest.raises(CheckpointError, match="is a web page"):
        get(server.url, check=check)
    assert not kept()
    assert get(server.url, check=check).read_bytes() == OLD
    assert seen[1:] == [OLD]
    assert get(f"{server.url}?published", sha256=SHA256, check=unusable).read_bytes() == OLD


def test_the_first_download_is_remembered(server: Server) -> None:
    """Whoever publishes no hash can replace a model without anybody noticing."""
    path = get(server.url)
    path.unlink()
    server.usual = Answer(NEW, mark='"new"')
    with pytest.raises(CheckpointError) as caught:
        get(server.url)
    assert SHA256 in str(caught.value)
    assert hashlib.sha256(NEW).hexdigest() in str(caught.value)
    assert not kept()
    server.usual = Answer()
    assert get(server.url).read_bytes() == OLD


@pytest.mark.parametrize("sha256", ["", SHA256])
@pytest.mark.parametrize("damage", ["changed", "truncated", "emptied", "note lost", "note broken"])
def test_a_damaged_file_is_downloaded_again(server: Server, damage: str, sha256: str) -> None:
    """A disk error or a careless copy gives wrong predictions, or fails until it is deleted."""
    path = get(server.url, sha256=sha256)
    note = path.with_name(f"{path.name}.json")
    match damage:
        case "note lost":
            note.unlink()
        case "note broken":
            note.write_text("[1")
        case _:
            wrong = {"changed": NEW, "truncated": OLD[:-1], "emptied": b""}[damage]
            path.write_bytes(wrong)
            stat = path.stat()
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    assert get(server.url, sha256=sha256).read_bytes() == OLD
    assert len(server.asked) == 2
    assert get(server.url, sha256=sha256).read_bytes() == OLD
    assert len(server.asked) == 2


def test_a_touched_file_is_not_downloaded_again(server: Server) -> None:
    """Copying a cache to another machine changes times and nothing else."""
    path = get(server.url)
    os.utime(path, (0, 0))
    assert get(server.url) == path
    assert len(server.asked) == 1


def test_too_large(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that never stops sending fills the disk, and keeps it full."""
    monkeypatch.setattr(module, "_LARGEST", 2_000_000)
    for answer in (Answer(), Answer(announced=-1), Answer(chunked=True)):
        server.usual = answer
        with pytest.raises(CheckpointError, match="larger than any ResNeXt; it was not kept"):
            get(server.url)
        assert sum(path.stat().st_size for path in cache_folder().rglob("*")) < 100_000
