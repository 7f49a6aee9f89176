"""From a model's file or name to something that predicts, as fast as is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from resnext.errors import CheckpointError
from resnext.inference.optimized import Optimized
from resnext.inference.plan import find_plan, plan_path
from resnext.inference.runner import Runner
from resnext.system.progress import reporter
from resnext.weights.header import read_header

if TYPE_CHECKING:
    from resnext.network import ResNeXt


def open_runner(
    source: str | Path,
    *,
    device: str = "auto",
    batch: int = 64,
    plan: bool = True,
    progress: bool = False,
) -> Runner:
    """A model, ready to predict: by the plan beside its file, else in torch as it is.

    Args:
        source: As for `resnext.load`.
        device: "auto", or a torch device. A plan is used if it was made for that device.
        batch: Images that will come at a time.
        plan: Whether to look for a plan.
        progress: Whether to show downloads, and what becomes of the plan, on standard error.

    Raises:
        CheckpointError: It is no model, or damaged.
        InputError: It has no labels; or there is no such device.
    """
    if plan and (found := open_planned(source, device, batch, progress)):
        return found
    from resnext.inference.engines.torch import TorchRunner
    from resnext.system.device import pick_device

    place = pick_device(device)
    return TorchRunner(_network(source, progress).to(place))


def open_planned(source: str | Path, device: str, batch: int, progress: bool) -> Optimized | None:
    """A model by the plan beside its file; None if there is none for this machine.

    Args:
        source: As for `open_runner`; only files can have a plan.
        device: Likewise.
        batch: Likewise.
        progress: Likewise.
    """
    file = Path(source)
    if not plan_path(file).exists() or not file.is_file():
        return None
    plan, reason = find_plan(file, batch, device)
    report = reporter(progress)
    try:
        if plan is None:
            report.line(reason)
            return None
        report.line(f"{plan_path(file)}: {plan.form.engine}, {plan.form.precision}")
    finally:
        report.stop()
    try:
        config, card = read_header(file)
    except CheckpointError:  # a file of another library
        network = _network(file, progress)
        return Optimized(plan, network.card, network.config, lambda: network)
    return Optimized(plan, card, config, lambda: _network(file, progress))


def _network(source: str | Path, progress: bool) -> ResNeXt:
    from resnext.weights.load import load_classifier

    return load_classifier(source, progress=progress)
