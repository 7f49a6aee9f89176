"""Where engines are made ready: what several of them are built from is made once."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from resnext.card import Preprocessing
from resnext.inference.engines.onnx_export import (
    Graph,
    export_graph,
    graph_with_pixel_input,
    widen_groups,
)
from resnext.inference.engines.quantization import quantize, with_pixel_input
from resnext.inference.engines.torch import TorchSession
from resnext.inference.fold import fold
from resnext.inference.plan import EngineConfig, Kind, Plan
from resnext.inference.runner import Session, engine_package, opened, openvino_core
from resnext.network import ResNeXt
from resnext.system.atomic import write_bytes_atomically
from resnext.system.device import DTYPES


class EngineBuilder:
    """Makes sessions of a network.

    Args:
        network: The network; left as it is.
        size: Side of the images, pixels.
        device: Where to run.
        how: What pixels are normalised with; None if only images will be given.
    """

    def __init__(
        self, network: ResNeXt, size: int, device: torch.device, how: Preprocessing | None = None
    ) -> None:
        self.size, self.device, self.how = size, device, how
        self.folded = fold(network)
        self._graph: Graph | None = None
        self._int8: dict[int, Any] = {}

    def session(self, form: EngineConfig, kind: Kind = "images") -> Session:
        """An engine, ready.

        Raises:
            InputError: It is not installed.
        """
        how = self.how if kind == "pixels" else None
        if form.engine in ("torch", "compile", "tensorrt"):
            dtype = DTYPES[form.precision]
            network = copy.deepcopy(self.folded).to(self.device, dtype)
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            way = None if form.engine == "torch" else form.engine
            return TorchSession(network, dtype, how, piece=form.piece, compile=way)
        return opened(self.made(form, kind), form)

    def made(self, form: EngineConfig, kind: Kind) -> Any:
        """The graph that an engine runs: ONNX as bytes, or an `openvino.Model`."""
        if form.engine == "onnxruntime":
            engine_package("onnxruntime")
            graph = widen_groups(self.graph(), form.width)
            if kind == "pixels":
                assert self.how is not None
                graph = graph_with_pixel_input(graph, self.how)
            return graph.SerializeToString()
        model = self._int8[form.width] if form.precision == "int8" else self.openvino(form.width)
        if kind == "pixels":
            assert self.how is not None
            return with_pixel_input(model, self.how)
        return model.clone()

    def graph(self) -> Graph:
        """The network as an ONNX graph."""
        if self._graph is None:
            self._graph = export_graph(self.folded, self.size)
        return self._graph

    def openvino(self, width: int) -> Any:
        """The network as an `openvino.Model`, its groups merged to a width."""
        core = openvino_core()
        return core.read_model(widen_groups(self.graph(), width).SerializeToString())

    def quantize(
        self,
        width: int,
        images: Float32[np.ndarray, "n c h w"],
        validate: Callable[[Session], float] | None = None,
    ) -> None:
        """Make the 8-bit form of a width.

        Args:
            width: Channels that narrower groups are merged to.
            images: To choose ranges with.
            validate: Accuracy of a session; if given, layers that hurt go back to floats until it
                is at most half a point below that of the network in single precision.
        """
        self._int8[width] = quantize(self.openvino(width), images, validate)

    def save(self, plan: Plan, kind: Kind) -> Path | None:
        """Keep the graph of a plan for the next time; None if its engine needs none."""
        if plan.form.engine not in ("onnxruntime", "openvino"):
            return None
        path, made = plan.graph(kind), self.made(plan.form, kind)
        if isinstance(made, bytes):
            write_bytes_atomically(path, made)
            return path
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder) / path.name
            engine_package("openvino").save_model(made, whole, compress_to_fp16=False)
            for part in (whole.with_suffix(".bin"), whole):  # the one that names the other, last
                part.replace(path.with_suffix(part.suffix))
        return path
