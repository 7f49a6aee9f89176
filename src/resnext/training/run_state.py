"""The settings of a run, its state, and the clock that measures where its time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from resnext.card import Preprocessing
from resnext.training.recipe import Recipe
from resnext.training.teacher import Teacher


@dataclass(frozen=True)
class ExecutionConfig:
    """How the network is computed. Chosen by measuring before the first step, then fixed.

    Args:
        dtype: "float32", "bfloat16" or "float16": compute precision.
        merged: How many groups of a grouped convolution are computed as one, by layer name.
        fast_jpeg: Whether simplejpeg decodes JPEGs.
        compiled: Whether the network is compiled.
    """

    dtype: str
    merged: dict[str, int]
    fast_jpeg: bool
    compiled: bool


@dataclass(frozen=True)
class RunSettings:
    """Everything that defines a run, except its network and images.

    Args:
        title: Name of the network in the report.
        out: The model file.
        folder: The run folder: checkpoints, metrics, report.
        recipe: How to train.
        preprocessing: How images become input.
        seed: Random seed for data order and augmentation.
        workers: Processes that decode images.
        device: Device of the network.
        execution: How the network is computed.
        provenance: Origin of the model, as its card states it.
        identity: Everything that must be equal for a run to resume from a checkpoint.
        retries: How many times to continue with half the learning rate after the loss diverged.
        checkpoint_seconds: Seconds between checkpoints.
        sync_norms: Whether batch norms see the images of all processes.
        smallest: Smallest image size for the network, and the teacher, pixels.
        teacher: Gives the targets instead of the labels; None to train on labels.
    """

    title: str
    out: Path
    folder: Path
    recipe: Recipe
    preprocessing: Preprocessing
    seed: int
    workers: int
    device: torch.device
    execution: ExecutionConfig
    provenance: dict[str, Any]
    identity: dict[str, Any]
    retries: int
    checkpoint_seconds: float
    sync_norms: bool
    smallest: int
    teacher: Teacher | None = None

    def side(self, part: float = 1.0) -> int:
        """Size of the training images after a part of the run, pixels."""
        return self.recipe.side(self.preprocessing.size, self.smallest, part)

    def area(self, since: float = 0.0) -> float:
        """Mean area of the training images in the rest of a run, as a part of the largest."""
        parts = [since + (1 - since) * (i + 0.5) / _SAMPLES for i in range(_SAMPLES)]
        return sum((self.side(part) / self.side()) ** 2 for part in parts) / _SAMPLES


_SAMPLES = 200  # points of a run at which the size of its images is looked up


class Clock:
    """Seconds spent in each activity of a run; an inner activity pauses the outer one."""

    def __init__(self) -> None:
        parts = ("training", "waiting for images", "validating", "checkpoints")
        self.seconds: dict[str, float] = dict.fromkeys(parts, 0.0)
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time spent inside the `with` block to a part."""
        self.update()
        self._running.append(part)
        try:
            yield
        finally:
            self.update()
            self._running.pop()

    def update(self) -> None:
        """Add the time that has passed to the activity that is running."""
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


@dataclass
class TrainState:
    """Progress of a run. Every field is written into every checkpoint, under its name.

    Args:
        epoch: The running epoch, from 1.
        step: Steps finished in it.
        total: Sum of the losses of these steps.
        factor: Factor on the learning rate, halved by every retry.
        retries: Retries used.
        first: Mean loss of the first steps of the run, the reference for divergence.
        best: Epoch, accuracy and negative log-likelihood of the saved model.
        history: Metrics of each finished epoch.
        seconds: Time of the run, by part.
        bad: Images that became unreadable during training: reason by index.
        resumes: A line for each time the run was resumed or its number of epochs changed.
        budget: Seconds that all epochs, the index and the map may take; None for no limit.
        kept: Seconds of the budget that are kept for the index and the map.
        threads: Threads that train, and those of a machine without other programs; None if no
            budget decides.
        choice: Network, size and epochs that were chosen for the budget, and the candidates.
        replans: Each choice of a number of epochs to keep the budget: epochs finished before it,
            and epochs in total after it; both are fractions where an epoch was cut short or the
            last one is a shorter one.
    """

    epoch: int = 1
    step: int = 0
    total: float = 0.0
    factor: float = 1.0
    retries: int = 0
    first: float | None = None
    best: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: Clock().seconds)
    bad: dict[str, str] = field(default_factory=dict)
    resumes: list[str] = field(default_factory=list)
    budget: float | None = None
    kept: float = 0.0
    threads: tuple[int, int] | None = None
    choice: dict[str, Any] | None = None
    replans: list[tuple[float, float]] = field(default_factory=list)

    def epochs(self, planned: int) -> float:
        """Epochs of the run: as planned, or as replanned."""
        return self.replans[-1][1] if self.replans else planned

    def progress(self, number: int, steps: int, planned: int) -> float:
        """Position of a step in the learning rate schedule of the run as it was planned.

        After a change of the number of epochs, the rest of the schedule is stretched over the
        epochs that remain.

        Args:
            number: Number of the step in the run, from 0.
            steps: Steps per epoch.
            planned: Epochs of the run as it was planned.

        Returns:
            A number from 0 to `steps * planned`, in steps.
        """
        end = total = steps * planned
        position, since = 0.0, 0
        for finished, changed in self.replans:
            now = round(finished * steps)
            if number < now:
                break
            position += (now - since) * (end - position) / max(total - since, 1)
            since, total = now, round(changed * steps)
        return position + (number - since) * (end - position) / max(total - since, 1)
