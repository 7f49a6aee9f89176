"""From a network, a model file or a name to a runner, by the fastest known way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from resnext.errors import CheckpointError, InputError
from resnext.inference.exported import Exported, check_processor, is_exported
from resnext.inference.foreign import Given
from resnext.inference.optimized import Optimized
from resnext.inference.plan import Plan, find_plan, plan_path
from resnext.inference.runner import Runner
from resnext.system.allocator import keep_freed_memory
from resnext.system.progress import reporter
from resnext.weights.classifier import read_classifier
from resnext.weights.header import read_header

if TYPE_CHECKING:
    from resnext.network import ResNeXt

R = TypeVar("R", bound=Runner)


def open_runner(
    model: ResNeXt | Runner | str | Path,
    *,
    device: str = "auto",
    batch: int = 64,
    plan: bool = True,
    progress: bool = False,
) -> Runner:
    """A runner for a model, ready to classify pixels.

    Args:
        model: A network, a runner, or a model file or name as for `resnext.load`.
        device: "auto", or a torch device; a plan is used only if it was made for that device.
        batch: Batch size to expect; of several plans, the nearest is used.
        plan: Whether to use the plan that `resnext optimize` saved next to a model file.
        progress: Whether to show downloads and the choice of plan on standard error.

    Raises:
        CheckpointError: The file does not exist, is damaged or holds no classifier.
        InputError: The model has no labels or no classifier, or the device does not exist.
    """
    opened = open_model(model, device=device, batch=batch, plan=plan, progress=progress)
    if isinstance(opened, Runner):
        return opened
    from resnext.inference.engines.torch import TorchRunner

    return TorchRunner(opened)


def open_model(
    model: ResNeXt | R | str | Path,
    *,
    device: str = "auto",
    batch: int = 64,
    plan: bool = True,
    progress: bool = False,
) -> ResNeXt | Optimized | Exported | R:
    """A network in evaluation mode on its device, or a runner.

    Args:
        model: A network, which is moved to the device and put in evaluation mode
            (`evaluation_mode` restores it); a runner, which is returned as it is; or a model file
            or name, as for `resnext.load`.
        device: "auto", or a torch device; a plan is used only if it was made for that device.
        batch: Batch size to expect; of several plans, the nearest is used.
        plan: Whether to use the plan that `resnext optimize` saved next to a model file.
        progress: Whether to show downloads and the choice of plan on standard error.

    Raises:
        CheckpointError: The file does not exist, is damaged or holds no classifier.
        InputError: The model has no classifier, or the device does not exist.
    """
    if isinstance(model, Exported):
        check_processor(model.path, device)
    if isinstance(model, Runner):
        return model
    if isinstance(model, str | Path):
        if is_exported(model):
            check_processor(model, device)
            return open_exported(Path(model), None, device, batch, plan, progress)
        if plan and (planned := open_planned(model, device, batch, progress)):
            return planned
    elif not (hasattr(model, "fc") and hasattr(model, "card")):
        raise InputError(
            f"A model must be a ResNeXt with a classifier, an optimized model, a file or a name, "
            f"not {type(model).__name__}. resnext.load takes networks of other libraries."
        )
    from resnext.system.device import pick_device

    place = pick_device(device)
    keep_freed_memory()
    network = _load(model, progress) if isinstance(model, str | Path) else model
    return network.to(place).eval()


@contextmanager
def evaluation_mode(model: object) -> Iterator[None]:
    """Evaluation mode for a network inside a `with` block; its previous mode is restored.

    Args:
        model: A network; a runner, file or name is ignored.
    """
    if not hasattr(model, "modules"):
        yield
        return
    from resnext.inference.engines.torch import evaluating

    with evaluating(cast("ResNeXt", model)):
        yield


def open_planned(source: str | Path, device: str, batch: int, progress: bool) -> Optimized | None:
    """A model that runs as the plan next to its file says; None if no plan is for this machine.

    Args:
        source: A model file; names and folders have no plan.
        device: "auto", or a torch device; a plan is used only if it was made for that device.
        batch: Batch size to expect; of several plans, the nearest is used.
        progress: Whether to show the choice of plan on standard error.
    """
    file = Path(source)
    plan = _plan_beside(file, device, batch, progress)
    if plan is None:
        return None
    path = file.absolute()
    classifier = partial(read_classifier, path)
    try:
        config, card = read_header(file)
    except CheckpointError:  # a file of another library
        network, classifier = _load(file, progress), None
        config, card = network.config, network.card
    return Optimized(plan, card, config, partial(_load, path, progress), device, classifier)


def open_exported(
    file: Path,
    given: Given | None = None,
    device: str = "auto",
    batch: int = 64,
    plan: bool = True,
    progress: bool = False,
) -> Exported:
    """A file of another runtime, computed as the plan next to it says.

    Args:
        file: The file.
        given: Labels and preprocessing of a foreign file.
        device: "auto", or a torch device; a plan is used only if it was made for that device.
        batch: Batch size to expect; of several plans, the nearest is used.
        plan: Whether to use a plan.
        progress: Whether to show the choice of plan on standard error.
    """
    found = _plan_beside(file, device, batch, progress) if plan else None
    if found is None:
        return Exported(file, given)
    return Exported(file, given, found.form, found.batch)


def _plan_beside(file: Path, device: str, batch: int, progress: bool) -> Plan | None:
    """The plan next to a file that applies; the choice, or why there is none, is shown."""
    if not plan_path(file).exists() or not file.is_file():
        return None
    plan, reason = find_plan(file, batch, device)
    report = reporter(progress)
    report.line(reason if plan is None else f"{plan_path(file)}: {plan.summary}")
    report.stop()
    return plan


def _load(source: str | Path, progress: bool) -> ResNeXt:
    from resnext.weights.load import load_classifier

    return load_classifier(source, progress=progress)
