"""The number of threads that train fastest, while other programs run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_runs import TINY

from resnext import ResNeXt
from resnext.training import replanning, threads
from resnext.training.distributed import ProcessGroup
from resnext.training.replanning import Replanner
from resnext.training.run_state import TrainState

NETWORK = ResNeXt(TINY)


def replanner(log: Callable[[str], object]) -> Replanner:
    """A `Replanner` of images of 16 pixels."""
    settings: Any = SimpleNamespace(execution=SimpleNamespace(dtype="float32"), side=lambda: 16)
    return Replanner(NETWORK, settings, 5, ProcessGroup(), log)


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, float]]:
    """Seconds of a step by number of threads; eight are there, and the user chose none."""
    seconds = {8: 1.0, 4: 1.0, 2: 1.0, 1: 1.0}
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "step_seconds", lambda *given: seconds[given[-1]])
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield seconds
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("took", "before", "best", "change"),
    [
        ({}, 8, 8, 1.0),
        ({4: 0.8}, 8, 8, 1.0),  # not clearly
        ({4: 0.5}, 8, 4, 0.5),
        ({4: 0.5, 2: 0.2, 1: 0.18}, 8, 2, 0.2),
        ({4: 0.5}, 4, 4, 1.0),
        ({8: 0.4, 4: 0.5}, 4, 4, 1.0),  # not clearly: it may run again
        ({8: 0.3, 4: 0.5}, 4, 8, 0.6),  # the other program has ended
        ({8: 0.55, 4: 0.5}, 4, 4, 1.0),  # this went back to 8, and was slower
    ],
)
def test_the_fastest(
    speeds: dict[int, float], took: dict[int, float], before: int, best: int, change: float
) -> None:
    speeds.update(took)
    torch.set_num_threads(before)
    assert threads.fastest_threads(NETWORK, 16, torch.float32, 8) == pytest.approx(change)
    assert torch.get_num_threads() == best


def test_what_the_user_chose(speeds: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    speeds[4] = 0.1
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert threads.fastest_threads(NETWORK, 16, torch.float32, 8) == 1.0
    assert torch.get_num_threads() == 8


def test_a_step_is_timed_with_these_threads() -> None:
    before = torch.get_num_threads()
    network = ResNeXt(TINY)
    with threads.kept_threads():
        assert threads.step_seconds(network, 16, torch.float32, 2) > 0
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("rates", "now", "after"),
    [
        ([100.0, 90.0], 8, 8),  # nothing to find out
        ([100.0, 50.0], 8, 4),
        ([100.0, 50.0], 4, 4),
        ([], None, 8),  # a run without a budget is the same at every speed
    ],
)
def test_after_an_epoch(
    speeds: dict[int, float], rates: list[float], now: int | None, after: int
) -> None:
    speeds[4] = 0.5
    torch.set_num_threads(now or 8)
    history = [{"images_per_second": rate, "size": 16} for rate in rates]
    state = TrainState(history=history, threads=None if now is None else (now, 8))
    lines: list[str] = []
    change = replanner(lines.append).choose_threads(state)
    assert torch.get_num_threads() == after
    assert change == (0.5 if now == 8 and after == 4 else 1.0)
    expected = [
        f"Training with {after} threads instead of 8, because other programs run: that is 2.0 "
        "times as fast."
    ]
    assert lines == state.resumes == (expected if change == 0.5 else [])
    assert state.threads == (None if now is None else (after, 8))


def test_measuring_takes_a_small_part_of_the_time(
    speeds: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a busy program, a step with all threads takes as long as an epoch with one.

    It was measured after each epoch: a run of 90 seconds took 211.
    """
    now, measured = [100.0], list[float]()

    def measure(*_: Any) -> float:
        measured.append(now[0])
        now[0] += 1.0
        return 1.0

    monkeypatch.setattr(replanning, "fastest_threads", measure)
    monkeypatch.setattr(replanning.time, "monotonic", lambda: now[0])
    state = TrainState(history=[{"images_per_second": 9.0, "size": 16}], threads=(8, 16))
    planner = replanner(pytest.fail)
    while now[0] < 300:
        planner.choose_threads(state)
        now[0] += 0.5
    assert len(measured) == 4


def test_line_about_more_threads(speeds: dict[int, float]) -> None:
    line = threads.changed_threads(0.5, 1)
    assert line == "Training with 8 threads instead of 1: that is 2.0 times as fast."
