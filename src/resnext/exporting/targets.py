"""The file formats: ONNX, OpenVINO, torch.export, a page for browsers."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from resnext.errors import InputError
from resnext.exporting.graph import ExportedModule
from resnext.exporting.metadata import onnx_metadata, openvino_metadata
from resnext.exporting.page import (
    MOST_BYTES,
    SUFFIX,
    check_node,
    page_files,
    runtime,
    write_page,
)
from resnext.inference.engines.base import load_package, silenced
from resnext.inference.engines.openvino import openvino_core
from resnext.inference.exported import METADATA_KEY

OPSET = 18
_MOST_IMAGES = 4096  # the exporter wants a bound; the file has none


class Target(ABC):
    """A file format, and the runtime that reads it.

    Attributes:
        name: Its name on the command line.
        title: Its name in messages.
        suffix: Suffix of its file.
        packages: Modules that writing and proving it needs.
        install_hint: Argument of `pip install` if one is missing.
        settings: What `export` accepts for each of its arguments; the first is the default.
        extras: Names of the outputs after the first.
        batches: The batches in which the gate runs the pictures.
        takes_index: Whether a file may hold an index of images.
    """

    name: str
    title: str
    suffix: str
    packages: tuple[str, ...]
    install_hint: str
    settings: Mapping[str, tuple[str, ...]] = {
        "input": ("images", "pixels"),
        "output": ("logits", "probabilities"),
        "precision": ("fp32", "fp16"),
    }
    extras: tuple[str, ...] = ("embedding", "map")
    batches = "1, 2, 17 and 44"
    takes_index = False

    def check_packages(self) -> None:
        """Refuse to begin without the packages.

        Raises:
            InputError: One is not installed.
        """
        for package in self.packages:
            load_package(package, self.install_hint)

    @abstractmethod
    def build(self, module: ExportedModule, example: torch.Tensor, outputs: list[str]) -> Any:
        """The graph in the target's own form.

        Args:
            module: What the file computes.
            example: Two images as the file takes them.
            outputs: Names of the outputs.
        """

    @abstractmethod
    def write(self, built: Any, path: Path, own: str, module: ExportedModule) -> None:
        """Write a file.

        Args:
            built: What `build` returned.
            path: The file.
            own: Our metadata.
            module: What was built; its config and card are for the metadata of others.
        """

    def files(self, path: Path) -> list[Path]:
        """All files that `write` makes."""
        return [path]

    def default(self, name: str, module: ExportedModule) -> Path:
        """Where a model is written to if nothing else is said."""
        return Path(f"{name}{self.suffix}")


class Onnx(Target):
    """One ONNX file, opset 18."""

    name, title, suffix = "onnx", "ONNX", ".onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")
    install_hint = '"resnext[onnx]"'

    def build(self, module: ExportedModule, example: torch.Tensor, outputs: list[str]) -> Any:
        """An `onnx.ModelProto` that says nothing of this machine."""
        with silenced("torch.onnx"):
            program = torch.onnx.export(
                module,
                (example,),
                input_names=[module.inputs],
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("n", min=1, max=_MOST_IMAGES)},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        model = program.model_proto
        _forget_origins(model)
        return model

    def write(self, built: Any, path: Path, own: str, module: ExportedModule) -> None:
        """Write graph and metadata."""
        del built.metadata_props[:]
        others = onnx_metadata(module.network.config, module.card, module.inputs)
        for key, value in {METADATA_KEY: own, **others}.items():
            built.metadata_props.add(key=key, value=value)
        path.write_bytes(built.SerializeToString(deterministic=True))


class OpenVino(Target):
    """OpenVINO's IR: an XML file, and the weights in a `.bin` file beside it."""

    name, title, suffix = "openvino", "OpenVINO", ".xml"
    packages = ("onnx", "onnxscript", "openvino")
    install_hint = '"resnext[openvino]"'

    def build(self, module: ExportedModule, example: torch.Tensor, outputs: list[str]) -> Any:
        """An `openvino.Model`, converted from the ONNX graph."""
        graph = Onnx().build(module, example, outputs)
        model = openvino_core().read_model(graph.SerializeToString())
        for i, node in enumerate(model.get_ordered_ops()):  # some names count all nodes so far
            if (kind := node.get_type_name()) not in ("Parameter", "Result"):
                node.set_friendly_name(f"{kind}_{i}")
        return model

    def write(self, built: Any, path: Path, own: str, module: ExportedModule) -> None:
        """Write graph, weights and metadata."""
        import openvino

        for key, value in openvino_metadata(module.card, module.inputs).items():
            built.set_rt_info(value, ["model_info", key])
        built.set_rt_info(own, ["model_info", METADATA_KEY])
        openvino.save_model(built, path, compress_to_fp16=module.halved)

    def files(self, path: Path) -> list[Path]:
        """The XML file and the weights."""
        return [path, path.with_suffix(".bin")]


