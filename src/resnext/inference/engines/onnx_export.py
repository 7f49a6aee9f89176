"""The network as an ONNX graph, and edits of such graphs that do not change the function."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from resnext.card import Preprocessing
from resnext.grouped_conv import spread
from resnext.inference.engines.base import load_package, silenced
from resnext.inference.fold import LogitsAndEmbedding
from resnext.network import ResNeXt

Graph = Any
"""An `onnx.ModelProto`: `images` in; `logits` and `embedding` out."""


def export_graph(network: ResNeXt, size: int) -> Graph:
    """The graph of a network for any number of images `(n, c, size, size)` in single precision.

    Raises:
        InputError: onnx or onnxscript is not installed.
    """
    for name in ("onnx", "onnxscript"):
        load_package(name, '"resnext[onnx]"')
    x = torch.zeros(2, network.config.in_channels, size, size)
    with silenced("torch.onnx"):
        program = torch.onnx.export(
            LogitsAndEmbedding(network.float().cpu()),
            (x,),
            input_names=["images"],
            output_names=["logits", "embedding"],
            dynamic_shapes=({0: torch.export.Dim("n", min=1, max=4096)},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def widen_groups(graph: Graph, width: int) -> Graph:
    """A copy that computes the same function with groups of `width` channels.

    Neighbouring narrower groups are merged; weights between channels of different groups are zero.
    Convolutions whose groups do not divide evenly are left unchanged.

    Args:
        graph: The graph; left unchanged.
        width: Channels of a merged group.
    """
    from onnx import numpy_helper

    graph = _copy(graph)
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    wider: set[tuple[str, int]] = set()
    for node in graph.graph.node:
        groups = next((a for a in node.attribute if a.name == "group"), None)
        if node.op_type != "Conv" or groups is None or groups.i == 1:
            continue
        tensor = weights[node.input[1]]
        values = numpy_helper.to_array(tensor)
        merged = width // values.shape[1]
        if can_merge(values.shape[1], groups.i, width):
            name = f"{tensor.name}_{width}_{groups.i}"  # others may share the old weights
            if (tensor.name, groups.i) not in wider:
                wide = spread(torch.tensor(values), groups.i, merged).numpy()
                graph.graph.initializer.append(numpy_helper.from_array(wide, name))
                wider.add((tensor.name, groups.i))
            node.input[1] = name
            groups.i //= merged
    used = {name for node in graph.graph.node for name in node.input}
    for listed in (graph.graph.initializer, graph.graph.value_info):
        for item in [x for x in listed if x.name in weights and x.name not in used]:
            listed.remove(item)
    return graph


def can_merge(own: int, groups: int, width: int) -> bool:
    """Whether groups of `own` channels can be merged into fewer groups of `width` channels."""
    return width > own and width % own == 0 and groups % (width // own) == 0


def graph_with_pixel_input(graph: Graph, preprocessing: Preprocessing) -> Graph:
    """A copy with the input `pixels` `(n, h, w, c)` of 8 bits, which normalizes them itself.

    The weights of the first convolution are divided by 255 and by the standard deviations. The
    means are subtracted before it: padding is zero after normalization, so a bias cannot do that.

    Args:
        graph: The graph; left unchanged.
        preprocessing: Its means and standard deviations are built in.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = _copy(graph)
    inside = graph.graph
    first = next(node for node in inside.node if node.op_type == "Conv")
    weight = next(tensor for tensor in inside.initializer if tensor.name == first.input[1])
    values = numpy_helper.to_array(weight).astype(np.float64)
    values /= 255 * np.array(preprocessing.std).reshape(1, -1, 1, 1)
    weight.CopyFrom(numpy_helper.from_array(values.astype(np.float32), weight.name))
    mean = 255 * np.array(preprocessing.mean, np.float64).reshape(1, -1, 1, 1)
    inside.initializer.append(numpy_helper.from_array(mean.astype(np.float32), "pixel_mean"))
    for node in inside.node:
        for i, name in enumerate(node.input):
            if name == "images":
                node.input[i] = "centred"
    before = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["planes", "pixel_mean"], ["centred"]),
    ]
    for i, node in enumerate(before):
        inside.node.insert(i, node)
    n, c, h, w = inside.input[0].type.tensor_type.shape.dim
    shape = [n.dim_param or n.dim_value, h.dim_value, w.dim_value, c.dim_value]
    inside.input[0].CopyFrom(helper.make_tensor_value_info("pixels", TensorProto.UINT8, shape))
    return graph


def _copy(graph: Graph) -> Graph:
    fresh = type(graph)()
    fresh.CopyFrom(graph)
    return fresh
