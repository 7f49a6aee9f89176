"""The search behind `optimize`: times engines and forms, and keeps those that agree."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from resnext.errors import InputError
from resnext.inference.engines import ENGINES
from resnext.inference.engines.base import Engine, EngineConfig
from resnext.inference.engines.builder import EngineBuilder
from resnext.inference.engines.onnx_export import can_merge
from resnext.inference.engines.quantization import MAX_DROP
from resnext.inference.engines.torch import TorchSession
from resnext.inference.plan import Measurement
from resnext.inference.runner import Session
from resnext.network import ResNeXt
from resnext.system.device import DTYPES, has_bf16, pick_precision
from resnext.system.progress import Reporter

MAX_DIFFERENCE = 1e-4
"""Largest difference of a logit in fp32, relative to the largest logit."""

MIN_AGREEMENT = 0.995
"""Minimum fraction of the images that keep their class in 16 bits."""

EQUAL = 0.98
"""Fraction of the best speed that counts as equally fast."""

_SECONDS = 0.5  # minimum time to time a form
_WIDTHS = (8, 16, 32)
_PROMISING = 0.8  # fraction of the best speed from which a form is worth improving
_HOPELESS = 0.3  # fraction of the best speed below which one call is enough
_FIRST_IMAGES = 8  # images to quantize with before a form is chosen


@dataclass(frozen=True)
class Examples:
    """Images to compare predictions on.

    Args:
        images: Normalized images, also used to calibrate int8.
        real: False for synthetic patterns.
        labelled: Other images, to measure the accuracy of int8 on; None to leave that to the
            caller.
        targets: Classes of `labelled`.
    """

    images: Float32[np.ndarray, "n c h w"]
    real: bool
    labelled: Float32[np.ndarray, "m c h w"] | None = None
    targets: np.ndarray | None = None


class Search:
    """Times forms of a network and keeps those that agree with it.

    Args:
        network: A network in evaluation mode and single precision.
        size: Image size, pixels.
        device: Where to run.
        batch: Batch size to optimize for.
        examples: Images to compare predictions on.
        progress: Shows the steps.
    """

    def __init__(
        self,
        network: ResNeXt,
        size: int,
        device: torch.device,
        batch: int,
        examples: Examples,
        progress: Reporter,
    ) -> None:
        self.network, self.device, self.batch = network.to(device), device, batch
        self.examples, self.progress = examples, progress
        preprocessing = None if network.card is None else network.card.preprocessing
        self.builder = EngineBuilder(network, size, device, preprocessing)
        self._reference: np.ndarray | None = None
        repeats = -(-batch // len(examples.images))
        self.x = np.concatenate([examples.images] * repeats)[:batch]
        self.rows: dict[EngineConfig | None, Measurement] = {}
        self.sessions: dict[EngineConfig, Session] = {}

    def run(self, precision: str, engine: str) -> tuple[EngineConfig, list[Measurement]]:
        """The form to use, and all measurements.

        Args:
            precision: A precision, or "auto".
            engine: Name of an engine, or "auto".

        Raises:
            InputError: No form runs, or none agrees with the network.
        """
        self.measure(precision, engine)
        for form in self.preferred():
            if self.agrees(form):
                self.rows[form] = replace(self.rows[form], verdict="chosen")
                return form, self.table()
        raise self.nothing_agrees()

    def measure(self, precision: str, engine: str) -> None:
        """Time all forms, the fastest of them twice.

        Args:
            precision: A precision, or "auto".
            engine: Name of an engine, or "auto".

        Raises:
            InputError: No form runs.
        """
        self.plain = TorchSession(self.network, torch.float32, channels_last=False)
        self.rows[None] = Measurement(None, self.speed(self.plain))
        for kind in self.precisions(precision):
            for candidate in self.engines(engine, kind):
                try:
                    self.explore(candidate, kind)
                except (InputError, RuntimeError) as error:
                    failed = EngineConfig(candidate.name, kind)
                    self.rows.setdefault(failed, Measurement(failed, 0.0, str(error)))
        if not self.sessions:
            raise InputError(f"No engine can compute this network here: {self.reasons()}.")
        self.finals()

    def nothing_agrees(self) -> InputError:
        """The error for a network with which no form agrees."""
        return InputError(
            f"Every form that was timed disagrees with the network: {self.reasons()}."
        )

    def table(self) -> list[Measurement]:
        """All measurements, fastest first, the unmodified network last."""
        forms = [row for form, row in self.rows.items() if form is not None]
        return [*sorted(forms, key=lambda row: -row.images_per_second), self.rows[None]]

    def reasons(self) -> str:
        """Why each form cannot be used, in one line; a reason of several forms once."""
        rows = [row for row in self.table() if row.form is not None and row.verdict]
        reasons = (
            f"{row.form.engine} {row.form.precision}: {row.verdict.rstrip('.')}"
            for row in rows
            if row.form
        )
        return "; ".join(dict.fromkeys(reasons))

    def precisions(self, wanted: str) -> list[str]:
        """The precisions to try."""
        if wanted != "auto":
            return [wanted]
        if self.device.type == "cuda":
            half = pick_precision("auto", self.device)
            return [name for name, dtype in DTYPES.items() if dtype is half]
        int8 = ["int8"] if self.examples.real else []
        return ["fp32", *(["bf16"] if has_bf16() else []), *int8]

    def engines(self, wanted: str, precision: str) -> list[Engine]:
        """The engines to try for a precision.

        The last row of the table comes first: it is usually a specialized, faster engine, and an
        engine that is much slower than an earlier one is dropped after one call.
        """
        known = ENGINES.values() if wanted == "auto" else [ENGINES[wanted]]
        able = [e for e in reversed(known) if precision in e.precisions(self.device.type)]
        installed = [engine for engine in able if engine.installed]
        if not installed:
            return able[:1]  # its error says what to install
        quick = [engine for engine in installed if self.device.type not in engine.slow_to_build]
        return quick if len(quick) > 1 else installed

    def explore(self, engine: Engine, precision: str) -> None:
        """Time an engine: first divisions of the batch, then wider groups for the best of them.

        Raises:
            InputError: The engine cannot be used.
        """
        engine.check_precision(precision, self.device.type)
        if precision == "int8":
            self.quantize_roughly(engine, 0)
        forms = [
            EngineConfig(engine.name, precision, *division)
            for division in engine.divisions(self.batch)
        ]
        best = max(forms, key=self.timed)
        if self.timed(best) > _PROMISING * max(map(self.rate, self.rows)):
            for width in self.widths() if engine.merges_groups else []:
                wider = replace(best, width=width)
                if precision == "int8":
                    self.quantize_roughly(engine, width)
                if self.timed(wider) < _PROMISING * self.timed(best):
                    break  # still wider groups multiply even more zeros
                best = max(best, wider, key=self.timed)
        if precision == "int8" and self.examples.labelled is not None:
            self.quantize_fully(engine, best)

    def widths(self) -> list[int]:
        """Widths that some groups can be merged to."""
        convs = [m for m in self.network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
        pairs = {(conv.in_channels // conv.groups, conv.groups) for conv in convs}
        return [w for w in _WIDTHS if any(can_merge(own, groups, w) for own, groups in pairs)]

    def timed(self, form: EngineConfig) -> float:
        """Images per second of a form, measured once; 0 if it cannot run."""
        if form not in self.rows:
            self.progress.line(f"Timing {form.engine} {form.precision}, {form} …")
            try:
                session = self.builder.session(form)
                self.rows[form] = Measurement(form, self.speed(session))
                self.sessions[form] = session
            except InputError:
                raise
            except Exception as error:
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                self.rows[form] = Measurement(form, 0.0, f"failed: {reason[:120]}")
            self.forget()
        return self.rows[form].images_per_second

    def rate(self, form: EngineConfig | None) -> float:
        """Measured images per second of a form; None for the unmodified network."""
        return self.rows[form].images_per_second

    def forget(self) -> None:
        """Unload engines that are unlikely to be chosen, because they hold memory."""
        order = sorted(self.sessions, key=self.rate, reverse=True)
        best = {(form.engine, form.precision): form for form in reversed(order)}.values()
        for form in order[4:]:
            if form not in best and not self.is_plain(form):
                del self.sessions[form]

    def is_plain(self, form: EngineConfig) -> bool:
        """Whether a form leaves groups and batch as they are."""
        return (form.piece, form.streams, form.width) == (self.batch, 1, 0)

    def speed(self, session: Session) -> float:
        """Images per second of the fastest call: other processes only ever slow it down."""
        best = self.seconds(session)
        top = max(map(self.rate, self.rows), default=0.0)
        if self.batch / best < _HOPELESS * top:
            return self.batch / best
        began = time.perf_counter()
        rounds = 0
        while rounds < 2 or time.perf_counter() - began < _SECONDS:
            best = min(best, self.seconds(session))
            rounds += 1
        return self.batch / best

    def seconds(self, session: Session) -> float:
        """Seconds of one batch."""
        began = time.perf_counter()
        session(self.x)
        return time.perf_counter() - began

    def finals(self) -> None:
        """Time the fastest and the plain forms again, in turns: a machine's speed varies."""
        order = sorted(self.sessions, key=self.rate, reverse=True)
        order = order[:3] + [form for form in order[3:] if self.is_plain(form)]
        order = [form for form in order if self.rate(form) > _PROMISING * self.rate(order[0])]
        self.progress.line("Timing the fastest again, in turns …")
        best = dict.fromkeys(order, float("inf"))
        began, rounds = time.perf_counter(), 0
        while rounds < 6 or time.perf_counter() - began < 4 * _SECONDS * len(order):
            for form in order:
                best[form] = min(best[form], self.seconds(self.sessions[form]))
            rounds += 1
        for form in order:
            self.rows[form] = replace(self.rows[form], images_per_second=self.batch / best[form])

    def preferred(self, precision: str | None = None) -> list[EngineConfig]:
        """Fastest first, but among those as fast as the fastest, simplest first.

        Args:
            precision: Only forms of this precision; None for all.
        """
        forms = [form for form in self.sessions if precision in (None, form.precision)]
        forms.sort(key=self.rate, reverse=True)
        equal = [form for form in forms if self.rate(form) >= EQUAL * self.rate(forms[0])]
        return sorted(equal, key=lambda form: (form.width, form.streams)) + forms[len(equal) :]

    def agrees(self, form: EngineConfig) -> bool:
        """Whether a form agrees with the network; the comparison is added to its row."""
        row = self.rows[form]
        if form.precision == "int8":
            accuracy, wanted, verdict = row.accuracy, self.rows[None].accuracy, ""
            if accuracy is None or wanted is None:
                verdict = "refused: its accuracy could not be measured"
            elif accuracy < wanted - MAX_DROP:
                verdict = f"refused: accuracy {accuracy:.2%}, the network has {wanted:.2%}"
            row = replace(row, verdict=verdict)
        else:
            row = compared(row, form.precision, self.logits(self.sessions[form]), self.reference())
        self.rows[form] = row
        return not row.verdict

    def reference(self) -> np.ndarray:
        """The network's own logits of the examples."""
        if self._reference is None:
            self._reference = self.logits(self.plain)
        return self._reference

    def logits(self, session: Session, images: np.ndarray | None = None) -> np.ndarray:
        """A session's logits of images; by default of the examples."""
        x = self.examples.images if images is None else images
        batches = (x[i : i + self.batch] for i in range(0, len(x), self.batch))
        return np.concatenate([session(batch)[0] for batch in batches])

    def quantize_roughly(self, engine: Engine, width: int) -> None:
        """Make the 8-bit form of a width from a few images, only to be timed."""
        self.progress.line(f"Quantizing{f', groups of {width}' if width else ''} …")
        engine.quantize(self.builder, width, self.examples.images[:_FIRST_IMAGES])

    def quantize_fully(self, engine: Engine, form: EngineConfig) -> None:
        """Calibrate with all images; layers that cost too much accuracy are not quantized."""
        labelled, targets = self.examples.labelled, self.examples.targets
        assert labelled is not None
        assert targets is not None

        def accuracy(session: Session) -> float:
            return float((self.logits(session, labelled).argmax(1) == targets).mean())

        self.progress.line(f"Calibrating int8 with {len(self.examples.images)} images …")
        wanted = accuracy(self.plain)
        self.rows[None] = replace(self.rows[None], accuracy=wanted)
        control: Callable[[Session], float] | None = None
        for control in (None, accuracy):
            engine.quantize(self.builder, form.width, self.examples.images, control)
            session = self.builder.session(form)
            achieved = accuracy(session)
            if achieved >= wanted - MAX_DROP:
                break
            self.progress.line(
                f"int8 costs {wanted - achieved:.2%}: returning layers to floating point …"
            )
        for other in [f for f in self.rows if f and f.precision == "int8" and f != form]:
            self.rows[other] = replace(self.rows[other], verdict="a first try, with few images")
            self.sessions.pop(other, None)
        self.sessions[form] = session
        self.rows[form] = replace(
            self.rows[form], accuracy=achieved, images_per_second=self.speed(session)
        )


def compared(
    row: Measurement,
    precision: str,
    logits: Float32[np.ndarray, "n k"],
    wanted: Float32[np.ndarray, "n k"],
) -> Measurement:
    """A row with how far its logits are from the wanted ones, and why they are refused, if so.

    Args:
        row: The row.
        precision: Compute precision of the row: any but fp32 must only keep the classes.
        logits: What its form computed.
        wanted: What it should compute.
    """
    difference = float(abs(logits - wanted).max() / (abs(wanted).max() + 1e-30))
    same = float((logits.argmax(1) == wanted.argmax(1)).mean())
    verdict = ""
    if not np.isfinite(logits).all() or not difference < np.inf:
        verdict = "refused: logits are not finite"
    elif precision == "fp32" and difference > MAX_DIFFERENCE:
        verdict = f"refused: logits differ by {difference:.1e}, more than {MAX_DIFFERENCE:.0e}"
    elif precision != "fp32" and same < MIN_AGREEMENT:
        verdict = f"refused: only {same:.1%} of the images keep their class"
    return replace(row, difference=difference, agreement=same, verdict=verdict)
