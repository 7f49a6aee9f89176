"""From start to end, with real signals to a process of its own; and a model replaced meanwhile."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import LABELS
from helpers import wait_until
from PIL import Image
from serving_cases import WAIT, photo
from serving_process import listens

PROGRAM = Path(__file__).with_name("serve_fake.py")


class Process:
    """A server in a process of its own."""

    def __init__(self, file: Path, settings: dict[str, Any], **more: Any) -> None:
        self.file = file
        command = [sys.executable, str(PROGRAM), str(file), json.dumps(settings)]
        env = {**os.environ, "PYTHONPATH": str(PROGRAM.parent.parent), **more.pop("env", {})}
        self.log = file.with_name("log")
        with self.log.open("w") as log:
            pipes = {"stdout": subprocess.PIPE, "stderr": log, "text": True}
            self.process = subprocess.Popen(command, env=env, **pipes, **more)
        assert self.process.stdout is not None
        self.output = self.process.stdout
        self.first = self.output.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)$", self.first)
        assert found, self.first
        self.port = int(found[1])
        self.opened: list[http.client.HTTPConnection] = []
        self.curl, self.hint = self.output.readline(), self.output.readline()

    def line(self) -> str:
        """The next line that it prints."""
        return self.output.readline().strip()

    def version(self) -> str:
        """The version that answers."""
        status, got = ask(self.open(photo()))
        assert status == 200
        return got["model"]["version"]

    def open(self, body: bytes | None = None, path: str = "/v1/predict") -> Any:
        """A connection with a request on its way."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        self.opened.append(connection)
        connection.request("GET" if body is None else "POST", path, body)
        return connection

    def send(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def end(self) -> int:
        """Its exit code, once it has ended by itself."""
        return self.process.wait(WAIT)


def ask(connection: Any) -> tuple[int, Any]:
    """Status and JSON of a response."""
    with connection.getresponse() as response:
        status, content = response.status, response.read()
    connection.close()
    return status, json.loads(content)


@contextmanager
def running(folder: Path, text: str = "first", **settings: Any) -> Iterator[Process]:
    """A server of a model file with some text."""
    more = {
        name: settings.pop(name) for name in ("env", "pass_fds", "preexec_fn") if name in settings
    }
    (folder / "model.safetensors").write_text(text)
    one = Process(folder / "model.safetensors", settings, **more)
    try:
        yield one
    finally:
        for connection in one.opened:
            connection.close()
        one.process.kill()
        one.process.communicate()


def test_the_terminal_says_how_to_try_it(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        address = f"http://127.0.0.1:{server.port}"
        assert server.first == f"model (6 classes) on torch: {address}\n"
        assert server.curl.strip() == f"curl --data-binary @photo.jpg {address}/v1/predict"
        assert server.hint == "Ctrl-C ends\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_answers_what_was_let_in(tmp_path: Path, number: int) -> None:
    """uvicorn's own end lost images in queues, and ended with the signal's code."""
    with running(tmp_path) as server:
        (tmp_path / "gate").touch()
        waiting = [server.open(photo(10 * i + 1)) for i in range(6)]
        wait_until(lambda: queued(server) == 6)
        server.send(number)
        wait_until(lambda: not listens(server.port))
        (tmp_path / "gate").unlink()
        assert [ask(one)[0] for one in waiting] == [200] * 6
        assert (server.end(), server.line()) == (0, "ended False")


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(20))
def test_the_end_under_load(tmp_path: Path, round_: int) -> None:
    """Whatever the server has answered has arrived; it has answered all that it let in."""
    with running(tmp_path) as server, ThreadPoolExecutor(8) as pool:

        def work() -> int:
            count = 0
            while True:
                try:
                    status, _ = ask(server.open(photo()))
                except (OSError, http.client.HTTPException):  # it no longer listens
                    return count
                count += status == 200

        working = [pool.submit(work) for _ in range(8)]
        wait_until(lambda: server.log.read_text().count("predict 200") > 20 * (round_ + 1))
        server.send(signal.SIGTERM)
        assert server.end() == 0
        answered = sum(one.result() for one in working)
        statuses = re.findall(r"POST /v1/predict (\d+)", server.log.read_text())
        assert set(statuses) <= {"200", "503"}
        assert statuses.count("200") == answered


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        (tmp_path / "gate").touch()
        waiting = server.open(photo())
        wait_until(lambda: queued(server) == 1)
        server.send(signal.SIGTERM)
        wait_until(lambda: not listens(server.port))
        server.send(signal.SIGTERM)
        assert server.end() == 143
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(waiting)


@pytest.mark.parametrize("watch", [False, True])
def test_a_new_version_takes_over(tmp_path: Path, watch: bool) -> None:
    """What the old one has begun, it ends; every answer says who gave it."""
    with running(tmp_path, watch=watch) as server:
        before = server.version()
        (tmp_path / "gate").touch()
        waiting = server.open(photo())
        wait_until(lambda: queued(server) == 1)
        replace_file(server.file, "second")
        if not watch:
            server.send(signal.SIGHUP)
        wait_until(lambda: model(server) != before)
        late = server.open(photo())
        wait_until(lambda: queued(server) == 2)
        (tmp_path / "gate").unlink()
        after = model(server)
        assert ask(waiting)[1]["model"]["version"] == before
        assert ask(late)[1]["model"]["version"] == after
        assert server.line() == f"Version {after} has replaced version {before}"
        server.send(signal.SIGTERM)
        assert server.end() == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("damaged", "is damaged"),
        ("relabelled", "other labels: they differ in new, été"),
        ("worse", "is worse: it loses "),
    ],
)
def test_a_bad_version_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    photos = fill_classes(tmp_path / "photos")
    with running(tmp_path, gate=str(photos)) as server:
        before = server.version()
        replace_file(server.file, text)
        server.send(signal.SIGHUP)
        line = server.line()
        assert line.startswith("The model stays as it is. ")
        assert reason in line
        assert server.version() == before
        replace_file(server.file, "third")
        server.send(signal.SIGHUP)
        assert "has replaced" in server.line()


