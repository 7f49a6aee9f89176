"""Fixtures that the tests of `optimize` share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_network
from inference_cases import CARD, CONFIG, Clock, pictures

from resnext import ResNeXt, save
from resnext.inference import search
from resnext.inference.engines import builder
from resnext.inference.engines.base import EngineConfig, InputKind
from resnext.inference.engines.builder import EngineBuilder
from resnext.inference.engines.torch import weights_digest
from resnext.inference.runner import Session
from resnext.inference.search import Search

_GRAPHS: dict[str, Any] = {}


@pytest.fixture
def quick_search(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new cache, as few rounds as possible, and each network exported once for all tests."""
    monkeypatch.setattr(search, "_SECONDS", 0.0)
    monkeypatch.setattr(search, "_WIDTHS", ())
    export = builder.export_graph

    def exported(network: ResNeXt, size: int) -> Any:
        key = f"{network.config} {size} {weights_digest(network)}"
        if key not in _GRAPHS:
            _GRAPHS[key] = export(network, size)
        return _GRAPHS[key]

    monkeypatch.setattr(builder, "export_graph", exported)


@pytest.fixture
def network() -> ResNeXt:
    """The usual network."""
    return tiny_network(CONFIG, CARD)


@pytest.fixture
def file(network: ResNeXt, tmp_path: Path) -> Path:
    """The usual network as a file."""
    save(network, tmp_path / "pets.safetensors")
    return tmp_path / "pets.safetensors"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures of each class."""
    return pictures(tmp_path / "photos", 3)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replaces the timing of the search."""
    clock = Clock()
    build = EngineBuilder.session

    def tagged(self: EngineBuilder, form: EngineConfig, kind: InputKind = "images") -> Session:
        session = build(self, form, kind)
        clock.tag(session, form)
        return session

    def seconds(self: Search, session: Session) -> float:
        session(self.x)
        form = clock.forms.get(id(session))
        return 1.0 if form is None else clock.seconds(form)

    monkeypatch.setattr(EngineBuilder, "session", tagged)
    monkeypatch.setattr(Search, "seconds", seconds)
    return clock
