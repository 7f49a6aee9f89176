"""Losses that diverge: when a run stops, and what a retry changes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import QUICK, TINY, quick

import resnext
from resnext import ResNeXtError
from resnext.training import checkpoint as state
from resnext.training.divergence import LossMonitor
from resnext.training.run_state import TrainState
from resnext.training.trainer import Trainer

GROUPED = TINY.replace(norm="group", norm_groups=1)  # batch norm hides rates that are too high


def test_a_diverging_loss_stops_with_advice(photos: Path, tmp_path: Path) -> None:
    """Training on after NaN wastes hours and overwrites nothing with garbage."""
    with pytest.raises(ResNeXtError, match="Lower the learning rate") as caught:
        resnext.train(
            photos,
            GROUPED,
            out=tmp_path / "m.safetensors",
            recipe=QUICK,
            learning_rate=1000.0,
            epochs=30,
            size=16,
            progress=False,
        )
    assert "in epoch" in str(caught.value)
    assert "at rate" in str(caught.value)
    good = state.latest_checkpoint(tmp_path / "m.run", pytest.fail)
    assert good is not None
    assert all(x.isfinite().all() for x in good.tensors.values() if x.is_floating_point())


def test_a_diverging_loss_is_retried_with_half_the_rate(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retries go back to good weights, keep the order of images, and halve the rate each time."""
    original, rates = Trainer._check_losses, []

    def judge(self: Any) -> str:
        found = original(self)
        if self.state.epoch == 2 and self.state.factor > 0.3:
            rates.append(self.train_step.optimizer.param_groups[0]["lr"])
            return "The loss became nan."
        return found

    monkeypatch.setattr(Trainer, "_check_losses", judge)
    out = tmp_path / "m.safetensors"
    with pytest.raises(ResNeXtError, match="became nan"):
        quick(photos, out, retries=1)
    assert rates[1] == pytest.approx(rates[0] / 2)
    rates.clear()
    quick(photos, out, retries=2, overwrite=True)
    rows = [json.loads(x) for x in (tmp_path / "m.run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["rate"] < rows[0]["rate"] / 4


def monitored(values: list[float], state: TrainState, num_classes: int = 2) -> float | None:
    """What a monitor says about losses that come one after the other."""
    monitor = LossMonitor(num_classes)
    result = None
    for value in values:
        monitor.pending.append(torch.tensor(value, dtype=torch.float64))
        result = monitor.check(state)
    return result


@pytest.mark.parametrize(
    ("value", "diverged"),
    [(999.0, False), (1000.0, True), (math.inf, True), (math.nan, True), (-math.inf, False)],
)
def test_one_loss_may_be_a_thousand_times_that_of_guessing(value: float, diverged: bool) -> None:
    """NaN compares false with everything, so the wrong comparison lets it pass."""
    assert (monitored([value], TrainState()) is not None) == diverged


def test_the_limits_grow_with_the_number_of_classes() -> None:
    """With many classes the loss of guessing is higher; with two, ln 2 counts as 1."""
    value = 1000 * math.log(1000) - 1
    assert monitored([value], TrainState(), num_classes=1000) is None
    assert monitored([value], TrainState(), num_classes=2) == value


def test_twenty_losses_are_compared_with_the_first_twenty() -> None:
    """A loss that climbs slowly never has a single step that is too high."""
    state = TrainState()
    assert monitored([3.0] * 19, state) is None
    assert state.first is None  # not yet twenty
    assert monitored([3.0] * 20, state) is None
    assert state.first == 3.0
    assert monitored([40.0] * 20, state) is None  # ten times the first, plus 10
    assert monitored([40.1] * 19, state) is None
    assert monitored([40.1] * 20, state) == pytest.approx(40.1)
    assert state.first == 3.0
    assert monitored([20.1] * 20, TrainState(first=0.1)) is not None  # at least that of guessing
    assert monitored([19.9] * 20, TrainState(first=0.1)) is None


def test_losses_are_added_up_once_and_forgotten_after_a_retry() -> None:
    """The epoch's mean loss comes from this sum; old losses would fail the retry at once."""
    state, monitor = TrainState(), LossMonitor(2)
    monitor.pending += [torch.tensor(1.0), torch.tensor(2.0)]
    assert monitor.check(state) is None
    assert monitor.check(state) is None
    assert state.total == 3.0
    monitor.pending.append(torch.tensor(5.0))
    monitor.reset()
    assert (monitor.pending, list(monitor.recent)) == ([], [])


def test_the_description_says_where_and_what_came_before() -> None:
    """The last three losses before the bad one, and the first weight that is not finite."""
    state, monitor = TrainState(epoch=2, step=7), LossMonitor(2)
    monitor.recent.extend([9.0, 1.0, 2.0, 3.0, math.nan])
    network = torch.nn.Linear(2, 2)
    text = "The loss became nan in epoch 2, step 7, at rate 0.1, after 1, 2, 3"
    assert monitor.describe(math.nan, state, 0.1, network) == f"{text}."
    torch.nn.init.constant_(network.bias, math.inf)
    expected = f"{text}; bias contains NaN or infinity."
    assert monitor.describe(math.nan, state, 0.1, network) == expected
