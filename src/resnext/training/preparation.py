"""Before the first step of a run: network, batch size, execution."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnext.architectures import canonical_name, title, variant, warn_of_weights
from resnext.card import Preprocessing
from resnext.checks import brief
from resnext.config import ResNeXtConfig
from resnext.data.dataset import ImageSet, Problem, Splits
from resnext.data.scan import add_to_quarantine
from resnext.data.transforms import fast_decoder
from resnext.data.unlabelled import training_pool
from resnext.data.workers import default_workers
from resnext.errors import CheckpointError, ConfigError, DataError, InputError
from resnext.grouped_conv import fastest_groups
from resnext.network import ResNeXt
from resnext.system.device import pick_precision
from resnext.system.limits import total_memory
from resnext.training.distributed import ProcessGroup
from resnext.training.given_model import network_copy
from resnext.training.identity import run_identity
from resnext.training.memory import parts_that_fit
from resnext.training.recipe import Recipe
from resnext.training.recipes import choose
from resnext.training.request import Context, ProbePlan, Request, RunPlan
from resnext.training.run_state import ExecutionConfig, RunSettings
from resnext.training.teacher import Teacher, check_distillation
from resnext.weights.load import load

_LARGEST = 10_000  # pixels; an image of this size takes more than a gigabyte
_WRITTEN = (
    "checkpoint-*.state*",
    "checkpoint-*.damaged",
    "metrics.jsonl*",
    "events.out.tfevents.*",
    "label_doubts.csv*",
    "quarantine.csv*",
    "report.html*",
)
"""Files of a run in its folder; while they are written, with a dot before and letters after."""


def make_plan(request: Request, splits: Splits, context: Context) -> RunPlan:
    """Choose the recipe and build the network, on its device; nothing is written.

    Raises:
        ConfigError: Model, recipe or size are invalid, or an optional package is missing.
        CheckpointError: The weights cannot be loaded.
        DataError: There are too few images for the processes.
        InputError: The batch cannot be divided among the processes, or the images are too small
            for the teacher.
    """
    teacher, images = request.teacher, training_pool(splits)
    recipe = choose(
        request.recipe,
        default=_default_recipe(request, splits),
        images=len(images),
        weights=request.fine_tunes,
    )
    recipe = fit_batch_size(recipe.changed(**request.changes), images, context.group)
    torch.manual_seed(request.seed)
    network = build_network(request, splits, recipe, context.shows_progress)
    preprocessing = chosen_preprocessing(network, splits, request.size, teacher)
    recipe = _fit_memory(request, recipe, network, preprocessing.size, context)
    side, smallest = recipe.train_size or preprocessing.size, _smallest(network.config, None)
    if side < smallest:
        raise _too_small("train_size", smallest, network.config, side)
    if recipe.padding >= side:
        raise ConfigError(f"padding must be less than the images' {side} pixels; lower it.")
    if teacher is not None:
        check_distillation(recipe, teacher, preprocessing.size)
    elif recipe.distill_temperature != 1:
        raise ConfigError(
            "distill_temperature needs a teacher (resnext distill). Leave it out, or give one."
        )
    check_packages(recipe)
    if recipe.frozen_stages > network.config.num_stages:
        raise ConfigError(
            f"frozen_stages must be from -1 (none) to {network.config.num_stages}, the stages of "
            f"this network, not {recipe.frozen_stages}."
        )
    network = network.to(context.device)
    context.group.broadcast_tensors(list(network.state_dict().values()))  # a given network's differ
    network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return RunPlan(splits, recipe, network, preprocessing)


def _default_recipe(request: Request, splits: Splits) -> str | None:
    """Name of the recipe if none is given; None leaves it to the number of images."""
    if request.teacher is not None:
        return "distill"
    if splits.defaults.recipe is not None or request.fine_tunes:
        return splits.defaults.recipe
    model = request.model
    name = title(model) if isinstance(model, ResNeXtConfig) else str(model)
    compact = not isinstance(model, ResNeXt) and canonical_name(name).startswith("resnext_")
    return "quick" if compact or request.minutes is not None else None


def check_packages(recipe: Recipe) -> None:
    """Check that the optional packages of a recipe are installed and work.

    Raises:
        ConfigError: A package is not installed, or cannot be imported.
    """
    for package, feature in recipe.required_packages().items():
        if find_spec(package) is None:
            raise ConfigError(
                f'{feature} needs {package}, which is not installed: pip install "resnext[train]".'
            )
        try:
            import_module(package)
        except Exception as error:  # a package that is damaged, or of the wrong version
            raise ConfigError(
                f"{feature} needs {package}, which cannot be imported: {brief(error)}. Reinstall "
                f'it: pip install --force-reinstall "resnext[train]".'
            ) from error


def chosen_preprocessing(
    network: ResNeXt, splits: Splits, size: int | None, teacher: Teacher | None = None
) -> Preprocessing:
    """Preprocessing of the weights, else the teacher's, else the default, at the requested size.

    Raises:
        ConfigError: The network's stride is larger than its images.
    """
    config, grey = network.config, splits.colour == "L"
    default = Preprocessing()
    if network.card is not None:
        default = network.card.preprocessing
    elif teacher is not None:
        default = teacher.default_preprocessing(splits.colour)
    elif config.small_stem:
        default = Preprocessing(32, 32)
    if size is None:
        size = splits.defaults.size
    smallest = _smallest(config, None)
    chosen = default.size if size is None else size
    if type(chosen) is not int or chosen < smallest:
        raise _too_small("--size", smallest, config, chosen)
    if chosen > _LARGEST:
        raise ConfigError(f"size must be at most {_LARGEST:,} pixels, not {brief(chosen)}.")
    resize = default.resize
    if chosen != default.size:
        resize = chosen if chosen <= 64 else round(chosen * default.resize / default.size)
    default = replace(default, value_range=splits.value_range)
    if grey and default.colour != "L":
        return replace(default, size=chosen, resize=resize, mean=(0.5,), std=(0.25,), colour="L")
    return replace(default, size=chosen, resize=resize)


def _too_small(name: str, smallest: int, config: ResNeXtConfig, size: object) -> ConfigError:
    return ConfigError(
        f"{name.removeprefix('--')} must be at least {smallest} pixels for this network, whose "
        f"last map has one pixel for every {config.stride}, not {brief(size)}. Raise {name}, or "
        f"choose a network for small images such as resnext29_32x4d."
    )


def _smallest(config: ResNeXtConfig, teacher: Teacher | None) -> int:
    """The smallest image size for a network, and its teacher, pixels."""
    configs = [config] if teacher is None else [config, teacher.network.config]
    return max(max(each.stride, each.min_size) for each in configs)


def build_network(request: Request, splits: Splits, recipe: Recipe, progress: bool) -> ResNeXt:
    """The network before the first step.

    Raises:
        ConfigError: The variant is unknown, both a model and weights are given, or the network
            was modified.
        CheckpointError: The weights cannot be loaded, or not adapted to the images' channels.
    """
    labels, channels = splits.train.labels, 1 if splits.colour == "L" else 3
    model, weights = request.model, request.weights
    if model is not None and weights is not None:
        raise ConfigError("Give a model or weights, not both: weights define their network.")
    if isinstance(model, ResNeXt):
        network = network_copy(model, len(labels), channels)
    elif weights is not None:
        network = loaded_network(weights, splits, progress=progress)
    else:
        initial = {
            "zero_init_residual": recipe.zero_init_residual,
            "drop_path_rate": recipe.drop_path,
        }
        config = model if isinstance(model, ResNeXtConfig) else variant(_named(model), **initial)
        if isinstance(model, str):
            warn_of_weights(model)
        return ResNeXt(config.replace(num_classes=len(labels), in_channels=channels))
    if recipe.drop_path:
        state, config = network.state_dict(), network.config
        card, network = network.card, ResNeXt(config.replace(drop_path_rate=recipe.drop_path))
        network.load_state_dict(state)
        network.card = card
    card = network.card
    if card and card.labels != labels:  # the same number of classes, but other ones
        network.reset_classifier(len(labels))
        network.card = replace(card, labels=())
    return network


def loaded_network(weights: str | Path, splits: Splits, *, progress: bool) -> ResNeXt:
    """The network of given weights, for the images' classes and channels, in single precision.

    Raises:
        CheckpointError: The weights cannot be loaded, or not adapted to the images' channels.
    """
    network = load(
        weights,
        num_classes=len(splits.train.labels),
        in_channels=1 if splits.colour == "L" else 3,
        progress=progress,
    )
    assert isinstance(network, ResNeXt), "a checkpoint that is given classes has a classifier"
    return network.float()


def network_title(request: Request, plan: RunPlan | ProbePlan) -> str:
    """Name of the network in the report."""
    if request.weights is not None:
        return Path(request.weights).name
    if isinstance(request.model, ResNeXtConfig | ResNeXt):
        return title(plan.network.config)
    return _named(request.model)


def _named(model: str | None) -> str:
    assert model is not None, "a request without weights has a network, see `default_choice`"
    return model


def fit_batch_size(recipe: Recipe, images: ImageSet, group: ProcessGroup) -> Recipe:
    """The recipe with batches no larger than the data, divisible among all processes and parts.

    Raises:
        DataError: A process would get fewer than two images.
        InputError: The batch cannot be divided.
    """
    if len(images) < 2 * group.world:
        raise DataError(
            f"{images.name} has {len(images)} training images; at least "
            f"{2 * group.world} are needed."
        )
    parts = group.world * recipe.accumulate
    if recipe.batch_size > len(images):
        recipe = recipe.changed(batch_size=len(images) // parts * parts)
    if recipe.batch_size % parts or recipe.batch_size // parts < 2:
        raise InputError(
            f"A batch of {recipe.batch_size} images cannot be divided into {parts} equal parts of "
            f"at least 2. Choose a --batch-size that can."
        )
    return recipe


def _fit_memory(
    request: Request, recipe: Recipe, network: ResNeXt, size: int, context: Context
) -> Recipe:
    """The recipe with batches in as many parts as memory needs, if it leaves that open."""
    group = context.group
    if recipe.accumulate > 1 or "accumulate" in request.changes or context.device.type != "cpu":
        return recipe
    parts = request.parts
    if parts is None:
        parts = group.broadcast(parts_that_fit(network, recipe, size, group))
        if parts > 1:
            memory = total_memory() or 0
            context.progress.line(
                f"{recipe.batch_size} images of {size} pixels at once may exceed the "
                f"{memory / 1e6:,.0f} MB of memory that are allowed. A batch is computed in "
                f"{parts} parts (accumulate)."
            )
    if recipe.batch_size % (parts * group.world):
        return recipe  # a resumed run with another batch, which is refused
    return recipe.changed(accumulate=parts)


def prepare_folder(folder: Path, unreadable: Sequence[Problem], *, empty: bool) -> None:
    """Create the run folder and list unreadable images in it.

    Args:
        folder: The folder.
        unreadable: The images.
        empty: Whether to delete first what an earlier run wrote; other files are the user's.

    Raises:
        CheckpointError: The folder cannot be written.
        DataError: The list cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in _WRITTEN if empty else ():
            for path in (*folder.glob(pattern), *folder.glob(f".{pattern}")):  # or a torn one
                path.unlink()
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error}.") from error
    if unreadable:
        add_to_quarantine(folder / "quarantine.csv", unreadable)


