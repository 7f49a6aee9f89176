"""`bench`: other libraries and ours side by side: one process, the same images, taking turns.

Everybody opens the same files of a folder, so that a contender can also run alone in a process of
its own, where its memory is measured. That is why nothing imports torch up here.
"""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from resnext.benchmark.contenders import CONTENDERS, IMAGES, NETWORK, OURS, WAYS, Contender, Run
from resnext.card import Card, Preprocessing
from resnext.errors import InputError, ResNeXtError
from resnext.summary import default_size, summarize
from resnext.system.cpu import cpu_name
from resnext.system.progress import Reporter, reporter

if TYPE_CHECKING:
    from resnext.config import ResNeXtConfig
    from resnext.network import ResNeXt

Precision = Literal["auto", "fp32", "bf16", "int8"]
_ROUNDS = 8
_SIDE = 2048  # of the matrices whose product is the peak
_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "int8": float("inf")}  # of a logit, of the largest
_PACKAGES = ("resnext", "torch", "torchvision", "timm", "onnxruntime", "openvino", "nncf")


@dataclass(frozen=True)
class BenchmarkRow:
    """One contender with one precision and number of images.

    Args:
        who: "resnext" or a peer.
        precision: What it computed in.
        batch: Images given at a time.
        images_per_second: In its best round; 0 if it could not run.
        p50: Milliseconds of a batch that half of the calls stayed below.
        p99: That 99 % of the calls stayed below.
        fraction: Arithmetic done each second, as a part of the precision's peak.
        memory: Peak of a process that runs nothing else, MiB.
        difference: Largest difference of a logit to the network's own, as a part of the largest.
        how: Setting that was the fastest.
        note: Why it is missing, or does not count.
    """

    who: str
    precision: str
    batch: int
    images_per_second: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    fraction: float | None = None
    memory: float | None = None
    difference: float | None = None
    how: str = ""
    note: str = ""


class SpeedRatio(NamedTuple):
    """How many times as fast as the best peer we are, for one batch and precision."""

    batch: int
    precision: str
    peer: str
    times: float


@dataclass(frozen=True)
class Benchmark:
    """What was measured.

    Args:
        machine: The processor.
        threads: That everybody computes with.
        versions: Of the libraries.
        name: The network or file.
        size: Side of the images, pixels.
        peaks: GFLOP/s of a product of large matrices, for each precision.
        rows: The contenders.
    """

    machine: str
    threads: int
    versions: dict[str, str]
    name: str
    size: int
    peaks: dict[str, float]
    rows: tuple[BenchmarkRow, ...]

    def fastest(
        self, batch: int, precision: str | None = None, who: str = ""
    ) -> BenchmarkRow | None:
        """The fastest row that counts; of all peers if `who` is empty; None if there is none."""
        rows = [
            row
            for row in self.rows
            if not row.note
            and row.batch == batch
            and precision in (None, row.precision)
            and (row.who == who if who else row.who != OURS)
        ]
        return max(rows, key=lambda row: row.images_per_second, default=None)

    def ratios(self) -> tuple[SpeedRatio, ...]:
        """Us against the best peer, for each batch and precision that both have."""
        found: list[SpeedRatio] = []
        for row in self.rows:
            peer = self.fastest(row.batch, row.precision)
            if row.who == OURS and not row.note and peer is not None:
                times = row.images_per_second / peer.images_per_second
                found.append(SpeedRatio(row.batch, row.precision, peer.who, times))
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {**asdict(self), "ratios": [ratio._asdict() for ratio in self.ratios()]}

    def table(self) -> str:
        """The rows for people, fastest first, as wide as the terminal."""
        from rich.console import Console
        from rich.table import Column, Table

        names = ("Batch", "Images/s", "Ours is", "p50 ms", "p99 ms", "Of peak", "MiB")
        columns = [Column(name, justify="right", no_wrap=True) for name in names]
        texts = [Column(name, no_wrap=True) for name in ("Who", "Precision")]
        table = Table(*texts, *columns, Column("", overflow="fold"), box=None, pad_edge=False)
        for row in sorted(self.rows, key=lambda row: (row.batch, -row.images_per_second)):
            table.add_row(row.who, row.precision, str(row.batch), *self._numbers(row), _about(row))
        text = io.StringIO()
        width = shutil.get_terminal_size((150, 24)).columns
        console = Console(file=text, width=width, no_color=True, highlight=False, markup=False)
        peaks = ", ".join(f"{kind} {peak:,.0f} GFLOP/s" for kind, peak in self.peaks.items())
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        console.print(f"{self.name}, {self.size}×{self.size} pixels")
        console.print(f"{self.machine}, {self.threads} threads; matrix product: {peaks}")
        console.print(f"{versions}\n")
        console.print(table)
        console.print()
        for batch, precision, peer, times in self.ratios():
            console.print(f"Batch {batch}, {precision}: {times:.2f}× the best peer, {peer}")
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def _numbers(self, row: BenchmarkRow) -> tuple[str, ...]:
        if not row.images_per_second:
            return ("–",) * 6
        ours = self.fastest(row.batch, row.precision, OURS)
        times = ours.images_per_second / row.images_per_second if ours and ours != row else None
        return (
            f"{row.images_per_second:,.1f}",
            "" if times is None else f"{times:.2f}×",
            f"{row.p50:,.2f}",
            f"{row.p99:,.2f}",
            "" if row.fraction is None else f"{row.fraction:.0%}",
            "" if row.memory is None else f"{row.memory:,.0f}",
        )