class Torch(Target):
    """A program of `torch.export`, which needs torch and nothing of this library."""

    name, title, suffix = "torch", "torch.export", ".pt2"
    packages = ()
    install_hint = "torch"

    def build(self, module: ExportedModule, example: torch.Tensor, outputs: list[str]) -> Any:
        """An `ExportedProgram` that says nothing of this machine; it returns a dictionary."""
        program = torch.export.export(
            _Named(module, outputs),
            (example,),
            dynamic_shapes=({0: torch.export.Dim("n", min=1, max=_MOST_IMAGES)},),
        )
        for node in program.graph.nodes:
            for key in ("stack_trace", "from_node", "source_fn_stack"):
                node.meta.pop(key, None)
        return program

    def write(self, built: Any, path: Path, own: str, module: ExportedModule) -> None:
        """Write program and metadata."""
        content = io.BytesIO()  # a file's name would be written into it
        torch.export.save(built, content, extra_files={METADATA_KEY: own})
        path.write_bytes(content.getvalue())


class Page(Target):
    """One HTML file that classifies in the browser, without a network."""

    name, title, suffix = "page", "page for browsers", SUFFIX
    packages = ("onnx", "onnxscript")
    install_hint = '"resnext[onnx]"'
    settings: Mapping[str, tuple[str, ...]] = {
        "input": ("pixels",),
        "output": ("logits",),
        "precision": ("fp16", "fp32"),
    }
    extras = ("embedding", "maps")
    batches = "1"
    takes_index = True

    def check_packages(self) -> None:
        """Also Node.js and ONNX Runtime Web."""
        super().check_packages()
        check_node()
        runtime()

    def build(self, module: ExportedModule, example: torch.Tensor, outputs: list[str]) -> Any:
        """An `onnx.ModelProto`.

        Raises:
            InputError: Browsers cannot scale pictures of 16 bits as the model needs.
        """
        if module.card.preprocessing.value_range is not None:
            raise InputError(
                "The model scales grey images of 16 bits (its card has a value_range); browsers "
                "read only their upper 8 bits. Take --to onnx."
            )
        return Onnx().build(module, example, outputs)

    def write(self, built: Any, path: Path, own: str, module: ExportedModule) -> None:
        """Write the page around the graph."""
        graph = built.SerializeToString(deterministic=True)
        write_page(path, graph, own, module.card, module.index)

    def files(self, path: Path) -> list[Path]:
        """The file, or the files of a folder."""
        return page_files(path)

    def default(self, name: str, module: ExportedModule) -> Path:
        """A file, or a folder if that would be too large."""
        weights = sum(x.numel() * x.element_size() for x in module.network.state_dict().values())
        packed = 1.25 * (weights + len(module.index)) + sum(map(len, runtime()))  # about
        return Path(f"{name}-page" if packed > MOST_BYTES else f"{name}{self.suffix}")


class _Named(torch.nn.Module):
    """A module whose outputs have names."""

    def __init__(self, module: ExportedModule, outputs: list[str]) -> None:
        super().__init__()
        self.module, self.outputs = module, outputs

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(self.outputs, self.module(x), strict=True))


TARGETS: dict[str, Target] = {
    target.name: target for target in (Onnx(), OpenVino(), Torch(), Page())
}
"""The targets by name."""


def _forget_origins(model: Any) -> None:
    """Remove notes on where an ONNX graph came from, which hold paths of this machine."""
    graph = model.graph
    graph.doc_string = ""
    parts = (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]
