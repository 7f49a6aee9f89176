"""The last layer of a classifier, read from a file of another runtime: exact class maps need it."""

from __future__ import annotations

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
    found = readers[path.suffix.lower()](path, position)
    if found is None:
        raise InputError(
            f"{path} has no last layer that can be read, so no exact class map. Use the method "
            f"occlusion."
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

    def constant(node: Any) -> Any:
        while node.get_type_name() == "Convert":
            node = node.input_value(0).get_node()
        return node.get_data() if node.get_type_name() == "Constant" else None

    node, bias = model.outputs[position].get_node(), None
    while node.get_type_name() != "MatMul":
        if not node.inputs():
            return None
        if node.get_type_name() == "Add":
            bias = constant(node.input_value(1).get_node())
        node = node.input_value(0).get_node()
    weight = constant(node.input_value(1).get_node())
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
