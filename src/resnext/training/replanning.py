"""Runs with a time budget are planned again: after each epoch, and within the last one."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from resnext.network import ResNeXt
from resnext.training.distributed import ProcessGroup
from resnext.training.forecast import MOST_EPOCHS, TimePlan, epochs_that_fit
from resnext.training.run_state import Clock, RunSettings, TrainState
from resnext.training.threads import CLEARLY, changed_threads, fastest_threads

_MUCH = 1.25  # times more or fewer epochs, from which on a line says so
_MEASURING = 0.02  # part of the time for measuring threads
_MEASURED = 0.01  # part of the time from which a pace is measured
_STARTING = 10.0  # seconds of a first epoch of which the start of workers may be a large part
_LATE = 0.03  # part of the time that a run may end later, because its end is slower than forecast


class Replanner:
    """Keeps a run within its time, at any speed of the machine.

    Args:
        network: The network.
        settings: Recipe, image size and precision.
        steps: Steps of a whole epoch.
        group: The processes that train together.
        log: Called with a line about each change that users should know of.

    Attributes:
        threads_due: When threads may be measured again, by `time.monotonic`.
        first: The first epoch of this process, in which workers start; 0 before.
        paces: Seconds of a step, from each of the last three hundredths of the time, of this epoch.
        measured: The step up to which they are known, and the seconds of learning up to it.
        area: Area of the images of this epoch, as a part of the largest.
        usual: Seconds of a step with the largest images, and of a validation, when they were last
            planned with; None before.
    """

    def __init__(
        self,
        network: ResNeXt,
        settings: RunSettings,
        steps: int,
        group: ProcessGroup,
        log: Callable[[str], None],
    ) -> None:
        self.network, self.settings, self.steps = network, settings, steps
        self.group, self.log = group, log
        self.threads_due, self.first = 0.0, 0
        self.paces: deque[float] = deque(maxlen=3)
        self.measured, self.area = (0, 0.0), 1.0
        self.usual: tuple[float, float] | None = None

    def plan(self, state: TrainState, time_plan: TimePlan) -> None:
        """Begin a run with a time budget."""
        state.budget = time_plan.end - time.monotonic()
        state.kept, state.choice = time_plan.kept, time_plan.choice
        state.threads = time_plan.threads
        seconds = state.budget - state.kept
        fit = time_plan.speed.epochs(self.settings.recipe, seconds, self.steps)
        state.replans.append((0, self.group.broadcast(max(fit, 1 / self.steps))))

    def replan(self, state: TrainState, clock: Clock) -> None:
        """Change the number of epochs if the planned ones would end clearly before or after time.

        Clearly is 3 % of the time that is left, and half a percent of the budget. Small changes are
        seen in the number of epochs; large ones get a line.
        """
        recipe, steps, finished = self.settings.recipe, self.steps, state.epoch - 1
        planned = state.epochs(recipe.epochs) - finished
        if state.budget is None or planned <= 0:
            return
        long = len(self.paces) == self.paces.maxlen
        if (usual := self._usual(state, last=long)) is None:
            return
        full, validation = usual
        if long:
            full = self._pace() / self.area
        with clock.measure("training"):
            full *= self.choose_threads(state)
        self.usual = full, validation
        part = state.progress(finished * steps, steps, recipe.epochs) / (steps * recipe.epochs)
        step = full * self.settings.area(part)
        seconds = self._left(state, full)
        needed = planned * steps * step + math.ceil(planned) * validation
        fit = min(epochs_that_fit(seconds, step, validation, steps), MOST_EPOCHS - finished)
        fit = self.group.broadcast(fit if _clear(needed - seconds, seconds, state) else planned)
        if round(fit * steps) == round(planned * steps):
            return
        state.replans.append((finished, finished + fit))
        if not planned / _MUCH < fit < planned * _MUCH:
            self._say(
                state,
                f"Planned again after epoch {finished}: {finished + fit:.1f} instead of "
                f"{finished + planned:.1f} epochs, because an epoch takes "
                f"{steps * step + validation:.1f} s on this machine now.",
            )

    def start_epoch(self, state: TrainState, side: int) -> None:
        """Forget the pace of the epoch before, whose images may have had another size."""
        self.first = self.first or state.epoch
        self.paces.clear()
        self.measured = state.step, _learning(state)
        self.area = (side / self.settings.side()) ** 2

    def measure(self, state: TrainState, clock: Clock) -> bool:
        """After a step: measure the pace of the epoch; whether there is enough to plan by."""
        if state.budget is None:
            return False
        clock.update()
        step, before = self.measured
        took = _learning(state) - before
        if took < _MEASURED * state.budget:
            return False
        self.paces.append(took / (state.step - step))
        self.measured = state.step, before + took
        return len(self.paces) == self.paces.maxlen

    def replan_within(self, state: TrainState) -> None:
        """Change where the running epoch ends, if the run would end in it clearly out of time.

        An epoch may be a large part of the time. The first process decides; only it measures.
        """
        steps, number = self.steps, (state.epoch - 1) * self.steps + state.step
        planned = round(state.epochs(self.settings.recipe.epochs) * steps)
        fit = self.group.broadcast(self._steps_that_fit(state, planned, number))
        if fit == planned:
            return
        state.replans.append((number / steps, fit / steps))
        end = state.epoch * steps
        before, now = min(planned, end) - number, min(fit, end) - number
        if self.paces and not before / _MUCH <= now <= before * _MUCH:
            self._say(
                state,
                f"Planned again in epoch {state.epoch}, after step {state.step}: it has "
                f"{state.step + now} instead of {state.step + before} steps, because a step takes "
                f"{self._pace():.2g} s on this machine now.",
            )

    def _steps_that_fit(self, state: TrainState, planned: int, number: int) -> int:
        """Steps of the run that fit into the time, or the planned ones if they nearly do.

        Args:
            state: The run, in the middle of an epoch.
            planned: Steps that are planned.
            number: Steps that are done.
        """
        if not self.paces:
            return planned
        assert state.budget is not None, "only runs with a time budget are replanned"
        pace, end = self._pace(), state.epoch * self.steps
        full = pace / self.area
        before, validation = self.usual or self._usual(state) or self._forecast(state)
        validation *= full / before if before else 1.0
        seconds = self._left(state, full)
        fit = number + max(int((seconds - validation) / pace), 0)
        if fit > end:
            seconds -= (end - number) * pace + validation
            fit = end + round(self.steps * epochs_that_fit(seconds, pace, validation, self.steps))
        change = (min(fit, end) - min(planned, end)) * pace
        return fit if _clear(change, seconds, state) else planned

    def _pace(self) -> float:
        """Seconds of a step now. A machine that stalls once does not count as a slower one."""
        return statistics.median(self.paces)

    def _usual(self, state: TrainState, *, last: bool = False) -> tuple[float, float] | None:
        """Seconds of a step with the largest images, and of a validation, in the last epochs.

        The middle epoch counts: one in which the machine stalled says nothing about the next ones.
        Nor does a short first one of this process.

        Args:
            state: The run.
            last: Whether only the last epoch counts.
        """
        # The first epochs compute the maps that later ones take from memory. Rows that an earlier
        # version wrote lack fields.
        rows = state.history[self.settings.recipe.cached_views :]
        rows = [row for row in rows if row.get("steps") and {"size", "validating"} <= row.keys()]
        rows = [row for row in rows if row["epoch"] != self.first or row["seconds"] > _STARTING]
        if not rows:
            return None
        assert state.budget is not None, "only runs with a time budget are replanned"
        enough, largest = 0.05 * state.budget, self.settings.side()
        rows = rows[-1:] if last else latest(rows, enough)
        full = statistics.median(
            (row["seconds"] - row["validating"]) / row["steps"] * (largest / row["size"]) ** 2
            for row in rows
        )
        return full, statistics.median(row["validating"] for row in rows)

    def _forecast(self, state: TrainState) -> tuple[float, float]:
        """The same before the first step; zeros for a run that an earlier version began."""
        seconds = (state.choice or {}).get("seconds", {})
        first = state.epoch <= self.settings.recipe.cached_views
        return seconds.get("first_step" if first else "step", 0.0), seconds.get("validation", 0.0)

    def _left(self, state: TrainState, full: float) -> float:
        """Seconds for epochs. The end of the run is slower, too, if steps are slower than forecast.

        Args:
            state: The run.
            full: Seconds of a step with the largest images.
        """
        assert state.budget is not None, "only runs with a time budget are replanned"
        seconds = state.budget - state.kept - sum(state.seconds.values())
        forecast, _ = self._forecast(state)
        if not forecast:
            return seconds
        ending = (state.choice or {})["seconds"]["ending"]
        return seconds - max((full / forecast - 1) * ending - _LATE * state.budget, 0.0)

    def _say(self, state: TrainState, line: str) -> None:
        state.resumes.append(line)
        self.log(line)

    def choose_threads(self, state: TrainState) -> float:
        """Change the number of threads if another trains clearly faster now.

        It is measured after an epoch that was clearly slower than the fastest one, and while fewer
        threads are used than the machine has; for a small part of the time at most.

        Returns:
            Time of a step relative to that before.
        """
        if state.threads is None:
            return 1.0
        now, most = state.threads
        rates = [
            row["images_per_second"] * row["size"] ** 2 for row in state.history if "size" in row
        ]
        if not rates or (now == most and rates[-1] > max(rates) / CLEARLY):
            return 1.0
        if (began := time.monotonic()) < self.threads_due:
            return 1.0
        dtype = getattr(torch, self.settings.execution.dtype)
        change = fastest_threads(self.network, self.settings.side(), dtype, most)
        self.threads_due = began + (time.monotonic() - began) / _MEASURING
        if (count := torch.get_num_threads()) != now:
            state.threads = (count, most)
            self._say(state, changed_threads(change, now))
        return change


def _learning(state: TrainState) -> float:
    """Seconds of all steps so far, with the loading of their images."""
    return state.seconds["training"] + state.seconds["waiting for images"]


def _clear(change: float, seconds: float, state: TrainState) -> bool:
    """Whether a run would end clearly before or after its time.

    Args:
        change: Seconds of what would be too much, or missing.
        seconds: Seconds that are left.
        state: The run.
    """
    assert state.budget is not None, "only runs with a time budget are replanned"
    return abs(change) > max(0.03 * seconds, 0.005 * state.budget)


def latest(rows: Sequence[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """The last three epochs, or more until they took a time; only those with the same threads."""
    chosen: list[dict[str, Any]] = []
    for row in reversed(rows):
        enough = len(chosen) >= 3 and sum(x["seconds"] for x in chosen) > seconds
        if enough or row.get("threads") != rows[-1].get("threads"):
            break
        chosen.append(row)
    return chosen
