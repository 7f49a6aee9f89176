"""The engines, and the graphs that they run.

base.py          the protocol of an engine
torch.py         PyTorch: eager, compiled, or through TensorRT
onnxruntime.py   ONNX Runtime
openvino.py      OpenVINO, also in 8 bits
builder.py       the folded network and its graphs, each made once
onnx_export.py   the network as an ONNX graph; wider groups and 8-bit pixels as edits of it
quantization.py  8-bit networks through NNCF

A new engine is a file here and a row in `ENGINES`.
"""

from __future__ import annotations

from resnext.inference.engines.base import Engine, EngineConfig
from resnext.inference.engines.onnxruntime import OnnxRuntime
from resnext.inference.engines.openvino import OpenVino
from resnext.inference.engines.torch import Compile, TensorRT, Torch

ENGINES: dict[str, Engine] = {
    "torch": Torch(),
    "compile": Compile(),
    "tensorrt": TensorRT(),
    "onnxruntime": OnnxRuntime(),
    "openvino": OpenVino(),
}
"""All engines by name. Their versions, in this order, are part of a cached plan's key: append."""

__all__ = ["ENGINES", "Engine", "EngineConfig"]
