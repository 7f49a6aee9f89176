"""Replicas behind Ray Serve, on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
from helpers import run_cli, tiny_network, wait_until
from serving_cases import photo, read_response
from serving_process import process

import resnext
from resnext import Card, Preprocessing
from resnext.serving import ray
from resnext.serving.settings import Settings


def test_replicas_need_ray(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, errors = run_cli(capsys, monkeypatch, "serve", tmp_path / "a", "--replicas", 2)
    assert code == 2
    assert "--replicas needs --ray" in errors
    code, _, errors = run_cli(capsys, monkeypatch, "serve", tmp_path / "a", "--ray", "--watch")
    assert code == 2
    assert "leave out --watch" in errors


@pytest.mark.parametrize(("count", "words"), [(1, "1 replica"), (2, "2 replicas")])
def test_the_terminal_says_how_to_try_it(
    count: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address that can be opened, and the token, as without Ray."""
    for name in ("import_module", "signal", "threading"):
        monkeypatch.setattr(ray, name, mock.MagicMock())
    lines: list[str] = []
    settings = Settings(host="0.0.0.0", port=80, token="secret")
    ray.serve_with_ray("a.safetensors", settings, count, lines.append)
    assert lines == [
        f"a.safetensors, {words} on Ray: http://127.0.0.1:80",
        '  curl -H "Authorization: Bearer $RESNEXT_TOKEN" --data-binary @photo.jpg '
        "http://127.0.0.1:80/v1/predict",
        "Ctrl-C ends",
    ]


def replicas(parent: int) -> list[int]:
    """Processes of the parent's group that are replicas."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = status.read_bytes()
            session = os.getsid(int(status.parent.name))
        except OSError:
            continue
        if b"ServeReplica" in command and session == parent:
            found.append(int(status.parent.name))
    return found


@pytest.mark.slow
def test_a_replica_that_is_killed_loses_only_its_own(tmp_path: Path) -> None:
    """500 requests, of which every tenth is cancelled; one of two replicas is killed meanwhile."""
    pytest.importorskip("ray.serve", reason="needs ray[serve]", exc_type=ImportError)
    model = tmp_path / "model.safetensors"
    card = Card(("a", "b", "c"), Preprocessing(size=32, resize=36))
    resnext.save(tiny_network(card=card), model)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ("-m", "resnext", "serve", str(model), "--ray", "--replicas", "2")
    clients, image = 16, photo(7)
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    request = head % len(image) + image
    found: Counter[int] = Counter()
    answers: set[str] = set()

    def ask(number: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
            connection.sendall(request)
            if number % 10 == 9:
                found[0] += 1
                return
            status, _, content = read_response(connection)
            found[status] += 1
            if status == 200:
                answers.add(json.dumps(json.loads(content)["results"]))

    with process(*arguments, "--port", str(port), log=tmp_path / "log") as server:
        assert server.port == port
        with ThreadPoolExecutor(clients) as pool:
            asked = [pool.submit(ask, i) for i in range(500)]
            wait_until(lambda: sum(one.done() for one in asked) > 100)
            both = replicas(server.popen.pid)
            assert len(both) == 2
            os.kill(both[0], signal.SIGKILL)
            for one in asked:
                one.result()
        assert (found[0], sum(found.values())) == (50, 500)
        assert set(found) <= {0, 200, 500, 503}
        assert found[200] >= 450 - clients  # what the killed one was asked at that moment
        assert len(answers) == 1
        wait_until(lambda: len({*replicas(server.popen.pid)} - {both[0]}) == 2)
        ask(0)
        server.popen.terminate()
        assert server.end() == 0, (tmp_path / "log").read_text()
