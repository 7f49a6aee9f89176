"""Pictures of any size in: resizing and cropping inside a file, within one level of Pillow's.

In ONNX and OpenVINO files, resizing is two products with matrices of weights that the file computes
from the picture's size. Their own operators would not do: OpenVINO ignores `antialias` of ONNX's
`Resize`, and its `bilinear_pillow` takes seconds for each new size. Sizes are compared as integers,
so that also runtimes that compute in 16 bits find the right places.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import UInt8
from torch import Tensor

from resnext.card import Preprocessing
from resnext.errors import InputError

FILTERS = ("bilinear", "bicubic")
"""Ways to resize that files have inside."""

_BILINEAR = """
    {a}_weight = Sub(one, {a}_t)
    {a}_raw = Relu({a}_weight)"""
_BICUBIC = """
    {a}_u0 = Mul({a}_t, k3_2)
    {a}_u1 = Sub({a}_u0, k5_2)
    {a}_u2 = Mul({a}_t, {a}_t)
    {a}_u3 = Mul({a}_u1, {a}_u2)
    {a}_near = Add({a}_u3, one)
    {a}_v0 = Sub(two, {a}_t)
    {a}_v1 = Mul({a}_v0, {a}_v0)
    {a}_v2 = Sub(one, {a}_t)
    {a}_v3 = Mul({a}_v1, {a}_v2)
    {a}_far = Mul({a}_v3, half)
    {a}_is_near = Less({a}_t, one)
    {a}_is_far = Less({a}_t, two)
    {a}_outer = Where({a}_is_far, {a}_far, zero)
    {a}_raw = Where({a}_is_near, {a}_near, {a}_outer)"""
_WEIGHTS = """
    {a}_in = Gather(sides, {axis})
    {a}_out = Gather(wanted, {axis})
    {a}_start = Gather(start, {axis})
    {a}_twice_start = Mul({a}_start, i2)
    {a}_twice_in = Mul({a}_in, i2)
    {a}_i = Add(odds, {a}_twice_start)
    {a}_j = Range(i1, {a}_twice_in, i2)
    {a}_here = Mul({a}_i, {a}_in)
    {a}_there = Mul({a}_j, {a}_out)
    {a}_apart = Sub({a}_here, {a}_there)
    {a}_larger = Max({a}_in, {a}_out)
    {a}_reach = Mul({a}_larger, i2)
    {a}_apart_f = Cast <to = 1> ({a}_apart)
    {a}_reach_f = Cast <to = 1> ({a}_reach)
    {a}_signed = Div({a}_apart_f, {a}_reach_f)
    {a}_t = Abs({a}_signed){filter}
    {a}_sum = ReduceSum({a}_raw, last_axis)
    {a}_weights = Div({a}_raw, {a}_sum)"""
_LEVELS = """
    {a}_added = Add({a}_product, half)
    {a}_clipped = Clip({a}_added, zero, most)
    {a}_levels = Floor({a}_clipped)"""
_FRONT = """
<ir_version: {ir}, opset_import: ["": {opset}]>
front (uint8[n, h, w, {channels}] picture) => (uint8[n, {size}, {size}, {channels}] pixels)
<int64 i0 = {{0}}, int64 i1 = {{1}}, int64 i2 = {{2}}, int64[1] last_axis = {{-1}},
 int64 size = {{{size}}}, int64 resize = {{{resize}}}, int64[{size}, 1] odds = {{{odds}}},
 float zero = {{0}}, float one = {{1}}, float two = {{2}}, float half = {{0.5}},
 float most = {{255.5}}, float k3_2 = {{1.5}}, float k5_2 = {{2.5}}>
{{
    planes_8 = Transpose <perm = [0, 3, 1, 2]> (picture)
    planes = Cast <to = 1> (planes_8)
    sides = Shape <start = 2> (planes_8)
    shorter = ReduceMin <keepdims = 1> (sides)
    scaled = Mul(sides, resize)
    wanted = Div(scaled, shorter)
    spare = Sub(wanted, size)
    spare_half = Div(spare, i2)
    odd = Mod(spare_half, i2)
    to_even = Add(spare, odd)
    start = Div(to_even, i2){weights}
    w_transposed = Transpose <perm = [1, 0]> (w_weights)
    w_product = MatMul(planes, w_transposed){w_levels}
    h_product = MatMul(h_weights, w_levels){h_levels}
    upright = Transpose <perm = [0, 2, 3, 1]> (h_levels)
    pixels = Cast <to = 2> (upright)
}}
"""


def check_picture(preprocessing: Preprocessing) -> None:
    """Refuse preprocessing that files do not have inside.

    Raises:
        InputError: Pictures are resized by another filter, or to less than is cropped.
    """
    if preprocessing.interpolation not in FILTERS:
        raise InputError(
            f"The model resizes by {preprocessing.interpolation}, which files cannot do inside. "
            f"Take --input pixels."
        )
    if preprocessing.resize < preprocessing.size:
        raise InputError(
            f"The model resizes to {preprocessing.resize} and pads to {preprocessing.size} pixels, "
            f"which files cannot do inside. Take --input pixels."
        )


def with_picture_input(graph: Any, preprocessing: Preprocessing, channels: int) -> Any:
    """A graph that takes a "picture" and resizes and crops it, from one that takes "pixels".

    Args:
        graph: An `onnx.ModelProto`; its largest parts may be moved.
        preprocessing: Its size, resize and interpolation are built in.
        channels: Channels of pictures.
    """
    from onnx import compose

    front = picture_front(preprocessing, channels, graph.opset_import[0].version, graph.ir_version)
    merged = compose.merge_models(front, graph, [("pixels", "pixels")], prefix1="picture_")
    merged.graph.node[0].input[0] = merged.graph.input[0].name = "picture"
    return merged


def picture_front(preprocessing: Preprocessing, channels: int, opset: int, ir_version: int) -> Any:
    """An `onnx.ModelProto` that resizes and crops a "picture" to "pixels".

    Args:
        preprocessing: Its size, resize and interpolation are built in.
        channels: Channels of pictures.
        opset: Version of ONNX's operators.
        ir_version: Version of ONNX's format.
    """
    from onnx import parser

    size = preprocessing.size
    kernel = _BICUBIC if preprocessing.interpolation == "bicubic" else _BILINEAR
    weights = "".join(
        _WEIGHTS.format(a=a, axis=axis, filter=kernel.format(a=a))
        for a, axis in (("h", "i0"), ("w", "i1"))
    )
    front = parser.parse_model(
        _FRONT.format(
            ir=ir_version,
            opset=opset,
            channels=channels,
            size=size,
            resize=preprocessing.resize,
            odds=", ".join(str(2 * i + 1) for i in range(size)),
            weights=weights,
            w_levels=_LEVELS.format(a="w"),
            h_levels=_LEVELS.format(a="h"),
        )
    )
    used = {name for node in front.graph.node for name in node.input}
    for constant in [x for x in front.graph.initializer if x.name not in used]:
        front.graph.initializer.remove(constant)
    return front


def resized_and_cropped(
    x: UInt8[Tensor, "n h w c"], preprocessing: Preprocessing
) -> UInt8[Tensor, "n s s c"]:
    """Pictures as pixels of the network's size, for programs of torch."""
    size, resize = preprocessing.size, preprocessing.resize
    height, width = x.shape[1:3]
    shorter = cast("int", torch.sym_min(height, width))
    wanted = [height * resize // shorter, width * resize // shorter]
    planes = torch.nn.functional.interpolate(
        x.permute(0, 3, 1, 2), wanted, mode=preprocessing.interpolation, antialias=True
    )
    for axis, side in ((2, wanted[0]), (3, wanted[1])):
        spare = side - size
        planes = planes.narrow(axis, (spare + spare // 2 % 2) // 2, size)
    return planes.permute(0, 2, 3, 1)
