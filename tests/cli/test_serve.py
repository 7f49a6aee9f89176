"""What `resnext serve` says instead of starting, as the page on failures quotes it."""

from __future__ import annotations

import importlib.util
import socket
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from helpers import run_cli

from resnext.serving import run
from resnext.serving.service import Service
from resnext.serving.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "failures.md").read_text()


def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> str:
    """The one line of a server that does not start."""
    code, out, err = run_cli(capsys, monkeypatch, "serve", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    return err.strip()


def test_a_server_that_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is one line; all but the last are said before the model is opened."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RESNEXT_TOKEN", raising=False)
    Path("empty.txt").write_text(" \n")
    model = "photos.safetensors"
    lines = [
        refused(capsys, monkeypatch, model, "--host", "0.0.0.0"),
        refused(capsys, monkeypatch, model, "--token-file", "nowhere.txt"),
        refused(capsys, monkeypatch, model, "--token-file", "empty.txt"),
        refused(capsys, monkeypatch, model, "--port", "70000"),
        refused(capsys, monkeypatch, model, "--max-megabytes", "0"),
        refused(capsys, monkeypatch, model, "--port", "0"),
    ]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        lines.append(refused(capsys, monkeypatch, model, "--port", port).replace(port, "8000"))

    usual = importlib.util.find_spec

    def without_uvicorn(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "uvicorn" else usual(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_uvicorn)
    lines.append(refused(capsys, monkeypatch, model))
    assert [line for line in lines if line not in " ".join(PAGE.split())] == []


def test_limits(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Settings] = []

    async def note(service: Service, sockets: list[socket.socket]) -> None:
        found.append(service.settings)
        for one in sockets:
            one.close()

    monkeypatch.setattr(run, "run", note)
    monkeypatch.setattr(run, "few_arenas", lambda: None)
    limits = ("--max-images", "7", "--max-megabytes", "0.5")
    for more in ((), limits, ("--max-megabytes", "200")):
        assert run_cli(capsys, monkeypatch, "serve", "a.safetensors", "--port", "0", *more)[0] == 0
    usual, small, large = found
    assert (usual.images, usual.body) == (Settings.images, Settings.body)
    assert (small.images, small.body) == (7, 500_000)
    assert large.queue_bytes >= large.body == 200_000_000
