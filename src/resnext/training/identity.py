"""What a run was started with, as its checkpoints keep it: compared and taken over on resume."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, Field, asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from resnext.card import Preprocessing
from resnext.config import ResNeXtConfig
from resnext.data.unlabelled import unlabelled_fingerprint
from resnext.errors import CheckpointError
from resnext.training.checkpoint import Checkpoint, latest_checkpoint
from resnext.training.recipe import Probe, Recipe
from resnext.training.request import Context, ProbePlan, Request, RunPlan
from resnext.training.run_state import ExecutionConfig, TrainState

_GROUPS: dict[str, type[Any]] = {
    "config": ResNeXtConfig,
    "preprocessing": Preprocessing,
    "recipe": Recipe,
}
"""What the fields of an identity belong to, by the first part of their names."""


def check_version(about: dict[str, Any], folder: Path) -> None:
    """Check that this version knows everything that a checkpoint holds, and misses nothing in it.

    Fields that came later have defaults, with which earlier versions trained.

    Args:
        about: The values of the checkpoint.
        folder: Folder of the run.

    Raises:
        CheckpointError: Another version wrote it, which this one cannot continue.
    """
    identity = about.get("identity", {})
    parts: dict[str, tuple[type[Any], dict[str, Any]]]
    parts = {group: (kind, _fields(identity, group)) for group, kind in _GROUPS.items()}
    wrong = [name for name in ("seed", "val_fraction", "classes", "images") if name not in identity]
    if identity.get("recipe") == "probe":
        parts["recipe"] = (Probe, parts["recipe"][1])
    else:
        parts |= {
            "position": (TrainState, about.get("position", {})),
            "forms": (ExecutionConfig, about.get("forms", {})),
        }
        wrong += [name for name in ("optimizer", "scaler") if name not in about]
    for group, (kind, given) in parts.items():
        known = {field.name: field for field in fields(kind)}
        needed = (name for name, field in known.items() if _default(field) is MISSING)
        wrong += [f"{group}.{name}" for name in needed if name not in given]
        wrong += [f"{group}.{name}" for name in given if name not in known]
    if wrong:
        raise other_version(folder, f"{', '.join(wrong[:3])}{', …' if wrong[3:] else ''}")


def newest_checkpoint(request: Request, context: Context) -> Checkpoint | None:
    """In the first process: the checkpoint to resume from, if the run resumes and there is one.

    Raises:
        CheckpointError: A finished model would be lost, or is lost, all checkpoints are damaged,
            or another version wrote them.
    """
    if not (request.resume and context.group.first):
        return None
    if (checkpoint := latest_checkpoint(request.folder, context.progress.line)) is not None:
        check_version(checkpoint.about, request.folder)
        if checkpoint.about.get("position", {}).get("best") and not request.out.exists():
            raise CheckpointError(
                f"{request.out} is missing. It held the best epoch so far, which no checkpoint "
                f"does. Put it back, or start again with --overwrite."
            )
        return checkpoint
    if request.out.exists() and not request.overwrite:
        raise CheckpointError(
            f"{request.out} exists, and there is no checkpoint to resume from. Choose another "
            f"name, or allow overwriting (--overwrite)."
        )
    context.progress.line("There is no checkpoint to resume from; starting a new run.")
    return None


def other_version(folder: Path, difference: str) -> CheckpointError:
    """The error that a run of another version cannot be continued."""
    return CheckpointError(
        f"The run in {folder} was begun by another version of resnext, whose checkpoints differ "
        f"({difference}). Finish it with that version, or start again with --overwrite."
    )


def _default(field: Field[Any]) -> Any:
    factory = field.default_factory
    return field.default if factory is MISSING else factory()


def chosen_before(request: Request, identity: dict[str, Any]) -> Request:
    """The request with what the run chose when it began, where the request leaves it open.

    Args:
        request: The arguments of the resumed run.
        identity: The identity of the run in its checkpoint, see `run_identity`.
    """
    if request.minutes != identity.get("minutes"):
        return request
    request = replace(request, parts=identity.get("recipe.accumulate"))
    chosen = request.model is None and request.weights is None
    if request.size is None and (chosen or request.minutes is not None):
        request = replace(request, size=identity["preprocessing.size"])
    if request.minutes is not None:
        recipe = Recipe(**_fields(identity, "recipe"))
        changes = dict(request.changes)
        if type(changes.get("head_epochs")) is int:  # as when the number of epochs was chosen
            changes["head_epochs"] = min(changes["head_epochs"], recipe.epochs - 1)
        request = replace(request, recipe=recipe, changes=changes)
    if chosen:
        config = ResNeXtConfig.from_dict(_fields(identity, "config"))
        request = replace(request, model=config)
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
    changed = {
        name: (before, now)
        for name in {**current, **saved}
        if (before := _value(saved, name)) != (now := _value(current, name))
    }
    if "recipe" in changed:
        before = "with" if saved.get("recipe") == "probe" else "without"
        raise CheckpointError(
            f"The checkpoint is of a run {before} the recipe probe. Give the same arguments, or "
            f"start again with --overwrite."
        )
    if not changed:
        return
    first = next(iter(changed))
    if first == "images":
        raise CheckpointError(
            "The checkpoint is of a run on other images: some were added, removed, "
            "repaired or damaged since. Restore them, or start again with --overwrite."
        )
    group = first.partition(".")[0]
    alike = {k.rpartition(".")[2]: v for k, v in changed.items() if k.partition(".")[0] == group}
    same = ""
    if group == "recipe":  # a named recipe may have had other values in an earlier version
        same = f" ({' '.join(f'--set {name}={before}' for name, (before, _) in alike.items())})"
    values = "; ".join(f"{name} was {before}, now {now}" for name, (before, now) in alike.items())
    raise CheckpointError(
        f"The checkpoint is of another run: {values}. Give the same arguments{same}, or start "
        f"again with --overwrite."
    )


def _value(identity: dict[str, Any], name: str) -> Any:
    """A value of an identity; one that is not in it is the default of its field, if any."""
    group, _, field = name.partition(".")
    if name in identity or group not in _GROUPS or not field:
        return identity.get(name)
    default = next((_default(f) for f in fields(_GROUPS[group]) if f.name == field), MISSING)
    return None if default is MISSING else json.loads(json.dumps(default))
