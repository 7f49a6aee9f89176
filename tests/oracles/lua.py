"""Torch7's binary files, written as its own `torch.save` lays them out.

`torchfile`, another reader, is the judge of whether they are such files.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from resnext.config import ResNeXtConfig


class Lua:
    """A class's name and its table."""

    def __init__(self, kind: str, **fields: Any) -> None:
        self.kind = kind
        self.fields = fields


def sequence(kind: str, *modules: Lua, **fields: Any) -> Lua:
    """A container."""
    return Lua(kind, modules=dict(enumerate(modules, 1)), train=False, **fields)


def written(path: Path, content: Any, kind: str = "Float") -> None:
    """Write a file; arrays become tensors of a kind."""
    path.write_bytes(_Writer(kind).value(content))


class _Writer:
    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.count = 0
        self.known: dict[int, int] = {}

    def value(self, x: Any) -> bytes:
        if x is None:
            return struct.pack("<i", 0)
        if isinstance(x, bool):
            return struct.pack("<ii", 5, x)
        if isinstance(x, int | float):
            return struct.pack("<id", 1, x)
        if isinstance(x, str):
            return struct.pack("<i", 2) + self.text(x)
        kind = 3 if isinstance(x, dict) else 4
        if id(x) in self.known:
            return struct.pack("<ii", kind, self.known[id(x)])
        self.count += 1
        self.known[id(x)] = self.count
        head = struct.pack("<ii", kind, self.count)
        if isinstance(x, dict):
            items = b"".join(self.value(k) + self.value(v) for k, v in x.items())
            return head + struct.pack("<i", len(x)) + items
        if isinstance(x, Lua):
            return head + self.text("V 1") + self.text(x.kind) + self.value(x.fields)
        return head + self.tensor(x)

    def tensor(self, x: np.ndarray) -> bytes:
        self.count += 1
        code = {"Float": "<f4", "Cuda": "<f4", "Double": "<f8"}[self.kind]
        strides = [step // x.itemsize for step in np.ascontiguousarray(x).strides]
        sizes = struct.pack(f"<i{2 * x.ndim}qq", x.ndim, *x.shape, *strides, 1)
        storage = struct.pack("<ii", 4, self.count) + self.text("V 1")
        storage += self.text(f"torch.{self.kind}Storage") + struct.pack("<q", x.size)
        name = self.text("V 1") + self.text(f"torch.{self.kind}Tensor")
        return name + sizes + storage + x.astype(code).tobytes()

    def text(self, x: str) -> bytes:
        return struct.pack("<i", len(x)) + x.encode()


def network(state: dict[str, Tensor], config: ResNeXtConfig) -> Lua:
    """The original release's model of form C, filled with our weights."""
    values = {name: value.numpy() for name, value in state.items()}

    def conv(name: str, stride: int = 1) -> Lua:
        weight = values[f"{name}.weight"]
        fields = dict.fromkeys(("dW", "dH"), stride)
        fields |= dict.fromkeys(("padW", "padH"), weight.shape[-1] // 2)
        return Lua("cudnn.SpatialConvolution", weight=weight, **fields)

    def norm(name: str) -> Lua:
        parts = ("weight", "bias", "running_mean", "running_var")
        fields = {part: values[f"{name}.{part}"] for part in parts}
        return Lua("nn.SpatialBatchNormalization", eps=1e-5, **fields)

    def block(name: str, stride: int) -> Lua:
        path: list[Lua] = []
        for i in (1, 2, 3):
            path += [conv(f"{name}.conv{i}", stride if i == 2 else 1), norm(f"{name}.bn{i}")]
            path += [Lua("cudnn.ReLU", inplace=True)] if i < 3 else []
        shortcut = Lua("nn.Identity")
        if f"{name}.downsample.0.weight" in values:
            first, second = conv(f"{name}.downsample.0", stride), norm(f"{name}.downsample.1")
            shortcut = sequence("nn.Sequential", first, second)
        both = sequence("nn.ConcatTable", sequence("nn.Sequential", *path), shortcut)
        return sequence("nn.Sequential", both, Lua("nn.CAddTable"), Lua("cudnn.ReLU"))

    stages = [
        sequence(
            "nn.Sequential",
            *(block(f"layer{i + 1}.{j}", 2 if i and not j else 1) for j in range(count)),
        )
        for i, count in enumerate(config.layers)
    ]
    ends = Lua("nn.Linear", weight=values["fc.weight"], bias=values["fc.bias"])
    first = [conv("conv1", 1 if config.small_stem else 2), norm("bn1"), Lua("cudnn.ReLU")]
    first += [] if config.small_stem else [Lua("nn.SpatialMaxPooling", kW=3)]
    return sequence("nn.Sequential", *first, *stages, Lua("nn.View"), ends)
