"""Downloads from servers, disks and processes that fail in the middle."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import resource
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from resnext.errors import CheckpointError, ResNeXtError
from resnext.system import download as module
from resnext.system.download import cache_folder, fetch
from resnext.system.progress import PlainReporter

OLD = Random(1).randbytes(2_500_000)
NEW = Random(2).randbytes(2_500_000)
HALF = 1_300_000
SHA256 = hashlib.sha256(OLD).hexdigest()
SMALL = b"small"


@dataclass(frozen=True)
class Answer:
    """What a server does with one request; by default what it should."""

    content: bytes = OLD
    status: int = 0
    """Another one than that of a download."""
    mark: str = '"old"'
    mark_is: str = "ETag"
    cut: int | None = None
    """The bytes after which the connection ends."""
    end: str = "close"
    """How it ends: `close`, `reset`, or `stall`, which is never."""
    silent: bool = False
    """Whether not even a status is sent before it ends."""
    announced: int | None = None
    """The length of the whole file, if it is not told truly."""
    chunked: bool = False
    ranges: bool = True
    if_range: bool = True
    """Whether If-Range is obeyed."""
    shift: int = 0
    """How many bytes too early a range begins."""
    headers: dict[str, str] = field(default_factory=dict)


class Asked(NamedTuple):
    """A request, as the server got it."""

    path: str
    headers: dict[str, str]
    sent: list[int]

    @property
    def range(self) -> str | None:
        """What was asked for."""
        return self.headers.get("range")


class Server(ThreadingHTTPServer):
    """Answers as planned, and then as usual."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.usual = Answer()
        self.plan: list[Answer] = []
        self.asked: list[Asked] = []
        self.released = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.url = f"{self.address}/models/model.pth"

    @property
    def sent(self) -> int:
        """The bytes of all contents together."""
        return sum(sum(asked.sent) for asked in self.asked)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about clients that went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Does what the server's plan says."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""

    def do_GET(self) -> None:
        """Send, or fail."""
        asked = Asked(self.path, {k.lower(): v for k, v in self.headers.items()}, [])
        self.server.asked.append(asked)
        answer = self.server.plan.pop(0) if self.server.plan else self.server.usual
        self.close_connection = True
        if answer.silent:
            return self.finish_with(answer.end)
        start, content = 0, answer.content
        same = asked.headers.get("if-range") in (None, answer.mark) or not answer.if_range
        if answer.ranges and not answer.status and asked.range and same:
            start = int(asked.range.removeprefix("bytes=").rstrip("-")) - answer.shift
        total = len(content) if answer.announced is None else answer.announced
        status = answer.status or (206 if start else 200)
        if start and start >= len(content):
            status, start = 416, 0
        if status >= 300:
            content, total = b"an error", len(b"an error")
        self.send_response(status)
        self.send_header("Connection", "close")
        if answer.mark and status < 300:
            self.send_header(answer.mark_is, answer.mark)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{total}")
        if answer.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif total >= 0:
            self.send_header("Content-Length", str(total - start))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        content = content[start:]
        data = content if answer.cut is None else content[: answer.cut]
        asked.sent.append(len(data))
        if answer.chunked:
            self.wfile.write(b"%x\r\n" % len(content))
        self.wfile.write(data)
        self.wfile.flush()
        if answer.chunked and data == content:
            self.wfile.write(b"\r\n0\r\n\r\n")
        return self.finish_with(answer.end, len(data))

    def finish_with(self, end: str, sent: int = 0) -> None:
        """End the connection."""
        if end == "stall":
            self.server.released.wait(20)
        if end == "reset":
            while sum(part.stat().st_size for part in kept(".part")) < sent - 10_000:
                time.sleep(0.01)  # a reset destroys what is still on its way
            time.sleep(0.02)
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()


