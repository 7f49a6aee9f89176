"""`train`: from arguments to a model file with its report, in phases."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from resnext.config import ResNeXtConfig
from resnext.data.dataset import Splits
from resnext.data.open import open_splits
from resnext.data.scan import Scan, scan
from resnext.errors import InputError, ResNeXtError
from resnext.evaluation.metrics import Evaluation
from resnext.network import ResNeXt
from resnext.system.device import pick_device, pick_precision
from resnext.system.progress import reporter
from resnext.training.checkpoint import Checkpoint
from resnext.training.distributed import ProcessGroup, init_distributed, shutdown_distributed
from resnext.training.finalize import finalize
from resnext.training.preparation import (
    Context,
    Request,
    RunPlan,
    build_network,
    check_identity,
    check_out,
    check_packages,
    chosen_preprocessing,
    default_workers,
    fastest_execution,
    fit_batch_size,
    network_title,
    open_folder,
    provenance_of,
    resumed_execution,
    run_identity,
)
from resnext.training.probe import probe_plan, run_probe, starting_classifier
from resnext.training.recipe import Recipe
from resnext.training.recipes import choose
from resnext.training.run_state import ExecutionConfig, RunSettings
from resnext.training.trainer import Trainer
from resnext.weights.load import load_classifier


def train(
    data: str | Path,
    model: str | ResNeXtConfig | None = None,
    *,
    weights: str | Path | None = None,
    out: str | Path = "model.safetensors",
    recipe: str | Recipe | None = None,
    size: int | None = None,
    seed: int = 0,
    val_fraction: float = 0.2,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile: bool | None = None,
    sync_norms: bool = False,
    resume: bool = False,
    retries: int = 0,
    checkpoint_minutes: float = 5.0,
    overwrite: bool = False,
    progress: bool = True,
    **changes: Any,
) -> ResNeXt:
    """Train a classifier and keep its best epoch.

    The file at `out` is written after each epoch that beats all earlier ones on the validation
    images, so it is usable whenever the run ends. The run folder, with the same name but the suffix
    `.run`, holds checkpoints, `metrics.jsonl`, TensorBoard events, `quarantine.csv` and
    `report.html`. Ctrl-C and SIGTERM write a checkpoint before the run ends. With `resume`, the run
    continues from the last checkpoint, bit for bit.

    Processes started by `torchrun` train one network together.

    Args:
        data: A folder with one folder of images per class, or with `train` and `val` folders of
            that kind; tar shards; a folder of idx files; a CSV list; a folder of Parquet files from
            Hugging Face; or "digits".
        model: Name of a variant, or a config; by default resnext50_32x4d, or resnext11_8x16d for
            the digits. Classes and image channels follow the data, and the recipe decides how the
            blocks of a variant are initialized.
        weights: Weights to fine-tune instead of `model`: a file from any library, a catalog name,
            `hf://owner/repo` or a URL.
        out: File to write: weights, config, labels, preprocessing, metrics and provenance.
        recipe: A name, a `Recipe`, or `file.py:name`, which is executed; by default "digits" for
            the digits, "finetune" with `weights`, else "small" or, from 20,000 images, "large".
            "probe" trains only the classifier of `weights`, in the time of one look at each image.
        size: Image size in pixels; by default 8 for the digits, the size of the weights, else 32
            for small-image networks and 224 for all others.
        seed: Random seed for initialization, data order and augmentation.
        val_fraction: Fraction of each class to hold out if the data has no `val`.
        workers: Number of processes that decode images; by default it depends on the number of
            cores.
        device: "auto", or a torch device.
        precision: "fp32", "bf16", "fp16", or "auto": bf16 where the hardware supports it, fp16 on
            older GPUs, else fp32.
        compile: Whether to compile the network; by default on GPUs, for long runs.
        sync_norms: Whether batch norms see the images of all processes.
        resume: Continue from the last checkpoint; start a new run if none exists.
        retries: If the loss diverges, how many times to return to the last checkpoint and halve the
            learning rate.
        checkpoint_minutes: Minutes between checkpoints; one is also written after every epoch.
        overwrite: Whether an existing `out` may be replaced.
        progress: Whether to show progress on standard error.
        changes: Fields of the recipe to change, such as `epochs=10`. Without `learning_rate`, the
            learning rate is scaled with `batch_size`.

    Returns:
        The best epoch's network in evaluation mode, equal to `load(out)`.

    Raises:
        DataError: The data does not exist or is too small, or more than 5 % of a class cannot be
            read.
        ConfigError: Model, recipe or size are invalid, or an optional package is missing.
        CheckpointError: `out` exists or cannot be written, or the checkpoint belongs to another
            run.
        InputError: The device or precision cannot be used, or the batch size cannot be divided
            among the processes.
        ResNeXtError: The loss diverged.
        KeyboardInterrupt: The run was interrupted.
    """
    group = init_distributed(device)
    progress_reporter = reporter(progress and group.first)
    request = Request(
        data=data,
        model=model,
        weights=weights,
        out=Path(out),
        recipe=recipe,
        size=size,
        seed=seed,
        val_fraction=val_fraction,
        workers=workers,
        device=device,
        precision=precision,
        compile=compile,
        sync_norms=sync_norms,
        resume=resume or group.restarts > 0,
        retries=retries,
        checkpoint_minutes=checkpoint_minutes,
        overwrite=overwrite,
        changes=changes,
    )
    try:
        with _peer_errors(group):
            used_device = _validate_arguments(request, group)
            context = Context(group, used_device, progress_reporter)
            if request.recipe == "probe":
                _probe(request, context, progress=progress)
            else:
                plan = _make_plan(request, context, progress=progress)
                checkpoint = _prepare_folder(request, context)
                scanned = _scan(plan.splits, request.folder, context)
                _run(request, context, _after_scan(plan, scanned, context), scanned, checkpoint)
    finally:
        progress_reporter.stop()
        if group.world > 1:
            shutdown_distributed()
    return load_classifier(request.out, device=used_device)


# -- phases ---------------------------------------------------------------------------------------


def _validate_arguments(request: Request, group: ProcessGroup) -> torch.device:
    """Check all arguments that need no data, and return the device of this process."""
    check_out(request)
    for name, value in (
        ("retries", request.retries),
        ("checkpoint_minutes", request.checkpoint_minutes),
        ("workers", request.workers or 0),
    ):
        if type(value) not in (int, float) or not 0 <= value < 1e9:
            raise InputError(f"{name} must be 0 or more, not {value!r}.")
    device = pick_device(request.device)
    if group.world > 1 and device.type == "cuda":  # each process has its own GPU
        device = torch.device("cuda", group.local)
        torch.cuda.set_device(device)
    pick_precision(request.precision, device)
    return device


def _make_plan(request: Request, context: Context, *, progress: bool) -> RunPlan:
    """Open the data, choose the recipe and build the network; nothing is written."""
    splits = open_splits(request.data, seed=request.seed, val_fraction=request.val_fraction)
    recipe = choose(
        request.recipe,
        default=splits.defaults.recipe,
        images=len(splits.train),
        weights=request.weights is not None,
    )
    recipe = fit_batch_size(recipe.changed(**request.changes), splits.train, context.group)
    torch.manual_seed(request.seed)
    network = build_network(request, splits, recipe, progress and context.group.first)
    preprocessing = chosen_preprocessing(network, splits, request.size)
    check_packages(recipe)
    return RunPlan(splits, recipe, network, preprocessing)


def _prepare_folder(request: Request, context: Context) -> Checkpoint | None:
    """The checkpoint to resume from; without one, an empty folder for the run."""
    return context.group.broadcast(
        open_folder(request, context.progress) if context.group.first else None
    )


def _scan(splits: Splits, folder: Path, context: Context) -> Scan:
    """Decode every image once, in the first process; the result in all of them."""
    result = None
    if context.group.first:
        result = scan(splits, context.progress, quarantine=folder / "quarantine.csv")
        for line in (result.summary(), *result.lines()):
            context.progress.line(line)
    return context.group.broadcast(result)


def _after_scan(plan: RunPlan, scanned: Scan, context: Context) -> RunPlan:
    """The run plan for the images that were kept, with the network on its device."""
    recipe = fit_batch_size(plan.recipe, scanned.splits.train, context.group)
    network = plan.network.to(context.device, memory_format=torch.channels_last)  # pyright: ignore
    return replace(plan, splits=scanned.splits, recipe=recipe, network=network)


def _choose_execution(
    request: Request, context: Context, plan: RunPlan, checkpoint: Checkpoint | None
) -> ExecutionConfig:
    """The execution of the checkpoint, else the fastest one, measured by the first process."""
    if checkpoint is not None:
        return resumed_execution(ExecutionConfig(**checkpoint.about["forms"]), request.precision)
    return context.group.broadcast(fastest_execution(request, context, plan))


def _run(
    request: Request,
    context: Context,
    plan: RunPlan,
    scanned: Scan,
    checkpoint: Checkpoint | None,
) -> None:
    """Train from the start or from the checkpoint, and write the report."""
    identity = run_identity(request, plan)
    if checkpoint is not None:
        check_identity(checkpoint.about["identity"], identity)
    settings = RunSettings(
        title=network_title(request, plan.splits),
        out=request.out,
        folder=request.folder,
        recipe=plan.recipe,
        preprocessing=plan.preprocessing,
        seed=request.seed,
        execution=_choose_execution(request, context, plan, checkpoint),
        workers=default_workers(plan.splits.train, context.device)
        if request.workers is None
        else request.workers,
        device=context.device,
        provenance=provenance_of(request, plan),
        identity=identity,
        retries=request.retries,
        checkpoint_seconds=60 * request.checkpoint_minutes,
        sync_norms=request.sync_norms,
    )
    head = starting_classifier(request, context, plan) if checkpoint is None else None
    trainer = Trainer(plan.network, scanned, settings, context.group, context.progress)
    try:
        _start(trainer, checkpoint, head)
        trainer.run()
        finalize(trainer, command=_command(request.data))
    finally:
        trainer.close()


def _probe(request: Request, context: Context, *, progress: bool) -> None:
    """All phases of the recipe `probe`, which has no epochs."""
    plan = probe_plan(request, context.group, progress=progress)
    checkpoint = _prepare_folder(request, context)
    scanned = _scan(plan.splits, request.folder, context)
    run_probe(request, context, plan, scanned, checkpoint, command=_command(request.data))


def _start(trainer: Trainer, checkpoint: Checkpoint | None, head: Evaluation | None) -> None:
    """Restore the checkpoint, or write the first one, with the result of the first classifier."""
    if checkpoint is None:
        trainer.begin(head)
        return
    trainer.restore(checkpoint)
    state = trainer.state
    if state.epoch > trainer.recipe.epochs:
        trainer.progress.line("The run is complete; its report is written again.")
    else:
        state.resumes.append(f"Resumed in epoch {state.epoch}, step {state.step}.")
        trainer.progress.line(state.resumes[-1])


@contextmanager
def _peer_errors(group: ProcessGroup) -> Iterator[None]:
    """Report the death of another process in one line, instead of torch.distributed's error.

    Raises:
        ResNeXtError: Another process of the run died.
    """
    try:
        yield
    except RuntimeError as error:
        if group.world > 1 and any(name in str(error) for name in ("gloo", "NCCL", "nccl")):
            reason = str(error).partition("\n")[0]
            raise ResNeXtError(f"Another process of the run is gone: {reason}") from error
        raise


def _command(data: str | Path) -> str:
    """The command that started the run, for the report."""
    if Path(sys.argv[0]).name in ("resnext", "__main__.py"):
        return shlex.join(["resnext", *sys.argv[1:]])
    return f"resnext.train({str(data)!r}, …) in {Path(sys.argv[0]).name or 'Python'}"
