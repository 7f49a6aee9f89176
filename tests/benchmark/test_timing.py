"""`bench`: turns, speeds, memory, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_cases import FOUR, TINY, Choose, honest, made, quick

from resnext import ResNeXt, variant
from resnext.benchmark import bench, timing
from resnext.benchmark.contenders import Contender
from resnext.benchmark.timing import peak_memory
from resnext.errors import InputError, UnknownNameError
from resnext.summary import summarize

pytestmark = pytest.mark.usefixtures("one_thread", "wide")


def contenders_of(tmp_path: Path, batch: int, compiled: bool, *precisions: str) -> list[str]:
    """Name, precision and way of every contender."""
    run = timing._BenchmarkRun(tmp_path, precisions, 3, "photos", compiled, timing.reporter(False))
    found = run.contenders(batch)
    assert {(c.folder, c.batch, c.threads, c.data) for c in found} == {
        (tmp_path, batch, 3, "photos")
    }
    return [f"{c.who}/{c.precision}/{c.way}" for c in found]


def test_who_takes_part(tmp_path: Path) -> None:
    """Each in every precision and way that it has; slow ones only on request."""
    ways = [
        "LATENCY, whole",
        "THROUGHPUT, whole",
        "THROUGHPUT, shared out",
        "THROUGHPUT, one by one",
    ]
    assert contenders_of(tmp_path, 1, False, "fp32") == [
        "torchvision/fp32/",
        "timm/fp32/",
        "timm, channels-last/fp32/",
        "ONNX Runtime/fp32/",
        "OpenVINO/fp32/LATENCY, whole",
        "resnext/fp32/",
    ]
    assert contenders_of(tmp_path, 2, True, "fp32", "bf16") == [
        "torchvision/fp32/",
        "timm/fp32/",
        "timm, channels-last/fp32/",
        "timm, channels-last/bf16/",
        "timm, compiled/fp32/",
        "timm, compiled/bf16/",
        "ONNX Runtime/fp32/",
        *(f"OpenVINO/fp32/{way}" for way in ways),
        *(f"OpenVINO/bf16/{way}" for way in ways),
        "resnext/fp32/",
        "resnext/bf16/",
    ]
    assert contenders_of(tmp_path, 1, False, "int8") == [
        "OpenVINO/int8/LATENCY, whole",
        "resnext/int8/",
    ]


def test_they_take_turns(only: Choose) -> None:
    """A machine that slows down for a while must slow every contender."""
    order: list[str] = []

    def logged(contender: Contender) -> Any:
        run, how = honest(contender)

        def noted() -> Any:
            order.append(contender.who)
            return run()

        return noted, how

    only(a=logged, b=logged, resnext=logged)
    quick(seconds=0.001)
    turns = [who for i, who in enumerate(order) if i == 0 or order[i - 1] != who]
    assert turns == ["a", "b", "resnext"] * (len(turns) // 3)
    assert len(turns) >= 15


def test_the_best_way_of_a_peer_is_taken(only: Choose, now: list[float]) -> None:
    """OpenVINO runs in several ways, of which only the fastest is compared."""

    def by_way(contender: Contender) -> Any:
        run, _ = honest(contender)

        def slow() -> Any:
            now[0] += 0.5 if contender.way == "THROUGHPUT, shared out" else 0.75
            return run()

        return slow, contender.way

    only(OpenVINO=by_way)
    assert [row.how for row in quick(batches=[3]).rows] == ["THROUGHPUT, shared out"]
    assert [row.how for row in quick(batches=[1]).rows] == ["LATENCY, whole"]


def test_a_way_that_is_wrong_is_not_the_best(only: Choose, now: list[float]) -> None:
    """A fast way with wrong logits must not stand for a contender that also has a right one."""

    def by_way(contender: Contender) -> Any:
        run, _ = honest(contender)
        fast = contender.way == "THROUGHPUT, whole"

        def noted() -> Any:
            now[0] += 0.25 if fast else 0.5
            return run()[::-1] if fast else run()

        return noted, contender.way

    only(OpenVINO=by_way)
    (row,) = quick(batches=[3]).rows
    assert (row.how, row.note) == ("LATENCY, whole", "")


def test_speeds_by_hand(only: Choose, now: list[float]) -> None:
    """Warm-up calls are left out, the speed is the fastest turn, percentiles are over all turns."""
    turn = [100.0, 0.25, 0.75]
    calls = iter([*turn * 4, 100.0, 0.25, 0.25, 0.5, *turn * 3])

    def timed(contender: Contender) -> Any:
        run, how = honest(contender)
        opened = []

        def slow() -> Any:
            if opened:  # the first call only compares
                now[0] += next(calls)
            opened.append(True)
            return run()

        return slow, how

    only(resnext=timed)
    got = quick(seconds=8.0)
    assert next(calls, None) is None
    (row,) = got.rows
    assert row.images_per_second == pytest.approx(2 / (1 / 3))
    assert (row.p50, row.p99) == (250, 750)
    assert got.peaks == {"fp32": pytest.approx(2e-9 * 128**3 / 0.125)}
    macs = summarize(TINY, 12).macs
    assert row.fraction == pytest.approx(2e-9 * macs * 6 / got.peaks["fp32"])


def test_the_peak_is_the_highest_of_all_batches(
    only: Choose, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a peak measured while the machine was busy, fractions exceed 100 %."""
    durations = iter([0.25, 0.5])

    def product(precision: str) -> Callable[[], None]:
        duration = next(durations)
        return lambda: now.__setitem__(0, now[0] + duration)

    monkeypatch.setattr(timing, "_matrix_product", product)

    def timed(contender: Contender) -> Any:
        run, how = honest(contender)

        def slow() -> Any:
            now[0] += 1.0
            return run()

        return slow, how

    only(resnext=timed)
    assert quick(batches=[1, 2]).peaks == {"fp32": pytest.approx(2e-9 * 128**3 / 0.25)}
    durations = iter([0.5, 0.25])
    assert quick(batches=[1, 2]).peaks == {"fp32": pytest.approx(2e-9 * 128**3 / 0.25)}


