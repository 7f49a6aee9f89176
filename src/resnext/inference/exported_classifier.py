"""The last layer of a file that `export` wrote, which class maps need beside the file's outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from resnext.inference.engines.base import load_package
from resnext.inference.engines.openvino import openvino_core
from resnext.inference.runner import Classifier


def exported_classifier(path: Path) -> Classifier:
    """Weight and bias of the linear layer behind the output "embedding".

    Args:
        path: A file that `export` wrote: `.onnx`, `.xml` or `.pt2`.

    Raises:
        InputError: The package that reads the file is not installed.
    """
    readers = {".onnx": _from_onnx, ".xml": _from_openvino, ".pt2": _from_torch}
    weight, bias = readers[path.suffix.lower()](path)
    return Classifier(weight.astype(np.float32), bias.astype(np.float32))


def _from_onnx(path: Path) -> tuple[np.ndarray, np.ndarray]:
    onnx = load_package("onnx", '"resnext[onnx]"')
    graph = onnx.load(path).graph
    stored = {x.name: x for x in graph.initializer}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in stored:
            stored[node.output[0]] = stored[node.input[0]]
    linear = next(node for node in graph.node if "embedding" in node.input)
    weight, bias = (onnx.numpy_helper.to_array(stored[name]) for name in linear.input[1:])
    return weight, bias


def _from_openvino(path: Path) -> tuple[np.ndarray, np.ndarray]:
    model = openvino_core().read_model(path)
    node = model.output("embedding").get_node()
    if node.get_type_name() == "Result":
        node = node.input_value(0).get_node()
    found: list[np.ndarray] = []
    for wanted in (2, 1):  # the product's matrix, and the vector that is added to it
        while not (values := [x for x in _constants(node) if x.ndim == wanted]):
            node = next(
                port.get_node()
                for port in node.output(0).get_target_inputs()
                if port.get_node().get_type_name() != "Result"
            )
        found += values
    weight, bias = found
    return weight, bias


def _constants(node: Any) -> list[np.ndarray]:
    """The constants among the inputs of a node, also those that are converted or scaled first."""
    found: list[np.ndarray] = []
    for port in node.input_values():
        source = port.get_node()
        if source.get_type_name() == "Constant":
            found.append(source.data)
        elif source.get_type_name() in ("Convert", "Multiply"):
            found += _constants(source)
    return found


def _from_torch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import torch

    stored = torch.export.load(path).state_dict
    names = ("fc.weight", "fc.parametrizations.weight.original"), ("fc.bias",)
    weight, bias = (next(x for name, x in stored.items() if name.endswith(ends)) for ends in names)
    return weight.float().numpy(), bias.float().numpy()