def test_a_socket_of_systemd(tmp_path: Path) -> None:
    """It listens before the server starts, so that no request is lost when it is replaced."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        early = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
        early.request("GET", "/healthz")
        (tmp_path / "model.safetensors").write_text("first")
        shell = f'exec 3<&{listening.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(WAIT)
        command = ["bash", "-c", shell, "-", sys.executable, str(PROGRAM)]
        command += [str(tmp_path / "model.safetensors"), "{}"]
        env = {
            **os.environ,
            "PYTHONPATH": str(PROGRAM.parent.parent),
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
        }
        process = subprocess.Popen(
            command, env=env, pass_fds=[listening.fileno()], stdout=subprocess.PIPE, text=True
        )
        try:
            with early.getresponse() as response:
                assert response.status == 200
            assert heard.recv(100) == b"READY=1"
            process.send_signal(signal.SIGHUP)
            assert heard.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert heard.recv(100) == b"READY=1"
            process.send_signal(signal.SIGTERM)
            assert heard.recv(100) == b"STOPPING=1"
            assert process.wait(WAIT) == 0
        finally:
            process.kill()
            process.communicate()
            heard.close()
            early.close()


def test_a_terminal_that_is_closed_ends_it(tmp_path: Path) -> None:
    """Its SIGHUP must not leave a server behind that nobody sees."""
    (tmp_path / "model.safetensors").write_text("first")
    ours, theirs = os.openpty()
    command = [sys.executable, str(PROGRAM), str(tmp_path / "model.safetensors"), "{}"]
    env = {**os.environ, "PYTHONPATH": str(PROGRAM.parent.parent)}
    with subprocess.Popen(command, env=env, stdout=theirs, stderr=subprocess.DEVNULL) as process:
        try:
            os.close(theirs)
            text = b""
            while b"Ctrl-C" not in text:
                text += os.read(ours, 1000)
            os.close(ours)
            process.send_signal(signal.SIGHUP)
            process.wait(WAIT)
        finally:
            process.kill()


def fill_classes(folder: Path) -> Path:
    """Images of the brightness of each class."""
    for i, label in enumerate(LABELS):
        path = folder / label
        path.mkdir(parents=True)
        for j in range(5):
            Image.new("RGB", (9, 9), (50 * i + j,) * 3).save(path / f"{j}.png")
    return folder


def replace_file(file: Path, text: str) -> None:
    """Write it beside and rename it, as our own files are written."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


def queued(server: Process) -> int:
    """Images that were let in and are not answered."""
    with server.open(path="/metrics").getresponse() as response:
        found = re.search(r"^resnext_queue_images (\d+)", response.read().decode(), re.MULTILINE)
    assert found
    return int(found[1])


def model(server: Process) -> str:
    """The version that new requests get."""
    return ask(server.open(path="/v1/model"))[1]["version"]
