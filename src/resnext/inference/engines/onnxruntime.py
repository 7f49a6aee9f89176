"""ONNX Runtime on CPUs."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

from resnext.errors import InputError
from resnext.inference.engines.base import (
    Engine,
    EngineConfig,
    InputKind,
    core_divisions,
    load_package,
)
from resnext.inference.foreign import Port
from resnext.inference.runner import MapSession, Outputs, Session
from resnext.system.atomic import write_bytes_atomically
from resnext.system.cpu import core_count
from resnext.system.forks import (
    change_after_fork,
    leak,
    refuse_after_fork,
    skip_destructors_after_fork,
)

if TYPE_CHECKING:
    from resnext.inference.engines.builder import EngineBuilder

_POOLINGS = ("ReduceMean", "GlobalAveragePool", "AveragePool")


class OnnxRuntime(Engine):
    """ONNX Runtime's CPU kernels; the file is an ONNX graph."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    package = "onnxruntime"
    install_hint = '"resnext[onnx]"'
    suffix = ".onnx"
    merges_groups = True

    def precisions(self, device: str) -> tuple[str, ...]:
        """Only fp32: the CPU kernels for convolutions lack bf16."""
        return ("fp32",) if device == "cpu" else ()

    def divisions(self, batch: int) -> list[tuple[int, int]]:
        """All images at once, one by one, or one piece for each group of cores."""
        return core_divisions(batch)

    def build(self, source: EngineBuilder, form: EngineConfig, kind: InputKind) -> Session:
        """A session of the exported graph."""
        self.load()  # if it is missing, fail before the export, which takes seconds
        return self._session(source.graph(form.width, kind).SerializeToString(), form)

    def save(self, source: EngineBuilder, form: EngineConfig, kind: InputKind, path: Path) -> None:
        """Write the exported graph."""
        write_bytes_atomically(path, source.graph(form.width, kind).SerializeToString())

    def open(self, path: Path, form: EngineConfig) -> Session:
        """A session of a graph in a file."""
        return self._session(path, form)

    def build_maps(self, source: EngineBuilder, form: EngineConfig, kind: InputKind) -> MapSession:
        """A session of the exported graph with one more output."""
        self.load()
        return self._session(_with_map(source.graph(form.width, kind)), form)

    def open_maps(self, path: Path, form: EngineConfig) -> MapSession:
        """A session of a graph in a file, with one more output."""
        onnx = load_package("onnx", self.install_hint)
        return self._session(_with_map(onnx.load(path)), form)

    def _session(self, graph: Path | bytes, form: EngineConfig) -> OnnxSession:
        return OnnxSession(graph, form.piece, form.streams, core_count())


class OnnxSession:
    """A graph in ONNX Runtime; in a forked process, it has to be opened again.

    Args:
        graph: File of the graph, or its content. Its first and last outputs are returned.
        piece: Images computed at once, if the graph takes any number.
        streams: Pieces computed in parallel.
        threads: Threads for all of them together.
    """

    def __init__(self, graph: Path | bytes, piece: int, streams: int, threads: int) -> None:
        ort = OnnxRuntime().load()
        options = ort.SessionOptions()
        options.intra_op_num_threads = max(threads // streams, 1)
        options.log_severity_level = 3
        source = str(graph) if isinstance(graph, Path) else graph
        self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        taken = self._session.get_inputs()[0]
        self._name, self._half = taken.name, "float16" in taken.type
        fixed = taken.shape[0] if taken.shape else None
        self._fixed = fixed if isinstance(fixed, int) else None
        self._piece = self._fixed or piece
        self._choose(0, -1)
        self._pool = ThreadPoolExecutor(streams) if streams > 1 else None
        self._process = os.getpid()
        change_after_fork(self)
        skip_destructors_after_fork()

    @property
    def metadata(self) -> dict[str, str]:
        """What the graph says about itself."""
        return self._session.get_modelmeta().custom_metadata_map

    def ports(self) -> tuple[list[Port], list[Port]]:
        """Inputs and outputs of the graph."""
        inputs, outputs = (
            [
                Port(x.name, x.type.removeprefix("tensor(").rstrip(")"), tuple(x.shape))
                for x in ports
            ]
            for ports in (self._session.get_inputs(), self._session.get_outputs())
        )
        return inputs, outputs

    def returning(self, first: int, other: int) -> OnnxSession:
        """A session of the same graph that returns these outputs, by position."""
        session = copy(self)
        session._choose(first, other)
        return session

    def _choose(self, first: int, other: int) -> None:
        outputs = self._session.get_outputs()
        self._wanted = [outputs[first].name, outputs[other].name]
        self._shapes = [outputs[first].shape[1:], outputs[other].shape[1:]]

    def after_fork(self) -> None:
        """Keep the session: freed, it would wait for its threads."""
        leak(self._session)

    def __call__(self, x: Shaped[np.ndarray, "n _ _ _"]) -> Outputs:
        """Logits, and embeddings or feature maps, of any number of images.

        Raises:
            ResourceError: The process was forked after the session was opened.
        """
        refuse_after_fork(self._process, "ONNX Runtime")
        if not len(x):
            logits, others = (np.zeros((0, *shape), np.float32) for shape in self._shapes)
            return logits, others
        pieces = [x[i : i + self._piece] for i in range(0, len(x), self._piece)]
        each = self._pool.map if self._pool else map
        results = [*each(self._run, pieces)]
        logits, others = (np.concatenate(some) for some in zip(*results, strict=True))
        return logits, others

    def _run(self, piece: Shaped[np.ndarray, "n _ _ _"]) -> list[np.ndarray]:
        """The outputs of one piece; padded if the graph takes another number."""
        count = len(piece)
        if self._fixed is not None and count < self._fixed:
            piece = np.concatenate([piece, np.zeros_like(piece[:1]).repeat(self._fixed - count, 0)])
        if self._half:
            piece = piece.astype(np.float16)
        found = self._session.run(self._wanted, {self._name: piece})
        return [x[:count].astype(np.float32, copy=False) for x in found]


def _with_map(graph: Any) -> bytes:
    """The content of an ONNX graph, with the input of the last pooling as one more output.

    Args:
        graph: An `onnx.ModelProto`; changed in place.

    Raises:
        InputError: The graph has no pooling before its embedding.
    """
    from onnx import TensorProto, helper

    made_by = {name: node for node in graph.graph.node for name in node.output}
    node = made_by.get("embedding")
    while node is not None and node.op_type not in _POOLINGS:
        node = made_by.get(node.input[0])
    if node is None:
        raise InputError("The ONNX graph has no last feature map. Run resnext optimize --again.")
    graph.graph.output.append(helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, None))
    return graph.SerializeToString()
