"""`train`: from arguments to a model file with its report, in phases."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from resnext.checks import brief
from resnext.config import ResNeXtConfig
from resnext.data.dataset import Splits
from resnext.data.open import open_splits
from resnext.data.scan import Scan, scan
from resnext.data.unlabelled import open_unlabelled, scan_unlabelled, training_pool
from resnext.data.workers import shared_memory_line
from resnext.errors import InputError
from resnext.foreign_names import answering_call
from resnext.network import ResNeXt
from resnext.system.atomic import locked
from resnext.system.main_guard import refuse_in_new_process
from resnext.system.progress import reporter
from resnext.training.arguments import check_effects, validate_arguments
from resnext.training.checkpoint import Checkpoint
from resnext.training.dataloader import training_workers
from resnext.training.defaults import default_choice
from resnext.training.distributed import init_distributed, peer_errors, shutdown_distributed
from resnext.training.finalize import finalize
from resnext.training.forecast import TimePlan, run_forecast
from resnext.training.given_model import read_model
from resnext.training.identity import (
    check_identity,
    chosen_before,
    newest_checkpoint,
    other_version,
    run_identity,
)
from resnext.training.minutes import fit_to_minutes
from resnext.training.preparation import (
    fastest_execution,
    fit_batch_size,
    make_plan,
    noted,
    prepare_folder,
    resumed_execution,
    run_settings,
)
from resnext.training.probe import keeps_classifier, probe_plan, run_probe, starting_classifier
from resnext.training.recipe import Recipe
from resnext.training.request import Context, Request, RunPlan
from resnext.training.run_state import ExecutionConfig, TrainState
from resnext.training.teacher import open_teacher
from resnext.training.threads import kept_threads
from resnext.training.trainer import Trainer
from resnext.training.validation import FirstResult
from resnext.weights.load import load_classifier


@answering_call
def train(
    data: str | Path,
    model: str | Path | ResNeXtConfig | Mapping[str, Any] | ResNeXt | None = None,
    *,
    weights: str | Path | None = None,
    teacher: str | Path | ResNeXt | None = None,
    unlabelled: str | Path | None = None,
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
    minutes: float | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    index: bool = True,
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
        model: Name of a variant; a config, as `ResNeXtConfig`, a dictionary of its fields or a
            config file (`.json`, or OpenMMLab's `.py`); or a `ResNeXt`, of which a copy is trained,
            from its weights. By default it depends on the size of the images and on the device.
            Classes and image channels follow the data, and the recipe decides how the blocks of a
            variant are initialized.
        weights: Weights to fine-tune instead of `model`: a file from any library, a catalog name,
            `hf://owner/repo` or a URL.
        teacher: A trained classifier whose answers replace the labels, as in `distill`.
        unlabelled: With a teacher, a folder of further training images without classes.
        out: File to write: weights, config, labels, preprocessing, metrics and provenance.
        recipe: A name, a `Recipe`, or `file.py:name`, which is executed; by default "digits" for
            the digits, "distill" with `teacher`, "finetune" with `weights` or a network that has a
            card, "quick" with `minutes` or a small network, else "small" or, from 20,000 images,
            "large". "probe" trains only the classifier of `weights`, in the time of one look at
            each image.
        size: Image size in pixels; by default that of the teacher, else the size of the weights;
            without `model`, and with `minutes`, it follows from the images; with a model, 32 for
            small-image networks and 224 for all others.
        seed: Random seed for initialization, data order and augmentation.
        val_fraction: Fraction of each class to hold out if the data has no `val`.
        workers: Number of processes that decode images; by default it depends on the number of
            cores, and on the memory and the shared memory that are free.
        device: "auto", or a torch device.
        precision: "fp32", "bf16", "fp16", or "auto": bf16 where the hardware supports it, fp16 on
            older GPUs, else fp32.
        compile: Whether to compile the network; by default on GPUs, for long runs.
        sync_norms: Whether batch norms see the images of all processes.
        resume: Continue from the last checkpoint; start a new run if none exists.
        retries: If the loss diverges, how many times to return to the last checkpoint and halve the
            learning rate.
        checkpoint_minutes: Minutes between checkpoints; one is also written after every epoch.
        minutes: Time for the whole run, including its report. Network and size, if they are not
            given, and the number of epochs are chosen from the images and the measured speed of
            this machine. If the machine becomes slower or faster, the number of epochs changes.
        dry_run: Stop after the forecast, before the first epoch; no model is written.
        overwrite: Whether an existing `out` may be replaced.
        index: Whether to index the training images at the end, if that takes 20 seconds or a
            twentieth of the run at most, so that `predict` and `explain` show what an image is
            like, and `predict` which are like none of the classes.
        progress: Whether to show progress on standard error.
        changes: Fields of the recipe to change, such as `epochs=10`. Without `learning_rate`, the
            learning rate is scaled with `batch_size`.

    Returns:
        The best epoch's network in evaluation mode, equal to `load(out)`; with `dry_run`, the
        network before its first step.

    Raises:
        DataError: The data does not exist or is too small, or more than 5 % of a class cannot be
            read.
        ConfigError: Model, recipe or size are invalid, or an optional package is missing.
        CheckpointError: `out` exists or cannot be written, or the checkpoint belongs to another
            run.
        InputError: The device, the precision or so many workers cannot be used, the batch size
            cannot be divided among the processes, or a script calls this without
            `if __name__ == "__main__"` where worker processes import it.
        ResourceError: A worker process was killed, or lacks memory; a checkpoint is written.
        ResNeXtError: The loss diverged.
        KeyboardInterrupt: The run was interrupted.
    """
    refuse_in_new_process("train")
    began = time.monotonic()
    given = read_model(model)
    group = init_distributed(device)
    progress_reporter = reporter(progress and group.first)
    request = Request(
        data=data,
        model=given,
        weights=weights,
        teacher=None,  # opened below, when the classes are known
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
        minutes=minutes,
        dry_run=dry_run,
        overwrite=overwrite,
        index=index,
        changes=changes,
    )
    try:
        with peer_errors(group):
            context = Context(group, validate_arguments(request, group), progress_reporter)
            checkpoint = group.broadcast(newest_checkpoint(request, context))
            before = {} if checkpoint is None else checkpoint.about["identity"]
            order = before.get("classes", ())
            splits = open_splits(data, seed=seed, val_fraction=val_fraction, order=order)
            request, splits = _with_teacher(request, splits, context, teacher, unlabelled)
            if checkpoint is not None:  # an older run took the upper 8 bits
                values = before.get("preprocessing.value_range")
                splits = replace(splits, value_range=values)
            if request.recipe == "probe":
                _probe(request, context, splits, checkpoint)
            else:
                with kept_threads():
                    plan = _train(request, context, splits, checkpoint, began)
                if dry_run:
                    return plan.network
    finally:
        progress_reporter.stop()
        if group.world > 1:
            shutdown_distributed()
    return load_classifier(request.out, device=context.device)


