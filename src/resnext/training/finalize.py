"""The end of a run: calibration of the best model, and the report."""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from resnext.calibration import cross_fit_temperatures, fit_temperature, recommend_threshold
from resnext.card import Preprocessing
from resnext.data.scan import Scan
from resnext.evaluation.label_doubts import Doubts, Opinions, find_doubts, ranked, write_doubts
from resnext.evaluation.metrics import EvalOutputs, score
from resnext.network import ResNeXt
from resnext.summary import summarize
from resnext.system.cpu import cpu_name
from resnext.system.device import hardware
from resnext.system.limits import total_memory
from resnext.system.progress import Reporter
from resnext.training.indexing import index_run
from resnext.training.report.examples import (
    Pictures,
    class_examples,
    confident_mistakes,
    doubtful_labels,
)
from resnext.training.report.html import Facts, write_report
from resnext.training.report.image_map import image_map, worthwhile
from resnext.training.run_state import TrainState
from resnext.training.teacher import Teacher, comparison
from resnext.training.trainer import Trainer
from resnext.training.validation import Validator
from resnext.weights.load import load_classifier
from resnext.weights.save import save

_SHOWN = 12  # doubtful labels in the report


@dataclass(frozen=True, eq=False)
class Finished:
    """A run of any recipe whose best model is known.

    Args:
        title: Name of the network in the report.
        out: The model file.
        folder: The run folder.
        recipe: Fields of the recipe, as the report shows them.
        preprocessing: How images become input.
        scan: The images, and the scan's findings.
        state: History, best epoch, durations and interruptions.
        device: Device of the network.
        precision: Name of the precision.
        processes: Number of processes.
        command: Command that repeats the run.
        opinions: What is known about the labels of the training images, the best first.
        strengths: For the recipe `probe`: each strength that was tried, with its log loss.
            None for recipes with epochs.
    """

    title: str
    out: Path
    folder: Path
    recipe: Mapping[str, Any]
    preprocessing: Preprocessing
    scan: Scan
    state: TrainState
    device: torch.device
    precision: str
    processes: int
    command: str
    opinions: Sequence[Opinions]
    strengths: Sequence[tuple[float, float]] | None = None


def finalize(run: Trainer, *, command: str, index: bool) -> None:
    """Validate the best epoch's model again, calibrate it, and write it, the report and the index.

    Args:
        run: The run.
        command: Command that repeats the run.
        index: Whether to write an index.
    """
    settings = run.settings
    run.group.any(False)  # the others wait until the first process has written the model
    network = load_classifier(settings.out, device=run.device)
    network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    outputs = run.validator.outputs(network, "Validating the best epoch")
    if settings.teacher is not None:
        accuracy = _accuracy(settings.teacher, run.validator)
        teacher = {**settings.teacher.describe(), "val_accuracy": accuracy}
        assert network.card is not None  # the trainer gives every model one
        provenance = {**network.card.provenance, "teacher": teacher}
        network.card = replace(network.card, provenance=provenance)
    if not run.group.first:
        return
    finished = Finished(
        title=settings.title,
        out=settings.out,
        folder=settings.folder,
        recipe=asdict(settings.recipe),
        preprocessing=settings.preprocessing,
        scan=run.scan,
        state=run.state,
        device=run.device,
        precision=settings.execution.dtype,
        processes=run.group.world,
        command=command,
        opinions=run.dynamics.opinions(),
    )
    calibrate_and_report(network, outputs, finished, run.progress if index else None)


