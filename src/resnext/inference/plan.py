"""Plans: how a model is computed on a machine, and the files that hold them. Loads no torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from resnext.card import Card
from resnext.checks import number
from resnext.errors import CheckpointError, ResNeXtError
from resnext.inference.engines import ENGINES
from resnext.inference.engines.base import PRECISIONS, EngineConfig, InputKind
from resnext.inference.exported import is_exported
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
class FrontierRow:
    """The speed and the accuracy of one way to compute a network at one image size.

    Args:
        form: The measured form; None for the unmodified network in PyTorch.
        size: Image size, pixels.
        resize: Length of the shorter side before cropping, pixels.
        images_per_second: Its speed; 0 if it could not run.
        verdict: "chosen", or why it was not.
        accuracy: Fraction of the images that got the right class; None if it was not measured.
        interval: 95 % interval of the accuracy.
        loss: Accuracy of the reference minus this accuracy, on the same images.
        loss_interval: 95 % interval of the loss.
    """

    form: EngineConfig | None
    size: int
    resize: int
    images_per_second: float
    verdict: str = ""
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    loss: float | None = None
    loss_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Tradeoff:
    """Accuracy that a plan gives up for speed, and what replaces the values of the model's card.

    Args:
        max_loss: Largest accepted loss of accuracy, percentage points.
        resize: Length of the shorter side before cropping, pixels.
        temperature: Divisor of the logits before softmax.
        threshold: Lowest confidence of a prediction that counts as certain; None if unknown.
        data: Name of the images that decided.
        deciding: Number of images that accuracy was measured on.
        calibrating: Number of other images, which were used to time and to calibrate int8.
        rows: All measurements, fastest first; last the reference, the fastest form in fp32 at the
            size of the card.
    """

    max_loss: float
    resize: int
    temperature: float
    threshold: float | None
    data: str
    deciding: int
    calibrating: int
    rows: tuple[FrontierRow, ...]

    @property
    def reference(self) -> FrontierRow:
        """The row that losses are relative to."""
        return self.rows[-1]

    @property
    def chosen(self) -> FrontierRow:
        """The row of the plan."""
        return next(row for row in self.rows if row.verdict == "chosen")


@dataclass(frozen=True)
class Plan:
    """The fastest way to compute a model on a machine, and the measurements behind it.

    Args:
        model: SHA-256 of config, preprocessing and weights.
        form: How to compute it.
        batch: Batch size that it was optimized for.
        size: Image size, pixels.
        device: "cpu", or the name of a GPU.
        request: The requested precision and engine, and a hash of the data, as JSON.
        machine: Name of the CPU and its threads, or name of the GPU.
        version: Version of the engine.
        rows: All measurements.
        file: SHA-256 of the model file; empty for a network without a file.
        tradeoff: Accuracy given up for speed; None if the predictions agree with the network's.
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
    tradeoff: Tradeoff | None = None

    def card(self, card: Card | None) -> Card | None:
        """The model's card with the preprocessing, temperature and threshold of the plan."""
        if card is None or self.tradeoff is None:
            return card
        usual, resize = card.preprocessing, self.tradeoff.resize
        if (self.size, resize) != (usual.size, usual.resize):  # it was fitted to larger images
            card = replace(card, unknown_threshold=None, unknown_weight=0.0)
        return replace(
            card,
            preprocessing=replace(usual, size=self.size, resize=resize),
            temperature=self.tradeoff.temperature,
            threshold=self.tradeoff.threshold,
        )

    @property
    def summary(self) -> str:
        """Engine and precision, and what is given up for speed, in one line."""
        text = f"{self.form.engine}, {self.form.precision}"
        if self.tradeoff is None or self.tradeoff.chosen is self.tradeoff.reference:
            return text
        chosen, reference = self.tradeoff.chosen, self.tradeoff.reference
        return (
            f"{text}, images of {self.size}×{self.size} pixels: accuracy {chosen.accuracy:.2%} on "
            f"{self.tradeoff.deciding:,} images, {reference.accuracy:.2%} without the plan"
        )

    @property
    def calibration(self) -> str:
        """Differs between calibrations of int8; empty in other precisions."""
        if self.form.precision != "int8":
            return ""
        return short_digest(f"{self.request} {self.batch}")[:8]

    def graph(self, kind: InputKind) -> Path:
        """Path of the file that the engine opens."""
        parts = [kind, self.size, self.form.width, metadata.version("resnext")]
        if self.form.precision == "int8":
            parts += ["int8", self.calibration]
        name = "-".join(map(str, parts)) + ENGINES[self.form.engine].suffix
        return _folder(self.model) / name

    def mismatch(self, device: str = "auto") -> str:
        """Why the plan does not apply on this machine; empty if it does.

        Args:
            device: The GPU that would run a plan for a GPU: "cuda:1"; "auto" for the current one.
        """
        here = machine_id("cpu" if self.device == "cpu" else _gpu_name(device))
        if self.machine != here:
            return f"it was made for {self.machine}, this is {here or 'no GPU'}"
        version = ENGINES[self.form.engine].version
        if self.version != version:
            made = f"{self.form.engine} {self.version}"
            return f"it was made with {made}, here is {version or 'none'}"
        return ""


