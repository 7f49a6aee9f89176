"""The arguments of a run: what is refused before its data is opened, and what has no effect."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from resnext.checks import brief
from resnext.config import ResNeXtConfig
from resnext.data.workers import check_workers
from resnext.errors import CheckpointError, ConfigError, InputError
from resnext.network import ResNeXt
from resnext.system.allocator import keep_freed_memory
from resnext.system.atomic import check_writable
from resnext.system.device import pick_device, pick_precision
from resnext.system.progress import Reporter
from resnext.training.distributed import ProcessGroup
from resnext.training.recipe import Recipe
from resnext.training.request import Request


def validate_arguments(request: Request, group: ProcessGroup) -> torch.device:
    """Check all arguments that need no data, and return the device of this process."""
    check_out(request)
    if request.weights is not None and not isinstance(request.weights, str | Path):
        raise InputError(
            f"weights must be a file, a name or an address, not {brief(request.weights)}. Give a "
            f"network as the model."
        )
    for name, value, kinds in (
        ("retries", request.retries, (int,)),
        ("checkpoint_minutes", request.checkpoint_minutes, (int, float)),
        ("workers", request.workers or 0, (int,)),
    ):
        if type(value) not in kinds or not 0 <= value < 1e9:
            whole = "a whole number, " if kinds == (int,) else ""
            raise InputError(f"{name} must be {whole}0 or more, not {brief(value)}.")
    check_workers(request.workers or 0)
    if request.size is not None and type(request.size) is not int:
        raise InputError(f"size must be a whole number of pixels, not {brief(request.size)}.")
    if request.minutes is not None:
        if type(request.minutes) not in (int, float) or not 0 < request.minutes < 1e6:
            raise InputError(
                f"minutes must be more than 0 and less than a million, not "
                f"{brief(request.minutes)}."
            )
        if "epochs" in request.changes:
            raise InputError("Give minutes or epochs, not both: minutes decides the epochs.")
    device = pick_device(request.device)
    keep_freed_memory()
    if group.world > 1 and device.type == "cuda":  # each process has its own GPU
        device = torch.device("cuda", group.local)
        torch.cuda.set_device(device)
    pick_precision(request.precision, device)
    return device


def check_out(request: Request) -> None:
    """Check that the model file and the run folder can be written and replace nothing.

    Raises:
        CheckpointError: One cannot be written, or a model or checkpoint would be lost.
    """
    out = request.out
    check_writable(out)
    if out.suffix in (".run", ".index"):
        raise CheckpointError(
            f"{out} cannot be the model file: the run folder ends in .run, and the index in "
            f".index. Choose another name, such as {out.with_suffix('.safetensors')}."
        )
    folder = request.folder
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file, not a run folder. Choose another name.")
    check_writable(folder / "report.html")
    if request.resume or request.overwrite:
        return
    unfinished = any(folder.glob("checkpoint-*.state"))
    if out.exists() or unfinished:
        existing = out if out.exists() else folder
        advice = ", continue with --resume" if unfinished else ""
        raise CheckpointError(
            f"{existing} exists. Choose another name{advice}, or allow overwriting (--overwrite)."
        )


_ONLY_WITH = {
    "momentum": ("optimizer", "sgd"),
    "milestones": ("schedule", "step"),
    "operations": ("policy", "rand"),
    "magnitude": ("policy", "rand"),
    "min_area": ("padding", 0),
}
"""Fields of a recipe that have an effect only with one value of another field."""


def check_effects(request: Request, recipe: Recipe, progress: Reporter) -> None:
    """Refuse a recipe that lacks what it is for, and changes of it that would be ignored.

    Args:
        request: The arguments of a new run.
        recipe: Its recipe, with the changes.
        progress: Gets a line about layers that would stay as they are initialized.

    Raises:
        ConfigError: A teacher or weights are missing, or a change has no effect.
    """
    if request.recipe == "distill" and request.teacher is None:
        raise ConfigError(
            f"The recipe distill needs a teacher, and none is given. Use resnext distill TEACHER "
            f"--data {shlex.quote(str(request.data))}, or leave out the recipe to train on the "
            f"labels."
        )
    if recipe.probe and request.origin is None:
        name = "The recipe finetune" if request.recipe == "finetune" else "probe"
        raise ConfigError(
            f"{name} needs weights to start from, and none are given. Give --weights, or train "
            f"from scratch with another recipe, such as small."
        )
    if recipe.cached_views and request.teacher is not None:
        raise ConfigError(
            "cached_views has no effect with a teacher, which needs the images. Leave it out."
        )
    ignored = _ignored(request)
    for name, (other, value) in _ONLY_WITH.items():
        if (now := getattr(recipe, other)) != value:
            ignored[name] = f"{other}={now}, only with {other}={value}"
    for name in request.changes:
        if name in ignored:
            raise ConfigError(f"{name} has no effect with {ignored[name]}. Leave it out.")
    if request.origin is None and (recipe.frozen_stages >= 0 or recipe.frozen_norms):
        name = "frozen_stages" if recipe.frozen_stages >= 0 else "frozen_norms"
        progress.line(f"Without weights, {name} keeps layers as they are initialized.")


def _ignored(request: Request) -> dict[str, str]:
    """Fields of a recipe that a run ignores whatever the recipe is, and what it has instead."""
    ignored: dict[str, str] = {}
    if isinstance(request.model, ResNeXtConfig):
        ignored["drop_path"] = "a config, whose drop_path_rate is used"
        ignored["zero_init_residual"] = "a config, whose own zero_init_residual is used"
    elif request.origin is not None:
        ignored["zero_init_residual"] = f"{request.origin}, whose weights are used"
    if isinstance(request.model, ResNeXt) and request.changes.get("probe"):
        ignored["probe"] = "a network in memory, only with weights"
    if request.teacher is not None and request.changes.get("label_smoothing"):
        ignored["label_smoothing"] = "a teacher, whose answers replace the labels"
    return ignored
