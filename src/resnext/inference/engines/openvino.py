"""OpenVINO on CPUs, in fp32, bf16 and, through NNCF, int8."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Shaped

from resnext.errors import InputError
from resnext.inference.engines.base import Engine, EngineConfig, InputKind, core_divisions
from resnext.inference.runner import MapSession, Outputs, Session
from resnext.system.cpu import core_count
from resnext.system.forks import (
    change_after_fork,
    leak,
    refuse_after_fork,
    skip_destructors_after_fork,
)

if TYPE_CHECKING:
    from resnext.inference.engines.builder import EngineBuilder

_POOLINGS = ("ReduceMean", "AvgPool")
_STACK_T = 24  # bytes of the struct that `sigaltstack` takes: address, flags, size


class OpenVino(Engine):
    """OpenVINO's CPU plugin; the file is its own XML, with the weights in a .bin next to it."""

    name = "openvino"
    title = "OpenVINO"
    package = "openvino"
    install_hint = '"resnext[openvino]"'
    suffix = ".xml"
    merges_groups = True

    def precisions(self, device: str) -> tuple[str, ...]:
        """Precisions of its CPU plugin."""
        return ("fp32", "bf16", "int8") if device == "cpu" else ()

    def check_precision(self, precision: str, device: str) -> None:
        """Refuse bf16 without the arithmetic: it would compute in fp32 under another name."""
        super().check_precision(precision, device)
        if precision == "bf16":
            from resnext.system.device import require_bf16

            require_bf16()

    def divisions(self, batch: int) -> list[tuple[int, int]]:
        """All images at once, one by one, or one piece for each group of cores."""
        return core_divisions(batch)

    def form_for(self, form: EngineConfig, count: int) -> EngineConfig:
        """Compute a few images one by one: pieces have one size and would be mostly padding."""
        if form.piece == 1 or count > form.piece // 8:
            return form
        return EngineConfig(form.engine, form.precision, 1, 1, form.width)

    def build(self, source: EngineBuilder, form: EngineConfig, kind: InputKind) -> Session:
        """A session of the exported graph, or of its 8-bit form."""
        return self._session(self._model(source, form, kind), form)

    def save(self, source: EngineBuilder, form: EngineConfig, kind: InputKind, path: Path) -> None:
        """Write OpenVINO's two files."""
        model = self._model(source, form, kind)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            xml = Path(folder) / path.name
            self.load().save_model(model, xml, compress_to_fp16=False)
            for file in (xml.with_suffix(".bin"), xml):  # the one that refers to the other, last
                file.replace(path.with_suffix(file.suffix))

    def open(self, path: Path, form: EngineConfig) -> Session:
        """A session of a file."""
        return self._session(path, form)

    def build_maps(self, source: EngineBuilder, form: EngineConfig, kind: InputKind) -> MapSession:
        """A session of the exported graph, or of its 8-bit form, with one more output."""
        return self._session(with_map(self._model(source, form, kind)), form)

    def open_maps(self, path: Path, form: EngineConfig) -> MapSession:
        """A session of a file, with one more output."""
        return self._session(with_map(openvino_core().read_model(path)), form)

    def quantize(
        self,
        source: EngineBuilder,
        width: int,
        images: Float32[np.ndarray, "n c h w"],
        accuracy: Callable[[Session], float] | None = None,
    ) -> None:
        """Make the 8-bit model of a width."""
        from resnext.inference.engines.quantization import quantize

        source.quantized[self.name, width] = quantize(
            self._plain_model(source, width), images, accuracy
        )

    def _model(self, source: EngineBuilder, form: EngineConfig, kind: InputKind) -> Any:
        from resnext.inference.engines.quantization import with_pixel_input

        if form.precision == "int8":
            model = source.quantized[self.name, form.width]
        else:
            model = self._plain_model(source, form.width)
        if kind == "images":
            return model.clone()
        assert source.preprocessing is not None
        return with_pixel_input(model, source.preprocessing)

    def _plain_model(self, source: EngineBuilder, width: int) -> Any:
        core = openvino_core()
        return core.read_model(source.graph(width).SerializeToString())

    def _session(self, model: Path | Any, form: EngineConfig) -> OpenVinoSession:
        hint = {"fp32": "f32", "bf16": "bf16"}.get(form.precision)
        return OpenVinoSession(model, form.piece, form.streams, core_count(), hint)


