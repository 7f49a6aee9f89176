"""Several processes that download the same file, and progress."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from file_server import (
    HALF,
    OLD,
    SMALL,
    Answer,
    Server,
    get,
    kept,
)
from helpers import wait_until

from resnext.errors import ResNeXtError
from resnext.system import download as module
from resnext.system.progress import PlainReporter

pytestmark = pytest.mark.usefixtures("waits")

# -- several processes ------------------------------------------------------------------------


PROCESS = """
import sys
from resnext.system import download

class Lock(download.FileLock):
    def acquire(self, *args, **options):
        print("locking", flush=True)
        return super().acquire(*args, **options)

download.FileLock = Lock
print("ready", flush=True)
sys.stdin.readline()
print(download.fetch(sys.argv[1], timeout=600, tries=2), flush=True)
"""


@contextmanager
def fetching(url: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, which fetches when it is started."""
    command = [sys.executable, "-c", PROCESS, url]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def start(process: subprocess.Popen[str]) -> None:
    """Let it begin."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def said(process: subprocess.Popen[str]) -> str:
    """The next line it prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_two_processes_download_once(server: Server) -> None:
    """Eight ranks that start together write into one file, or download it eight times."""
    server.plan = [Answer(cut=HALF, end="stall")]
    with fetching(server.url) as one, fetching(server.url) as two:
        assert said(one) == said(two) == "ready"
        start(one)
        start(two)
        wait_until(lambda: server.asked and sum(server.asked[0].sent) == HALF)
        assert said(one) == said(two) == "locking"
        assert len(server.asked) == 1
        assert not kept()
        server.released.set()
        paths = {said(one), said(two)}
        assert one.wait() == two.wait() == 0
    (path,) = paths
    assert Path(path).read_bytes() == OLD
    assert [asked.range for asked in server.asked] == [None, f"bytes={HALF}-"]
    assert server.sent == len(OLD)
    assert str(get(server.url)) == path
    assert len(server.asked) == 2


def test_a_killed_process(server: Server) -> None:
    """A killed job leaves half a file and a lock."""
    server.plan = [Answer(cut=HALF, end="stall")]
    with fetching(server.url) as process:
        assert said(process) == "ready"
        start(process)
        wait_until(lambda: kept(".part") and kept(".part")[0].stat().st_size > HALF - 10_000)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not kept()
    (part,) = kept(".part")
    size = part.stat().st_size
    assert get(server.url).read_bytes() == OLD
    assert [asked.range for asked in server.asked] == [None, f"bytes={size}-"]
    assert server.sent == len(OLD) + HALF - size


# -- what is shown ----------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [Answer(), Answer(announced=-1), Answer(SMALL), Answer(b"")])
def test_progress(server: Server, answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    """A size that is zero or unknown must not fail."""
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
