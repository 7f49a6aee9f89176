"""`bench`: other libraries and this one side by side, in one process, on the same images, in turns.

All contenders open the same files in a folder, so that each can also run alone in a process whose
memory is measured. torch is imported only where it is needed, because that process may not need it.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from resnext.architectures import title, variant
from resnext.benchmark.contenders import CONTENDERS, IMAGES, NETWORK, Contender, Run
from resnext.benchmark.results import Benchmark, BenchmarkRow
from resnext.card import Card, Preprocessing
from resnext.checks import brief
from resnext.errors import InputError, ResNeXtError
from resnext.inference.engines import ENGINES
from resnext.summary import default_size, summarize
from resnext.system.cpu import cpu_name
from resnext.system.main_guard import refuse_in_new_process
from resnext.system.progress import Reporter, reporter

if TYPE_CHECKING:
    from resnext.config import ResNeXtConfig
    from resnext.network import ResNeXt

BenchmarkPrecision = Literal["auto", "fp32", "bf16", "int8"]
_ROUNDS = 8
_SIDE = 2048  # size of the matrices whose product measures the peak
_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "int8": float("inf")}  # relative to the largest logit


def bench(
    model: str | Path | ResNeXt = "resnext50_32x4d",
    *,
    batches: Sequence[int] = (1, 16),
    precision: BenchmarkPrecision = "auto",
    data: str | Path | None = None,
    compiled: bool = False,
    memory: bool = True,
    seconds: float = 5.0,
    progress: bool = False,
) -> Benchmark:
    """Time torchvision, timm, ONNX Runtime, OpenVINO and this library on the CPU.

    All contenders have the same weights, images and threads, and must return the network's logits.
    They run in turns, because a machine's speed varies. A library that is not installed, or
    lacks the network, gets a row that says so. Each call passes one batch and waits for logits.

    Args:
        model: A classifier; the name of a variant or a config file, which get random weights; or a
            file or name as for `resnext.load`.
        batches: Batch sizes.
        precision: Compute precision; "auto" times all that the machine supports: fp32, bf16, and
            int8 if `data` is given.
        data: Labelled images, as for `resnext.evaluate`, to calibrate int8 with.
        compiled: Whether to also time timm with `torch.compile`, which takes minutes.
        memory: Whether to measure peak memory, each contender in its own process.
        seconds: Seconds to time each contender for each batch size.
        progress: Whether to show progress on standard error.

    Raises:
        CheckpointError: The file does not hold a usable model.
        DataError: `data` does not exist, or has classes that the model lacks.
        InputError: An argument is out of range, or the CPU does not support the precision.
        UnknownNameError: No variant has that name.
    """
    import torch

    refuse_in_new_process("bench")
    if not batches or any(type(batch) is not int or not 1 <= batch <= 4096 for batch in batches):
        raise InputError(f"batches must be numbers from 1 to 4096, not {brief(batches)}.")
    if not seconds > 0:
        raise InputError(f"seconds must be above 0, not {seconds!r}.")
    precisions = _precisions(precision, data)
    log = reporter(progress)
    threads, rows, peaks = torch.get_num_threads(), list[BenchmarkRow](), dict[str, float]()
    with ExitStack() as stack:
        stack.callback(log.stop)
        stack.enter_context(_omp_threads(threads))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="resnext-bench-"))
        run = _BenchmarkRun(Path(folder), precisions, threads, data and str(data), compiled, log)
        config, size = run.write_inputs(classifier_for(model, progress), max(batches))
        macs = summarize(config, size).macs
        for batch in sorted(set(batches)):
            best, peak = run.time(batch, seconds)
            rows += run.with_memory(best) if memory and batch == max(batches) else best.values()
            peaks |= {kind: max(peaks.get(kind, 0.0), value) for kind, value in peak.items()}
    return Benchmark(
        machine=cpu_name(),
        threads=threads,
        versions=_versions(),
        name=str(model) if isinstance(model, str | Path) else title(config),
        size=size,
        peaks=peaks,
        rows=tuple(replace(row, fraction=_fraction(row, macs, peaks)) for row in rows),
    )


def _precisions(wanted: BenchmarkPrecision, data: object) -> list[str]:
    from resnext.system.device import has_bf16, require_bf16

    if wanted not in get_args(BenchmarkPrecision):
        raise InputError(
            f"precision must be one of {', '.join(get_args(BenchmarkPrecision))}, not {wanted!r}."
        )
    if wanted == "int8" and data is None:
        raise InputError("precision int8 needs labelled images for calibration: give data.")
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
    """Versions of the libraries that are installed."""
    engines = (engine.package for engine in ENGINES.values())
    versions: dict[str, str] = {}
    for package in ("resnext", "torch", "torchvision", "timm", *engines, "nncf"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


@contextmanager
def _omp_threads(threads: int) -> Iterator[None]:
    """Set OMP_NUM_THREADS, which our engines and the processes that measure memory read."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def classifier_for(model: str | Path | ResNeXt, progress: bool = False) -> ResNeXt:
    """The network to time.

    Args:
        model: A network; the name of a variant or a config file, which get random weights, and
            norm statistics that fit them; or a file or name as for `resnext.load`.
        progress: Whether to show downloads on standard error.

    Raises:
        ConfigError: The config file does not describe a network.
        InputError: The model is of another type.
    """
    import torch

    from resnext.network import ResNeXt
    from resnext.weights.catalog import exact, is_path
    from resnext.weights.config_source import is_config_file, read_architecture
    from resnext.weights.load import load_classifier

    if isinstance(model, ResNeXt):
        return model
    if not isinstance(model, str | Path):
        raise InputError(f"A model must be a ResNeXt, a file or a name, not {brief(model)}.")
    name = str(model)
    if is_config_file(name):
        config = read_architecture(name)
    elif Path(model).exists() or "://" in name or is_path(name) or exact(name):
        return load_classifier(model, progress=progress)
    else:
        config = variant(name)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = ResNeXt(config).train()
        norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        size = default_size(network.config)
        network(torch.randn(4, network.config.in_channels, size, size))
        for norm in norms:
            norm.momentum = 0.1
    return network.eval()


