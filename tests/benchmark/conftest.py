"""Fixtures that the tests of `bench` share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from benchmark_cases import FOUR, Choose, made
from oracles import originals

from resnext import ResNeXt
from resnext.benchmark import Benchmark, bench, timing
from resnext.benchmark.contenders import KnownContender
from resnext.inference import search
from resnext.inference.engines import onnx_export as exporting

assert originals  # so that torchvision can be imported


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal wide enough that no table cell wraps."""
    monkeypatch.setenv("COLUMNS", "150")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """A new cache, small matrices for the peak, and each network exported once."""
    graphs: dict[Any, Any] = {}

    def once(network: ResNeXt, size: int) -> Any:
        key = network.config, size  # `fill` gives all of a config the same weights
        if key not in graphs:
            graphs[key] = export(network, size)
        return graphs[key]

    export = exporting.export_graph
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "export_graph", once)
        patch.setattr(search, "_SECONDS", 0.01)
        patch.setenv("RESNEXT_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(timing, "_SIDE", 128)
        yield patch


@pytest.fixture(scope="module")
def real(home: pytest.MonkeyPatch) -> Benchmark:
    """A real run of every contender, in fp32, which every processor supports."""
    return bench(made(FOUR, 32), precision="fp32", batches=[2], seconds=0.02, memory=False)


def _replaced(known: KnownContender | None, opener: Any) -> KnownContender:
    """A contender in fp32 that another function opens."""
    return KnownContender(("fp32",), opener, known.ways if known else ("",))


@pytest.fixture
def only(home: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> Choose:
    """Chooses the contenders."""

    def choose(**openers: Any) -> None:
        known = timing.CONTENDERS
        table = {
            who: known[who] if opener is None else _replaced(known.get(who), opener)
            for who, opener in openers.items()
        }
        monkeypatch.setattr(timing, "CONTENDERS", table)

    return choose


@pytest.fixture
def now(home: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only the contenders advance; a matrix product takes an eighth of a second."""
    now = [0.0]

    def product(precision: str) -> Callable[[], None]:
        def run() -> None:
            now[0] += 0.125

        return run

    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing, "_matrix_product", product)
    return now