@contextmanager
def serving() -> Iterator[Server]:
    """A server, as long as it is needed."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    """One that answers as its plan says."""
    with serving() as one:
        yield one


@pytest.fixture(autouse=True)
def waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """An empty cache, no settings, and no waiting: the seconds that would have been waited."""
    for name in os.environ:
        if name.lower().endswith("_proxy") or name.startswith(("HF_", "RESNEXT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RESNEXT_HOME", str(tmp_path / "cache"))
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        assert len(waited) < 30, "it is tried for ever"

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep))
    return waited


def get(url: str, **options: Any) -> Path:
    """`fetch`, less patient."""
    return fetch(url, **{"timeout": 5.0, "tries": 2, **options})


def kept(suffix: str = ".pth") -> list[Path]:
    """The files in the cache that end so."""
    return sorted(cache_folder().rglob(f"*{suffix}"))


def unusable(path: Path) -> None:
    """A check that nothing passes."""
    raise CheckpointError(f"{path} is no model.")


# -- what works -------------------------------------------------------------------------------


def test_a_file_is_downloaded_once(server: Server, waits: list[float]) -> None:
    """A model of 300 MB at every start of a program, or a request to somebody's server."""
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
    """Every second model on the Hub is called model.safetensors."""
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


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("end", ["close", "reset", "stall"])
@pytest.mark.parametrize("cut", [HALF, 70_000])
def test_a_broken_download_is_continued(
    server: Server, cut: int, end: str, chunked: bool, waits: list[float]
) -> None:
    """Whoever loses the connection every minute never gets a file that starts anew each time."""
    server.plan = [Answer(cut=cut, end=end, chunked=chunked)]
    assert get(server.url, timeout=0.4 if end == "stall" else 5.0).read_bytes() == OLD
    lost = server.sent - len(OLD)
    assert 0 <= lost < (10_000 if end == "reset" else 1)
    assert [asked.range for asked in server.asked] == [None, f"bytes={cut - lost}-"]
    assert server.asked[1].headers["if-range"] == '"old"'
    assert not kept(".part")
    assert waits == [0.2]


@pytest.mark.parametrize("end", ["close", "reset", "stall"])
def test_a_server_that_says_nothing(server: Server, end: str, waits: list[float]) -> None:
    """A server that accepts and never answers holds a program for ever."""
    timeout = 0.4 if end == "stall" else 5.0
    server.plan = [Answer(silent=True, end=end)]
    assert get(server.url, timeout=timeout).read_bytes() == OLD
    server.plan = [Answer(silent=True, end=end)] * 2
    with pytest.raises(CheckpointError, match=r"model\.pth\?other cannot be downloaded.* 2 times"):
        get(f"{server.url}?other", timeout=timeout)
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
    """A laptop that changes networks was told that its disk is broken."""
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
    """What is thrown away is no progress: such a server was asked for ever."""
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
    """It sends all again, which appended to the half that is there is no file."""
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
    with pytest.raises(CheckpointError, match="is no model"):
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


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_refusal_is_final(server: Server, status: int, waits: list[float]) -> None:
    """What is not there does not come by asking again."""
    server.usual = Answer(status=status)
    with pytest.raises(CheckpointError, match=f"{server.url} cannot be .* answers {status} "):
        get(server.url)
    assert len(server.asked) == 1
    assert not waits
    assert not kept()


@pytest.mark.parametrize("status", [500, 503, 429, 408, 416])
def test_a_bad_moment_is_not(server: Server, status: int, waits: list[float]) -> None:
    """Servers that are busy or restarted say so, and mean: later."""
    server.plan = [Answer(status=status)]
    assert get(server.url).read_bytes() == OLD
    assert waits == [0.4]
    server.usual = Answer(status=status)
    with pytest.raises(CheckpointError, match=f"answers {status} .*, 3 times in a row"):
        get(f"{server.url}?other", tries=3)
    assert len(server.asked) == 5
    assert waits == [0.4, 0.4, 0.8]


def test_a_part_that_is_already_complete(server: Server) -> None:
    """Stopped just before the end, it has nothing left to ask for: 416, today and every day."""
    server.plan = [Answer(cut=HALF), Answer(status=404)]
    with pytest.raises(CheckpointError, match="404"):
        get(server.url)
    (part,) = kept(".part")
    part.write_bytes(OLD)
    assert get(server.url).read_bytes() == OLD
    assert server.asked[2].range == f"bytes={len(OLD)}-"
    assert not kept(".part")


