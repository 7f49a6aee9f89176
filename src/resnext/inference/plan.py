"""What was chosen, for which model and machine, and where it is remembered. No torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from resnext.errors import CheckpointError, ResNeXtError
from resnext.system.atomic import write_bytes_atomically
from resnext.system.cache import cache_folder
from resnext.system.cpu import core_count, cpu_name
from resnext.system.digest import file_sha256, short_digest

Engine = Literal["torch", "compile", "tensorrt", "onnxruntime", "openvino"]
Kind = Literal["images", "pixels"]
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
_PACKAGES: dict[Engine, str] = {
    "torch": "torch",
    "compile": "torch",
    "tensorrt": "torch-tensorrt",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
}


@dataclass(frozen=True)
class EngineConfig:
    """One way to compute a network.

    Args:
        engine: What computes.
        precision: "fp32", "bf16", "fp16" or "int8".
        piece: Images that it computes at once.
        streams: Pieces that it computes side by side.
        width: Channels that narrower groups were merged to; 0 leaves them as they are.
    """

    engine: Engine
    precision: str = "fp32"
    piece: int = 1
    streams: int = 1
    width: int = 0

    def __str__(self) -> str:
        """What differs within an engine: "2 × 8 images, groups of 16"."""
        pieces = f"{self.streams} × {self.piece} image{'s' if self.piece > 1 else ''}"
        return f"{pieces}, groups of {self.width}" if self.width else pieces


@dataclass(frozen=True)
class Measurement:
    """One line of the table that was decided from.

    Args:
        form: What was measured; None for the network as it is, in torch.
        images_per_second: How fast it was; 0 if it could not be.
        verdict: "chosen", why not, or empty for what was slower, or as fast and less plain.
        difference: Largest difference of a logit to the network's own, as a part of the largest
            logit; None if it was not looked at.
        agreement: Part of the images that got the same class; likewise.
        accuracy: Part of the labelled images that got the right class; likewise.
    """

    form: EngineConfig | None
    images_per_second: float
    verdict: str = ""
    difference: float | None = None
    agreement: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Plan:
    """The fastest form of a model on a machine, and how that was found out.

    Args:
        model: SHA-256 of config and weights.
        form: What was chosen.
        batch: Images that were given at a time.
        size: Side of the images, pixels.
        device: "cpu", or a GPU.
        request: What was asked for: precision, engine and images to agree on.
        machine: Processor or GPU, and threads.
        version: Of the engine.
        rows: What was measured.
        file: SHA-256 of the model file, if there is one.
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

    @property
    def folder(self) -> Path:
        """Where plans and graphs of the model are kept."""
        return _folder(self.model)

    def graph(self, kind: Kind) -> Path:
        """File of the engine's graph."""
        suffix = "onnx" if self.form.engine == "onnxruntime" else "xml"
        parts = [kind, self.size, self.form.width, metadata.version("resnext")]
        if self.form.precision == "int8":  # depends on the images it was calibrated with
            parts += ["int8", short_digest(f"{self.request} {self.batch}")[:8]]
        return self.folder / f"{'-'.join(map(str, parts))}.{suffix}"

    def fits(self) -> str:
        """Why it is of no use here and now; empty if it is."""
        here = machine_id("cpu" if self.device == "cpu" else _gpu())
        if self.machine != here:
            return f"it was made for {self.machine}, this is {here or 'no GPU'}"
        version = engine_version(self.form.engine)
        if self.version != version:
            made = f"{self.form.engine} {self.version}"
            return f"it was made with {made}, here is {version or 'none'}"
        return ""


def _gpu() -> str:
    """The GPU's name; empty if there is none. Only plans for one need torch."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def machine_id(device: str) -> str:
    """The machine's name, as plans have it."""
    return f"{cpu_name()}, {core_count()} threads" if device == "cpu" else device


def engine_version(engine: Engine) -> str:
    """Version of what is installed; empty if it is not."""
    try:
        return metadata.version(_PACKAGES[engine])
    except metadata.PackageNotFoundError:
        return ""


def cached_plan_path(model: str, device: str, batch: int, size: int, request: str) -> Path:
    """Where the plan for such a request is remembered."""
    versions = [engine_version(engine) for engine in _PACKAGES]
    key = json.dumps([model, machine_id(device), batch, size, request, versions])
    return _folder(model) / f"{short_digest(key)}.plan.json"


def _folder(model: str) -> Path:
    return cache_folder() / "plans" / model[:16]


def plan_path(file: Path) -> Path:
    """Where a model file's plans are."""
    return file.with_suffix(".plan.json") if file.name else file / ".plan.json"


def write_plans(path: Path, plans: Sequence[Plan]) -> None:
    """Write plans, completely or not at all.

    Raises:
        CheckpointError: The file cannot be written.
    """
    text = json.dumps({"format": 1, "plans": [asdict(plan) for plan in plans]}, indent=1)
    write_bytes_atomically(path, f"{text}\n".encode())


def require_folder(folder: Path) -> None:
    """Make the folder that plans and graphs are kept in.

    Raises:
        CheckpointError: It cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise CheckpointError(
            f"{folder} cannot be written. Set RESNEXT_HOME to a folder for what is remembered."
        )


def read_plans(path: Path) -> list[Plan]:
    """The plans in a file; none if there is no such file.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return [_plan(values) for values in about["plans"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ResNeXtError) as error:
        raise CheckpointError(
            f"{path} is no plan, or damaged. Delete it and run resnext optimize again."
        ) from error


def _plan(values: dict[str, Any]) -> Plan:
    rows = tuple(
        Measurement(**{**row, "form": None if row["form"] is None else _form(row["form"])})
        for row in values["rows"]
    )
    found = Plan(**{**values, "form": _form(values["form"]), "rows": rows})
    if type(found.batch) is not int or type(found.size) is not int:
        raise TypeError("sizes must be numbers")
    return found


def _form(values: dict[str, Any]) -> EngineConfig:
    form = EngineConfig(**values)
    if form.engine not in _PACKAGES or form.precision not in PRECISIONS:
        raise ValueError(f"{form.engine} and {form.precision} are unknown")
    if min(form.piece, form.streams, form.width + 1) < 1:
        raise ValueError("numbers must be positive")
    return form


def save_beside(file: Path, plan: Plan) -> Path:
    """Add a plan to those beside a model file, in place of what it makes useless."""
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
    """The plan beside a model file that fits this machine, and the number of images best.

    Args:
        file: The model file.
        batch: Images that will come at a time.
        device: "auto", or a torch device.

    Returns:
        The plan, or None and why there is none.
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
        reason = "it was made for other weights" if plan.file != digest else plan.fits()
        if not reason:
            return plan, ""
        reasons.append(reason)
    return None, f"{plan_path(file)} is not used: {reasons[0]}. Run resnext optimize again."
