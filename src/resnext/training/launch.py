"""`train`: from arguments to a run, and from a run to a model file with its report."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import sys
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnext.architectures import variant
from resnext.card import Preprocessing
from resnext.config import ResNeXtConfig
from resnext.data.dataset import ImageSet, Problem, Splits
from resnext.data.open import open_splits
from resnext.data.scan import Scan, scan, write_quarantine
from resnext.data.transforms import fast_decoder
from resnext.errors import CheckpointError, ConfigError, DataError, InputError, ResNeXtError
from resnext.grouped_conv import fastest_groups
from resnext.network import ResNeXt
from resnext.system.cpu import available_cores
from resnext.system.device import pick_device, pick_precision
from resnext.system.progress import Reporter, reporter
from resnext.training.augmentation import Augment
from resnext.training.checkpoint import Checkpoint, latest_checkpoint
from resnext.training.distributed import ProcessGroup, init_distributed, shutdown_distributed
from resnext.training.finalize import finalize
from resnext.training.optim import optimizer
from resnext.training.recipe import Recipe, choose
from resnext.training.trainer import ExecutionConfig, RunSettings, Trainer
from resnext.weights.load import load, load_classifier

_USUAL = "resnext50_32x4d"


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

    The file at `out` is written after each epoch that is better on the validation images than
    all before, so it is usable whenever the run ends. Beside it a folder of the same name with
    the ending `.run` holds checkpoints, `metrics.jsonl`, TensorBoard events, `quarantine.csv` and
    `report.html`. Ctrl-C and SIGTERM write a checkpoint first. With `resume`, the run goes on from
    the last checkpoint, bit for bit.

    Several processes, as `torchrun` starts them, train one network together.

    Args:
        data: A folder of class folders, one with `train` and `val` inside, tar shards, idx files,
            a CSV manifest, a Hugging Face folder of parquet files, or "digits".
        model: Name of a variant, or a config; by default resnext50_32x4d, or resnext11_8x16d for
            the digits. Classes and image channels follow the data, and the recipe says how the
            blocks of a variant start.
        weights: What to start from, as for `load`, in place of `model`.
        out: File to write: weights, config, labels, preprocessing, metrics and provenance.
        recipe: A name, a `Recipe`, or `file.py:name`, which is executed; by default "digits" for
            the digits, "finetune" with `weights`, else "small" or, from 20,000 images, "large".
        size: Side of the images the network sees, pixels; by default 8 for the digits, that of
            the weights, else 32 for small-image networks and 224 for all others.
        seed: Decides everything that is left to chance.
        val_fraction: Part of each class that is held out where the data has no `val`.
        workers: Processes that decode images; by default as many as fit the machine.
        device: "auto", or a torch device.
        precision: "fp32", "bf16", "fp16", or "auto": the fastest that the hardware has.
        compile: Whether to compile the network; by default on GPUs, for long runs.
        sync_norms: Whether batch norms see the images of all processes.
        resume: Go on from the last checkpoint; start if there is none.
        retries: How often to go back to the last checkpoint and halve the rate if the loss
            diverges, before giving up.
        checkpoint_minutes: Time between checkpoints; there is one after each epoch too.
        overwrite: Whether an existing `out` may be replaced.
        progress: Whether to show what happens, on standard error.
        changes: Fields of the recipe to change, such as `epochs=10`. Without `learning_rate`, the
            rate follows `batch_size`.

    Returns:
        The best epoch's network in evaluation mode, as `load(out)` gives it.

    Raises:
        DataError: The data is missing, too small, or more than 5 % of a class cannot be read.
        ConfigError: Model, recipe or size make no sense.
        CheckpointError: `out` exists or cannot be written, or a checkpoint is of another run.
        InputError: Device, precision or the number of processes do not fit.
        ResNeXtError: The loss diverged.
        KeyboardInterrupt: The run was interrupted.
    """
    out = Path(out)
    folder = out.with_name(f"{out.stem}.run")
    ranks = init_distributed(device)
    report = reporter(progress and ranks.first)
    try:
        resume = resume or ranks.restarts > 0
        _check_out(out, folder, resume, overwrite)
        _check_numbers(retries, checkpoint_minutes, workers)
        place = _place(device, ranks)
        pick_precision(precision, place)
        splits = open_splits(data, seed=seed, val_fraction=val_fraction)
        plan = choose(
            recipe,
            usual=splits.defaults.recipe,
            images=len(splits.train),
            weights=weights is not None,
        )
        plan = _fitting_batches(plan.changed(**changes), splits.train, ranks)
        torch.manual_seed(seed)
        network = _network(model, weights, splits, plan, progress and ranks.first)
        how = chosen_preprocessing(network, splits, size)
        optimizer(network, plan)  # both may need what is not installed
        Augment(plan.augmentation(), num_classes=2, mean=how.mean, std=how.std, colour=how.colour)
        before = _found(out, folder, resume, overwrite, ranks, report)
        found = _scanned(splits, folder, report, ranks)
        splits = found.splits
        plan = _fitting_batches(plan, splits.train, ranks)
        network = network.to(place, memory_format=torch.channels_last)  # pyright: ignore
        identity = _identity(network, splits, plan, how, seed, val_fraction, weights)
        if before:
            _check_same(before.about["identity"], identity)
            forms = _same_forms(ExecutionConfig(**before.about["forms"]), precision)
        else:
            forms = ranks.share(
                _forms(network, plan, how, place, precision, compile, ranks, report)
            )
        settings = RunSettings(
            title=_title(model, weights, splits),
            out=out,
            folder=folder,
            recipe=plan,
            how=how,
            seed=seed,
            workers=_workers(splits.train, place) if workers is None else workers,
            device=place,
            forms=forms,
            provenance=_provenance(splits, plan, seed, weights),
            identity=identity,
            retries=retries,
            every=60 * checkpoint_minutes,
            sync_norms=sync_norms,
        )

        problems = list(found.unreadable)

        def quarantine(new: dict[int, str]) -> None:
            train_set = splits.train
            for index, reason in new.items():
                title, label = train_set.title(index), train_set.labels[train_set.targets[index]]
                problems.append(Problem("train", title, label, reason.removeprefix(f"{title}: ")))
            write_quarantine(folder / "quarantine.csv", problems)

        run = Trainer(network, splits, settings, ranks, report, quarantine)
        try:
            if before:
                run.restore(before)
                if run.at.epoch > plan.epochs:
                    report.line("The run is complete; its report is made again.")
                else:
                    run.at.resumes.append(f"Resumed in epoch {run.at.epoch}, step {run.at.step}.")
                    report.line(run.at.resumes[-1])
            else:
                run.begin()
            run.all_epochs()
            finalize(run, found, command=_command(data))
        finally:
            run.close()
    except RuntimeError as error:
        if ranks.world > 1 and any(name in str(error) for name in ("gloo", "NCCL", "nccl")):
            reason = str(error).partition("\n")[0]
            raise ResNeXtError(f"Another process of the run is gone: {reason}") from error
        raise
    finally:
        report.stop()
        if ranks.world > 1:
            shutdown_distributed()
    return load_classifier(out, device=place)


