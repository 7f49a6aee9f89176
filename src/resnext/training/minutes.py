"""`minutes`: network, size and epochs for a time budget, from measured speeds."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from resnext.data.dataset import Splits
from resnext.data.unlabelled import training_pool
from resnext.errors import InputError
from resnext.system.device import pick_precision
from resnext.system.text import duration
from resnext.training.defaults import choices, typical_side
from resnext.training.forecast import (
    MOST_EPOCHS,
    Speed,
    TimePlan,
    forecast_line,
    measure,
)
from resnext.training.preparation import fastest_execution, make_plan, run_settings
from resnext.training.report.image_map import ARRANGING, mappable
from resnext.training.request import Context, Request, RunPlan
from resnext.training.run_state import RunSettings
from resnext.training.threads import changed_threads, fastest_threads

PASSES, STEPS = 15, 2000
"""Epochs and steps from which a larger network is preferred to one that has time for more.

On 1,320 photos, four minutes of resnext_tiny at 64 pixels, 3,000 steps, are better than eight of
resnext_small at 128 pixels, 1,100 steps: 99.7 % and 98.5 %.
"""
_SLOWER = 1.6
"""How many times as long an image may take for that; beyond it, epochs grow with the square.

On 5,000 CIFAR-10 images, eight minutes are 65 epochs of resnext_tiny_32px or 20 of
resnext_small_32px: 72.2 % (60 epochs) and 66.8 %. Three are 17 epochs of resnext_tiny_32px or 24 of
resnext_nano_32px: 63.9 % and 59.0 %.
"""
_MARGIN = 0.01
"""Fraction of the time that is kept for what a forecast does not see."""
_EXTRA = 0.03
"""Fraction of the time that the index may take, and the report's map."""


class Candidate(NamedTuple):
    """A network at a size, and its measured speed."""

    request: Request
    plan: RunPlan
    settings: RunSettings
    speed: Speed

    def learning(self, seconds: float) -> float:
        """Seconds of a time that are left for epochs; negative if it is too short."""
        seconds -= self.speed.ending() + self.extras(seconds)
        return seconds - self.look() if self.probes else seconds

    @property
    def probes(self) -> bool:
        """Whether its first classifier is fitted to embeddings."""
        return self.plan.recipe.probe and self.request.weights is not None

    def epochs(self, seconds: float) -> float:
        """Epochs that fit into a time, with what comes before and after them."""
        recipe = self.plan.recipe
        steps = len(training_pool(self.plan.splits)) // recipe.batch_size
        return self.speed.epochs(recipe, self.learning(seconds), steps)

    def look(self) -> float:
        """Seconds to look once at each image, as for embeddings."""
        images, val = len(training_pool(self.plan.splits)), len(self.plan.splits.val)
        return self.speed.validation * (images + val) / val

    def extras(self, seconds: float) -> float:
        """Seconds for the index and the report's map, each if that is a small part of the time."""
        costs, splits = [self.look()] if self.request.index else [], self.plan.splits
        if mappable(len(splits.train) + len(splits.val)):
            costs.append(self.look() + ARRANGING)
        return sum(cost for cost in costs if cost < _EXTRA * seconds)

    def row(self, epochs: float, needed: int) -> dict[str, Any]:
        """The candidate as a row of the table of choices."""
        return {
            "network": self.settings.title,
            "size": self.plan.preprocessing.size,
            "images_per_second": round(self.plan.recipe.batch_size / self.speed.step),
            "epochs": round(epochs, 1),
            "needed": needed,
        }