def calibrate_and_report(
    network: ResNeXt, outputs: EvalOutputs, run: Finished, indexing: Reporter | None
) -> None:
    """Calibrate a model with a card, and write it, its index and the report.

    The temperature and the threshold are fitted on the validation images (arXiv:1706.04599). The
    calibration that is reported uses, for each image, a temperature that was fitted without it.

    Args:
        network: The model.
        outputs: Its logits of the validation images.
        run: The run that it is of.
        indexing: Shows the progress of the index; None to write no index.
    """
    train, val = run.scan.splits.train, run.scan.splits.val
    raw = result = score(outputs, val)
    temperature = 1.0
    if bool(outputs.logits.isfinite().all()):
        temperature = fit_temperature(outputs.logits, outputs.targets)
        unseen = cross_fit_temperatures(outputs.logits, outputs.targets)
        result = score(outputs, val, temperature=unseen)
    threshold = recommend_threshold(result.confidence, result.right)
    assert network.card is not None  # every run gives its model one
    network.card = replace(
        network.card,
        metrics=result.metrics("val"),
        temperature=temperature,
        threshold=threshold,
    )
    save(network, run.out)
    index, began = None, time.monotonic()
    if indexing is not None:
        index = index_run(network, run.out, run.scan.splits, run.state, indexing)
    indexed = time.monotonic() - began
    p = (outputs.logits / temperature).softmax(1).numpy()
    unseen_opinions = Opinions.of(p, outputs.targets.numpy())
    judged = {
        "training": _training_doubts(run),
        "validation": find_doubts("val", val, unseen_opinions, outputs.indices.numpy()),
    }
    doubts = ranked(doubt for part in judged.values() for doubt in part.found)
    write_doubts(run.folder / "label_doubts.csv", doubts)
    parts = {"train": train, "val": val}
    pictures = Pictures(network, parts, run.preprocessing, index)
    cost = summarize(network.config, run.preprocessing.size)
    seconds = run.state.seconds
    facts = Facts(
        title=run.out.stem,
        data=train.name,
        command=run.command,
        created=time.strftime("%Y-%m-%d %H:%M"),
        model=run.title,
        config=repr(network.config),
        parameters=cost.parameters,
        gmacs=cost.macs / 1e9,
        recipe=run.recipe,
        hardware=_hardware(run),
        versions={
            "resnext": version("resnext"),
            "torch": str(torch.__version__),
            "Python": platform.python_version(),
        },
        seconds={**seconds, "total": sum(seconds.values())},
        history=run.state.history,
        best_epoch=run.state.best["epoch"] if run.state.best else None,
        evaluation=raw,
        temperature=temperature,
        calibrated=result.confidence,
        threshold=threshold,
        summary=run.scan.summary(),
        findings=run.scan.lines(),
        train_counts=train.counts().tolist(),
        val_counts=val.counts().tolist(),
        mistakes=confident_mistakes(pictures, result),
        examples=class_examples(pictures, result, doubts),
        doubts=doubtful_labels(pictures, doubts[:_SHOWN]),
        doubt_count=len(doubts),
        undoubted={name: part.why_none for name, part in judged.items() if part.why_none},
        review=shlex.join(["resnext", "review", train.name, "--model", str(run.out)]),
        map=image_map(network, parts, run.preprocessing, temperature)
        if worthwhile(parts, run.state, indexed)
        else "",
        events=run.state.resumes,
        strengths=run.strengths,
        teacher=comparison(network.card, network.config)
        if "teacher" in network.card.provenance
        else "",
    )
    write_report(facts, run.folder / "report.html")


def _training_doubts(run: Finished) -> Doubts:
    """The doubts about training images by the best opinions that tell wrong labels."""
    judged = [find_doubts("train", run.scan.splits.train, x) for x in run.opinions]
    return next((doubts for doubts in judged if not doubts.why_none), judged[-1])


def _accuracy(teacher: Teacher, validator: Validator) -> float:
    """Accuracy of a teacher on the validation images, preprocessed as it was trained."""
    settings = replace(validator.settings, preprocessing=teacher.preprocessing)
    outputs = replace(validator, settings=settings).outputs(teacher.network, "Validating teacher")
    return round(score(outputs, validator.images).accuracy, 6)


def _hardware(run: Finished) -> dict[str, str]:
    """The machine and precision, for the report."""
    memory = total_memory()
    parts = {
        "processor": cpu_name(),
        "threads": str(torch.get_num_threads()),
        "memory": f"{memory / 2**30:.0f} GiB" if memory else "unknown",
        "precision": run.precision,
    }
    if run.device.type == "cuda":
        parts["gpu"] = hardware(run.device)
    if run.processes > 1:
        parts["processes"] = str(run.processes)
    return parts