def chosen_preprocessing(network: ResNeXt, splits: Splits, size: int | None) -> Preprocessing:
    """How images become input: as the weights were trained, or the usual way; at the size given.

    Raises:
        ConfigError: The network's stride is larger than its images.
    """
    config, grey = network.config, splits.colour == "L"
    usual = Preprocessing()
    if network.card is not None:
        usual = network.card.preprocessing
    elif config.small_stem:
        usual = Preprocessing(32, 32)
    size = splits.defaults.size if size is None else size
    least = max(config.stride, config.min_size)
    chosen = usual.size if size is None else size
    if type(chosen) is not int or chosen < least:
        raise ConfigError(
            f"size must be at least {least} pixels for this network, "
            f"whose last map has one pixel for every {config.stride}, not {chosen!r}. Raise "
            f"--size, or take a network for small images such as resnext29_32x4d."
        )
    resize = usual.resize
    if chosen != usual.size:
        resize = chosen if chosen <= 64 else round(chosen * usual.resize / usual.size)
    if grey and usual.colour != "L":
        return replace(usual, size=chosen, resize=resize, mean=(0.5,), std=(0.25,), colour="L")
    return replace(usual, size=chosen, resize=resize)


def _network(
    model: str | ResNeXtConfig | None,
    weights: str | Path | None,
    splits: Splits,
    plan: Recipe,
    progress: bool,
) -> ResNeXt:
    """What is trained, as it is before the first step."""
    labels, channels = splits.train.labels, 1 if splits.colour == "L" else 3
    if weights is None:
        named = {"zero_init_residual": plan.zero_init_residual, "drop_path_rate": plan.drop_path}
        config = (
            model
            if isinstance(model, ResNeXtConfig)
            else variant(model or splits.defaults.network or _USUAL, **named)
        )
        return ResNeXt(config.replace(num_classes=len(labels), in_channels=channels))
    if model is not None:
        raise ConfigError("Give a model or weights, not both: weights know what network they are.")
    network = load(weights, num_classes=len(labels), in_channels=channels, progress=progress)
    assert isinstance(network, ResNeXt), "a checkpoint that is given classes has a classifier"
    if plan.drop_path:
        state, config = network.state_dict(), network.config
        card, network = network.card, ResNeXt(config.replace(drop_path_rate=plan.drop_path))
        network.load_state_dict(state)
        network.card = card
    card = network.card
    if card and card.labels != labels:  # as many classes, but others
        network.reset_classifier(len(labels))
        network.card = replace(card, labels=())
    return network


