"""Engines that are loaded and ready: images in, logits and embeddings out. No torch here."""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int, Shaped, UInt8

from resnext.card import Card
from resnext.config import ResNeXtConfig
from resnext.errors import InputError
from resnext.inference.plan import EngineConfig
from resnext.system.cpu import core_count

_STACK_T = 24  # bytes of what `sigaltstack` takes: address, flags, size

Outputs = tuple[Float32[np.ndarray, "n k"], Float32[np.ndarray, "n d"]]
"""Logits, and embeddings: the last map averaged over its pixels."""

Session = Callable[[Shaped[np.ndarray, "n _ _ _"]], Outputs]
"""An engine for images or for pixels; any number of them; safe to call from several threads."""


@runtime_checkable
class Runner(Protocol):
    """What prediction needs of a model, whatever computes it. Safe to call from several threads."""

    @property
    def card(self) -> Card | None:
        """Labels and preprocessing."""
        ...

    @property
    def config(self) -> ResNeXtConfig:
        """The architecture."""
        ...

    @property
    def batch(self) -> int:
        """How many images at a time it is fastest with; it takes any number."""
        ...

    def pixels(self, x: UInt8[np.ndarray, "n h w c"]) -> Outputs:
        """Answers for pixels as `pictures.pixels` makes them."""
        ...


def top_classes(
    logits: Float32[np.ndarray, "n k"], temperature: float, top: int
) -> tuple[Int[np.ndarray, "n t"], Float64[np.ndarray, "n t"]]:
    """The `top` most likely classes of each image and their probabilities, most likely first."""
    scaled = logits.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    if top == 1:
        best = p.argmax(1)[:, None]
    else:
        best = np.sort(np.argpartition(-p, top - 1)[:, :top])
        order = np.argsort(-np.take_along_axis(p, best, 1), kind="stable")
        best = np.take_along_axis(best, order, 1)
    return best, np.take_along_axis(p, best, 1)


class OnnxSession:
    """ONNX Runtime.

    Args:
        graph: File of the graph, or its content.
        piece: Images that it computes at once.
        streams: Pieces that it computes side by side.
        threads: Threads for all of them together.
    """

    def __init__(self, graph: Path | bytes, piece: int, streams: int, threads: int) -> None:
        ort = engine_package("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = max(threads // streams, 1)
        options.log_severity_level = 3
        source = str(graph) if isinstance(graph, Path) else graph
        self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self._name = self._session.get_inputs()[0].name
        self._widths = [output.shape[1] for output in self._session.get_outputs()]
        self._piece = piece
        self._pool = ThreadPoolExecutor(streams) if streams > 1 else None

    def __call__(self, x: Shaped[np.ndarray, "n _ _ _"]) -> Outputs:
        """Answers for any number of images."""
        if not len(x):
            logits, embeddings = (np.zeros((0, k), np.float32) for k in self._widths)
            return logits, embeddings
        parts = [x[i : i + self._piece] for i in range(0, len(x), self._piece)]
        each = self._pool.map if self._pool else map
        found = [*each(lambda part: self._session.run(None, {self._name: part}), parts)]
        logits, embeddings = (np.concatenate(some) for some in zip(*found, strict=True))
        return logits, embeddings


class OpenVinoSession:
    """OpenVINO.

    Args:
        graph: File of the graph, ONNX or OpenVINO's own, or an `openvino.Model`.
        piece: Images that it computes at once.
        streams: Pieces that it computes side by side.
        threads: Threads for all of them together.
        precision: "f32" or "bf16"; None for what it takes by itself.
    """

    def __init__(
        self, graph: Path | Any, piece: int, streams: int, threads: int, precision: str | None
    ) -> None:
        ov, core = engine_package("openvino"), openvino_core()
        how: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            "EXECUTION_MODE_HINT": "PERFORMANCE",
        }
        if precision:
            how["INFERENCE_PRECISION_HINT"] = precision
        model = core.read_model(graph) if isinstance(graph, Path) else graph
        shape = list(model.input(0).partial_shape)
        model.reshape([piece, *(size.get_length() for size in shape[1:])])
        self._compiled = core.compile_model(model, "CPU", how)
        self._queue = ov.AsyncInferQueue(self._compiled, streams)
        self._piece = piece
        self._lock = threading.Lock()  # it uses all threads anyway

    def __call__(self, x: Shaped[np.ndarray, "n _ _ _"]) -> Outputs:
        """Answers for any number of images; the last piece is filled up."""
        wanted = tuple(self._compiled.input(0).shape)[1:]
        if x.shape[1:] != wanted:
            raise InputError(f"Images must have shape {(len(x), *wanted)}, not {x.shape}.")
        starts = range(0, max(len(x), 1), self._piece)
        shapes = [output.shape[1] for output in self._compiled.outputs]
        logits, embeddings = (np.empty((len(x), k), np.float32) for k in shapes)

        def keep(request: Any, start: int) -> None:
            for i, table in enumerate((logits, embeddings)):
                part = table[start : start + self._piece]
                part[:] = request.get_output_tensor(i).data[: len(part)]

        with self._lock:
            self._queue.set_callback(keep)
            for start in starts:
                part = x[start : start + self._piece]
                if len(part) < self._piece:
                    rest = np.zeros((self._piece - len(part), *x.shape[1:]), x.dtype)
                    part = np.concatenate([part, rest])
                self._queue.start_async({0: part}, start)
            self._queue.wait_all()
        return logits, embeddings


def openvino_core() -> Any:
    """OpenVINO's `Core`: one for the whole process, never freed.

    Each gives the thread a stack for signal handlers and puts the one before back when it is
    freed. If several are freed in another order than last first, freed memory is put back, and
    the next signal writes into whatever is there by then.

    Raises:
        InputError: OpenVINO is not installed.
    """
    return _made_once(engine_package("openvino"))


@cache
def _made_once(package: Any) -> Any:
    return package.Core()


@contextmanager
def preserve_signal_stack() -> Iterator[None]:
    """Put the thread's stack for signal handlers back, where others make and free a `Core`."""
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    stack = ctypes.create_string_buffer(_STACK_T)
    libc.sigaltstack(None, stack)
    try:
        yield
    finally:
        libc.sigaltstack(stack, None)


@contextmanager
def silenced(name: str) -> Iterator[None]:
    """Hear nothing of what a library logs under a name, prints and warns about its own inside."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def opened(graph: Any, form: EngineConfig) -> Session:
    """A session of an engine that is not torch.

    Args:
        graph: A file, or ONNX as bytes, or an `openvino.Model`.
        form: How to compute it.
    """
    if form.engine == "onnxruntime":
        return OnnxSession(graph, form.piece, form.streams, core_count())
    precision = {"fp32": "f32", "bf16": "bf16"}.get(form.precision)
    return OpenVinoSession(graph, form.piece, form.streams, core_count(), precision)


_INSTALL = {
    "onnxruntime": '"resnext[onnx]"',
    "openvino": '"resnext[openvino]"',
    "nncf": '"resnext[openvino]"',
    "torch_tensorrt": "torch-tensorrt",
}


def engine_package(module: str) -> Any:
    """An engine's package.

    Raises:
        InputError: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"{module} is not installed. Install it with pip install {_INSTALL[module]}."
        ) from error
