"""Plans: how a model is computed on a machine, and the files that hold them. Loads no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from resnext.errors import CheckpointError, ResNeXtError
from resnext.inference.engines import ENGINES
from resnext.inference.engines.base import PRECISIONS, EngineConfig, InputKind
from resnext.system.atomic import write_bytes_atomically
from resnext.system.cache import cache_folder
from resnext.system.cpu import core_count, cpu_name
from resnext.system.digest import file_sha256, short_digest


@dataclass(frozen=True)
class Measurement:
    """The speed and the agreement of one way to compute a network.

    Args:
        form: The measured form; None for the unmodified network in PyTorch.
        images_per_second: Its speed; 0 if it could not run.
        verdict: "chosen", or why this form cannot be used; empty if it was slower, or equally fast
            but less simple.
        difference: Largest difference of a logit from the network's own, relative to the largest
            logit; None if it was not compared.
        agreement: Fraction of the images that got the same class; None if it was not compared.
        accuracy: Fraction of the labelled images that got the right class; None if it was not
            measured.
    """

    form: EngineConfig | None
    images_per_second: float
    verdict: str = ""
    difference: float | None = None
    agreement: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Plan:
    """The fastest way to compute a model on a machine, and the measurements behind it.

    Args:
        model: SHA-256 of config, preprocessing and weights.
        form: How to compute it.
        batch: Batch size that it was optimized for.
        size: Image size, pixels.
        device: "cpu", or the name of a GPU.
        request: The requested precision, engine and data, as JSON.
        machine: Name of the CPU and its threads, or name of the GPU.
        version: Version of the engine.
        rows: All measurements.
        file: SHA-256 of the model file; empty for a network without a file.
    """

    model: str
    form: EngineConfig
    batch: int
    size: int
    device: str
    request: str
    machine: str
    version: str
    rows: tuple[Measurement, ...]
    file: str = ""

    def graph(self, kind: InputKind) -> Path:
        """Path of the file that the engine opens."""
        parts = [kind, self.size, self.form.width, metadata.version("resnext")]
        if self.form.precision == "int8":  # depends on the images it was calibrated with
            parts += ["int8", short_digest(f"{self.request} {self.batch}")[:8]]
        name = "-".join(map(str, parts)) + ENGINES[self.form.engine].suffix
        return _folder(self.model) / name

    def mismatch(self) -> str:
        """Why the plan does not apply on this machine; empty if it does."""
        here = machine_id("cpu" if self.device == "cpu" else _gpu_name())
        if self.machine != here:
            return f"it was made for {self.machine}, this is {here or 'no GPU'}"
        version = ENGINES[self.form.engine].version
        if self.version != version:
            made = f"{self.form.engine} {self.version}"
            return f"it was made with {made}, here is {version or 'none'}"
        return ""


def _gpu_name() -> str:
    """The GPU's name; empty without one. Only plans for a GPU need torch."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def machine_id(device: str) -> str:
    """Name of this machine in plans: CPU and threads, or the GPU `device`."""
    return f"{cpu_name()}, {core_count()} threads" if device == "cpu" else device


def cached_plan_path(model: str, device: str, batch: int, size: int, request: str) -> Path:
    """Cache file of a request; it depends on the versions of the engines."""
    versions = [engine.version for engine in ENGINES.values()]
    key = json.dumps([model, machine_id(device), batch, size, request, versions])
    return _folder(model) / f"{short_digest(key)}.plan.json"


def _folder(model: str) -> Path:
    return cache_folder() / "plans" / model[:16]


def plan_path(file: Path) -> Path:
    """File with the plans of a model file, next to it."""
    return file.with_suffix(".plan.json") if file.name else file / ".plan.json"


def write_plans(path: Path, plans: Sequence[Plan]) -> None:
    """Write plans to a file, completely or not at all.

    Raises:
        CheckpointError: The file cannot be written.
    """
    text = json.dumps({"format": 1, "plans": [asdict(plan) for plan in plans]}, indent=1)
    write_bytes_atomically(path, f"{text}\n".encode())


def require_folder(folder: Path) -> None:
    """Create a folder for plans and graphs if it does not exist.

    Raises:
        CheckpointError: The folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise CheckpointError(f"{folder} cannot be written. Set RESNEXT_HOME to a writable folder.")


def read_plans(path: Path) -> list[Plan]:
    """The plans in a file; none if the file does not exist.

    Raises:
        CheckpointError: The file cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [_plan(values) for values in content["plans"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ResNeXtError) as error:
        raise CheckpointError(
            f"{path} is not a plan, or it is damaged. Delete it and run resnext optimize again."
        ) from error


def _plan(values: dict[str, Any]) -> Plan:
    rows = tuple(
        Measurement(**{**row, "form": None if row["form"] is None else _form(row["form"])})
        for row in values["rows"]
    )
    plan = Plan(**{**values, "form": _form(values["form"]), "rows": rows})
    if type(plan.batch) is not int or type(plan.size) is not int:
        raise TypeError("batch and size must be whole numbers")
    return plan


def _form(values: dict[str, Any]) -> EngineConfig:
    form = EngineConfig(**values)
    if form.engine not in ENGINES or form.precision not in PRECISIONS:
        raise ValueError(f"{form.engine} and {form.precision} are unknown")
    if min(form.piece, form.streams, form.width + 1) < 1:
        raise ValueError("numbers must be positive")
    return form


def save_beside(file: Path, plan: Plan) -> Path:
    """Add a plan to those next to a model file, and remove those that it replaces.

    It replaces plans for the same machine and batch size, and plans for other weights.

    Raises:
        CheckpointError: The file cannot be written.
    """
    path = plan_path(file)
    plan = replace(plan, file=file_sha256(file))
    try:
        old = read_plans(path)
    except CheckpointError:
        old = []
    kept = [
        p for p in old if p.file == plan.file and (p.machine, p.batch) != (plan.machine, plan.batch)
    ]
    write_plans(path, [*kept, plan])
    return path


def find_plan(file: Path, batch: int, device: str) -> tuple[Plan | None, str]:
    """The plan next to a model file that applies on this machine, nearest in batch size.

    Args:
        file: The model file.
        batch: Expected batch size.
        device: "auto", or a torch device.

    Returns:
        The plan and an empty reason, or None and the reason.
    """
    try:
        plans = read_plans(plan_path(file))
    except CheckpointError as error:
        return None, str(error)
    if device != "auto":
        plans = [plan for plan in plans if (plan.device == "cpu") == (device == "cpu")]
    if not plans:
        return None, f"{plan_path(file)} has no plan for {device}."
    digest = file_sha256(file)
    reasons: list[str] = []
    for plan in sorted(plans, key=lambda plan: abs(plan.batch - batch)):
        reason = "it was made for other weights" if plan.file != digest else plan.mismatch()
        if not reason:
            return plan, ""
        reasons.append(reason)
    return None, f"{plan_path(file)} is not used: {reasons[0]}. Run resnext optimize again."