def fastest_execution(request: Request, context: Context, plan: RunPlan) -> ExecutionConfig:
    """The fastest way to compute the network on this machine."""
    group, device, recipe = context.group, context.device, plan.recipe
    dtype = pick_precision(request.precision, device)
    merged: dict[str, int] = {}
    if group.first:
        images = recipe.batch_size // (group.world * recipe.accumulate)
        side = recipe.train_size or plan.preprocessing.size
        shape = (images, plan.network.config.in_channels, side, side)
        merged = fastest_groups(plan.network, shape, device, dtype, context.progress.line)
    compiled = request.compile
    if compiled is None:
        compiled = device.type == "cuda" and recipe.epochs >= 5
    return ExecutionConfig(
        str(dtype).removeprefix("torch."), merged, fast_decoder() is not None, compiled
    )


def run_settings(
    request: Request, context: Context, plan: RunPlan, execution: ExecutionConfig
) -> RunSettings:
    """Everything that defines the run, except its network and images."""
    return RunSettings(
        title=network_title(request, plan),
        out=request.out,
        folder=request.folder,
        recipe=plan.recipe,
        preprocessing=plan.preprocessing,
        seed=request.seed,
        execution=execution,
        workers=wanted_workers(request, plan.splits.train, context.device),
        device=context.device,
        provenance=provenance_of(request, plan),
        identity=run_identity(request, plan),
        retries=request.retries,
        checkpoint_seconds=60 * request.checkpoint_minutes,
        sync_norms=request.sync_norms,
        smallest=_smallest(plan.network.config, request.teacher),
        teacher=request.teacher,
    )


