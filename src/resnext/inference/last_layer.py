"""The last layer of a classifier, read from a file of another runtime: exact class maps need it."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from resnext.errors import InputError
from resnext.inference.engines.base import load_package
from resnext.inference.engines.openvino import openvino_core
from resnext.inference.runner import Classifier


def read_last_layer(path: Path, position: int) -> Classifier:
    """Weight and bias of the linear layer behind an output.

    Args:
        path: A file of `export`.
        position: Position of the output.

    Raises:
        InputError: There is no such layer, or onnx is not installed.
    """
    readers = {".onnx": _from_onnx, ".xml": _from_openvino, ".pt2": _from_torch}
    reader = readers.get(path.suffix.lower())  # none for ExecuTorch, whose weights are packed
    found = reader and reader(path, position)
    if found is None:
        raise InputError(
            f"{path} has no last layer that can be read, so no exact class map. Use the method "
            f"occlusion (--how occlusion)."
        )
    weight, bias = (np.asarray(values, np.float32) for values in found)
    return Classifier(weight, bias)


def _from_onnx(path: Path, position: int) -> tuple[Any, Any] | None:
    onnx = load_package("onnx", '"resnext[onnx]"')
    graph = onnx.load(path).graph
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}

    def constant(name: str) -> Any:
        node = made_by.get(name)
        return constants.get(node.input[0] if node and node.op_type == "Cast" else name)

    node = made_by.get(graph.output[position].name)
    while node is not None and node.op_type != "Gemm":
        node = made_by.get(node.input[0])
    if node is None or constant(node.input[1]) is None:
        return None
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    weight = constant(node.input[1])
    return weight if transposed else weight.T, constant(node.input[2])


def _from_openvino(path: Path, position: int) -> tuple[Any, Any] | None:
    model = openvino_core().read_model(path)

    def sources(node: Any) -> list[Any]:
        return [port.get_source_output().get_node() for port in node.inputs()]

    def constant(node: Any) -> Any:
        """The values of a node that depends on no image."""
        kind = node.get_type_name()
        if kind == "Constant":
            return node.get_data()
        if kind not in ("Convert", "Multiply"):  # of fp16; by the factors of ONNX's Gemm
            return None
        parts = [constant(source) for source in sources(node)]
        return None if any(part is None for part in parts) else prod(parts)

    node, bias = model.outputs[position].get_node(), None
    while node.get_type_name() != "MatMul":
        if not node.inputs():
            return None
        values = [(source, constant(source)) for source in sources(node)]
        constants = [value for _, value in values if value is not None]
        if node.get_type_name() == "Add" and constants:
            bias = constants[0]
        node = next((source for source, value in values if value is None), values[0][0])
    weight = constant(sources(node)[1])
    if weight is None or bias is None:
        return None
    transposed = node.get_attributes()["transpose_b"]
    return weight if transposed else weight.T, bias.reshape(-1)


def _from_torch(path: Path, position: int) -> tuple[Any, Any] | None:
    import torch

    state = torch.export.load(path).state_dict
    weight, bias = (
        next((x for name, x in state.items() if ".fc." in name and word in name), None)
        for word in ("weight", "bias")
    )
    return None if weight is None or bias is None else (weight.float(), bias)
