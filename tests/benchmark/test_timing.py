"""Everybody side by side: the same function, honest numbers, and nobody missing without a word."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import originals
from oracles.recorded import fill
from PIL import Image

from resnext import Card, Preprocessing, ResNeXt, ResNeXtConfig, save
from resnext.benchmark import contenders as peers
from resnext.benchmark import timing as benchmark
from resnext.benchmark.timing import (
    Benchmark,
    BenchmarkRow,
    Contender,
    SpeedRatio,
    bench,
    peak_memory,
)
from resnext.cli.plots import plot_benchmark
from resnext.errors import InputError, UnknownNameError
from resnext.inference import optimize as optimizing
from resnext.inference.engines import onnx_export as exporting
from resnext.summary import summarize

pytestmark = pytest.mark.usefixtures("one_thread")
assert originals.torchvision  # so that it can be imported

TINY = ResNeXtConfig(
    (1, 1), 2, 8, channels=(16, 32), num_stages=2, small_stem=True, num_classes=4, stem_channels=16
)
FOUR = ResNeXtConfig((1, 1, 1, 1), 2, 4, num_classes=4)  # torchvision and timm have it too
PEERS = ["torchvision", "timm", "timm, channels-last", "ONNX Runtime", "OpenVINO"]
Change = Callable[..., None]


def made(config: ResNeXtConfig, size: int) -> ResNeXt:
    """A network that answers differently to different images."""
    network = ResNeXt(config)
    fill(network)
    network.card = Card(("ant", "bee", "cat", "dog"), Preprocessing(size, size))
    return network.eval()


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which no line of a table is folded."""
    monkeypatch.setenv("COLUMNS", "150")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """Plans go into a folder of their own, peaks are of small matrices, graphs are made once."""
    graphs: dict[Any, Any] = {}

    def once(network: ResNeXt, size: int) -> Any:
        key = network.config, size  # `fill` gives all of a config the same weights
        if key not in graphs:
            graphs[key] = export(network, size)
        return graphs[key]

    export = exporting.export_graph
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "export_graph", once)
        patch.setattr(optimizing, "_SECONDS", 0.01)
        patch.setenv("RESNEXT_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(benchmark, "_SIDE", 128)
        yield patch


@pytest.fixture(scope="module")
def real(home: pytest.MonkeyPatch) -> Benchmark:
    """Every contender, for real; in fp32, which every processor has."""
    return bench(made(FOUR, 32), precision="fp32", batches=[2], seconds=0.02, memory=False)


@pytest.fixture
def only(home: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> Change:
    """Choose who takes part."""

    def choose(**openers: Any) -> None:
        known = benchmark.CONTENDERS
        table = {
            who: (("fp32",), opener) if callable(opener) else known[who]
            for who, opener in openers.items()
        }
        monkeypatch.setattr(benchmark, "CONTENDERS", table)

    return choose


def honest(entry: Contender) -> tuple[Callable[[], np.ndarray], str]:
    """The network itself."""
    network, x = entry.network(), torch.from_numpy(entry.images())
    return torch.inference_mode()(lambda: network(x).numpy()), entry.way


def quick(model: Any = None, **options: Any) -> Benchmark:
    """A short run of the tiny network."""
    usual: dict[str, Any] = {"batches": [2], "seconds": 0.005, "memory": False}
    return bench(model or made(TINY, 12), **(usual | options))


# -- everybody --------------------------------------------------------------------------------


def test_everybody_is_there_and_right(real: Benchmark) -> None:
    """Each peer must really run, with our weights: else we would be compared with nothing."""
    assert [(row.who, row.precision, row.note) for row in real.rows] == [
        (who, "fp32", "") for who in [*PEERS, "resnext"]
    ]
    for row in real.rows:
        assert row.difference is not None
        assert row.difference < 1e-4


def test_numbers_are_consistent(real: Benchmark) -> None:
    """Milliseconds, images a second and the fraction of the peak tell of the same calls."""
    macs = summarize(FOUR, 32).macs
    for row in real.rows:
        assert 0 < row.p50 <= row.p99
        assert row.images_per_second >= 0.5 * 1000 * row.batch / row.p99
        assert row.fraction == pytest.approx(
            2 * macs * row.images_per_second / (real.peaks["fp32"] * 1e9)
        )
        assert 0 < row.fraction < 1.5
        assert row.memory is None


def test_what_people_and_programs_read(real: Benchmark) -> None:
    """The table names machine and versions; the dictionary is JSON and loses nothing."""
    table = real.table()
    assert real.machine in table
    assert f"torch {torch.__version__}" in table
    for row in real.rows:
        assert row.who in table
        assert f"{row.images_per_second:,.1f}" in table
    values = json.loads(json.dumps(real.to_dict()))
    ratios = values.pop("ratios")
    assert (
        Benchmark(**{**values, "rows": tuple(BenchmarkRow(**row) for row in values["rows"])})
        == real
    )
    assert [SpeedRatio(**ratio) for ratio in ratios] == list(real.ratios())


def test_narrow_terminals(real: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is wider than the terminal, and numbers are not cut."""
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, real.table().splitlines())) <= 80
    assert all(f"{row.images_per_second:,.1f}" in real.table() for row in real.rows)


def test_int8(home: pytest.MonkeyPatch, only: Change, tmp_path: Path) -> None:
    """OpenVINO's own 8 bits are calibrated with the images given, and have no peak."""
    rng = np.random.default_rng(0)
    for i in range(8):
        path = tmp_path / "data" / ("ant", "bee", "cat", "dog")[i % 4] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)).save(path)
    only(OpenVINO=None)
    got = quick(made(FOUR, 32), precision="int8", data=tmp_path / "data")
    (row,) = got.rows
    assert (row.precision, row.note, row.fraction) == ("int8", "", None)
    assert row.images_per_second > 0
    assert row.difference is not None
    assert 1e-5 < row.difference < 0.5
    assert got.peaks == {}


# -- who does not count -----------------------------------------------------------------------


def test_wrong_answers_do_not_count(only: Change) -> None:
    """A peer that computes something else must be noted, and we must not be compared with it."""

    def swapped(entry: Contender) -> Any:
        run, how = honest(entry)
        return lambda: run()[::-1], how

    def short(entry: Contender) -> Any:
        run, how = honest(entry)
        return lambda: run()[:1], how

    def slightly(entry: Contender) -> Any:
        run, how = honest(entry)
        return lambda: run() * 1.002, how

    def nan(entry: Contender) -> Any:
        run, how = honest(entry)
        return lambda: run() * np.nan, how

    only(swapped=swapped, short=short, slightly=slightly, nan=nan, honest=honest, resnext=honest)
    got = quick()
    notes = {row.who: row.note for row in got.rows}
    assert notes.pop("honest") == notes.pop("resnext") == ""
    assert len(notes) == 4
    assert all(note.startswith("wrong: answers ") for note in notes.values())
    assert [ratio.peer for ratio in got.ratios()] == ["honest"]
    assert "wrong: answers " in got.table()


def test_networks_a_library_does_not_have(only: Change) -> None:
    """It is said why, and nothing else stops."""
    only(torchvision=None, timm=None, resnext=honest)
    notes = {row.who: row.note for row in quick().rows}
    assert notes == {
        "torchvision": "torchvision has networks of four stages, not 2.",
        "timm": "timm has networks of four stages, not 2.",
        "resnext": "",
    }


def test_what_is_missing_or_broken(only: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed, not importable and failing later are three different things."""

    def fails(entry: Contender) -> Any:
        def run() -> Any:
            raise ArithmeticError("no such\nthing")

        return run, ""

    real_import = peers.import_module

    def broken(name: str) -> Any:
        if name == "timm":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real_import(name)

    for name in ("torchvision", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(peers, "import_module", broken)
    only(torchvision=None, timm=None, OpenVINO=None, unlucky=fails, resnext=honest)
    got = quick()
    assert {row.who: row.note for row in got.rows} == {
        "torchvision": "not installed",
        "timm": "cannot be imported: operator torchvision::nms does not exist",
        "OpenVINO": "not installed",
        "unlucky": "failed: no such",
        "resnext": "",
    }
    assert got.ratios() == ()
    assert "not installed" in got.table()


def test_without_the_exporter(only: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that need a graph say what is missing to make one."""
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    only(**{"ONNX Runtime": None})
    assert "onnxscript" in quick().rows[0].note


# -- fair play --------------------------------------------------------------------------------


def test_they_take_turns(only: Change) -> None:
    """A machine that slows down for a while must hit everybody."""
    order: list[str] = []

    def logged(entry: Contender) -> Any:
        run, how = honest(entry)

        def noted() -> Any:
            order.append(entry.who)
            return run()

        return noted, how

    only(a=logged, b=logged, resnext=logged)
    quick(seconds=0.001)
    turns = [who for i, who in enumerate(order) if i == 0 or order[i - 1] != who]
    assert turns == ["a", "b", "resnext"] * (len(turns) // 3)
    assert len(turns) >= 15


def test_the_best_way_of_a_peer_is_taken(only: Change) -> None:
    """OpenVINO is run in several ways, and only its best may be compared with."""

    def by_way(entry: Contender) -> Any:
        run, _ = honest(entry)
        pause = 0.0 if entry.way == "THROUGHPUT, shared out" else 0.004

        def slow() -> Any:
            time.sleep(pause)
            return run()

        return slow, entry.way

    only(OpenVINO=by_way)
    assert [row.how for row in quick(batches=[3]).rows] == ["THROUGHPUT, shared out"]
    assert [row.how for row in quick(batches=[1]).rows] == ["LATENCY, whole"]


def test_same_images_and_threads(
    only: Change, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A peer with fewer threads or smaller images than we have would be no peer."""
    seen: list[tuple[int, str, tuple[int, ...]]] = []

    def looked(entry: Contender) -> Any:
        seen.append((entry.threads, os.environ["OMP_NUM_THREADS"], entry.images().shape))
        return honest(entry)

    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    only(a=looked, resnext=looked)
    file = tmp_path / "m.safetensors"
    save(made(TINY, 20), file)
    got = quick(file, batches=[3, 1])
    assert seen == [(1, "1", (1, 3, 20, 20))] * 2 + [(1, "1", (3, 3, 20, 20))] * 2
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert (got.name, got.size, got.threads) == (str(file), 20, 1)


def test_the_model_is_left_alone(only: Change) -> None:
    """Timing a network that is being trained must not change it."""
    network = ResNeXt(TINY).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    only(resnext=honest)
    assert quick(network).size == 32
    assert network.training
    assert network.card is None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_random_weights_hide_nothing(only: Change) -> None:
    """Answers of a named variant are neither equal nor huge, so that a difference can be seen."""
    only(resnext=honest)
    got = quick("resnext11_8x16d")
    assert (got.name, got.size, got.rows[0].note) == ("resnext11_8x16d", 32, "")
    network = benchmark.classifier_for("resnext11_8x16d")
    with torch.no_grad():
        logits = network(torch.randn(4, 3, 32, 32))
    assert 0.01 < float(logits.std(0).mean()) < 100


def test_memory_is_that_of_the_engine_alone(only: Change, tmp_path: Path) -> None:
    """A fresh process, without torch where the engine does not need it."""
    course = benchmark._BenchmarkRun(tmp_path, ["fp32"], 1, None, False, benchmark.reporter(False))
    course.lay_out(made(FOUR, 32), 2)
    entry = Contender(tmp_path, "ONNX Runtime", "fp32", 2, 1)
    benchmark.CONTENDERS["ONNX Runtime"][1](entry)  # the graph is made here
    found = peak_memory(entry)
    assert found is not None
    assert 20 < found < 200
    assert peak_memory(Contender(tmp_path / "nowhere", "ONNX Runtime", "fp32", 2, 1)) is None


# -- numbers and pictures ---------------------------------------------------------------------


@pytest.fixture
def written() -> Benchmark:
    """Rows made up by hand."""
    rows = (
        BenchmarkRow("torchvision", "fp32", 1, 10, 100, 120, 0.5, how="NCHW"),
        BenchmarkRow("OpenVINO", "fp32", 1, 40, 25, 30, 0.8, how="LATENCY, whole batch"),
        BenchmarkRow("timm", "fp32", 1, 90, 12, 13, 0.9, note="wrong: answers differ by 0.5"),
        BenchmarkRow(
            "resnext", "fp32", 1, 50, 20, 21, 0.9, how="openvino, 1 × 1 image, groups of 16"
        ),
        BenchmarkRow("torchvision", "fp32", 16, 20, 800, 900, 0.5, 900.0, how="NCHW"),
        BenchmarkRow("ONNX Runtime", "fp32", 16, note="not installed"),
        BenchmarkRow("OpenVINO", "fp32", 16, 80, 200, 210, 0.8, 300.0, how="LATENCY, whole batch"),
        BenchmarkRow("OpenVINO", "bf16", 16, 240, 66, 70, 0.4, 310.0),
        BenchmarkRow("OpenVINO", "int8", 16, 300, 53, 59, None, 210.0),
        BenchmarkRow("resnext", "fp32", 16, 78, 205, 215, 0.75, 280.0),
        BenchmarkRow("resnext", "bf16", 16, 252, 63, 70, 0.42, 300.0),
        BenchmarkRow("resnext", "int8", 16, 420, 38, 40, None, 200.0),
    )
    versions = {"resnext": "0.1.0", "torch": "2.13.0"}
    peaks = {"fp32": 100.0, "bf16": 400.0}
    return Benchmark("Some Processor", 2, versions, "resnext50_32x4d", 224, peaks, rows)


def test_ratios_by_hand(written: Benchmark) -> None:
    """Only peers of the same batch and precision that count, and only the best of them."""
    assert written.ratios() == (
        SpeedRatio(1, "fp32", "OpenVINO", 1.25),
        SpeedRatio(16, "fp32", "OpenVINO", 0.975),
        SpeedRatio(16, "bf16", "OpenVINO", 1.05),
        SpeedRatio(16, "int8", "OpenVINO", 1.4),
    )
    fastest = written.fastest(16, who="resnext")
    assert fastest is not None
    assert fastest.precision == "int8"
    assert written.fastest(2) is None


def test_plot(written: Benchmark, tmp_path: Path) -> None:
    """A picture is written, and what is none is refused."""
    plot_benchmark(written, tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as image:
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 3
    with pytest.raises(InputError, match=r"\.png, \.svg or \.pdf"):
        plot_benchmark(written, tmp_path / "bench.jpg")
    nothing = Benchmark(
        "m", 1, {}, "n", 1, {}, (BenchmarkRow("timm", "fp32", 1, note="not installed"),)
    )
    with pytest.raises(InputError, match="Nothing"):
        plot_benchmark(nothing, tmp_path / "bench.png")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batches": []}, "batches must be"),
        ({"batches": [0]}, "batches must be"),
        ({"batches": [True]}, "batches must be"),
        ({"seconds": 0}, "seconds must be"),
        ({"seconds": float("nan")}, "seconds must be"),
        ({"precision": "fp64"}, "precision must be"),
        ({"precision": "int8"}, "give data"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    """They are refused before minutes are spent."""
    with pytest.raises(InputError, match=words):
        bench(made(TINY, 12), **options)


def test_unknown_names(home: pytest.MonkeyPatch) -> None:
    """A name that is no variant is told as such."""
    with pytest.raises(UnknownNameError, match="resnext50_32x4d"):
        bench("resnext50_32x4dd")
