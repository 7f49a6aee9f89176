"""The end of a run: calibration of the best model, and the report."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, replace
from importlib.metadata import version

import torch

from resnext.calibration import fit_temperature, recommend_threshold
from resnext.evaluation.metrics import score
from resnext.summary import summarize
from resnext.system.cpu import cpu_name
from resnext.system.device import hardware
from resnext.training.report.html import Facts, confident_mistakes, write_report
from resnext.training.trainer import Trainer
from resnext.weights.load import load_classifier
from resnext.weights.save import save


def finalize(run: Trainer, *, command: str) -> None:
    """Validate the best epoch's model again, calibrate it, and write it and the report.

    The temperature and the threshold are fitted on the validation images (arXiv:1706.04599).
    """
    settings, val = run.settings, run.splits.val
    run.group.any(False)  # the others wait until the first process has written the model
    network = load_classifier(settings.out, device=run.device)
    network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    outputs = run.validator.outputs(network, "Validating the best epoch")
    if not run.group.first:
        return
    raw = score(outputs, val, keep_logits=True)
    finite = bool(outputs.logits.isfinite().all())
    temperature = fit_temperature(outputs.logits, outputs.targets) if finite else 1.0
    result = score(outputs, val, temperature=temperature)
    threshold = recommend_threshold(result.confidence, result.right)
    assert network.card is not None  # the trainer writes it
    network.card = replace(
        network.card, metrics=result.metrics("val"), temperature=temperature, threshold=threshold
    )
    save(network, settings.out)
    cost = summarize(network.config, settings.preprocessing.size)
    facts = Facts(
        title=settings.out.stem,
        data=run.splits.train.name,
        command=command,
        created=time.strftime("%Y-%m-%d %H:%M"),
        model=run.settings.title,
        config=repr(network.config),
        parameters=cost.parameters,
        gmacs=cost.macs / 1e9,
        recipe=asdict(settings.recipe),
        hardware=_hardware(run),
        versions={
            "resnext": version("resnext"),
            "torch": str(torch.__version__),
            "Python": platform.python_version(),
        },
        seconds={**run.state.seconds, "total": sum(run.state.seconds.values())},
        history=run.state.history,
        best_epoch=run.state.best["epoch"] if run.state.best else None,
        evaluation=raw,
        temperature=temperature,
        threshold=threshold,
        summary=run.scan.summary(),
        findings=run.scan.lines(),
        train_counts=run.splits.train.counts().tolist(),
        val_counts=val.counts().tolist(),
        mistakes=confident_mistakes(network, val, result, settings.preprocessing),
        events=run.state.resumes,
    )
    write_report(facts, settings.folder / "report.html")


def _hardware(run: Trainer) -> dict[str, str]:
    """The machine and precision, for the report."""
    pages = (
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    )
    parts = {
        "processor": cpu_name(),
        "threads": str(torch.get_num_threads()),
        "memory": f"{pages / 2**30:.0f} GiB" if pages else "unknown",
        "precision": run.settings.execution.dtype,
    }
    if run.device.type == "cuda":
        parts["gpu"] = hardware(run.device)
    if run.group.world > 1:
        parts["processes"] = str(run.group.world)
    return parts