def _title(model: str | ResNeXtConfig | None, weights: str | Path | None, splits: Splits) -> str:
    if weights is not None:
        return Path(weights).name
    if isinstance(model, ResNeXtConfig):
        return "ResNeXt"
    return model or splits.defaults.network or _USUAL


def _check_out(out: Path, folder: Path, resume: bool, overwrite: bool) -> None:
    if not out.parent.is_dir() or out.is_dir():
        raise CheckpointError(f"{out} cannot be written: give a file in a folder that exists.")
    if resume or overwrite:
        return
    unfinished = any(folder.glob("checkpoint-*.state"))
    if out.exists() or unfinished:
        there = out if out.exists() else folder
        goes_on = ", go on with --resume" if unfinished else ""
        raise CheckpointError(
            f"{there} exists. Choose another name{goes_on}, or allow overwriting (--overwrite)."
        )


def _check_numbers(retries: int, minutes: float, workers: int | None) -> None:
    for name, value, least in (
        ("retries", retries, 0),
        ("checkpoint_minutes", minutes, 0),
        ("workers", workers or 0, 0),
    ):
        if type(value) not in (int, float) or not least <= value < 1e9:
            raise InputError(f"{name} must be {least} or more, not {value!r}.")


def _place(device: str, ranks: ProcessGroup) -> torch.device:
    """The device of this process: each has a GPU of its own."""
    place = pick_device(device)
    if ranks.world > 1 and place.type == "cuda":
        place = torch.device("cuda", ranks.local)
        torch.cuda.set_device(place)
    return place


def _fitting_batches(plan: Recipe, images: ImageSet, ranks: ProcessGroup) -> Recipe:
    """The recipe with batches no larger than the data, and the same part for each process.

    Raises:
        DataError: There are not even two images.
        InputError: The batch cannot be divided among the processes.
    """
    if len(images) < 2 * ranks.world:
        raise DataError(
            f"{images.name} has {len(images)} training images; it takes at least {2 * ranks.world}."
        )
    if plan.batch_size > len(images):
        count = len(images) // (ranks.world * plan.accumulate) * ranks.world * plan.accumulate
        plan = plan.changed(batch_size=count)
    parts = ranks.world * plan.accumulate
    if plan.batch_size % parts or plan.batch_size // parts < 2:
        raise InputError(
            f"A batch of {plan.batch_size} images cannot be divided into {parts} equal parts of at "
            f"least 2. Choose a --batch-size that can."
        )
    return plan


def _found(
    out: Path, folder: Path, resume: bool, overwrite: bool, ranks: ProcessGroup, report: Reporter
) -> Checkpoint | None:
    """The checkpoint to go on from; an empty folder for the run if there is none."""
    if ranks.first:
        state = latest_checkpoint(folder, report.line) if resume else None
        if resume and state is None and out.exists() and not overwrite:
            raise CheckpointError(
                f"{out} exists, and there is no checkpoint to go on from. Choose another name, or "
                f"allow overwriting (--overwrite)."
            )
        if resume and state is None:
            report.line("There is no checkpoint to go on from, so the run starts.")
        try:
            folder.mkdir(exist_ok=True)
            for path in folder.iterdir() if state is None else []:
                if path.is_file():
                    path.unlink()
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be written: {error}.") from error
    else:
        state = None
    return ranks.share(state)