def fit_to_minutes(
    request: Request, asked: Request, plan: RunPlan, context: Context, began: float
) -> tuple[Request, RunPlan, TimePlan]:
    """Choose network, size and number of epochs for the time that is left.

    The choice is the largest candidate that has time for `enough_epochs`, each compared with the
    best smaller one; if none has, the fastest.

    Args:
        request: The arguments of the run, with network and size.
        asked: The arguments as they were given; network and size that they name are kept.
        plan: The plan of `request`, with the images.
        context: Processes, device and progress.
        began: When the run began, by `time.monotonic`.

    Raises:
        InputError: The time is too short for one epoch, or for the first classifier of weights.
    """
    assert request.minutes is not None, "called for runs with a time budget"
    total = 60 * request.minutes

    def left() -> float:
        return context.group.broadcast((1 - _MARGIN) * total - (time.monotonic() - began))

    threads = None
    if context.device.type == "cpu" and context.group.world == 1:
        most, dtype = torch.get_num_threads(), pick_precision(request.precision, context.device)
        change = fastest_threads(plan.network, plan.preprocessing.size, dtype, most)
        threads = (torch.get_num_threads(), most)
        if threads[0] < most:
            context.progress.line(changed_threads(change, most))
    images, batch_size = len(training_pool(plan.splits)), plan.recipe.batch_size
    measured: list[Candidate] = []
    requests = _requests(request, asked, plan.splits, context)
    for candidate in requests:
        own = plan if candidate is request else make_plan(candidate, plan.splits, context)
        teacher = measured[0].speed.teacher if measured else None  # the same for all
        measured.append(_measured(candidate, own, context, teacher))
        epochs = [each.epochs(left()) for each in measured]
        if epochs[-1] < climb(epochs, images, batch_size)[1][-1] / 2:
            break  # the next ones are slower
    seconds = left()
    epochs = [each.epochs(seconds) for each in measured]
    best, needed = climb(epochs, images, batch_size)
    chosen, most = measured[best], epochs[best]
    if most < 1 and not (chosen.probes and chosen.learning(seconds) > 0):
        each = chosen.speed.epoch(chosen.plan.recipe, images)
        raise InputError(
            f"--minutes {request.minutes:g} is too short: measuring this machine before it, and "
            f"the report after it, leave {duration(max(chosen.learning(seconds), 0.0))} for "
            f"training. An epoch of {images:,} images takes about {duration(each)} with "
            f"{chosen.settings.title} at {chosen.plan.preprocessing.size} pixels. Give more "
            f"--minutes, or fewer images."
        )
    recipe = chosen.plan.recipe
    whole = max(math.ceil(most), 1)
    recipe = recipe.changed(epochs=whole, head_epochs=min(recipe.head_epochs, whole - 1))
    reason = _why_only(asked) if len(requests) == 1 else _reason(best)
    rows = [each.row(epochs[i], needed[i]) for i, each in enumerate(measured)]
    settings = replace(chosen.settings, recipe=recipe)
    until_done = min(total - (time.monotonic() - began), chosen.speed.run(recipe, images))
    for line in (
        *_table(rows, best, reason, request.minutes),
        forecast_line(settings, images, until_done),
    ):
        context.progress.line(line)
    return (
        replace(chosen.request, recipe=recipe, changes={}),
        replace(chosen.plan, recipe=recipe),
        TimePlan(
            chosen.speed,
            time.monotonic() + seconds - chosen.speed.ending(),
            chosen.extras(seconds),
            threads,
            {
                "minutes": request.minutes,
                "chosen": best,
                "candidates": rows,
                "reason": reason,
                "seconds": chosen.speed.seconds(settings),
            },
        ),
    )


def _requests(request: Request, asked: Request, splits: Splits, context: Context) -> list[Request]:
    """The candidates, from the fastest to the slowest."""
    if asked.fine_tunes or (asked.model is not None and asked.size is not None):
        return [request]
    if splits.defaults.network is not None:
        return [request]
    ladder = choices(typical_side(splits.train), context.device.type, asked.size)
    pairs = dict.fromkeys((asked.model or choice.network, choice.size) for choice in ladder)
    return [replace(request, model=model, size=size) for model, size in pairs]


def _measured(
    request: Request, plan: RunPlan, context: Context, teacher: float | None
) -> Candidate:
    execution = context.group.broadcast(fastest_execution(request, context, plan))
    settings = run_settings(request, context, plan, execution)
    speed = measure(
        plan.network, plan.splits, settings, context.group, seconds=1.0, teacher=teacher
    )
    return Candidate(request, plan, settings, speed)


def climb(epochs: Sequence[float], images: int, batch_size: int) -> tuple[int, list[int]]:
    """The position of the best candidate, and the epochs from which each one would be better.

    Args:
        epochs: Epochs that each candidate has time for, from the smallest network to the largest.
        images: Training images.
        batch_size: Images per step.
    """
    best, needed = 0, [enough_epochs(images, batch_size)]
    for i, count in enumerate(epochs[1:], 1):
        needed.append(enough_epochs(images, batch_size, epochs[best] / max(count, 1e-9)))
        if count >= min(needed[i], epochs[best]):
            best = i
    return best, needed


def enough_epochs(images: int, batch_size: int, slower: float = 1.0) -> int:
    """Epochs from which a network is preferred to a smaller one.

    Args:
        images: Training images.
        batch_size: Images per step.
        slower: How many times as long it takes for an image.
    """
    passes = PASSES * max(slower / _SLOWER, 1.0) ** 2
    steps = max(images // batch_size, 1)
    return min(math.ceil(max(passes, STEPS / steps)), MOST_EPOCHS)


def _why_only(asked: Request) -> str:
    """Why there is one candidate only."""
    if asked.fine_tunes:
        return "the network of the weights"
    if asked.model is not None and asked.size is not None:
        return "network and size were given"
    return "the one that suits these images"


def _reason(best: int) -> str:
    if best:
        return "the largest one with time for the epochs that it needs"
    return "the fastest one, because a larger one needs more time"


def _table(rows: Sequence[dict[str, Any]], best: int, reason: str, minutes: float) -> list[str]:
    """The candidates as lines, the chosen one marked, and the reason."""
    width = max(len(row["network"]) for row in rows)
    lines = [f"Candidates for {minutes:g} minute{'s' * (minutes != 1)} on this machine:"]
    for i, row in enumerate(rows):
        needed = f", {row['needed']} needed" if i else ""
        lines.append(
            f"{'>' if i == best else ' '} {row['network']:<{width}}  {row['size']:>3} pixels  "
            f"{row['images_per_second']:>6,} images/s  {row['epochs']:>5,.1f} epochs{needed}"
        )
    chosen = rows[best]
    return [*lines, f"Chosen: {chosen['network']} at {chosen['size']} pixels, {reason}."]
