"""`optimize`: the fastest way to compute a classifier on this machine."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32

from resnext.card import card_of
from resnext.checks import brief, check_max_loss
from resnext.data.dataset import ImageSet, Stored, fingerprint
from resnext.data.loader import EvalDataset
from resnext.data.open import open_for_evaluation
from resnext.errors import CheckpointError, DataError, InputError, ResNeXtError
from resnext.foreign_names import answering_call
from resnext.inference.engines import ENGINES
from resnext.inference.engines.base import EngineChoice
from resnext.inference.engines.torch import weights_digest
from resnext.inference.frontier import FrontierSearch, tell_left_out
from resnext.inference.optimized import Optimized
from resnext.inference.plan import (
    Plan,
    cached_plan_path,
    machine_id,
    read_plans,
    require_folder,
    write_plans,
)
from resnext.inference.search import Examples, Search
from resnext.network import ResNeXt
from resnext.summary import default_size
from resnext.system.allocator import keep_freed_memory
from resnext.system.device import check_precision, hardware, pick_device
from resnext.system.main_guard import refuse_in_new_process
from resnext.system.progress import Reporter, reporter
from resnext.weights.load import load_classifier

PrecisionChoice = Literal["auto", "fp32", "bf16", "fp16", "int8"]
_PATTERNS = 64  # synthetic images, if `data` is not given
_CALIBRATION = 256  # images to calibrate int8 with, and to compare predictions on
_LABELLED = 1024  # images to measure the accuracy of int8 on
_DECIDING = 2048  # images to measure accuracy on, if some of it may be given up


@answering_call
def optimize(
    model: ResNeXt | str | Path,
    *,
    precision: PrecisionChoice = "auto",
    engine: EngineChoice = "auto",
    batch: int = 16,
    data: str | Path | None = None,
    max_loss: float | None = None,
    device: str = "auto",
    again: bool = False,
    progress: bool = False,
) -> Optimized:
    """The fastest way to run a classifier on this machine, found by measuring.

    Batch norms are folded, groups are merged where that is faster, and engines and their settings
    are timed. Of the candidates within 2 % of the fastest, the simplest is chosen. A candidate must
    agree with the network: in fp32 every logit to within 1e-4 of the largest; in bf16 and fp16 the
    class of 99.5 % of the images; in int8 the accuracy to within half a point. The result is cached
    by model, machine and versions.

    With `max_loss`, smaller images and tighter crops are tried too, each in all precisions, and the
    fastest combination is chosen whose accuracy on held-out images is at most that much below the
    accuracy of the fastest fp32 form at full size (`FrontierSearch` explains the rule). The result
    then has a card of its own: its size and crop, and a temperature and a threshold fitted again.

    Args:
        model: A classifier, or a file or name as for `resnext.load`.
        precision: Compute precision; "auto" takes the fastest that agrees and also tries 16 bits
            where the hardware supports them, and int8 if `data` is given.
        engine: Engine to use; "auto" times those that are installed. On a CPU it skips "compile",
            which takes minutes, if OpenVINO or ONNX Runtime is installed.
        batch: Batch size to optimize for; the result accepts any batch size.
        data: Labelled images, as for `resnext.evaluate`, that the model was not trained on, to
            compare predictions on and to calibrate int8 with.
        max_loss: Largest loss of accuracy to accept for speed, percentage points; None to choose
            only forms that agree with the network. Needs `data`.
        device: "auto", "cpu" or a GPU.
        again: Whether to measure again even if a result is cached.
        progress: Whether to show progress on standard error.

    Returns:
        A classifier that is called like the network; `explain()` returns the measurements.

    Raises:
        CheckpointError: The file is not a model, or the cache folder cannot be written.
        DataError: `data` is missing, or has classes the model does not know.
        InputError: An argument is wrong, an engine is not installed, a precision is not supported
            here, no engine agrees with the network, or none is within `max_loss`.
    """
    refuse_in_new_process("optimize")
    for name, value, known in (
        ("precision", precision, get_args(PrecisionChoice)),
        ("engine", engine, ("auto", *ENGINES)),
    ):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}, not {brief(value)}.")
    if type(batch) is not int or not 1 <= batch <= 4096:
        raise InputError(f"batch must be from 1 to 4096 images, not {brief(batch)}.")
    if precision == "int8" and data is None:
        raise InputError("precision int8 needs labelled images for calibration: give data.")
    if max_loss is not None:
        check_max_loss(max_loss)
        if data is None:
            raise InputError("max_loss needs labelled images to measure accuracy on: give data.")
    torch_device = pick_device(device)
    keep_freed_memory()
    check_precision(precision, torch_device)
    if engine != "auto":
        ENGINES[engine].check_precision(precision, torch_device.type)
        ENGINES[engine].load()
    network = load_classifier(model, progress=progress) if isinstance(model, str | Path) else model
    if not isinstance(network, ResNeXt):
        raise InputError(f"A model must be a ResNeXt, a file or a name, not {brief(network)}.")
    network = copy.deepcopy(network).float().eval()
    if network.config.norm in ("batch", "sync") and not network.config.norm_track:
        raise InputError(
            "With norm_track=False the prediction for an image depends on the others in its batch, "
            "so no batch can be divided. Run the network itself."
        )
    size = network.card.preprocessing.size if network.card else default_size(network.config)
    device_name = "cpu" if torch_device.type == "cpu" else hardware(torch_device)
    digest = weights_digest(network)
    source = network if isinstance(model, ResNeXt) else _absolute(model)
    reopen = partial(_opened, source, digest)
    log = reporter(progress)
    try:
        measured = _LABELLED if max_loss is None else _DECIDING
        sample = None if data is None else _sample(network, data, measured, log)
        asked = [precision, engine, None if sample is None else _state(*sample)]
        request = json.dumps(asked if max_loss is None else [*asked, float(max_loss)])
        path = cached_plan_path(digest, device_name, batch, size, request)
        if not again and (plan := _cached_plan(path, device)):
            return _optimized(plan, network, reopen, device)
        require_folder(path.parent)  # a folder that cannot be written fails now, not after minutes
        if sample is None or max_loss is None:
            examples = _examples(network, sample, size, log)
            search = Search(network, size, torch_device, batch, examples, log)
            form, rows = search.run(precision, engine)
            builder, tradeoff = search.builder, None
        else:
            images, chosen = sample
            count = min(_CALIBRATION, max(len(chosen) // 4, 1))
            split = chosen[:count], chosen[count:]
            frontier = FrontierSearch(network, torch_device, batch, images, *split, max_loss, log)
            form, rows, builder, tradeoff = frontier.run(precision, engine)
    finally:
        log.stop()
    plan = Plan(
        model=digest,
        form=form,
        batch=batch,
        size=builder.size,
        device=device_name,
        request=request,
        machine=machine_id(device_name),
        version=ENGINES[form.engine].version,
        rows=tuple(rows),
        tradeoff=tradeoff,
    )
    builder.save(form, "images", plan.graph("images"))
    if network.card and len(network.card.preprocessing.mean) == network.config.in_channels:
        builder.save(form, "pixels", plan.graph("pixels"))
    write_plans(path, [plan])
    return _optimized(plan, network, reopen, device)


def _optimized(
    plan: Plan, network: ResNeXt, reopen: Callable[[], ResNeXt], device: str
) -> Optimized:
    """The network as its plan computes it; kept in memory if its engine opens no file."""
    optimized = Optimized(plan, network.card, network.config, reopen, device)
    if not ENGINES[plan.form.engine].suffix:
        optimized.network = network
    return optimized


def _opened(source: ResNeXt | str | Path, digest: str) -> ResNeXt:
    """The network that was optimized, from memory or from its file.

    Raises:
        CheckpointError: The file holds other weights now.
    """
    if isinstance(source, ResNeXt):
        return source
    network = load_classifier(source).float().eval()
    if weights_digest(network) != digest:
        raise CheckpointError(f"{source} has changed since it was optimized. Optimize it again.")
    return network


def _absolute(model: str | Path) -> str | Path:
    """A file as other processes find it; a name as it is."""
    return Path(model).absolute() if Path(model).exists() else model


def _cached_plan(path: Path, device: str) -> Plan | None:
    """The plan in a cached file; None if none applies."""
    try:
        return next((plan for plan in read_plans(path) if not plan.mismatch(device)), None)
    except ResNeXtError:
        return None


def _examples(
    network: ResNeXt, sample: tuple[ImageSet, list[int]] | None, size: int, progress: Reporter
) -> Examples:
    """Images to compare predictions on: those of a sample, else synthetic ones."""
    if sample is None:
        return Examples(patterns(_PATTERNS, network.config.in_channels, size), real=False)
    dataset, chosen = sample
    progress.start("Reading images", len(chosen))
    images: list[np.ndarray] = []
    targets: list[int] = []
    prepared = EvalDataset(dataset, card_of(network).preprocessing, chosen)
    for i in range(len(prepared)):
        item = prepared[i]
        if item is not None:
            images.append(item[0].numpy())
            targets.append(item[1])
        progress.advance(1)
    if not images:
        raise DataError(f"{dataset.name} has no image that can be read.")
    tell_left_out(len(chosen) - len(images), progress)
    calibration = min(_CALIBRATION, len(images) // 2) or 1
    rest = slice(calibration if len(images) > 1 else 0, None)
    stacked = np.stack(images)
    return Examples(stacked[:calibration], True, stacked[rest], np.array(targets)[rest])


def _sample(
    network: ResNeXt, data: str | Path, measured: int, progress: Reporter
) -> tuple[ImageSet, list[int]]:
    """Images to calibrate int8 with and at most `measured` others: their set and positions.

    They are spread over the images that the model was not trained on, in random order.
    """
    card = card_of(network)
    dataset = open_for_evaluation(data, card.labels, card.provenance, progress.line)
    count = min(len(dataset), _CALIBRATION + measured)
    chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int)
    return dataset, np.random.default_rng(0).permutation(np.unique(chosen)).tolist()


def _state(images: ImageSet, chosen: Sequence[int]) -> str:
    """A hash of some images as they are now: of classes and pixels, or of sizes and times."""

    def line(index: int) -> str:
        image, inside = images.images[index], ""
        if isinstance(image, np.ndarray):
            return f"{images.targets[index]} {hashlib.sha256(image.tobytes()).hexdigest()}"
        if isinstance(image, Stored):
            image, inside = image.file, f"{image.offset} {image.size}"
        stat = image.stat() if image.exists() else None
        known = stat and (stat.st_size, stat.st_mtime_ns)
        return f"{images.targets[index]} {known} {inside}"

    return fingerprint(map(line, chosen))


def patterns(count: int, channels: int, size: int) -> Float32[np.ndarray, "n c h w"]:
    """Synthetic images with the spectrum of photographs: noise whose amplitude is 1 / frequency."""
    rng = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / size)
    shape = (count, channels, size, columns.shape[1])
    waves = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    images = np.fft.irfft2(waves * amplitude, s=(size, size))
    images /= images.std(axis=(2, 3), keepdims=True) + 1e-12
    return images.astype(np.float32)
