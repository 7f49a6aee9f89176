"""The contenders: equal logits, equal inputs, and a note for each that cannot run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_cases import FOUR, TINY, Choose, honest, made, quick
from PIL import Image

from resnext import save
from resnext.benchmark import Benchmark
from resnext.benchmark import contenders as peers
from resnext.benchmark.contenders import Contender
from resnext.benchmark.results import BenchmarkRow, SpeedRatio
from resnext.summary import summarize

pytestmark = pytest.mark.usefixtures("one_thread", "wide")

PEERS = ["torchvision", "timm", "timm, channels-last", "ONNX Runtime", "OpenVINO"]


def test_everybody_is_there_and_right(real: Benchmark) -> None:
    """Each peer must run with our weights, or the comparison is with nothing."""
    assert [(row.who, row.precision, row.note) for row in real.rows] == [
        (who, "fp32", "") for who in [*PEERS, "resnext"]
    ]
    for row in real.rows:
        assert row.difference is not None
        assert row.difference < 1e-4


def test_numbers_are_consistent(real: Benchmark) -> None:
    """Latency, throughput and the fraction of the peak must come from the same calls."""
    macs = summarize(FOUR, 32).macs
    for row in real.rows:
        assert 0 < row.p50 <= row.p99
        assert row.fraction == pytest.approx(
            2 * macs * row.images_per_second / (real.peaks["fp32"] * 1e9)
        )
        assert row.memory is None


def test_what_people_and_programs_read(real: Benchmark) -> None:
    """The table names machine and versions; the JSON holds every number."""
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
    """No line is wider than the terminal, and no number is truncated."""
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, real.table().splitlines())) <= 80
    assert all(f"{row.images_per_second:,.1f}" in real.table() for row in real.rows)


def test_int8(home: pytest.MonkeyPatch, only: Choose, tmp_path: Path) -> None:
    """OpenVINO's own int8 is calibrated with the given images, and has no peak."""
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


# -- Who does not count -----------------------------------------------------------------------


def test_wrong_answers_do_not_count(only: Choose) -> None:
    """A peer that computes another function gets a note and is left out of the ratios."""

    def swapped(contender: Contender) -> Any:
        run, how = honest(contender)
        return lambda: run()[::-1], how

    def short(contender: Contender) -> Any:
        run, how = honest(contender)
        return lambda: run()[:1], how

    def slightly(contender: Contender) -> Any:
        run, how = honest(contender)
        return lambda: run() * 1.002, how

    def nan(contender: Contender) -> Any:
        run, how = honest(contender)
        return lambda: run() * np.nan, how

    only(swapped=swapped, short=short, slightly=slightly, nan=nan, honest=honest, resnext=honest)
    got = quick()
    notes = {row.who: row.note for row in got.rows}
    assert notes.pop("honest") == notes.pop("resnext") == ""
    assert len(notes) == 4
    assert all(note.startswith("wrong: logits ") for note in notes.values())
    assert [ratio.peer for ratio in got.ratios()] == ["honest"]
    assert "wrong: logits " in got.table()


def test_networks_a_library_does_not_have(only: Choose) -> None:
    """A note says why, and the others still run."""
    only(torchvision=None, timm=None, resnext=honest)
    notes = {row.who: row.note for row in quick().rows}
    assert notes == {
        "torchvision": "torchvision has networks of four stages, not 2.",
        "timm": "timm has networks of four stages, not 2.",
        "resnext": "",
    }


def test_what_is_missing_or_broken(only: Choose, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed, not importable and failing later get three different notes."""

    def fails(contender: Contender) -> Any:
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


def test_without_the_exporter(only: Choose, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that need an ONNX graph say which exporter package is missing."""
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    only(**{"ONNX Runtime": None})
    assert "onnxscript" in quick().rows[0].note


# -- Inputs -----------------------------------------------------------------------------------


def test_same_images_and_threads(
    only: Choose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With fewer threads or smaller images for a peer, the comparison would be unfair."""
    seen: list[tuple[int, str, tuple[int, ...]]] = []

    def looked(contender: Contender) -> Any:
        seen.append((contender.threads, os.environ["OMP_NUM_THREADS"], contender.images().shape))
        return honest(contender)

    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    only(a=looked, resnext=looked)
    file = tmp_path / "m.safetensors"
    save(made(TINY, 20), file)
    got = quick(file, batches=[3, 1])
    assert seen == [(1, "1", (1, 3, 20, 20))] * 2 + [(1, "1", (3, 3, 20, 20))] * 2
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert (got.name, got.size, got.threads) == (str(file), 20, 1)
