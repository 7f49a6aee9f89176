"""`optimize` for files of other runtimes: the fastest engine and division of a batch here."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import cycle, islice

import numpy as np
from jaxtyping import UInt8

from resnext.errors import InputError
from resnext.inference.engines import ENGINES
from resnext.inference.engines.base import EngineConfig
from resnext.inference.exported import READERS, Exported, usual_form
from resnext.inference.optimize import patterns
from resnext.inference.plan import Measurement, Plan, machine_id
from resnext.inference.search import EQUAL, compared
from resnext.system.progress import Reporter, reporter

_PATTERNS = 64
_ROUNDS = 8
_PROMISING = 0.8  # fraction of the best speed from which a form is timed again

Pixels = UInt8[np.ndarray, "n h w c"]


def optimize_file(
    file: Exported, *, engine: str = "auto", batch: int = 16, progress: bool = False
) -> Plan:
    """The fastest way to run an ONNX or OpenVINO file on this CPU, found by measuring.

    ONNX Runtime and OpenVINO run ONNX files, OpenVINO its own. A way is taken only if every logit
    is within 1e-4 of the largest from those of the file's usual way. Precision and image size are
    those of the file.

    Args:
        file: The file.
        engine: Name of an engine; "auto" times all that are installed and read the file.
        batch: Batch size to optimize for.
        progress: Whether to show progress on standard error.

    Returns:
        The plan; `save_beside` writes it to where `predict` finds it.

    Raises:
        InputError: There is nothing to choose, or no way agrees.
    """
    readers = READERS.get(file.path.suffix.lower(), ())
    names = readers if engine == "auto" else (engine,)
    if not set(names) <= set(readers) or not names:
        raise InputError(
            f"{file.path} can be run by {' or '.join(readers) or 'its runtime'} only, so there is "
            f"nothing to choose. Optimize the model that it was made from."
        )
    assert file.card is not None
    size = file.card.preprocessing.size
    waves = patterns(_PATTERNS, file.config.in_channels, size).transpose(0, 2, 3, 1)
    pixels = np.clip(128 + 60 * waves, 0, 255).astype(np.uint8)
    log = reporter(progress)
    try:
        rows = _measured(file, names, batch, pixels, log)
    finally:
        log.stop()
    usable = [row for row in rows if not row.verdict and row.form and row.form.engine in names]
    if not usable:
        raise InputError(f"Nothing that runs {file.path} agrees with it: {rows[0].verdict}.")
    fastest = max(row.images_per_second for row in usable)
    equal = [row for row in usable if row.images_per_second >= EQUAL * fastest]
    chosen = min(equal, key=lambda row: row.form.streams if row.form else 0)
    form = chosen.form
    assert form is not None
    return Plan(
        model=file.fingerprint,
        form=form,
        batch=batch,
        size=size,
        device="cpu",
        request="",
        machine=machine_id("cpu"),
        version=ENGINES[form.engine].version,
        rows=tuple(replace(row, verdict="chosen") if row is chosen else row for row in rows),
    )


def _measured(
    file: Exported, names: tuple[str, ...], batch: int, pixels: Pixels, log: Reporter
) -> list[Measurement]:
    """All ways to run a file, fastest first, the usual one last."""
    usual = usual_form(file.path)
    divided = [
        EngineConfig(name, "fp32", *division)
        for name in names
        if ENGINES[name].installed
        for division in ENGINES[name].divisions(batch)
    ]
    x = np.stack([*islice(cycle(pixels), batch)])
    wanted = file.pixels(pixels)[0]
    rows: dict[EngineConfig, Measurement] = {}
    running: dict[EngineConfig, Exported] = {}
    for form in dict.fromkeys([*divided, usual]):
        log.line(f"Timing {form.engine}, {form} …")
        runner = file.computed_as(form, batch)
        try:
            row = Measurement(form, 0.0)
            rows[form] = compared(row, "fp32", runner.pixels(pixels)[0], wanted)
            rows[form] = replace(rows[form], images_per_second=_speed(runner, x))
        except Exception as error:  # runtimes raise errors of many types
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            rows[form] = Measurement(form, 0.0, f"failed: {reason[:120]}")
            continue
        running[form] = runner
        best = max(row.images_per_second for row in rows.values())
        running = {
            form: runner
            for form, runner in running.items()
            if rows[form].images_per_second > _PROMISING * best
        }
    for _ in range(_ROUNDS):  # in turns: a machine's speed varies
        for form, runner in running.items():
            speed = max(rows[form].images_per_second, _speed(runner, x))
            rows[form] = replace(rows[form], images_per_second=speed)
    last = rows.pop(usual)
    return [*sorted(rows.values(), key=lambda row: -row.images_per_second), last]


def _speed(runner: Exported, x: Pixels) -> float:
    """Images per second of one batch."""
    began = time.perf_counter()
    runner.pixels(x)
    return len(x) / (time.perf_counter() - began)
