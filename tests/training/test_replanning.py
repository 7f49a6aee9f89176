"""Runs with a time budget on machines whose speed changes, by a simulated clock."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import QUICK, TINY, more_photos, sha, stop_after

import resnext
from resnext.evaluation.metrics import Evaluation
from resnext.training import launch, minutes
from resnext.training.dataloader import Batch
from resnext.training.distributed import ProcessGroup
from resnext.training.dynamics import Dynamics, StepOutputs
from resnext.training.forecast import Speed
from resnext.training.replanning import Replanner
from resnext.training.run_state import Clock, TrainState
from resnext.training.step import TrainStep
from resnext.training.trainer import Trainer

SECONDS = 180.0
"""The budget."""
STEPS = 48
"""Steps of an epoch: two images each, of four fifths of two classes of 60."""


@dataclass
class Machine:
    """A machine on which nothing is computed, and the clock advances as the test says.

    Args:
        share: A whole epoch as a part of the budget, at the speed of the forecast.
        course: From which second on a step takes how many times longer.
        stall: When everything stands still for a minute, seconds; None for never.
    """

    share: float
    course: Sequence[tuple[float, float]] = ()
    stall: float | None = None

    @property
    def speed(self) -> Speed:
        """The forecast: a validation takes a twentieth of an epoch."""
        epoch = self.share * SECONDS
        return Speed(0.95 * epoch / STEPS, 0.05 * epoch)

    def slower(self, now: float) -> float:
        """How many times longer a step takes at a time."""
        return [1.0, *(times for since, times in self.course if since <= now)][-1]

    def spend(self, clock: Clock, part: str, seconds: float) -> None:
        """Advance the clock by what something of so many seconds takes now."""
        now = sum(clock.seconds.values())
        took = seconds * self.slower(now)
        if self.stall is not None and now <= self.stall < now + took:
            took += 60.0
        clock.seconds[part] += took

    def run(self, photos: Path, out: Path, *, fake: bool = True, **given: Any) -> Trainer:
        """Train with the budget, really or not. Returns the trainer after the last epoch."""
        ends, load, judge = list[Trainer](), Trainer._next_parts, Trainer._validate
        answer = StepOutputs(torch.ones(()), torch.zeros(2, 2), torch.full((2, 2), 0.5))

        def next_parts(run: Trainer, batches: Any) -> list[Batch]:
            self.spend(run.clock, "training", self.speed.step)
            if not fake:
                return load(run, batches)
            return [Batch(torch.empty(0), torch.zeros(2, dtype=torch.int64), [])]

        def validated(run: Trainer, network: Any) -> Evaluation:
            self.spend(run.clock, "validating", self.speed.validation)
            if not fake:
                return judge(run, network)
            return Evaluation("val", 4, 0.5, None, 1.0, np.zeros((2, 2), int), ("blue", "red"))

        options = {"recipe": QUICK, "size": 16, "batch_size": 2, "workers": 0, **given}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(minutes, "measure", lambda *_, **__: self.speed)
            patch.setattr(minutes, "fastest_threads", lambda *_: 1.0)
            patch.setattr(minutes.time, "monotonic", lambda: 0.0)
            patch.setattr(Replanner, "choose_threads", lambda *_: 1.0)
            patch.setattr(Trainer, "_next_parts", next_parts)
            patch.setattr(Trainer, "_validate", validated)
            if fake:
                patch.setattr(TrainStep, "backward", lambda *_: answer)
                patch.setattr(TrainStep, "update", lambda *_: None)
                patch.setattr(Dynamics, "record", lambda *_: None)
            patch.setattr(Clock, "measure", lambda *_: nullcontext())
            patch.setattr(launch, "finalize", lambda run, **_: ends.append(run))
            resnext.train(photos, TINY, out=out, minutes=SECONDS / 60, progress=False, **options)
        return ends[0]

    def end(self, run: Trainer) -> float:
        """The second at which the report is written."""
        seconds = sum(run.state.seconds.values()) + run.state.kept
        return seconds + self.slower(seconds) * self.speed.ending()


@pytest.fixture
def many(photos: Path) -> Path:
    """Enough images for `STEPS`."""
    more_photos(photos, 60)
    return photos


COURSES: dict[str, dict[str, Any]] = {
    "steady": {},
    "twice as slow from the start": {"course": [(0, 2.0)]},
    "twice as slow": {"course": [(60, 2.0)]},
    "three times as slow": {"course": [(90, 3.0)]},
    "three times as slow, late": {"course": [(135, 3.0)]},
    "slow for a while": {"course": [(40, 3.0), (80, 1.0)]},
    "slow for a while, late": {"course": [(90, 3.0), (120, 1.0)]},
    "slow, then faster than before": {"course": [(20, 2.0), (90, 0.5)]},
    "twice as fast": {"course": [(70, 0.5)]},
    "a stall": {"stall": 50.0},
    "a late stall": {"stall": 100.0},
    "a stall, then slow": {"course": [(110, 2.0)], "stall": 40.0},
}


QUICK_ONES = {
    ("twice as slow", 0.02),
    ("three times as slow", 0.4),
    ("slow for a while, late", 0.4),
}
QUICK_ONES |= {("three times as slow, late", 0.4), ("a late stall", 0.02), ("a late stall", 0.4)}
CASES = [
    pytest.param(*case, marks=() if case in QUICK_ONES else pytest.mark.slow)
    for case in product(COURSES, (0.02, 0.4))
]


@pytest.mark.parametrize(("course", "share"), CASES)
def test_a_run_ends_in_time(many: Path, tmp_path: Path, course: str, share: float) -> None:
    """An epoch may be two fifths of the time, and a machine may become slower in it.

    A run was planned again at the ends of epochs only, and a minute's stall counted as a machine
    that had become slower for good.
    """
    machine = Machine(share, **COURSES[course])
    run = machine.run(many, tmp_path / "a.safetensors")
    assert 0.95 * SECONDS <= machine.end(run) <= 1.05 * SECONDS
    rows = run.state.history
    assert [row["steps"] for row in rows[:-1]] == [STEPS] * (len(rows) - 1)
    planned = run.state.replans[-1][1] * STEPS
    assert sum(row["steps"] for row in rows) == pytest.approx(planned)
    assert rows[-1]["rate"] < 0.1 * QUICK.learning_rate  # the schedule ends


def test_an_epoch_that_is_cut_short_is_reported(many: Path, tmp_path: Path) -> None:
    """In the report, with what it had and has."""
    run = Machine(0.4, [(90, 3.0)]).run(many, tmp_path / "a.safetensors")
    steps = run.state.history[-1]["steps"]
    lines = [line for line in run.state.resumes if line.startswith("Planned again in epoch 2, ")]
    assert re.search(rf"it has {steps} instead of \d+ steps, because a step takes 4.3 s", lines[-1])


def test_the_start_of_workers_says_nothing_about_epochs() -> None:
    """Of four photos, the first of 34 epochs took six times as long, and was the last one."""
    seconds = {"first_step": 0.03, "step": 0.03, "validation": 0.04, "ending": 3.1}
    state = TrainState(budget=3.0, replans=[(0, 34.0)], choice={"seconds": seconds})
    settings: Any = SimpleNamespace(recipe=QUICK, side=lambda *_: 16, area=lambda *_: 1.0)
    replanner = Replanner(
        resnext.ResNeXt(TINY), settings, 1, ProcessGroup(0, 1), lambda line: pytest.fail(line)
    )
    for took in (0.44, 0.07, 0.07):
        replanner.start_epoch(state, 16)
        row = {"epoch": state.epoch, "steps": 1, "size": 16, "seconds": took, "validating": 0.04}
        state.history.append(row)
        state.seconds["training"] += took
        state.epoch += 1
        replanner.replan(state, Clock())
        assert state.epochs(34) > 30


def test_other_processes_end_where_the_first_one_does() -> None:
    """They measure nothing, and there is no pace that they could speak of."""

    class Other(ProcessGroup):
        def broadcast(self, value: Any) -> Any:
            return 60

    lines: list[str] = []
    settings: Any = SimpleNamespace(recipe=QUICK)
    replanner = Replanner(resnext.ResNeXt(TINY), settings, STEPS, Other(1, 2), lines.append)
    state = TrainState(epoch=2, step=7, budget=SECONDS)
    replanner.replan_within(state)
    assert (state.replans, lines) == ([((STEPS + 7) / STEPS, 60 / STEPS)], [])


@pytest.mark.slow
def test_a_run_that_was_cut_short_resumes_exactly(many: Path, tmp_path: Path) -> None:
    """Where the last epoch ends is in the checkpoint, and so is the schedule up to there."""
    machine = Machine(0.4, [(90, 3.0)])
    whole, halves = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    run = machine.run(many, whole, fake=False)
    cut = round(run.state.replans[-1][0] * STEPS)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, cut + 3)
        with pytest.raises(KeyboardInterrupt):
            machine.run(many, halves, fake=False)
    resumed = machine.run(many, halves, fake=False, resume=True)
    assert [(*pair,) for pair in resumed.state.replans] == run.state.replans
    assert sha(whole) == sha(halves)