class OpenVinoSession:
    """A model in OpenVINO.

    Args:
        model: File of the graph, ONNX or OpenVINO's own, or an `openvino.Model`. Its first output
            and another one are returned.
        piece: Images computed at once.
        streams: Pieces computed in parallel.
        threads: Threads for all of them together.
        precision: "f32" or "bf16"; None to let OpenVINO choose.
        wanted: Positions of the outputs that are returned.
        size: Shape of an image, for models that take images of any size.
    """

    def __init__(
        self,
        model: Path | Any,
        piece: int,
        streams: int,
        threads: int,
        precision: str | None,
        wanted: tuple[int, int] = (0, -1),
        size: Sequence[int] | None = None,
    ) -> None:
        ov, core = OpenVino().load(), openvino_core()
        options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            "EXECUTION_MODE_HINT": "PERFORMANCE",
        }
        if precision:
            options["INFERENCE_PRECISION_HINT"] = precision
        graph: Any = core.read_model(model) if isinstance(model, Path) else model
        shape = list(graph.input(0).partial_shape)
        graph.reshape([piece, *(size or (side.get_length() for side in shape[1:]))])
        self._compiled = core.compile_model(graph, "CPU", options)
        self._queue = ov.AsyncInferQueue(self._compiled, streams)
        self._piece = piece
        self._wanted = [i % len(self._compiled.outputs) for i in wanted]
        self._lock = threading.Lock()  # one call uses all threads anyway
        self._process = os.getpid()
        change_after_fork(self)
        skip_destructors_after_fork()

    def after_fork(self) -> None:
        """Keep the model: freed, it would wait for its threads, or crash."""
        for thing in (self._queue, self._compiled, _core_of(OpenVino().load())):
            leak(thing)

    def __call__(self, x: Shaped[np.ndarray, "n _ _ _"]) -> Outputs:
        """Logits, and embeddings or feature maps, of any number of images.

        The last piece is padded.

        Raises:
            InputError: The images have another size than the model's.
            ResourceError: The process was forked after the model was opened.
        """
        refuse_after_fork(self._process, "OpenVINO")
        wanted = tuple(self._compiled.input(0).shape)[1:]
        if x.shape[1:] != wanted:
            raise InputError(f"Images must have shape {(len(x), *wanted)}, not {x.shape}.")
        starts = range(0, len(x), self._piece)
        outputs = self._compiled.outputs
        logits, others = (
            np.empty((len(x), *tuple(output.shape)[1:]), np.float32)
            for output in (outputs[i] for i in self._wanted)
        )

        def keep(request: Any, start: int) -> None:
            for i, table in zip(self._wanted, (logits, others), strict=True):
                rows = table[start : start + self._piece]
                rows[:] = request.get_output_tensor(i).data[: len(rows)]

        with self._lock:
            self._queue.set_callback(keep)
            for start in starts:
                piece = x[start : start + self._piece]
                if len(piece) < self._piece:
                    padding = np.zeros((self._piece - len(piece), *x.shape[1:]), x.dtype)
                    piece = np.concatenate([piece, padding])
                self._queue.start_async({0: piece}, start)
            self._queue.wait_all()
        return logits, others


def with_map(model: Any) -> Any:
    """A model with the input of the last pooling as one more output; changes it in place.

    Raises:
        InputError: The model has no pooling before its embedding.
    """
    node = model.output("embedding").get_node()
    while node.get_type_name() not in _POOLINGS:
        if not node.inputs():
            raise InputError("The model has no last feature map. Run resnext optimize --again.")
        node = node.input_value(0).get_node()
    model.add_outputs([node.input_value(0)])
    return model


def openvino_core() -> Any:
    """OpenVINO's `Core`: one for the whole process, never freed.

    Each `Core` installs a stack for signal handlers and restores the previous one when it is
    freed. If several are freed in any order but last first, a freed stack is restored, and the
    next signal overwrites memory that is in use elsewhere.

    Raises:
        InputError: OpenVINO is not installed.
        ResourceError: The process was forked after OpenVINO was used.
    """
    core, process = _core_of(OpenVino().load())
    refuse_after_fork(process, "OpenVINO")
    return core


@cache
def _core_of(package: Any) -> tuple[Any, int]:
    """The `Core` and its process: a forked one shares the threads that it lacks."""
    return package.Core(), os.getpid()


@contextmanager
def preserve_signal_stack() -> Iterator[None]:
    """Restore the thread's stack for signal handlers after code that makes and frees a `Core`."""
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