def _gpu_name(device: str) -> str:
    """The name of a GPU; empty if it does not exist. Only plans for a GPU need torch."""
    import torch

    index = int(device.partition(":")[2] or -1)
    if index >= torch.cuda.device_count() or not torch.cuda.is_available():
        return ""
    return torch.cuda.get_device_name(None if index < 0 else index)


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
    if is_exported(file):  # the model that it was made from may be beside it
        return file.with_name(f"{file.name}.plan.json")
    return file.with_suffix(".plan.json") if file.name else file / ".plan.json"


def write_plans(path: Path, plans: Sequence[Plan]) -> None:
    """Write plans to a file, completely or not at all.

    Raises:
        CheckpointError: The file cannot be written.
    """
    text = json.dumps({"format": 1, "plans": [_values(plan) for plan in plans]}, indent=1)
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


def _values(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values; without a tradeoff, as versions read it that know none."""
    values = asdict(plan)
    if plan.tradeoff is None:
        del values["tradeoff"]
    return values


def _plan(values: dict[str, Any]) -> Plan:
    rows = tuple(Measurement(**_with_form(row)) for row in values["rows"])
    tradeoff = _tradeoff(values["tradeoff"]) if "tradeoff" in values else None
    form = _form(values["form"])
    plan = Plan(**{**values, "form": form, "rows": rows, "tradeoff": tradeoff})
    if type(plan.batch) is not int or type(plan.size) is not int:
        raise TypeError("batch and size must be whole numbers")
    plan.card(Card())  # checks what replaces the card's values
    return plan


def _tradeoff(values: dict[str, Any]) -> Tradeoff:
    rows = []
    for row in map(_with_form, values["rows"]):
        pairs = {name: row[name] and tuple(row[name]) for name in ("interval", "loss_interval")}
        rows.append(FrontierRow(**{**row, **pairs}))
    number("max_loss", values["max_loss"], lambda x: x >= 0, "of at least 0")
    if not any(row.verdict == "chosen" for row in rows):
        raise ValueError("no row is the chosen one")
    return Tradeoff(**{**values, "rows": tuple(rows)})


def _with_form(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "form": None if values["form"] is None else _form(values["form"])}


def _form(values: dict[str, Any]) -> EngineConfig:
    form = EngineConfig(**values)
    if form.engine not in ENGINES or form.precision not in PRECISIONS:
        raise ValueError(f"{form.engine} and {form.precision} are unknown")
    if min(form.piece, form.streams, form.width + 1) < 1:
        raise ValueError("numbers must be positive")
    return form


def save_beside(file: Path, plan: Plan) -> Path:
    """Add a plan to those next to a model file, and remove those that it replaces.

    It replaces plans for the same machine and batch size, and plans for other weights. A plan with
    a tradeoff replaces every plan of the machine, and is replaced by every other: otherwise the
    number of images would decide which predictions they get.

    Raises:
        CheckpointError: The file cannot be written.
    """
    path = plan_path(file)
    plan = replace(plan, file=file_sha256(file))
    try:
        old = read_plans(path)
    except CheckpointError:
        old = []
    write_plans(path, [*(p for p in old if not _replaces(plan, p)), plan])
    return path


def _replaces(new: Plan, old: Plan) -> bool:
    """Whether a plan is useless next to a new one."""
    if (old.file, old.machine) != (new.file, new.machine):
        return old.file != new.file
    return old.batch == new.batch or old.tradeoff is not None or new.tradeoff is not None


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
        plans = [plan for plan in plans if _runs_on(plan, device)]
    if not plans:
        return None, f"{plan_path(file)} has no plan for {device}."
    digest = file_sha256(file)
    reasons: list[str] = []
    for plan in sorted(plans, key=lambda plan: abs(plan.batch - batch)):
        reason = "it was made for other weights" if plan.file != digest else plan.mismatch(device)
        if not reason:
            return plan, ""
        reasons.append(reason)
    return None, f"{plan_path(file)} is not used: {reasons[0]}. Run resnext optimize again."


def _runs_on(plan: Plan, device: str) -> bool:
    """Whether a plan is for the kind of device that a name such as "cuda:1" stands for."""
    kind = "cpu" if plan.device == "cpu" else "cuda"
    return re.fullmatch(rf"{kind}(:\d+)?", device) is not None