@pytest.mark.parametrize(
    "target",
    [
        "http://example.com/model.pth",
        "http://127.0.0.2/model.pth",
        "http://localhost.example.com/model.pth",
        "//example.com/model.pth",
        "ftp://127.0.0.1/model.pth",
        "file:///etc/passwd",
        "data:text/plain,model",
        "https:///model.pth",
    ],
)
def test_a_redirection_that_is_not_followed(
    server: Server, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sits on the line replaces the model as soon as one step is not encrypted."""
    connect, ports = socket.create_connection, []

    def create_connection(address: tuple[str, int], *args: Any, **options: Any) -> Any:
        ports.append(address[1])
        return connect(address, *args, **options)

    monkeypatch.setattr(socket, "create_connection", create_connection)
    server.usual = Answer(status=302, headers={"Location": target})
    with pytest.raises(CheckpointError, match=r"only https URLs are|cannot be downloaded|no host"):
        get(server.url)
    assert len(server.asked) == 1
    assert ports == [server.server_port]
    assert not kept()


def test_a_redirection_to_itself(server: Server) -> None:
    """A server that wants a cookie redirects for ever."""
    server.usual = Answer(status=302, headers={"Location": "/models/model.pth"})
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        get(server.url)
    assert len(server.asked) < 15


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/model.pth",
        "http://127.0.0.1@example.com/model.pth",
        "http://127.0.0.1.example.com/model.pth",
        "http://10.0.0.1/model.pth",
        "HTTP://example.com/model.pth",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "ftp://127.0.0.1/model.pth",
        "data:text/plain,model",
        "javascript:1",
        "https://",
        "https:///model.pth",
        "https://[::1/model.pth",
        "https://a..b/model.pth",
        "http://127.0.0.1:port/model.pth",
        "http://127.0.0.1:99999/model.pth",
        "http://127.0.0.1:-1/model.pth",
        "//example.com/model.pth",
        "model.pth",
        "\0",
        "",
    ],
)
def test_no_such_url(url: str, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    """`load` of somebody's text must read no local file, and fail with an error of ours."""
    monkeypatch.setattr(socket, "create_connection", None)
    with pytest.raises(CheckpointError):
        get(url)
    assert not waits
    assert not kept("")


@pytest.mark.parametrize("name", ["RESNEXT_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline(server: Server, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster's nodes every attempt to connect waits for minutes."""
    monkeypatch.setenv(name, "1")
    with pytest.raises(CheckpointError, match=r"not in the cache .* downloads are off"):
        get(server.url)
    assert not server.asked
    monkeypatch.setenv(name, "0")
    path = get(server.url)
    monkeypatch.setenv(name, "1")
    server.asked.clear()
    assert get(server.url) == path
    assert get(server.url, sha256=SHA256) == path
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="downloads are off"):
        get(server.url)
    assert not server.asked


# -- disks ------------------------------------------------------------------------------------


def test_a_home_that_is_no_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache_folder that cannot be written to ends in a traceback of filelock."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESNEXT_HOME", str(tmp_path / "file" / "cache"))
    with pytest.raises(CheckpointError, match=r"cannot be kept in .*file/cache"):
        get(server.url)
    assert not server.asked


@pytest.mark.parametrize("failing", ["mkdir", "open", "replace"])
def test_a_home_that_cannot_be_written(
    server: Server, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails there, it is an error of ours, and no half of a file stays."""

    def fail(*args: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, failing, fail)
        with pytest.raises(CheckpointError, match=r"cannot be (kept|written).* Permission"):
            get(server.url)
    assert not kept()
    assert get(server.url).read_bytes() == OLD


def test_a_full_disk(server: Server) -> None:
    """What fits is kept, and continued when there is room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, hard))
    try:
        with pytest.raises(CheckpointError, match=r"cannot be kept in .* File too large"):
            get(server.url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not kept()
    assert len(server.asked) == 1
    assert get(server.url).read_bytes() == OLD
    assert server.asked[1].range == f"bytes={HALF}-"


@pytest.mark.parametrize(
    "rest",
    [
        "..",
        ".",
        "",
        "/",
        "a/../../../../m.pth",
        "..%2f..%2f..%2fm.pth",
        "%2e%2e",
        "..\\..\\m.pth",
        ".hidden",
        "m.pth?name=../../../x",
        "m.pth#../../../x",
        "a b.pth",
        "C:m.pth",
        "nul\0m.pth",
        "m\n.pth",
        "~root",
        "$HOME",
        "Löwe 🦁.pth",
        "%F0%9F%A6%81.pth",
        "獅" * 300 + ".pth",
        "m" * 5000 + ".pth",
        "-rf",
        "*",
    ],
    ids=lambda rest: ascii(rest[:24]),
)
def test_names_stay_in_the_cache(server: Server, tmp_path: Path, rest: str) -> None:
    """A URL that ends in dots writes somewhere else; one in Unicode fails, or is too long."""
    server.usual = Answer(SMALL)
    url = f"{server.address}/{rest}"
    path = get(url)
    assert path.read_bytes() == SMALL
    assert path.resolve().parent.parent == cache_folder().resolve()
    assert path.name.isascii()
    assert path.name.strip(". ") == path.name
    assert len(path.name) <= 120
    assert path.suffix == ".pth" or not rest.endswith(".pth")
    assert [file.name for file in tmp_path.iterdir()] == ["cache"]
    assert get(url) == path
    assert len(server.asked) == 1
    assert server.asked[0].path.isascii()


# -- proxies and tokens -----------------------------------------------------------------------


def test_proxies_of_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a company's proxy nothing else can be reached."""
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:2")
    url = "http://localhost:1/model.pth"
    assert get(url).read_bytes() == OLD
    assert [asked.path for asked in server.asked] == [url]
    (handler,) = (
        h for h in vars(module._opener())["handlers"] if isinstance(h, urllib.request.ProxyHandler)
    )
    assert vars(handler)["proxies"] == {"http": server.address, "https": "http://127.0.0.1:2"}
    monkeypatch.setenv("no_proxy", "localhost")
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        get(f"{url}?directly")
    assert len(server.asked) == 1


def test_the_token_is_for_the_hub_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that follows a redirection, or is sent to everybody, is everybody's."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    with serving() as other:
        server.plan = [Answer(status=302, headers={"Location": f"{other.address}/blob"})]
        assert get(server.url).read_bytes() == OLD
        assert server.asked[0].headers["authorization"] == "Bearer hf_secret"
        assert get(other.url).read_bytes() == OLD
        assert [asked.path for asked in other.asked] == ["/blob", "/models/model.pth"]
        assert not any("hf_secret" in str(asked) for asked in other.asked)


@pytest.mark.parametrize(
    ("endpoint", "sent"),
    [
        ("{}", True),
        ("{}/", True),
        ("{}/models", True),
        ("{}/mod", False),
        ("{:.17}", False),
        ("https://huggingface.co", False),
        ("", False),
        (None, False),
    ],
)
def test_who_gets_the_token(
    server: Server, endpoint: str | None, sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://huggingface.co.example.com begins like the Hub, and everything begins with ""."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    if endpoint is not None:
        monkeypatch.setenv("HF_ENDPOINT", endpoint.format(server.address))
    get(server.url)
    assert server.asked[0].headers.get("authorization") == ("Bearer hf_secret" if sent else None)


# -- several processes ------------------------------------------------------------------------

PROCESS = """
import sys
from resnext.system.download import fetch
print("ready", flush=True)
sys.stdin.readline()
print(fetch(sys.argv[1], timeout=10, tries=2), flush=True)
"""


@contextmanager
def fetching(url: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, which fetches as soon as it is told to."""
    command = [sys.executable, "-c", PROCESS, url]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[str]) -> None:
    """Let it begin."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def said(process: subprocess.Popen[str]) -> str:
    """The next line it prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def wait_until(condition: Callable[[], object]) -> None:
    """Wait, but not for ever."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_two_processes_download_once(server: Server) -> None:
    """Eight ranks that start together write into one file, or download it eight times."""
    server.plan = [Answer(cut=HALF, end="stall")]
    with fetching(server.url) as one, fetching(server.url) as two:
        assert said(one) == said(two) == "ready"
        tell(one)
        tell(two)
        wait_until(lambda: server.asked and sum(server.asked[0].sent) == HALF)
        time.sleep(0.3)  # both are at it now
        assert len(server.asked) == 1
        assert not kept()
        server.released.set()
        paths = {said(one), said(two)}
        assert one.wait(10) == two.wait(10) == 0
    (path,) = paths
    assert Path(path).read_bytes() == OLD
    assert [asked.range for asked in server.asked] == [None, f"bytes={HALF}-"]
    assert server.sent == len(OLD)
    assert str(get(server.url)) == path
    assert len(server.asked) == 2


def test_a_killed_process(server: Server) -> None:
    """A job that runs out of memory in the middle leaves half a file, and a lock."""
    server.plan = [Answer(cut=HALF, end="stall")]
    with fetching(server.url) as process:
        assert said(process) == "ready"
        tell(process)
        wait_until(lambda: kept(".part") and kept(".part")[0].stat().st_size > HALF - 10_000)
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    assert not kept()
    (part,) = kept(".part")
    size = part.stat().st_size
    assert get(server.url).read_bytes() == OLD
    assert [asked.range for asked in server.asked] == [None, f"bytes={size}-"]
    assert server.sent == len(OLD) + HALF - size


# -- what is shown ----------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [Answer(), Answer(announced=-1), Answer(SMALL), Answer(b"")])
def test_progress(server: Server, answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    """A size of zero, or one that nobody tells, is no reason to fail."""
    server.usual = answer
    path = get(server.url, progress=True)
    assert path.read_bytes() == answer.content
    with pytest.raises(ResNeXtError):
        get(f"{server.url}?other", progress=True, sha256="0" * 64)
    assert "Traceback" not in capsys.readouterr().err


def test_progress_in_a_log(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a slow line, half a minute before the first megabyte was a division by zero."""

    def hasty(show: bool, unit: str) -> PlainReporter:
        plain = PlainReporter(unit)
        plain._interval = -1.0
        return plain

    monkeypatch.setattr(module, "reporter", hasty)
    server.plan = [Answer(cut=HALF), Answer(), Answer(SMALL)]
    assert get(server.url, progress=True).read_bytes() == OLD
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("model.pth: 2/2 MB, ")
    assert all(line.startswith(("model.pth: 1/2 MB, ", "model.pth: 2/2 MB, ")) for line in lines)
    assert get(f"{server.url}?small", progress=True).read_bytes() == SMALL
