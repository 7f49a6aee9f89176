"""How long a run will take, from timing real steps on real images."""

from __future__ import annotations

import copy
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from resnext.data.dataset import Splits
from resnext.data.unlabelled import training_pool
from resnext.data.workers import loaded_batches, stop_workers
from resnext.grouped_conv import merge_groups
from resnext.network import ResNeXt
from resnext.system.device import hardware
from resnext.system.progress import SilentReporter
from resnext.system.text import clock_time, counted, duration
from resnext.training.dataloader import Batch, TrainSampler, run_loader
from resnext.training.distributed import ProcessGroup
from resnext.training.recipe import Recipe
from resnext.training.run_state import RunSettings, TrainState
from resnext.training.step import TrainStep, keeps_maps
from resnext.training.validation import Validator

_WARM_UP = 2
"""Steps that are not counted: workers start, and the first steps of a network are slower."""
MOST_EPOCHS = 300
"""Epochs that a time budget is used for at most."""
_REPORT_SECONDS = 3.0
"""Calibration, charts and the explained mistakes of the report."""


class Speed(NamedTuple):
    """Measured speed of a network on some images, on this machine."""

    step: float
    """Seconds per step, including the loading of its images: the mean of the run."""
    validation: float
    """Seconds per validation of all validation images."""
    teacher: float = 0.0
    """Seconds to validate the teacher, for the comparison with it; 0 without a teacher."""
    later: float | None = None
    """Seconds per step after the first epochs, if these keep the maps of frozen stages."""

    def validations(self, recipe: Recipe) -> float:
        """Seconds for the validations after an epoch."""
        return (2 if recipe.ema else 1) * self.validation

    def epoch(self, recipe: Recipe, images: int) -> float:
        """Seconds per epoch of `images` training images, with its validations."""
        return images // recipe.batch_size * self.step + self.validations(recipe)

    def epochs(self, recipe: Recipe, seconds: float, steps: int) -> float:
        """Epochs of so many steps that fit into a time, see `epochs_that_fit`."""
        validation = self.validations(recipe)
        fit = epochs_that_fit(seconds, self.step, validation, steps)
        if self.later is None or fit <= recipe.cached_views:
            return fit
        seconds -= recipe.cached_views * (steps * self.step + validation)
        fit = recipe.cached_views + epochs_that_fit(seconds, self.later, validation, steps)
        return min(fit, MOST_EPOCHS)

    def ending(self) -> float:
        """Seconds from the last epoch to the written report."""
        return self.validation + self.teacher + _REPORT_SECONDS

    def seconds(self, settings: RunSettings) -> dict[str, float]:
        """Seconds of a step with the largest images, of the validations and of the ending.

        If maps are kept, the steps that compute them are the first ones.
        """
        first = self.step / settings.area()
        step = first if self.later is None else self.later
        validations = self.validations(settings.recipe)
        return {
            "first_step": first,
            "step": step,
            "validation": validations,
            "ending": self.ending(),
        }

    def run(self, recipe: Recipe, images: int) -> float:
        """Seconds of a whole run on `images` training images, with its report."""
        seconds = recipe.epochs * self.epoch(recipe, images) + self.ending()
        if self.later is not None:
            later = max(recipe.epochs - recipe.cached_views, 0) * (images // recipe.batch_size)
            seconds -= later * (self.step - self.later)
        return seconds


class TimePlan(NamedTuple):
    """What was chosen for a time budget."""

    speed: Speed
    """As measured."""
    end: float
    """Time at which all epochs, the index and the map must be done, by `time.monotonic`."""
    kept: float
    """Seconds of it that are kept for the index and the map."""
    threads: tuple[int, int] | None
    """Threads that were measured, and those of a machine without other programs; None for a GPU,
    or several processes."""
    choice: dict[str, Any]
    """The choice and its candidates, as the model's card states them."""


def epochs_that_fit(seconds: float, step: float, validation: float, steps: int) -> float:
    """Epochs that fit into a time; the last one is shorter if this is not a whole number.

    Args:
        seconds: The time.
        step: Seconds per step.
        validation: Seconds for the validations after each epoch.
        steps: Steps of a whole epoch.
    """
    seconds, each = max(seconds, 0.0), max(steps * step + validation, 1e-9)
    whole = int(seconds / each)
    rest = int((seconds - whole * each - validation) / max(step, 1e-9))
    return min(whole + min(max(rest / steps, 0.0), 1.0), MOST_EPOCHS)


def measure(
    network: ResNeXt,
    splits: Splits,
    settings: RunSettings,
    group: ProcessGroup,
    *,
    seconds: float = 3.0,
    teacher: float | None = None,
) -> Speed:
    """Time training steps and validation, with a copy of the network.

    Args:
        network: The network, on the device of the run. It is not changed.
        splits: The images.
        settings: Recipe, preprocessing, execution and teacher. Nothing is compiled: on a GPU, a
            compiled run is faster than measured.
        group: The processes that train together. All measure, and agree on the first's result.
        seconds: Seconds to time steps for, at least three steps.
        teacher: Seconds to validate the teacher; None to measure them.
    """
    settings = replace(settings, execution=replace(settings.execution, compiled=False))
    network = copy.deepcopy(network)
    merge_groups(network, settings.execution.merged)
    step = _mean_step(network, splits, settings, group, seconds)
    validation = _validation_seconds(network, splits, settings, group)
    if teacher is None:
        teacher = _teacher_seconds(splits, settings, group)
    later = None
    if keeps_maps(settings, group):
        later = _step_seconds(network, splits, settings, group, seconds, settings.side(), kept=True)
    return group.broadcast(Speed(step, validation, teacher, later))


def _mean_step(
    network: ResNeXt, splits: Splits, settings: RunSettings, group: ProcessGroup, seconds: float
) -> float:
    """Seconds per step; of images that grow, the smallest and the largest are timed."""
    first, last = settings.side(0.0), settings.side()
    if first == last:
        return _step_seconds(network, splits, settings, group, seconds, last)
    small, large = (
        _step_seconds(network, splits, settings, group, seconds / 2, side) for side in (first, last)
    )
    least = (first / last) ** 2
    return small + (large - small) * (settings.area() - least) / (1 - least)


def _step_seconds(
    network: ResNeXt,
    splits: Splits,
    settings: RunSettings,
    group: ProcessGroup,
    seconds: float,
    side: int,
    *,
    kept: bool = False,
) -> float:
    """Seconds per step with images of a size, or with maps of frozen stages that are kept."""
    recipe, images = settings.recipe, training_pool(splits)
    sampler = TrainSampler(images, recipe, settings.seed, group)
    sampler.side = side
    loader = run_loader(images, settings, sampler)
    train_step = TrainStep(network, images, settings, group)
    train_step.set_rate(0.0)
    model = train_step.model(recipe.head_epochs + 1)
    train_step.epoch = 1  # which computes maps that are to be kept
    enough = 0.01 * recipe.epochs * sampler.steps  # short runs are not timed for long
    steps, began = -_WARM_UP, time.perf_counter()
    places = np.asarray(sampler.places(0, 0))  # the images do not matter
    with closing(_endless(loader, sampler)) as batches:
        if kept:
            first = next(batches)
            train_step.backward(model, first, 0, 0, places)
            batches = repeat(first._replace(images=first.images[:0]))
            train_step.epoch = recipe.cached_views + 1
        while True:
            losses = [
                train_step.backward(model, next(batches), 0, part, places).loss
                for part in range(recipe.accumulate)
            ]
            train_step.update(0)
            losses[-1].item()  # waits for a GPU
            steps += 1
            if steps == 0:
                began = time.perf_counter()
            elapsed = time.perf_counter() - began
            if steps >= 3 and group.any(elapsed > min(seconds, elapsed / steps * enough))[0]:
                return elapsed / steps


def _endless(loader: DataLoader[Any], sampler: TrainSampler) -> Generator[Batch]:
    """Batches of one epoch after the other; workers end with the generator."""
    try:
        while True:
            yield from loaded_batches(loader)
            sampler.epoch += 1
    finally:
        stop_workers(loader)


def _validation_seconds(
    network: ResNeXt, splits: Splits, settings: RunSettings, group: ProcessGroup
) -> float:
    """Seconds for all validation images, from those of a few batches if there are many."""
    network.eval()
    batch = 2 * settings.recipe.batch_size
    counts = sorted({min(n * batch, len(splits.val)) for n in (1, 1, 5)})  # the first warms up
    seconds: list[float] = []
    for count in (counts[0], *counts):
        images = splits.val.select(range(count), splits.val.name)
        validator = Validator(images, settings, group, SilentReporter(), lambda: None)
        began = time.perf_counter()
        validator.outputs(network, "")
        seconds.append(time.perf_counter() - began)
    if len(counts) == 1:
        return seconds[-1]
    rate = max(seconds[-1] - seconds[-2], 0.0) / (counts[1] - counts[0])
    return seconds[-1] + rate * (len(splits.val) - counts[1])


def _teacher_seconds(splits: Splits, settings: RunSettings, group: ProcessGroup) -> float:
    """Seconds to validate the teacher, preprocessed as it was trained; 0 without a teacher."""
    teacher = settings.teacher
    if teacher is None:
        return 0.0
    settings = replace(settings, preprocessing=teacher.preprocessing)
    return _validation_seconds(teacher.network, splits, settings, group)


def run_forecast(
    network: ResNeXt,
    splits: Splits,
    settings: RunSettings,
    group: ProcessGroup,
    state: TrainState | None,
) -> list[str]:
    """Lines that say when a run will be done, from timing; all processes measure together.

    Args:
        network: The network, on the device of the run. It is not changed.
        splits: The images.
        settings: Everything else that defines the run.
        group: The processes that train together.
        state: Where it would be resumed; None for a new run.
    """
    recipe, images = settings.recipe, len(training_pool(splits))
    seconds = measure(network, splits, settings, group).run(recipe, images)
    if state is None:
        lines = [forecast_line(settings, images, seconds)]
        if settings.device.type == "cpu" and seconds > 3600:
            lines.append(
                "That is long for a processor. To get the best model of half an hour instead: "
                "--minutes 30"
            )
        return lines
    done = state.epoch - 1 + state.step / max(images // recipe.batch_size, 1)
    seconds *= max(state.epochs(recipe.epochs) - done, 0.0) / recipe.epochs
    return [
        f"The run would be resumed in epoch {state.epoch}, step {state.step}.",
        forecast_line(settings, images, seconds),
    ]


def forecast_line(settings: RunSettings, images: int, seconds: float) -> str:
    """Network, size, epochs and the time at which the run will be done.

    Args:
        settings: Title of the network, recipe, preprocessing and device.
        images: Number of training images.
        seconds: Seconds until it will be done.
    """
    recipe, size = settings.recipe, settings.preprocessing.size
    epochs = counted(recipe.epochs, "epoch")
    machine = (
        counted(torch.get_num_threads(), "core")
        if settings.device.type == "cpu"
        else hardware(settings.device)
    )
    return (
        f"{settings.title} at {size} pixels, {epochs} of {images:,} images: "
        f"done at about {clock_time(seconds)} ({duration(seconds)} on {machine})."
    )