@answering_call
def distill(
    teacher: str | Path | ResNeXt,
    data: str | Path,
    model: str | Path | ResNeXtConfig | Mapping[str, Any] | ResNeXt | None = None,
    *,
    unlabelled: str | Path | None = None,
    **options: Any,
) -> ResNeXt:
    """Train a smaller classifier to give the answers of a larger one.

    Teacher and student see exactly the same views of the images, strongly augmented and mixed, for
    many epochs (arXiv:2106.05237). The student learns the teacher's probabilities; labels only
    choose the best epoch. The teacher sees the images at the student's size. Everything else is as
    in `train`: checkpoints, resuming, report, calibration.

    Args:
        teacher: The trained classifier: a network with a card, a file from any library, a catalog
            name, `hf://owner/repo` or a URL. It must have the classes of the data, in any order.
        data: Labelled images, as for `train`.
        model: The student: a variant, a config or a network, as for `train`.
        unlabelled: A folder of further images without classes, searched at any depth. They are
            trained on, never validated on.
        options: Arguments of `train`, and fields of the recipe, such as `epochs=100` or
            `distill_temperature=2.0`. By default, the recipe is "distill", and the image size and
            the preprocessing are the teacher's.

    Returns:
        The best epoch's network in evaluation mode; `card.provenance["teacher"]` holds name, cost
        and validation accuracy of the teacher.

    Raises:
        InputError: The teacher has no labels, or other classes than the data.
        ResNeXtError: For every reason that `train` has.
        KeyboardInterrupt: The run was interrupted.
    """
    return train(data, model, teacher=teacher, unlabelled=unlabelled, **options)


# -- phases ---------------------------------------------------------------------------------------


def _train(
    request: Request,
    context: Context,
    splits: Splits,
    checkpoint: Checkpoint | None,
    began: float,
) -> RunPlan:
    """All phases of a run with epochs."""
    asked, request = request, _with_defaults(request, splits, context, checkpoint)
    plan = make_plan(request, splits, context)  # finds invalid arguments early
    if checkpoint is None:
        check_effects(request, plan.recipe, context.progress)
    splits = noted(request, plan)
    scanned = _scan(splits, None if request.dry_run else request.folder, context)
    recipe = fit_batch_size(plan.recipe, training_pool(scanned.splits), context.group)
    plan = replace(plan, splits=scanned.splits, recipe=recipe)
    time_plan = None
    if checkpoint is None and request.minutes is not None:
        request, plan, time_plan = fit_to_minutes(request, asked, plan, context, began)
    elif checkpoint is None and request.model is not asked.model:
        context.progress.line(
            f"{request.model} at {request.size} pixels suits these images; --model, --size and "
            f"--minutes choose otherwise."
        )
    _run(request, context, plan, scanned, checkpoint, time_plan)
    return plan


def _probe(
    request: Request, context: Context, splits: Splits, checkpoint: Checkpoint | None
) -> None:
    """All phases of the recipe `probe`, which has no epochs."""
    plan = probe_plan(request, splits, context)
    scanned = _scan(noted(request, plan), request.folder, context)
    with locked(request.folder):
        run_probe(request, context, plan, scanned, checkpoint, command=_command(request))