def _about(row: BenchmarkRow) -> str:
    return "; ".join(text for text in (row.how, row.note) if text)


def bench(
    model: str | Path | ResNeXt = "resnext50_32x4d",
    *,
    batches: Sequence[int] = (1, 16),
    precision: Precision = "auto",
    data: str | Path | None = None,
    compiled: bool = False,
    memory: bool = True,
    seconds: float = 5.0,
    progress: bool = False,
) -> Benchmark:
    """Time torchvision, timm, ONNX Runtime, OpenVINO and us side by side on the processor.

    Everybody has the same weights, gets the same images and threads, and must give the network's
    own answers. They take turns, because machines are not always equally fast. What is not
    installed, or has no such network, is noted and left out. A call gives a batch and waits for
    its answers.

    Args:
        model: A classifier, a variant's name, or a file or name as for `resnext.load`. Variants
            get random weights.
        batches: Numbers of images at a time.
        precision: "auto" for all that the machine has: fp32, bf16, and int8 if `data` is given.
        data: Images with known classes, as for `resnext.evaluate`, to calibrate int8 with.
        compiled: Whether to time timm compiled too, which takes minutes.
        memory: Whether to measure peak memory, in processes of their own.
        seconds: How long each contender is timed for each batch.
        progress: Whether to show what is done, on standard error.

    Raises:
        CheckpointError: The file is no model.
        DataError: `data` is missing, or has classes the model does not know.
        InputError: An argument makes no sense, or the processor has no such precision.
        UnknownNameError: No variant has that name.
    """
    import torch

    if not batches or any(type(batch) is not int or not 1 <= batch <= 4096 for batch in batches):
        raise InputError(f"batches must be numbers from 1 to 4096, not {batches!r}.")
    if not seconds > 0:
        raise InputError(f"seconds must be above 0, not {seconds!r}.")
    precisions = _precisions(precision, data)
    report = reporter(progress)
    threads, rows, peaks = torch.get_num_threads(), list[BenchmarkRow](), dict[str, float]()
    with ExitStack() as stack:
        stack.callback(report.stop)
        stack.enter_context(_everybody_with(threads))
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="resnext-bench-"))
        course = _BenchmarkRun(
            Path(name), precisions, threads, data and str(data), compiled, report
        )
        config, size = course.lay_out(classifier_for(model, progress), max(batches))
        macs = summarize(config, size).macs
        for batch in sorted(set(batches)):
            found, peak = course.race(batch, seconds)
            rows += course.weighed(found) if memory and batch == max(batches) else found.values()
            peaks |= {kind: max(peaks.get(kind, 0.0), value) for kind, value in peak.items()}
    named = str(model) if isinstance(model, str | Path) else "ResNeXt"
    return Benchmark(
        machine=cpu_name(),
        threads=threads,
        versions=_versions(),
        name=named,
        size=size,
        peaks=peaks,
        rows=tuple(replace(row, fraction=_fraction(row, macs, peaks)) for row in rows),
    )


