"""Entry points of `torch.hub`: every variant by its name, `load` and `load_backbone`.

torch.hub.load(CHECKOUT, "resnext50_32x4d", source="local", num_classes=7)
torch.hub.load(CHECKOUT, "load", "resnext50_32x4d.a1_in1k", source="local")
"""

import pathlib
import sys
import typing

sys.path.insert(0, str(pathlib.Path(__file__).parent / "src"))

import resnext
from resnext import load, load_backbone  # noqa: F401

dependencies = ["torch", "numpy", "safetensors", "PIL", "jaxtyping", "filelock"]


def _entry(name: str) -> typing.Any:
    def build(
        pretrained: bool = False, weights: str | None = None, **fields: typing.Any
    ) -> typing.Any:
        if pretrained or weights:
            return resnext.load(weights or name, **fields)
        return resnext.create(name, **fields)

    build.__name__ = name
    build.__doc__ = f"{name}: untrained, or with the weights of the checkpoint `weights`."
    return build


globals().update({name: _entry(name) for name in resnext.variants()})
