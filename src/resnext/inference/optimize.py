"""`optimize`: time every engine and form on this machine, prove they agree, keep the fastest."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from resnext.card import card_of
from resnext.data.loader import EvalDataset
from resnext.data.open import open_for_evaluation
from resnext.errors import DataError, InputError, ResNeXtError
from resnext.inference.engines.builder import EngineBuilder
from resnext.inference.engines.onnx_export import can_merge
from resnext.inference.engines.quantization import MAX_DROP
from resnext.inference.engines.torch import TorchSession, weights_digest
from resnext.inference.optimized import Optimized
from resnext.inference.plan import (
    Engine,
    EngineConfig,
    Measurement,
    Plan,
    cached_plan_path,
    engine_version,
    machine_id,
    read_plans,
    require_folder,
    write_plans,
)
from resnext.inference.runner import Session
from resnext.network import ResNeXt
from resnext.summary import default_size
from resnext.system.cpu import core_count
from resnext.system.device import (
    DTYPES,
    hardware,
    has_bf16,
    pick_device,
    pick_precision,
    require_bf16,
)
from resnext.system.progress import Reporter, reporter
from resnext.weights.load import load_classifier

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
Choice = Engine | Literal["auto"]
_FP32 = 1e-4  # largest difference of a logit, as a part of the largest
_AGREEMENT = 0.995  # part of the images that keep their class in 16 bits
_PATTERNS = 64  # images that are made up where none are given
_CALIBRATION = 256  # images to choose ranges with, and to agree on
_LABELLED = 1024  # images to measure accuracy on
_SECONDS = 0.5  # least time a form is timed
_WIDTHS = (8, 16, 32)
_COMPILE: list[Engine] = ["compile"]
_PROMISING = 0.8  # part of the best speed that is worth trying to improve
_EQUAL = 0.98  # part of the best speed that is as fast, for all that can be measured


def optimize(
    model: ResNeXt | str | Path,
    *,
    precision: Precision = "auto",
    engine: Choice = "auto",
    batch: int = 16,
    data: str | Path | None = None,
    device: str = "auto",
    again: bool = False,
    progress: bool = False,
) -> Optimized:
    """The fastest way to run a classifier on this machine, found by measuring.

    Batch norms are folded, groups merged where that pays, engines and their settings timed; of
    what is equally fast to 2 %, the plainest is taken. It must agree with the network: in fp32
    every logit to 1e-4 of the largest, in bf16 and fp16 the class of 99.5 % of the images, in int8
    the accuracy to half a point. What was found is remembered for model, machine and versions.

    Args:
        model: A classifier, or a file or name as for `resnext.load`.
        precision: What to compute in; "auto" takes the fastest that agrees: 16 bits where the
            hardware has them, 8 bits if `data` is given.
        engine: What to compute with; "auto" times those that are installed. "compile" is left out
            of that where OpenVINO or ONNX Runtime is installed, because compiling takes minutes.
        batch: Images at a time to be fast with; any number can be given later.
        data: Images with known classes, as for `resnext.evaluate`, that the model has not learnt
            from: to agree on, and to calibrate 8 bits with.
        device: "auto", "cpu" or a GPU.
        again: Measure even if it is remembered.
        progress: Whether to show what is timed, on standard error.

    Returns:
        A classifier that is called as the network is; `explain()` tells what was measured.

    Raises:
        CheckpointError: The file is no model, or the cache folder cannot be written.
        DataError: `data` is missing, or has classes the model does not know.
        InputError: An engine is not installed, a precision needs something that is missing, or
            nothing agrees.
    """
    for name, value, known in (
        ("precision", precision, get_args(Precision)),
        ("engine", engine, ("auto", *get_args(Engine))),
    ):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}, not {value!r}.")
    if type(batch) is not int or not 1 <= batch <= 4096:
        raise InputError(f"batch must be from 1 to 4096 images, not {batch!r}.")
    if precision == "int8" and data is None:
        raise InputError("precision int8 is calibrated with images of known classes: give data.")
    if precision == "int8" and engine not in ("auto", "openvino"):
        raise InputError(f"precision int8 is computed by openvino, not by {engine}.")
    place = pick_device(device)
    network = load_classifier(model, progress=progress) if isinstance(model, str | Path) else model
    network = copy.deepcopy(network).float().eval()
    if network.config.norm in ("batch", "sync") and not network.config.norm_track:
        raise InputError(
            "With norm_track=False the answer for an image depends on the others beside it; no "
            "batch can be divided. Run the network as it is."
        )
    size = network.card.preprocessing.size if network.card else default_size(network.config)
    where = "cpu" if place.type == "cpu" else hardware(place)
    request = json.dumps([precision, engine, None if data is None else str(data)])
    digest = weights_digest(network)
    path = cached_plan_path(digest, where, batch, size, request)
    remembered = [] if again else _remembered(path)
    if remembered:
        return Optimized(remembered[0], network.card, network.config, lambda: network)
    require_folder(path.parent)  # rather now than after minutes
    report = reporter(progress)
    try:
        examples = _examples(network, data, size, report)
        search = _Search(network, size, place, batch, examples, report)
        form, rows = search.run(precision, engine)
    finally:
        report.stop()
    plan = Plan(
        model=digest,
        form=form,
        batch=batch,
        size=size,
        device=where,
        request=request,
        machine=machine_id(where),
        version=engine_version(form.engine),
        rows=tuple(rows),
    )
    search.workshop.save(plan, "images")
    if network.card and len(network.card.preprocessing.mean) == network.config.in_channels:
        search.workshop.save(plan, "pixels")
    write_plans(path, [plan])
    return Optimized(plan, network.card, network.config, lambda: network)


def _remembered(path: Path) -> list[Plan]:
    try:
        return [plan for plan in read_plans(path) if not plan.fits()]
    except ResNeXtError:
        return []


@dataclass(frozen=True)
class _Examples:
    """Images to agree on, and for 8 bits to calibrate with and to measure accuracy on."""

    images: Float32[np.ndarray, "n c h w"]
    known: bool  # whether they are images at all, not patterns
    labelled: Float32[np.ndarray, "m c h w"] | None = None
    targets: np.ndarray | None = None


def _examples(network: ResNeXt, data: str | Path | None, size: int, report: Reporter) -> _Examples:
    if data is None:
        return _Examples(patterns(_PATTERNS, network.config.in_channels, size), False)
    card = card_of(network)
    images = open_for_evaluation(data, card.labels, card.provenance)
    wanted = min(len(images), _CALIBRATION + _LABELLED)
    chosen = np.linspace(0, len(images) - 1, wanted).round().astype(int)
    chosen = np.random.default_rng(0).permutation(np.unique(chosen))
    report.start("Reading images", len(chosen))
    found: list[np.ndarray] = []
    targets: list[int] = []
    prepared = EvalDataset(images, card.preprocessing, chosen.tolist())
    for i in range(len(prepared)):
        item = prepared[i]
        if item is not None:
            found.append(item[0].numpy())
            targets.append(item[1])
        report.advance(1)
    if not found:
        raise DataError(f"{images.name} has no image that can be read.")
    count = min(_CALIBRATION, len(found) // 2) or 1
    rest = slice(count if len(found) > 1 else 0, None)
    every = np.stack(found)
    return _Examples(every[:count], True, every[rest], np.array(targets)[rest])


def patterns(count: int, channels: int, size: int) -> Float32[np.ndarray, "n c h w"]:
    """Made-up images whose spectrum is that of photographs: noise that falls with frequency."""
    rng = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    falling = 1 / np.maximum(np.hypot(rows, columns), 1 / size)
    shape = (count, channels, size, columns.shape[1])
    waves = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    images = np.fft.irfft2(waves * falling, s=(size, size))
    images /= images.std(axis=(2, 3), keepdims=True) + 1e-12
    return images.astype(np.float32)


class _Search:
    """Times forms and keeps those that agree.

    Args:
        network: In evaluation mode and single precision.
        size: Side of the images, pixels.
        device: Where to run.
        batch: Images at a time.
        examples: What to agree on.
        report: Told what is done.
    """

    def __init__(
        self,
        network: ResNeXt,
        size: int,
        device: torch.device,
        batch: int,
        examples: _Examples,
        report: Reporter,
    ) -> None:
        self.network, self.device, self.batch = network.to(device), device, batch
        self.examples, self.report = examples, report
        how = None if network.card is None else network.card.preprocessing
        self.workshop = EngineBuilder(network, size, device, how)
        self._reference: np.ndarray | None = None
        parts = -(-batch // len(examples.images))
        self.x = np.concatenate([examples.images] * parts)[:batch]
        self.rows: dict[EngineConfig | None, Measurement] = {}
        self.sessions: dict[EngineConfig, Session] = {}

    def run(self, precision: Precision, engine: Choice) -> tuple[EngineConfig, list[Measurement]]:
        """The form to take, and the table.

        Raises:
            InputError: Nothing can be used.
        """
        plain = TorchSession(self.network, torch.float32, channels_last=False)
        self.rows[None] = Measurement(None, self.speed(plain))
        self.plain = plain
        for kind in self.precisions(precision):
            for name in self.engines(engine, kind):
                try:
                    self.explore(name, kind)
                except (InputError, RuntimeError) as error:
                    failed = EngineConfig(name, kind)
                    self.rows.setdefault(failed, Measurement(failed, 0.0, str(error)))
        if not self.sessions:
            raise InputError(f"Nothing can compute this network here:\n{self.listing()}")
        self.finals()
        for form in self.preferred():
            if self.agrees(form):
                self.rows[form] = replace(self.rows[form], verdict="chosen")
                return form, self.table()
        raise InputError(f"Nothing that was timed answers as the network does:\n{self.listing()}")

    def table(self) -> list[Measurement]:
        """What was measured, fastest first, the network as it is at the end."""
        forms = [row for form, row in self.rows.items() if form is not None]
        return [*sorted(forms, key=lambda row: -row.images_per_second), self.rows[None]]

    def listing(self) -> str:
        """Why each form cannot be used."""
        rows = [row for row in self.table() if row.form is not None and row.verdict]
        return "\n".join(f"{r.form.engine}: {r.verdict}" for r in rows if r.form)

    def precisions(self, wanted: Precision) -> list[str]:
        """What to compute in, as far as it makes sense here."""
        if wanted != "auto":
            return [wanted]
        if self.device.type == "cuda":
            half = pick_precision("auto", self.device)
            return [name for name, dtype in DTYPES.items() if dtype is half]
        eight = ["int8"] if self.examples.known else []
        return ["fp32", *(["bf16"] if has_bf16() else []), *eight]

    def engines(self, wanted: Choice, precision: str) -> list[Engine]:
        """What to compute with, likewise."""
        eight = precision == "int8"
        if wanted != "auto":
            return [] if eight and wanted != "openvino" else [wanted]
        if eight:
            return ["openvino"]
        if self.device.type == "cuda":
            return ["torch", "compile", *_installed("tensorrt")]
        others = _installed("openvino")
        if precision == "fp32":
            others += _installed("onnxruntime")
        return ["torch", *(others or _COMPILE)]

    def explore(self, engine: Engine, precision: str) -> None:
        """Time an engine: first how it divides the work, then how wide its groups are.

        Raises:
            InputError: It cannot be used.
        """
        if precision != "int8":
            pick_precision(precision, self.device)  # refuses what the device cannot do
        if precision == "bf16" and engine == "onnxruntime":
            raise InputError("ONNX Runtime has no bf16 for these layers on processors.")
        if precision == "bf16" and engine == "openvino":
            require_bf16()
        widths = [0, *self.widths()] if engine in ("onnxruntime", "openvino") else [0]
        if precision == "int8":
            self.try_int8(0)
        first = [EngineConfig(engine, precision, *division) for division in self.divisions(engine)]
        best = max(first, key=self.timed)
        if self.timed(best) > _PROMISING * max(map(self.rate, self.rows)):
            for width in widths[1:]:
                wider = replace(best, width=width)
                if precision == "int8":
                    self.try_int8(width)
                if self.timed(wider) < _PROMISING * self.timed(best):
                    break  # still wider ones compute even more zeros
                best = max(best, wider, key=self.timed)
        if precision == "int8":
            self.finish_int8(best)

    def widths(self) -> list[int]:
        """Widths that some groups can be merged to."""
        convs = [m for m in self.network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
        pairs = {(conv.in_channels // conv.groups, conv.groups) for conv in convs}
        return [w for w in _WIDTHS if any(can_merge(own, groups, w) for own, groups in pairs)]

    def divisions(self, engine: Engine) -> list[tuple[int, int]]:
        """Images at once, and how many times side by side."""
        if engine not in ("onnxruntime", "openvino") or self.batch == 1:
            return [(self.batch, 1)]
        some = {(self.batch, 1), (1, 1)}
        for part in (1, 2, 4):  # all cores side by side, or two or four of them together
            n = min(core_count() // part, self.batch)
            if n > 1:
                some |= {(-(-self.batch // n), n), (1, n)}
        return sorted(some)

    def timed(self, form: EngineConfig) -> float:
        """Images per second of a form; 0 if it cannot run."""
        if form not in self.rows:
            self.report.line(f"Timing {form.engine} {form.precision}, {form} …")
            try:
                session = self.workshop.session(form)
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
        """Images per second, as it was measured."""
        return self.rows[form].images_per_second

    def forget(self) -> None:
        """Keep no more engines loaded than may still be chosen."""
        order = sorted(self.sessions, key=self.rate, reverse=True)
        best = {form.engine: form for form in reversed(order)}.values()
        for form in order[4:]:
            if form not in best and not self.plain_one(form):
                del self.sessions[form]

    def plain_one(self, form: EngineConfig) -> bool:
        """Whether a form leaves groups and batch as they are."""
        return (form.piece, form.streams, form.width) == (self.batch, 1, 0)

    def speed(self, session: Session) -> float:
        """Images per second, at best: others may slow the machine down, nothing speeds it up."""
        best = self.seconds(session)
        top = max(map(self.rate, self.rows), default=0.0)
        if self.batch / best < 0.3 * top:
            return self.batch / best  # hopeless
        began = time.perf_counter()
        rounds = 0
        while rounds < 2 or time.perf_counter() - began < _SECONDS:
            best = min(best, self.seconds(session))
            rounds += 1
        return self.batch / best

    def seconds(self, session: Session) -> float:
        """Of one batch."""
        began = time.perf_counter()
        session(self.x)
        return time.perf_counter() - began

    def finals(self) -> None:
        """Time the fastest and the plain ones again, in turns: no machine is always as fast."""
        order = sorted(self.sessions, key=self.rate, reverse=True)
        order = order[:3] + [form for form in order[3:] if self.plain_one(form)]
        order = [form for form in order if self.rate(form) > _PROMISING * self.rate(order[0])]
        self.report.line("Timing the fastest again, in turns …")
        best = dict.fromkeys(order, float("inf"))
        began, rounds = time.perf_counter(), 0
        while rounds < 6 or time.perf_counter() - began < 4 * _SECONDS * len(order):
            for form in order:
                best[form] = min(best[form], self.seconds(self.sessions[form]))
            rounds += 1
        for form in order:
            self.rows[form] = replace(self.rows[form], images_per_second=self.batch / best[form])

    def preferred(self) -> list[EngineConfig]:
        """The fastest first; of those that are as fast as the fastest, the plainest first."""
        forms = sorted(self.sessions, key=self.rate, reverse=True)
        equal = [form for form in forms if self.rate(form) >= _EQUAL * self.rate(forms[0])]
        return sorted(equal, key=lambda form: (form.width, form.streams)) + forms[len(equal) :]

    def agrees(self, form: EngineConfig) -> bool:
        """Whether a form answers as the network does; what was seen goes into its row."""
        row, verdict = self.rows[form], ""
        if form.precision == "int8":
            accuracy, right = row.accuracy, self.rows[None].accuracy
            if accuracy is None or right is None:
                verdict = "refused: its accuracy could not be measured"
            elif accuracy < right - MAX_DROP:
                verdict = f"refused: accuracy {accuracy:.2%} where the network has {right:.2%}"
        else:
            reference, answers = self.reference(), self.answers(self.sessions[form])
            difference = float(abs(answers - reference).max() / (abs(reference).max() + 1e-30))
            same = float((answers.argmax(1) == reference.argmax(1)).mean())
            row = replace(row, difference=difference, agreement=same)
            if not np.isfinite(answers).all() or not difference < np.inf:
                verdict = "refused: answers are not finite"
            elif form.precision == "fp32" and difference > _FP32:
                verdict = f"refused: logits differ by {difference:.1e}, more than {_FP32:.0e}"
            elif form.precision != "fp32" and same < _AGREEMENT:
                verdict = f"refused: the class of only {same:.1%} of the images is the same"
        self.rows[form] = replace(row, verdict=verdict)
        return not verdict

    def reference(self) -> np.ndarray:
        """The network's own logits of the examples."""
        if self._reference is None:
            self._reference = self.answers(self.plain)
        return self._reference

    def answers(self, session: Session, images: np.ndarray | None = None) -> np.ndarray:
        """Logits of the examples, or of other images."""
        x = self.examples.images if images is None else images
        parts = (x[i : i + self.batch] for i in range(0, len(x), self.batch))
        return np.concatenate([session(part)[0] for part in parts])

    def try_int8(self, width: int) -> None:
        """Make the 8-bit form of a width from a few images, to be timed."""
        self.report.line(f"Quantizing{f', groups of {width}' if width else ''} …")
        self.workshop.quantize(width, self.examples.images[:8])

    def finish_int8(self, form: EngineConfig) -> None:
        """Calibrate with all images; where that costs accuracy, give layers back to floats."""
        labelled, targets = self.examples.labelled, self.examples.targets
        assert labelled is not None
        assert targets is not None

        def accuracy(session: Session) -> float:
            return float((self.answers(session, labelled).argmax(1) == targets).mean())

        self.report.line(f"Calibrating 8 bits with {len(self.examples.images)} images …")
        right = accuracy(self.plain)
        self.rows[None] = replace(self.rows[None], accuracy=right)
        validate: Callable[[Session], float] | None = None
        for validate in (None, accuracy):
            self.workshop.quantize(form.width, self.examples.images, validate)
            session = self.workshop.session(form)
            found = accuracy(session)
            if found >= right - MAX_DROP:
                break
            self.report.line(f"8 bits cost {right - found:.2%}: giving layers back to floats …")
        for other in [f for f in self.rows if f and f.precision == "int8" and f != form]:
            self.rows[other] = replace(self.rows[other], verdict="a first try, on few images")
            self.sessions.pop(other, None)
        self.sessions[form] = session
        self.rows[form] = replace(
            self.rows[form], accuracy=found, images_per_second=self.speed(session)
        )


def _installed(engine: Engine) -> list[Engine]:
    return [engine] if engine_version(engine) else []