def _precisions(wanted: Precision, data: object) -> list[str]:
    from resnext.system.device import has_bf16, require_bf16

    if wanted not in get_args(Precision):
        raise InputError(f"precision must be one of {', '.join(get_args(Precision))}.")
    if wanted == "int8" and data is None:
        raise InputError("precision int8 is calibrated with images of known classes: give data.")
    if wanted == "bf16":
        require_bf16()
    if wanted != "auto":
        return [wanted]
    return ["fp32", *(["bf16"] if has_bf16() else []), *([] if data is None else ["int8"])]


def _fraction(row: BenchmarkRow, macs: int, peaks: Mapping[str, float]) -> float | None:
    if row.precision not in peaks or not row.images_per_second:
        return None
    return 2e-9 * macs * row.images_per_second / peaks[row.precision]


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@contextmanager
def _everybody_with(threads: int) -> Iterator[None]:
    """Let our own engines, and the processes that measure memory, take so many threads too."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def classifier_for(model: str | Path | ResNeXt, progress: bool = False) -> ResNeXt:
    """The network to time; one with random weights has norms that fit them."""
    import torch

    from resnext.network import create
    from resnext.weights.catalog import exact, is_path
    from resnext.weights.load import load_classifier

    if not isinstance(model, str | Path):
        return model
    name = str(model)
    if Path(model).exists() or "://" in name or is_path(name) or exact(name):
        return load_classifier(model, progress=progress)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = create(name).train()
        norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        size = default_size(network.config)
        network(torch.randn(4, network.config.in_channels, size, size))
        for norm in norms:
            norm.momentum = 0.1
    return network.eval()


class _BenchmarkRun:
    """Where they race, and what they are given.

    Args:
        folder: For what everybody opens.
        precisions: To compute in.
        threads: For each.
        data: To calibrate 8 bits with.
        compiled: Whether timm's network is compiled too.
        report: Told what is done.
    """

    def __init__(
        self,
        folder: Path,
        precisions: Sequence[str],
        threads: int,
        data: str | None,
        compiled: bool,
        report: Reporter,
    ) -> None:
        self.folder, self.precisions, self.threads = folder, precisions, threads
        self.data, self.compiled, self.report = data, compiled, report
        self.reference = np.empty(0)

    def lay_out(self, network: ResNeXt, count: int) -> tuple[ResNeXtConfig, int]:
        """Write the network and `count` images into the folder; its config and their size."""
        import torch

        from resnext.inference.optimize import patterns
        from resnext.weights.save import save

        config = network.config
        network = copy.deepcopy(network).cpu().float().eval()
        if network.card is None:
            size, channels = default_size(config), config.in_channels
            colour = "L" if channels == 1 else "RGB"
            flat = (0.5,) * channels
            network.card = Card((), Preprocessing(size, size, mean=flat, std=flat, colour=colour))
        size = network.card.preprocessing.size
        images = patterns(count, config.in_channels, size)
        np.save(self.folder / IMAGES, images)
        save(network, self.folder / NETWORK)
        with torch.inference_mode():
            parts = torch.from_numpy(images).split(16)
            self.reference = torch.cat([network(part) for part in parts]).numpy()
        return config, size

    def race(
        self, batch: int, seconds: float
    ) -> tuple[dict[Contender, BenchmarkRow], dict[str, float]]:
        """The fastest entry of each contender with its row, and the peaks, GFLOP/s."""
        rows: dict[Contender, BenchmarkRow] = {}
        runs: dict[Any, Run] = {kind: _product(kind) for kind in self.precisions if kind != "int8"}
        peaks = list(runs)
        for entry in self.entries(batch):
            self.report.line(f"Opening {entry} …")
            row = BenchmarkRow(entry.who, entry.precision, batch)
            try:
                with _unheard():
                    runs[entry], how = CONTENDERS[entry.who][1](entry)
                    rows[entry] = self.checked(replace(row, how=how), runs[entry]())
            except Exception as error:  # other libraries fail in their own ways
                runs.pop(entry, None)
                rows[entry] = replace(row, note=_reason(error))
        self.report.line(f"Timing {len(runs)} ways, batch {batch}, in turns …")
        times = {key: list[list[float]]() for key in runs}
        for _ in range(_ROUNDS):
            for key, run in runs.items():
                times[key].append(_turn(run, seconds / _ROUNDS))
        for entry in [entry for entry in runs if entry not in peaks]:
            rows[entry] = replace(rows[entry], **_speed(times[entry], batch))
        best: dict[tuple[str, str], Contender] = {}
        for entry, row in rows.items():
            rival = best.get((entry.who, entry.precision))
            if rival is None or _merit(row) > _merit(rows[rival]):
                best[entry.who, entry.precision] = entry
        speeds = {kind: 2e-9 * _SIDE**3 / min(map(min, times[kind])) for kind in peaks}
        return {entry: rows[entry] for entry in best.values()}, speeds

    def entries(self, batch: int) -> list[Contender]:
        """Everybody, in every way of running that the best is taken of."""
        found: list[Contender] = []
        for who, (precisions, _) in CONTENDERS.items():
            ways = WAYS if who == "OpenVINO" else ("",)
            for precision in self.precisions:
                if precision in precisions and (self.compiled or who != "timm, compiled"):
                    entry = Contender(self.folder, who, precision, batch, self.threads, self.data)
                    some = ways[:1] if batch == 1 else ways
                    found += [replace(entry, way=way) for way in some]
        return found

    def checked(self, row: BenchmarkRow, answers: np.ndarray) -> BenchmarkRow:
        """A row that says whether the answers are the network's."""
        wanted = self.reference[: row.batch]
        if answers.shape != wanted.shape or not np.isfinite(answers).all():
            return replace(row, note=f"wrong: answers of shape {answers.shape}, or not finite")
        difference = float(abs(answers - wanted).max() / abs(wanted).max())
        wrong = not difference <= _TOLERANCE[row.precision]
        note = f"wrong: answers differ by {difference:.1g} of the largest" if wrong else ""
        return replace(row, difference=difference, note=note)

    def weighed(self, found: Mapping[Contender, BenchmarkRow]) -> list[BenchmarkRow]:
        """The rows with peak memory, each measured in a fresh process."""
        rows: list[BenchmarkRow] = []
        for entry, row in found.items():
            if row.images_per_second:
                self.report.line(f"Measuring memory of {entry} …")
                row = replace(row, memory=peak_memory(entry))
            rows.append(row)
        return rows