def resumed_execution(saved: ExecutionConfig, precision: str) -> ExecutionConfig:
    """The execution the run was started with, which it keeps on any machine.

    Raises:
        CheckpointError: Another precision is requested, or simplejpeg is not installed.
    """
    names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    if names.get(precision, saved.dtype) != saved.dtype:
        raise CheckpointError(
            f"The run was started in {saved.dtype}, not {precision}. Leave out --precision, or "
            f"start again with --overwrite."
        )
    if saved.fast_jpeg and fast_decoder() is None:
        raise CheckpointError(
            "The run was started with simplejpeg, which is not installed: "
            'pip install "resnext[train]".'
        )
    return saved


def noted(request: Request, plan: RunPlan | ProbePlan) -> Splits:
    """The splits, with a note if the first weights may have been trained on validation images.

    Validation parts that the data brings along are taken to be the same ones.
    """
    card, splits = plan.network.card, plan.splits
    before, now = {} if card is None else card.provenance, provenance_of(request, plan)
    same = before.get("fingerprint") == now["fingerprint"]
    alike = all(before.get(name) == now[name] for name in ("seed", "val_fraction"))
    apart = before.get("val_fraction") is None and splits.val_fraction is None
    if apart or (same and alike) or not (same or before.get("data") == now["data"]):
        return splits
    note = (
        f"The first weights ({request.origin}) were trained on data of this name, of which other "
        f"images were held out. So they may know some of the validation images, whose accuracy is "
        f"then too high. If the images are the same, give the same --seed and --val-fraction as "
        f"then; else hold out images yourself, as val."
    )
    return replace(splits, notes=(*splits.notes, note))


def wanted_workers(request: Request, images: ImageSet, device: torch.device) -> int:
    """The requested number of workers; by default at most 8, or 16 with a GPU.

    By default 0 for small arrays in memory.
    """
    if request.workers is not None:
        return request.workers
    if isinstance(images.images[0], np.ndarray) and len(images) < 10_000:
        return 0
    return default_workers(16 if device.type == "cuda" else 8)


def provenance_of(request: Request, plan: RunPlan | ProbePlan) -> dict[str, Any]:
    """Provenance of the weights, for the model's card."""
    provenance = {
        "data": Path(plan.splits.train.name).resolve().name,
        "fingerprint": plan.splits.fingerprint,
        "val_fraction": plan.splits.val_fraction,
        "seed": request.seed,
        "recipe": asdict(plan.recipe),
        "resnext": version("resnext"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    if request.origin is not None:
        provenance["weights"] = Path(request.origin).name
    if request.teacher is not None:
        provenance["teacher"] = request.teacher.describe()
    if plan.splits.unlabelled is not None:
        provenance["unlabelled"] = len(plan.splits.unlabelled)
    return provenance
