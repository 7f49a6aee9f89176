"""A model that is replaced while requests are answered."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving_cases import Gated, Served, photo, served

from resnext.card import Card
from resnext.errors import DataError
from resnext.serving.service import Service
from resnext.serving.settings import Settings


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that opens as a fake model."""
    monkeypatch.setattr("resnext.serving.model.open_runner", lambda *_, **__: Gated())
    (tmp_path / "model.safetensors").write_text("0")
    return tmp_path / "model.safetensors"


def reload(server: Served, file: Path, text: str) -> str:
    file.write_text(text)
    assert server.loop is not None
    return server.service.reload(server.loop)


def test_nothing_is_lost_while_models_change(file: Path) -> None:
    """A request that came between two models waited for ever."""
    with served(file) as server, ThreadPoolExecutor(4) as pool:
        versions, stop = {server.service.model.version}, threading.Event()

        def ask() -> set[tuple[int, str]]:
            found = set[tuple[int, str]]()
            while not stop.is_set():
                status, got = server.ask("/v1/predict", photo())
                found.add((status, got["model"]["version"]))
            return found

        asking = [pool.submit(ask) for _ in range(4)]
        for i in range(1, 21):
            assert "has replaced" in reload(server, file, str(i))
            versions.add(server.service.model.version)
        stop.set()
        answers = set[tuple[int, str]]().union(*(one.result() for one in asking))
        assert {status for status, _ in answers} == {200}
        assert {version for _, version in answers} <= versions
        assert len(versions) == 21
        assert server.metric('resnext_reloads_total{outcome="done"}') == 20
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("resnext-engine") == 1


def test_a_model_in_memory_stays() -> None:
    with served() as server:
        assert server.loop is not None
        line = server.service.reload(server.loop)
    assert line == "The model stays as it is. A model in memory cannot be loaded again."


def test_any_failure_keeps_the_model(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines raise errors of many types for damaged files."""
    with served(file) as server:

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("no such operator")

        monkeypatch.setattr("resnext.serving.model.open_runner", fail)
        assert "no such operator" in reload(server, file, "1")
        assert server.ask("/v1/predict", photo())[0] == 200
        assert server.metric('resnext_reloads_total{outcome="refused"}') == 1


def test_the_order_of_labels_counts(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(file) as server:
        labels = server.service.model.labels[::-1]
        other = Gated(Card(labels, server.service.model.card.preprocessing))
        monkeypatch.setattr("resnext.serving.model.open_runner", lambda *_, **__: other)
        assert "their order differs" in reload(server, file, "1")


def test_images_of_the_gate_are_looked_for_at_the_start(file: Path, tmp_path: Path) -> None:
    """Not only when the first new version comes, weeks later."""
    service = Service(file, Settings(gate=tmp_path / "nowhere"))
    loop = asyncio.new_event_loop()
    with pytest.raises(DataError, match="nowhere"):
        service.load(loop)
    loop.close()
