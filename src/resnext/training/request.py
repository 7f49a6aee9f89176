"""What a run was asked for, where it runs, and the plan that follows: data without decisions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resnext.card import Preprocessing
from resnext.config import ResNeXtConfig
from resnext.data.dataset import Splits
from resnext.network import ResNeXt
from resnext.system.progress import Reporter, SilentReporter
from resnext.training.distributed import ProcessGroup
from resnext.training.recipe import Probe, Recipe
from resnext.training.teacher import Teacher


@dataclass(frozen=True)
class Request:
    """The arguments of `train`, which documents them; the teacher is opened."""

    data: str | Path
    model: str | ResNeXtConfig | ResNeXt | None
    weights: str | Path | None
    teacher: Teacher | None
    out: Path
    recipe: str | Recipe | None
    size: int | None
    seed: int
    val_fraction: float
    workers: int | None
    device: str
    precision: str
    compile: bool | None
    sync_norms: bool
    resume: bool
    retries: int
    checkpoint_minutes: float
    minutes: float | None
    dry_run: bool
    overwrite: bool
    index: bool
    changes: dict[str, Any]
    parts: int | None = None
    """Parts of a batch, as a resumed run has begun; None to choose them by memory."""

    @property
    def folder(self) -> Path:
        """The run folder, next to the model file."""
        return self.out.with_name(f"{self.out.stem}.run")

    @property
    def origin(self) -> str | None:
        """Where the first weights come from; None if they are random."""
        if isinstance(self.model, ResNeXt):
            return "a network in memory"
        return None if self.weights is None else str(self.weights)

    @property
    def fine_tunes(self) -> bool:
        """Whether the first weights were trained: loaded ones, or a network's that has a card."""
        carded = isinstance(self.model, ResNeXt) and self.model.card is not None
        return carded or self.weights is not None


@dataclass(frozen=True)
class Context:
    """The environment of a run: its processes, the device of this one, and the progress display."""

    group: ProcessGroup
    device: torch.device
    progress: Reporter

    @property
    def shows_progress(self) -> bool:
        """Whether this process shows its progress to someone."""
        return self.group.first and not isinstance(self.progress, SilentReporter)


@dataclass(frozen=True)
class RunPlan:
    """Data, recipe, network and preprocessing, chosen before any file is changed."""

    splits: Splits
    recipe: Recipe
    network: ResNeXt
    preprocessing: Preprocessing


@dataclass(frozen=True)
class ProbePlan:
    """As `RunPlan`, for the recipe `probe`."""

    splits: Splits
    recipe: Probe
    network: ResNeXt
    preprocessing: Preprocessing
