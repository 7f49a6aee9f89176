"""What a run was started with, as its checkpoints keep it: compared and taken over on resume."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from resnext.config import ResNeXtConfig
from resnext.data.unlabelled import unlabelled_fingerprint
from resnext.errors import CheckpointError
from resnext.training.recipe import Recipe

if TYPE_CHECKING:
    from resnext.training.preparation import ProbePlan, Request, RunPlan

_LATER_FIELDS = {
    "recipe.probe": False,
    "recipe.distill_temperature": 1.0,
    "recipe.first_size": 1.0,
    "recipe.frozen_stages": -1,
    "recipe.cached_views": 0,
}
"""What older checkpoints, which lack these fields, were trained with; None for all others."""


def chosen_before(request: Request, identity: dict[str, Any]) -> Request:
    """The request with what the run chose when it began, where the request leaves it open.

    Args:
        request: The arguments of the resumed run.
        identity: The identity of the run in its checkpoint, see `run_identity`.
    """
    if request.minutes != identity.get("minutes"):
        return request
    request = replace(request, parts=identity.get("recipe.accumulate"))
    if request.minutes is not None:
        request = replace(request, recipe=Recipe(**_fields(identity, "recipe")))
    if request.model is None and request.weights is None:
        size = request.size or identity["preprocessing.size"]
        config = ResNeXtConfig.from_dict(_fields(identity, "config"))
        request = replace(request, model=config, size=size)
    return request


def _fields(identity: dict[str, Any], group: str) -> dict[str, Any]:
    return {
        name.removeprefix(f"{group}."): value
        for name, value in identity.items()
        if name.startswith(f"{group}.")
    }


def run_identity(request: Request, plan: RunPlan | ProbePlan) -> dict[str, Any]:
    """Everything that must be equal for a run to resume from a checkpoint, as JSON values."""
    splits, images = plan.splits, hashlib.sha256(plan.splits.fingerprint.encode())
    for part in (splits.train, splits.val):
        images.update(np.asarray(part.targets, np.int64).tobytes() + b"|")
    if splits.unlabelled is not None:
        images.update(unlabelled_fingerprint(splits.unlabelled).encode())
    identity = {
        "seed": request.seed,
        "val_fraction": request.val_fraction,
        "minutes": request.minutes,
        "weights": request.origin,
        "teacher": None if request.teacher is None else request.teacher.digest,
        "classes": splits.train.labels,
        **{f"config.{k}": v for k, v in plan.network.config.to_dict().items()},
        **{f"preprocessing.{k}": v for k, v in plan.preprocessing.to_dict().items()},
        **{f"recipe.{k}": v for k, v in asdict(plan.recipe).items()},
        "images": images.hexdigest()[:16],
    }
    return json.loads(json.dumps(identity))


def check_identity(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Check that a checkpoint belongs to this run.

    Raises:
        CheckpointError: The checkpoint belongs to another run.
    """
    for name, value in current.items():
        before = saved.get(name, _LATER_FIELDS.get(name))
        if before == value:
            continue
        if name == "images":
            raise CheckpointError(
                "The checkpoint is of a run on other images: some were added, removed, "
                "repaired or damaged since. Restore them, or start again with --overwrite."
            )
        raise CheckpointError(
            f"The checkpoint is of another run: {name.rpartition('.')[2]} was {before}, "
            f"now {value}. Give the same arguments, or start again with --overwrite."
        )
