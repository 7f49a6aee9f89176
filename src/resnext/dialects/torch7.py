"""The original release in Lua: modules have no names, so their order decides.

Source: `models/resnext.lua` of facebookresearch/ResNeXt. Its form C (`resnext_C`) is our network;
form B, which computes the same with one branch for each group, is not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from resnext.dialects.dialect import Dialect
from resnext.errors import CheckpointError


@runtime_checkable
class Module(Protocol):
    """A module of Lua's nn."""

    @property
    def kind(self) -> str:
        """Name of its class: `nn.Sequential`."""
        ...

    @property
    def fields(self) -> dict[Any, Any]:
        """Its fields: tensors, settings and modules inside."""
        ...

    def children(self) -> Sequence[Module]:
        """Modules inside, in order."""
        ...


_CONV = re.compile(r"(nn|cudnn|ccn2)\.SpatialConvolution(MM)?$")
_NORM = re.compile(r"(nn|cudnn|fbnn)\.(Spatial)?BatchNormalization$")
_RELU = re.compile(r"(nn|cudnn)\.ReLU$")


def _unpack(root: object) -> dict[str, np.ndarray[Any, Any]] | None:
    """The arrays of a network under our names; None if the object is not a module.

    Raises:
        CheckpointError: The network is not built like the original ResNeXt.
    """
    if not isinstance(root, Module):
        return None
    while root.kind in ("nn.DataParallelTable", "nn.Sequential") and len(root.children()) == 1:
        root = root.children()[0]
    modules = root.children()
    stages = [module for module in modules if module.kind == "nn.Sequential"]
    outer = [module for module in modules if module.kind != "nn.Sequential"]
    convs = [module for module in outer if _CONV.match(module.kind)]
    norms = [module for module in outer if _NORM.match(module.kind)]
    heads = [module for module in outer if module.kind == "nn.Linear"]
    if not stages or len(convs) != 1 or len(norms) != 1 or len(heads) != 1:
        raise CheckpointError(
            f"Its {root.kind} holds {', '.join(module.kind for module in modules[:6])}…: not the "
            f"convolution, norm, stages and linear layer of a ResNeXt."
        )
    state = {**_conv("conv1", convs[0]), **_norm("bn1", norms[0])}
    _check_geometry("conv1", convs[0], 2 if state["conv1.weight"].shape[-1] == 7 else 1)
    for i, stage in enumerate(stages):
        for j, block in enumerate(stage.children()):
            state |= _block(f"layer{i + 1}.{j}", block, 2 if i and not j else 1)
    state["fc.weight"] = _array("fc", heads[0], "weight")
    state["fc.bias"] = _array("fc", heads[0], "bias")
    return state


def _block(name: str, block: Module, stride: int) -> dict[str, np.ndarray[Any, Any]]:
    inner = block.children()
    branches = inner[0].children() if inner and inner[0].kind == "nn.ConcatTable" else []
    layers = branches[0].children() if branches else []
    convs = [layer for layer in layers if _CONV.match(layer.kind)]
    norms = [layer for layer in layers if _NORM.match(layer.kind)]
    if len(branches) != 2 or len(convs) != 3 or len(norms) != 3:
        raise CheckpointError(f"{name} is not a block of form C: one path of three convolutions.")
    state: dict[str, np.ndarray[Any, Any]] = {}
    for k in range(3):
        state |= {**_conv(f"{name}.conv{k + 1}", convs[k]), **_norm(f"{name}.bn{k + 1}", norms[k])}
        _check_geometry(f"{name}.conv{k + 1}", convs[k], stride if k == 1 else 1)
    for layer in layers:
        if not (_CONV.match(layer.kind) or _NORM.match(layer.kind) or _RELU.match(layer.kind)):
            raise CheckpointError(f"{name} holds {layer.kind}, which a block of form C does not.")
    shortcut = branches[1].children()
    if len(shortcut) == 2 and _CONV.match(shortcut[0].kind) and _NORM.match(shortcut[1].kind):
        state |= _conv(f"{name}.downsample.0", shortcut[0])
        _check_geometry(f"{name}.downsample.0", shortcut[0], stride)
        state |= _norm(f"{name}.downsample.1", shortcut[1])
    elif branches[1].kind != "nn.Identity":
        raise CheckpointError(f"The shortcut of {name} is a {branches[1].kind}, not a projection.")
    return state


def _conv(name: str, module: Module) -> dict[str, np.ndarray[Any, Any]]:
    bias = module.fields.get("bias")
    if isinstance(bias, np.ndarray) and bias.any():
        raise CheckpointError(f"{name} has a bias; convolutions of a ResNeXt have none.")
    weight, f = _array(name, module, "weight"), module.fields
    height, width = f.get("kH"), f.get("kW")
    if weight.ndim == 2 and isinstance(height, int) and isinstance(width, int):
        weight = weight.reshape(len(weight), -1, height, width)
    return {f"{name}.weight": weight}


def _check_geometry(name: str, module: Module, stride: int) -> None:
    """Refuse strides and paddings that are not the original's: the weights do not show them."""
    pad = _conv(name, module)[f"{name}.weight"].shape[-1] // 2
    for field, usual in (("dW", stride), ("dH", stride), ("padW", pad), ("padH", pad)):
        value = module.fields.get(field, usual)
        if value != usual:
            raise CheckpointError(f"{name} has {field} {value}, not {usual} as the original has.")


def _norm(name: str, module: Module) -> dict[str, np.ndarray[Any, Any]]:
    if "running_std" in module.fields:
        raise CheckpointError(
            f"{name} was written by an old version of Torch7, with running_std. Save it with a "
            f"newer one."
        )
    if abs(module.fields.get("eps", 1e-5) - 1e-5) > 1e-9:
        raise CheckpointError(f"{name} has eps {module.fields['eps']}, not 1e-5.")
    fields = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{field}": _array(name, module, field) for field in fields}


def _array(name: str, module: Module, field: str) -> np.ndarray[Any, Any]:
    value = module.fields.get(field)
    if not isinstance(value, np.ndarray) or not value.size:
        raise CheckpointError(f"{name} ({module.kind}) has no {field}.")
    return value


TORCH7 = Dialect("torch7", "Torch7", unpack=_unpack, recognises=lambda names: False)