class _BenchmarkRun:
    """Runs the benchmark: shared inputs, contenders, timing.

    Args:
        folder: For the files that all contenders open.
        precisions: Precisions to compute in.
        threads: Threads for each contender.
        data: Images to calibrate int8 with.
        compiled: Whether to run timm with `torch.compile` too.
        progress: Shows the steps.
    """

    def __init__(
        self,
        folder: Path,
        precisions: Sequence[str],
        threads: int,
        data: str | None,
        compiled: bool,
        progress: Reporter,
    ) -> None:
        self.folder, self.precisions, self.threads = folder, precisions, threads
        self.data, self.compiled, self.progress = data, compiled, progress
        self.reference = np.empty(0)

    def write_inputs(self, network: ResNeXt, count: int) -> tuple[ResNeXtConfig, int]:
        """Write the network and `count` images into the folder; its config and their size.

        Raises:
            DataError: The images to calibrate int8 with cannot be used.
        """
        import torch

        from resnext.data.open import open_for_evaluation
        from resnext.inference.optimize import patterns
        from resnext.weights.save import save

        config = network.config
        network = copy.deepcopy(network).cpu().float().eval()
        if network.card is None:
            size, channels = default_size(config), config.in_channels
            colour = "L" if channels == 1 else "RGB"
            flat = (0.5,) * channels
            network.card = Card((), Preprocessing(size, size, mean=flat, std=flat, colour=colour))
        if "int8" in self.precisions and self.data is not None:
            known = network.card.labels, network.card.provenance
            open_for_evaluation(self.data, *known, self.progress.line)
        size = network.card.preprocessing.size
        images = patterns(count, config.in_channels, size)
        np.save(self.folder / IMAGES, images)
        save(network, self.folder / NETWORK)
        with torch.inference_mode():
            batches = torch.from_numpy(images).split(16)
            self.reference = torch.cat([network(batch) for batch in batches]).numpy()
        return config, size

    def time(
        self, batch: int, seconds: float
    ) -> tuple[dict[Contender, BenchmarkRow], dict[str, float]]:
        """Time a batch size: the best mode of each contender with its row, and peaks in GFLOP/s."""
        rows: dict[Contender, BenchmarkRow] = {}
        runs: dict[Any, Run] = {
            kind: _matrix_product(kind) for kind in self.precisions if kind != "int8"
        }
        peaks = list(runs)
        for contender in self.contenders(batch):
            self.progress.line(f"Opening {contender} …")
            row = BenchmarkRow(contender.who, contender.precision, batch)
            try:
                with _no_warnings():
                    runs[contender], how = CONTENDERS[contender.who].open(contender)
                    rows[contender] = self.checked(replace(row, how=how), runs[contender]())
            except Exception as error:  # each library fails with its own types
                runs.pop(contender, None)
                rows[contender] = replace(row, note=_reason(error))
        self.progress.line(f"Timing {len(runs)} ways, batch {batch}, in turns …")
        times = {key: list[list[float]]() for key in runs}
        for _ in range(_ROUNDS):
            for key, run in runs.items():
                times[key].append(time_calls(run, seconds / _ROUNDS))
        for contender in [key for key in runs if key not in peaks]:
            rows[contender] = replace(rows[contender], **_statistics(times[contender], batch))
        best: dict[tuple[str, str], Contender] = {}
        for contender, row in rows.items():
            rival = best.get((contender.who, contender.precision))
            if rival is None or _rank(row) > _rank(rows[rival]):
                best[contender.who, contender.precision] = contender
        speeds = {kind: 2e-9 * _SIDE**3 / min(map(min, times[kind])) for kind in peaks}
        return {contender: rows[contender] for contender in best.values()}, speeds

    def contenders(self, batch: int) -> list[Contender]:
        """All contenders, each in every precision and mode that it has."""
        contenders: list[Contender] = []
        for who, known in CONTENDERS.items():
            if known.slow and not self.compiled:
                continue
            for precision in self.precisions:
                if precision in known.precisions:
                    ways = known.ways[:1] if batch == 1 else known.ways
                    contenders += [
                        Contender(self.folder, who, precision, batch, self.threads, self.data, way)
                        for way in ways
                    ]
        return contenders

    def checked(self, row: BenchmarkRow, logits: np.ndarray) -> BenchmarkRow:
        """The row with the difference from the network's logits, and a note if they are wrong."""
        wanted = self.reference[: row.batch]
        if logits.shape != wanted.shape or not np.isfinite(logits).all():
            return replace(row, note=f"wrong: logits of shape {logits.shape}, or not finite")
        difference = float(abs(logits - wanted).max() / abs(wanted).max())
        wrong = not difference <= _TOLERANCE[row.precision]
        note = f"wrong: logits differ by {difference:.1g} of the largest" if wrong else ""
        return replace(row, difference=difference, note=note)

    def with_memory(self, best: Mapping[Contender, BenchmarkRow]) -> list[BenchmarkRow]:
        """The rows with peak memory, each measured in a new process."""
        rows: list[BenchmarkRow] = []
        for contender, row in best.items():
            if row.images_per_second:
                self.progress.line(f"Measuring memory of {contender} …")
                row = replace(row, memory=peak_memory(contender))
            rows.append(row)
        return rows