def _merit(row: BenchmarkRow) -> tuple[bool, float]:
    return not row.note, row.images_per_second


def _turn(run: Run, seconds: float) -> list[float]:
    """Seconds of each call; the first does not count, as the last contender may still be busy."""
    run()
    times: list[float] = []
    while not times or sum(times) < seconds:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return times


def _speed(rounds: Sequence[Sequence[float]], batch: int) -> dict[str, float]:
    calls = 1e3 * np.concatenate(rounds)
    p50, p99 = (float(np.percentile(calls, part)) for part in (50, 99))
    best = min(float(np.mean(times)) for times in rounds)
    return {"images_per_second": batch / best, "p50": p50, "p99": p99}


def _product(precision: str) -> Run:
    """A product of large matrices, which tells the peak."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(_SIDE, _SIDE).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


@contextmanager
def _unheard() -> Iterator[None]:
    """Other libraries warn about their own inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _reason(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).partition("\n")[0]
    return text if isinstance(error, ResNeXtError) else f"failed: {text[:120]}"


def peak_memory(entry: Contender) -> float | None:
    """Most memory, MiB, of a process that only runs an entry; None if that fails."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_alone, args=(entry, sender), name=entry.who)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()
        receiver.close()
        process.close()


def _alone(entry: Contender, sender: Connection) -> None:
    """What that process does: open it, run it, tell the most memory it ever had."""
    with _unheard(), suppress(Exception):  # nothing is told then
        run, _ = CONTENDERS[entry.who][1](entry)
        for _ in range(3):
            run()
        status = Path("/proc/self/status").read_text()  # getrusage would count the parent's too
        sender.send(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