def test_the_model_is_left_alone(only: Choose) -> None:
    """Timing a network that is being trained must not change it."""
    network = ResNeXt(TINY).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    only(resnext=honest)
    assert quick(network).size == 32
    assert network.training
    assert network.card is None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_random_weights_hide_nothing(only: Choose) -> None:
    """A variant's logits must be neither equal nor huge, or a difference would not show."""
    only(resnext=honest)
    got = quick("resnext11_8x16d")
    assert (got.name, got.size, got.rows[0].note) == ("resnext11_8x16d", 32, "")
    network = timing.classifier_for("resnext11_8x16d")
    with torch.no_grad():
        logits = network(torch.randn(4, 3, 32, 32))
    assert 0.01 < float(logits.std(0).mean()) < 100


def test_a_config_file_stands_for_a_variant(tmp_path: Path) -> None:
    """A network without a name could be timed from Python only."""
    config = variant("resnext11_8x16d", num_classes=3)
    (tmp_path / "net.json").write_text(config.to_json())
    assert timing.classifier_for(tmp_path / "net.json").config == config
    network = ResNeXt(config)
    assert timing.classifier_for(network) is network
    with pytest.raises(InputError, match="not an object of type Sequential"):
        timing.classifier_for(torch.nn.Sequential(network))  # pyright: ignore


def test_memory_is_that_of_the_engine_alone(only: Choose, tmp_path: Path) -> None:
    """A new process, without torch if the engine does not need it."""
    run = timing._BenchmarkRun(tmp_path, ["fp32"], 1, None, False, timing.reporter(False))
    run.write_inputs(made(FOUR, 32), 2)
    contender = Contender(tmp_path, "ONNX Runtime", "fp32", 2, 1)
    timing.CONTENDERS["ONNX Runtime"].open(contender)  # the graph is made here
    found = peak_memory(contender)
    assert found is not None
    assert 20 < found < 200
    assert peak_memory(Contender(tmp_path / "nowhere", "ONNX Runtime", "fp32", 2, 1)) is None


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
    """Refused before anything is timed."""
    with pytest.raises(InputError, match=words):
        bench(made(TINY, 12), **options)


def test_unknown_names(home: pytest.MonkeyPatch) -> None:
    """A misspelt variant gets a suggestion."""
    with pytest.raises(UnknownNameError, match="resnext50_32x4d"):
        bench("resnext50_32x4dd")
