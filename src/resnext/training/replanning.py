"""After each epoch of a run with a time budget: its epochs and its threads are planned again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from resnext.network import ResNeXt
from resnext.training.distributed import ProcessGroup
from resnext.training.forecast import MOST_EPOCHS, epochs_that_fit
from resnext.training.run_state import Clock, RunSettings, TrainState
from resnext.training.threads import CLEARLY, changed_threads, fastest_threads

_MUCH = 1.25  # times more or fewer epochs, from which on a line says so
_MEASURING = 0.02  # part of the time for measuring threads


class Replanner:
    """Keeps a run within its time, at any speed of the machine.

    Args:
        network: The network.
        settings: Recipe, image size and precision.
        steps: Steps of a whole epoch.
        group: The processes that train together.
        log: Called with a line about each change that users should know of.
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
        self.threads_due = 0.0

    def replan(self, state: TrainState, clock: Clock) -> None:
        """Change the number of epochs if the planned ones would end clearly before or after time.

        Clearly is 3 % of the time that is left, and half a percent of the budget. Small changes are
        seen in the number of epochs; large ones get a line.
        """
        recipe, steps, finished = self.settings.recipe, self.steps, state.epoch - 1
        planned = state.epochs(recipe.epochs) - finished
        if state.budget is None or planned <= 0:
            return
        # The first epochs compute the maps that later ones take from memory. Rows that an earlier
        # version wrote lack fields.
        rows = [row for row in state.history[recipe.cached_views :] if row.get("steps")]
        rows = [row for row in rows if {"size", "validating"} <= row.keys()]
        if not rows:
            return
        rows = latest(rows, 0.05 * state.budget)
        validation = sum(row["validating"] for row in rows) / len(rows)
        learning = sum(row["seconds"] - row["validating"] for row in rows)
        largest = self.settings.side()
        full = learning / sum(row["steps"] * (row["size"] / largest) ** 2 for row in rows)
        with clock.measure("training"):
            full *= self.choose_threads(state)
        part = state.progress(finished * steps, steps, recipe.epochs) / (steps * recipe.epochs)
        step = full * self.settings.area(part)
        seconds = state.budget - state.kept - sum(state.seconds.values())
        needed = planned * steps * step + math.ceil(planned) * validation
        fit = min(epochs_that_fit(seconds, step, validation, steps), MOST_EPOCHS - finished)
        clear = abs(needed - seconds) > max(0.03 * seconds, 0.005 * state.budget)
        fit = self.group.broadcast(fit if clear else planned)
        if fit == planned:
            return
        state.replans.append((finished, finished + fit))
        if not planned / _MUCH < fit < planned * _MUCH:
            state.resumes.append(
                f"Planned again after epoch {finished}: {finished + fit:.1f} instead of "
                f"{finished + planned:.1f} epochs, because an epoch takes "
                f"{steps * step + validation:.1f} s on this machine now."
            )
            self.log(state.resumes[-1])

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
            state.resumes.append(changed_threads(change, now))
            self.log(state.resumes[-1])
        return change


def latest(rows: Sequence[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """The last three epochs, or more until they took a time; only those with the same threads."""
    chosen: list[dict[str, Any]] = []
    for row in reversed(rows):
        enough = len(chosen) >= 3 and sum(x["seconds"] for x in chosen) > seconds
        if enough or row.get("threads") != rows[-1].get("threads"):
            break
        chosen.append(row)
    return chosen