def _scanned(splits: Splits, folder: Path, report: Reporter, ranks: ProcessGroup) -> Scan:
    """Look at every image once; one process does, and tells the others."""
    found = None
    if ranks.first:
        found = scan(splits, report, quarantine=folder / "quarantine.csv")
        for line in (found.summary(), *found.lines()):
            report.line(line)
    return ranks.share(found)


def _identity(
    network: ResNeXt,
    splits: Splits,
    plan: Recipe,
    how: Preprocessing,
    seed: int,
    val_fraction: float,
    weights: str | Path | None,
) -> dict[str, Any]:
    """What has to be the same to go on from a checkpoint, as JSON has it."""
    images = hashlib.sha256(splits.fingerprint.encode())
    for part in (splits.train, splits.val):
        images.update(np.asarray(part.targets, np.int64).tobytes() + b"|")
    about = {
        "seed": seed,
        "val_fraction": val_fraction,
        "weights": None if weights is None else str(weights),
        "classes": splits.train.labels,
        **{f"config.{k}": v for k, v in network.config.to_dict().items()},
        **{f"preprocessing.{k}": v for k, v in asdict(how).items()},
        **{f"recipe.{k}": v for k, v in asdict(plan).items()},
        "images": images.hexdigest()[:16],
    }
    return json.loads(json.dumps(about))


def _check_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on as another run.

    Raises:
        CheckpointError: Something that decides the run is different.
    """
    for name, value in now.items():
        was = before.get(name)
        if was == value:
            continue
        if name == "images":
            raise CheckpointError(
                "The checkpoint is of a run on other images: some were added, removed, "
                "repaired or damaged since. Restore them, or start again with --overwrite."
            )
        raise CheckpointError(
            f"The checkpoint is of another run: {name.rpartition('.')[2]} was {was}, "
            f"now {value}. Give the same arguments, or start again with --overwrite."
        )


def _forms(
    network: ResNeXt,
    plan: Recipe,
    how: Preprocessing,
    device: torch.device,
    precision: str,
    compile: bool | None,
    ranks: ProcessGroup,
    report: Reporter,
) -> ExecutionConfig:
    """The fastest way to compute this network here."""
    dtype = pick_precision(precision, device)
    merged: dict[str, int] = {}
    if ranks.first:
        images = plan.batch_size // (ranks.world * plan.accumulate)
        side = plan.train_size or how.size
        shape = (images, network.config.in_channels, side, side)
        merged = fastest_groups(network, shape, device, dtype, report.line)
    if compile is None:
        compile = device.type == "cuda" and plan.epochs >= 5
    return ExecutionConfig(
        str(dtype).removeprefix("torch."), merged, fast_decoder() is not None, compile
    )


def _same_forms(forms: ExecutionConfig, precision: str) -> ExecutionConfig:
    """The forms a run began with, which it goes on with on any machine.

    Raises:
        CheckpointError: They are not what is asked for, or cannot be had here.
    """
    names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    if names.get(precision, forms.dtype) != forms.dtype:
        raise CheckpointError(
            f"The run was begun in {forms.dtype}, not {precision}. Leave out --precision, or start "
            f"again with --overwrite."
        )
    if forms.fast_jpeg and fast_decoder() is None:
        raise CheckpointError(
            "The run was begun with simplejpeg, which is not installed: "
            'pip install "resnext[train]".'
        )
    return forms


def _workers(images: ImageSet, device: torch.device) -> int:
    """This process's share of the machine's cores, up to eight, or sixteen beside a GPU."""
    if isinstance(images.images[0], np.ndarray) and len(images) < 10_000:
        return 0
    share = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(min(share, 16 if device.type == "cuda" else 8), 1)


def _provenance(
    splits: Splits, plan: Recipe, seed: int, weights: str | Path | None
) -> dict[str, Any]:
    about = {
        "data": Path(splits.train.name).resolve().name,
        "fingerprint": splits.fingerprint,
        "val_fraction": splits.val_fraction,
        "seed": seed,
        "recipe": asdict(plan),
        "resnext": version("resnext"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    return about if weights is None else {**about, "weights": Path(weights).name}


def _command(data: str | Path) -> str:
    """What was typed, as it can be typed again."""
    if Path(sys.argv[0]).name in ("resnext", "__main__.py"):
        return shlex.join(["resnext", *sys.argv[1:]])
    return f"resnext.train({str(data)!r}, …) in {Path(sys.argv[0]).name or 'Python'}"