def _rank(row: BenchmarkRow) -> tuple[bool, float]:
    """Orders the modes of a contender: those that count first, then by speed."""
    return not row.note, row.images_per_second


def time_calls(run: Run, seconds: float) -> list[float]:
    """Seconds of each call, until they add up to `seconds`.

    The first call is not counted: the previous contender's threads may still be busy.
    """
    run()
    times: list[float] = []
    while not times or sum(times) < seconds:
        began = perf_counter()
        run()
        times.append(perf_counter() - began)
    return times


def _statistics(rounds: Sequence[Sequence[float]], batch: int) -> dict[str, float]:
    """Percentiles over all calls, and the speed of the fastest round."""
    calls = 1e3 * np.concatenate(rounds)
    p50, p99 = (float(np.percentile(calls, percent)) for percent in (50, 99))
    best = min(float(np.mean(times)) for times in rounds)
    return {"images_per_second": batch / best, "p50": p50, "p99": p99}


def _matrix_product(precision: str) -> Run:
    """A product of large matrices, whose speed is taken as the machine's peak."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(_SIDE, _SIDE).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Hide warnings of other libraries about their own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _reason(error: Exception) -> str:
    """The first line of an error, as a note."""
    text = (str(error).strip() or type(error).__name__).partition("\n")[0]
    return text if isinstance(error, ResNeXtError) else f"failed: {text[:120]}"


def peak_memory(contender: Contender) -> float | None:
    """Peak memory, MiB, of a process that only runs a contender; None if that fails."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_send_peak_memory, args=(contender, sender), name=contender.who
    )
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


def _send_peak_memory(contender: Contender, sender: Connection) -> None:
    """Runs in that process: open the contender, run it, send the peak memory."""
    with _no_warnings(), suppress(Exception):  # then nothing is sent
        run, _ = CONTENDERS[contender.who].open(contender)
        for _ in range(3):
            run()
        status = Path("/proc/self/status").read_text()  # getrusage would count the parent's too
        sender.send(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
