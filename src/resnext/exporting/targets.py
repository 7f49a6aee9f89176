"""The file formats: ONNX, OpenVINO, torch.export, ExecuTorch, a page for browsers."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch

from resnext.errors import InputError
from resnext.exporting.client import BATCHES, LARGEST
from resnext.exporting.graph import ExportedModule, FileInput
from resnext.exporting.metadata import onnx_metadata, openvino_metadata
from resnext.exporting.page import (
    MOST_BYTES,
    SUFFIX,
    check_node,
    page_files,
    runtime,
    write_page,
)
from resnext.exporting.picture import resized_and_cropped, with_picture_input
from resnext.inference.engines.base import load_package, silenced
from resnext.inference.engines.openvino import openvino_core
from resnext.inference.exported import METADATA_KEY

OPSET = 18
_MOST_IMAGES = 4096  # the exporter wants bounds; ONNX and OpenVINO files have none
_LEAST_PIXELS, _MOST_PIXELS = 16, 1 << 16


class Target(ABC):
    """A file format, and the runtime that reads it.

    Attributes:
        name: Its name on the command line.
        title: Its name in messages.
        suffix: Suffix of its file.
        packages: Modules that writing and proving it needs.
        install_hint: Argument of `pip install` if one is missing.
        inputs: Kinds of input that it has; the first is the default.
        precisions: How weights can be stored; the first is the default.
        sizes: "dynamic" if files for images of other sizes can be made.
        outputs: Names of its outputs; None if they can be chosen.
        batches: The batches in which the gate runs the pictures; without `bounded`.
        bounded: Whether a file takes batches up to a bound only, which is chosen.
        brings: Modules of the network's side that the runtime loads itself.
        takes_index: Whether a file may hold an index of images.
    """

    name: str
    title: str
    suffix: str
    packages: tuple[str, ...]
    install_hint: str
    inputs: tuple[FileInput, ...] = ("images", "pixels", "picture")
    precisions: tuple[str, ...] = ("fp32", "fp16")
    sizes: tuple[str, ...] = ("fixed", "dynamic")
    outputs: tuple[str, ...] | None = None
    batches: tuple[int, ...] = (*BATCHES, LARGEST)
    bounded = False
    brings: tuple[str, ...] = ()
    takes_index = False

    def check_packages(self) -> None:
        """Refuse to begin without the packages.

        Raises:
            InputError: One is not installed.
        """
        for package in self.packages:
            load_package(package, self.install_hint)

    @abstractmethod
    def build(self, module: ExportedModule, sizes: str) -> Any:
        """The graph in the target's own form.

        Args:
            module: What the file computes.
            sizes: "fixed", or "dynamic" if images of other sizes shall be accepted too.
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

    def build(self, module: ExportedModule, sizes: str) -> Any:
        """An `onnx.ModelProto` that says nothing of this machine."""
        example, shapes = _example(module, sizes)
        with silenced("torch.onnx"):
            program = torch.onnx.export(
                module,
                (example,),
                input_names=["images" if module.inputs == "images" else "pixels"],
                output_names=list(module.outputs),
                dynamic_shapes=(shapes,),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        model = program.model_proto
        _forget_origins(model)
        if module.inputs == "picture":
            config, rule = module.network.config, module.card.preprocessing
            return with_picture_input(model, rule, config.in_channels)
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
    precisions = ("fp32", "fp16", "int8")

    def build(self, module: ExportedModule, sizes: str) -> Any:
        """An `openvino.Model`, converted from the ONNX graph, or from a plan's in 8 bits."""
        if module.eight_bits is None:
            graph = Onnx().build(module, sizes)
            model = openvino_core().read_model(graph.SerializeToString())
        else:
            rule, temperature = module.card.preprocessing, module.card.temperature
            model = module.eight_bits.model(module.inputs, rule, temperature, module.outputs)
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
    brings = ("torch",)

    def build(self, module: ExportedModule, sizes: str) -> Any:
        """An `ExportedProgram` that says nothing of this machine; it returns a dictionary."""
        example, shapes = _example(module, sizes)
        if module.inputs == "picture":
            side = module.card.preprocessing.resize
            example = example.new_zeros(2, side + 7, side + 30, example.shape[3])
            shapes |= {
                i + 1: torch.export.Dim(name, max=_MOST_PIXELS) for i, name in enumerate("hw")
            }
        named = _Named(module)
        program = torch.export.export(named, (example,), dynamic_shapes=(shapes,))
        for node in program.graph.nodes:
            for key in ("stack_trace", "from_node", "source_fn_stack"):
                node.meta.pop(key, None)
        return program

    def write(self, built: Any, path: Path, own: str, module: ExportedModule) -> None:
        """Write program and metadata."""
        content = io.BytesIO()  # a file's name would be written into it
        torch.export.save(built, content, extra_files={METADATA_KEY: own})
        path.write_bytes(content.getvalue())


class Executorch(Target):
    """A program for phones and small devices, computed by XNNPACK."""

    name, title, suffix = "executorch", "ExecuTorch", ".pte"
    packages = ("executorch", "torchao")
    install_hint = '"resnext[executorch]"'
    inputs: tuple[FileInput, ...] = ("images", "pixels")
    precisions = ("fp32",)
    sizes = ("fixed",)
    bounded = True
    brings = ("torch",)

    def check_packages(self) -> None:
        """Without torchao's remarks about GPUs."""
        with silenced("torchao"), silenced("torch"):
            super().check_packages()

    def build(self, module: ExportedModule, sizes: str) -> Any:
        """An `ExportedProgram`; the example is the largest batch.

        While ExecuTorch lowers a program it compares the batch with other sizes, and narrows its
        range to the side of the example: from a batch of 2, a bound of 32 became one of 15. A
        bound that is also another size, as 16 of a map of 16×16, is taken for a fixed one.
        """
        example, shapes = _example(module, sizes)
        bound = module.max_batch
        while True:
            largest = example.new_zeros(bound, *example.shape[1:])
            if bound == 1:
                return torch.export.export(module, (largest,))
            shapes[0] = torch.export.Dim("n", min=1, max=bound)
            program = torch.export.export(module, (largest,), dynamic_shapes=(shapes,))
            values = (node.meta.get("val") for node in program.graph.nodes)
            shapes_inside = (x.shape for x in values if isinstance(x, torch.Tensor))
            fixed = {size for shape in shapes_inside for size in shape if type(size) is int}
            if bound not in fixed:
                return program
            bound += 1

    def write(self, built: Any, path: Path, own: str, module: ExportedModule) -> None:
        """Write the program, with our metadata as a method that returns them."""
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # pyright: ignore[reportMissingImports]
        from executorch.exir import to_edge_transform_and_lower  # pyright: ignore[reportMissingImports]

        with silenced("executorch"):
            lowered = to_edge_transform_and_lower(
                built, partitioner=[XnnpackPartitioner()], constant_methods={METADATA_KEY: own}
            ).to_executorch()
        path.write_bytes(lowered.buffer)


class Page(Target):
    """One HTML file that classifies in the browser, without a network."""

    name, title, suffix = "page", "page for browsers", SUFFIX
    packages = ("onnx", "onnxscript")
    install_hint = '"resnext[onnx]"'
    inputs: tuple[FileInput, ...] = ("pixels",)
    precisions = ("fp16", "fp32")
    sizes = ("fixed",)
    outputs = ("logits", "embedding", "maps")
    batches = (1,)
    takes_index = True

    def check_packages(self) -> None:
        """Also Node.js and ONNX Runtime Web."""
        super().check_packages()
        check_node()
        runtime()

    def build(self, module: ExportedModule, sizes: str) -> Any:
        """An `onnx.ModelProto`.

        Raises:
            InputError: Browsers cannot scale pictures of 16 bits as the model needs.
        """
        if module.card.preprocessing.value_range is not None:
            raise InputError(
                "The model scales grey images of 16 bits (its card has a value_range); browsers "
                "read only their upper 8 bits. Take --to onnx."
            )
        return Onnx().build(module, sizes)

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
    """A module whose outputs have names, and which resizes pictures."""

    def __init__(self, module: ExportedModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.module.inputs == "picture":
            x = resized_and_cropped(x, self.module.card.preprocessing)
        return dict(zip(self.module.outputs, self.module(x), strict=True))


TARGETS: dict[str, Target] = {
    target.name: target for target in (Onnx(), OpenVino(), Torch(), Executorch(), Page())
}
"""The targets by name."""


def _example(module: ExportedModule, sizes: str) -> tuple[torch.Tensor, dict[int, Any]]:
    """Two images as a module takes them, and which of their dimensions may change."""
    config, side = module.network.config, module.card.preprocessing.size
    shapes: dict[int, Any] = {0: torch.export.Dim("n", min=1, max=_MOST_IMAGES)}
    if module.inputs != "images":
        return torch.zeros((2, side, side, config.in_channels), dtype=torch.uint8), shapes
    if sizes == "fixed":
        return torch.zeros(2, config.in_channels, side, side), shapes
    least = max(_LEAST_PIXELS, config.min_size, config.stride + 1)
    for i, name in enumerate("hw"):
        shapes[i + 2] = torch.export.Dim(name, min=least, max=_MOST_PIXELS)
    return torch.zeros(2, config.in_channels, side + 7, side + 30), shapes


def _forget_origins(model: Any) -> None:
    """Remove notes on where an ONNX graph came from, which hold paths of this machine."""
    graph = model.graph
    graph.doc_string = ""
    parts = (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]