def _with_teacher(
    request: Request,
    splits: Splits,
    context: Context,
    teacher: str | Path | ResNeXt | None,
    unlabelled: str | Path | None,
) -> tuple[Request, Splits]:
    """The request with the opened teacher and its image size, the splits with unlabelled images.

    Grey values of more than 8 bits mean what they meant to the teacher, which sees the same images.

    Raises:
        InputError: Unlabelled images are given without a teacher.
    """
    if teacher is None:
        if unlabelled is not None:
            raise InputError("Unlabelled images need a teacher. Give one, or leave them out.")
        return request, splits
    opened = open_teacher(teacher, splits.train, progress=context.shows_progress)
    opened.network.to(context.device, memory_format=torch.channels_last)  # pyright: ignore
    if unlabelled is not None:
        images = open_unlabelled(unlabelled, splits.train.labels, splits.passed_over)
        splits = replace(splits, unlabelled=images)
    splits = replace(splits, value_range=opened.preprocessing.value_range)
    size = opened.preprocessing.size if request.size is None else request.size
    return replace(request, teacher=opened, size=size), splits


def _with_defaults(
    request: Request, splits: Splits, context: Context, checkpoint: Checkpoint | None
) -> Request:
    """The request with network and size, if it names none: those of the checkpoint, or chosen."""
    if checkpoint is not None:
        request = chosen_before(request, checkpoint.about["identity"])
    if request.model is not None or request.weights is not None:
        return request
    choice = default_choice(splits, context.device.type, request.size)
    return replace(request, model=choice.network, size=choice.size)


def _scan(splits: Splits, folder: Path | None, context: Context) -> Scan:
    """Decode every image once, in the first process; the result in all of them."""
    result = None
    if context.group.first:
        quarantine = None if folder is None else folder / "quarantine.csv"
        result = scan(splits, context.progress, quarantine=quarantine)
        if splits.unlabelled is not None:
            result = scan_unlabelled(result, context.progress)
        for line in (*result.overview(), *result.lines()):
            context.progress.line(line)
    return context.group.broadcast(result)


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
    time_plan: TimePlan | None,
) -> None:
    """Train from the start or from the checkpoint, and write the report."""
    if checkpoint is not None:
        check_identity(checkpoint.about["identity"], run_identity(request, plan))
    execution = _choose_execution(request, context, plan, checkpoint)
    settings = run_settings(request, context, plan, execution)
    workers = training_workers(settings, context.group).workers
    if line := shared_memory_line(settings.workers, workers):
        context.progress.line(line)
    shown = context.group.any(context.shows_progress or request.dry_run)[0]
    if time_plan is None and shown and (checkpoint is None or request.dry_run):
        state = None if checkpoint is None else TrainState(**checkpoint.about["position"])
        for line in run_forecast(plan.network, plan.splits, settings, context.group, state):
            context.progress.line(line)
    if request.dry_run:
        return
    with locked(request.folder) if context.group.first else nullcontext():
        if context.group.first:
            prepare_folder(request.folder, scanned.unreadable, empty=checkpoint is None)
        context.group.any(False)  # the others wait
        first = None
        if checkpoint is None:
            end = None if time_plan is None else time_plan.end
            first = starting_classifier(request, context, plan, end)
        trainer = Trainer(plan.network, scanned, settings, context.group, context.progress)
        try:
            if checkpoint is None and plan.recipe.probe and keeps_classifier(plan):
                result = trainer.validator.evaluate(plan.network, "Validating the weights")
                first = FirstResult(result, None)
            _start(trainer, checkpoint, first, time_plan)
            trainer.run()
            finalize(trainer, command=_command(request), index=request.index)
        finally:
            trainer.close()


def _start(
    trainer: Trainer,
    checkpoint: Checkpoint | None,
    first: FirstResult | None,
    time_plan: TimePlan | None,
) -> None:
    """Restore the checkpoint, or write the first one, with the result of the first network.

    Raises:
        CheckpointError: Another version wrote the checkpoint, which this one cannot continue.
    """
    if checkpoint is None:
        trainer.begin(first, time_plan)
        return
    try:
        trainer.restore(checkpoint)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise other_version(trainer.settings.folder, brief(error)) from error
    state = trainer.state
    if state.epoch > trainer.epochs:
        trainer.progress.line("The run is complete; its report is written again.")
    else:
        state.resumes.append(f"Resumed in epoch {state.epoch}, step {state.step}.")
        trainer.progress.line(state.resumes[-1])


def _command(request: Request) -> str:
    """The command that started the run, for the report."""
    if Path(sys.argv[0]).name in ("resnext", "__main__.py"):
        return shlex.join(["resnext", *sys.argv[1:]])
    call = f"train({str(request.data)!r}, …)"
    if request.teacher is not None:
        call = f"distill(…, {str(request.data)!r}, …)"
    return f"resnext.{call} in {Path(sys.argv[0]).name or 'Python'}"
