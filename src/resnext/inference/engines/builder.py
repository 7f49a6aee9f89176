"""The folded network and its graphs, each made once, from which engines are built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from resnext.card import Preprocessing
from resnext.inference.engines import ENGINES
from resnext.inference.engines.base import EngineConfig, InputKind
from resnext.inference.engines.onnx_export import (
    Graph,
    export_graph,
    graph_with_pixel_input,
    widen_groups,
)
from resnext.inference.fold import fold
from resnext.inference.runner import MapSession, Session
from resnext.network import ResNeXt


class EngineBuilder:
    """Builds sessions of a network.

    Args:
        network: The network; left unchanged.
        size: Image size, pixels.
        device: Where to run.
        preprocessing: How to normalize pixels; None if only normalized images will be given.

    Attributes:
        folded: A copy whose batch norms are part of its convolutions.
        quantized: 8-bit networks by engine and group width.
    """

    def __init__(
        self,
        network: ResNeXt,
        size: int,
        device: torch.device,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        self.size, self.device, self.preprocessing = size, device, preprocessing
        self.folded = fold(network)
        self.quantized: dict[tuple[str, int], Any] = {}
        self._graph: Graph | None = None

    def session(self, form: EngineConfig, kind: InputKind = "images") -> Session:
        """A session of an engine.

        Raises:
            InputError: A package is not installed.
        """
        return ENGINES[form.engine].build(self, form, kind)

    def map_session(self, form: EngineConfig, kind: InputKind = "images") -> MapSession:
        """A session of an engine that returns the last feature maps.

        Raises:
            InputError: A package is not installed, or the engine returns no feature maps.
        """
        return ENGINES[form.engine].build_maps(self, form, kind)

    def save(self, form: EngineConfig, kind: InputKind, path: Path) -> None:
        """Write the file that the engine opens next time, if it has one."""
        engine = ENGINES[form.engine]
        if engine.suffix:
            engine.save(self, form, kind, path)

    def graph(self, width: int = 0, kind: InputKind = "images") -> Graph:
        """The network as an ONNX graph.

        Args:
            width: Channels that narrower groups are merged to; 0 leaves groups as they are.
            kind: Kind of the graph's input.

        Raises:
            InputError: onnx or onnxscript is not installed.
        """
        if self._graph is None:
            self._graph = export_graph(self.folded, self.size)
        graph = widen_groups(self._graph, width)
        if kind == "images":
            return graph
        assert self.preprocessing is not None
        return graph_with_pixel_input(graph, self.preprocessing)
