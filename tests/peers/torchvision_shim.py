"""Pytest plugin: the constructors of torchvision's ResNets and ResNeXts build our networks.

A ResNet is a ResNeXt with one group. Those of the basic block stay torchvision's. Detection and
segmentation call these constructors, so their tests run on our networks too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from oracles import originals  # lets torchvision be imported
from torch import nn
from torchvision import models
from torchvision.models import _api as registry
from torchvision.models._utils import handle_legacy_interface
from torchvision.models.detection import backbone_utils
from torchvision.ops import FrozenBatchNorm2d

from resnext import ResNeXt, ResNeXtConfig

_NETWORKS: dict[str, tuple[tuple[int, ...], int, int]] = {
    "resnet50": ((3, 4, 6, 3), 1, 64),
    "resnet101": ((3, 4, 23, 3), 1, 64),
    "resnet152": ((3, 8, 36, 3), 1, 64),
    "wide_resnet50_2": ((3, 4, 6, 3), 1, 128),
    "wide_resnet101_2": ((3, 4, 23, 3), 1, 128),
    "resnext50_32x4d": ((3, 4, 6, 3), 32, 4),
    "resnext101_32x8d": ((3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": ((3, 4, 23, 3), 64, 4),
}
_WHOLE = (  # tests without a model in their name that build a ResNet with bottlenecks
    "test_resnet_dilation",
    "test_fasterrcnn_double",
    "test_fasterrcnn_switch_devices",
)
_NEED_OPERATORS = ("test_detection_model", "test_fasterrcnn_double")


def _dilated(dilate: list[bool] | tuple[bool, ...]) -> dict[str, Any]:
    """Strides and dilations for `replace_stride_with_dilation`: a first block keeps the last's."""
    strides, dilations, dilation = [1], list[Any]([1]), 1
    for replaced in dilate:
        before = dilation
        dilation *= 2 if replaced else 1
        strides.append(1 if replaced else 2)
        dilations.append((before, *([dilation] * 100)))
    return {"strides": tuple(strides), "dilations": dilations}


def _constructor(name: str) -> Callable[..., nn.Module]:
    layers, cardinality, base_width = _NETWORKS[name]

    def build(
        *,
        weights: Any = None,
        progress: bool = True,
        norm_layer: Any = None,
        replace_stride_with_dilation: Any = None,
        **fields: Any,
    ) -> nn.Module:
        """One of our networks."""
        if weights is not None:
            fields["num_classes"] = len(weights.meta["categories"])
        if replace_stride_with_dilation is not None:
            changed = _dilated(replace_stride_with_dilation)
            blocks = zip(changed["dilations"], layers, strict=True)
            changed["dilations"] = [d if d == 1 else d[:n] for d, n in blocks]
            fields |= changed
        model: nn.Module = ResNeXt(ResNeXtConfig(layers, cardinality, base_width, **fields))
        if norm_layer is FrozenBatchNorm2d:
            _freeze(model)
        if weights is not None:
            model.load_state_dict(weights.get_state_dict(progress=progress))
        return model

    build.__name__, build.__module__ = name, models.resnet.__name__  # where the registry looks
    weights: Any = registry.get_model_weights(name)
    return handle_legacy_interface(weights=("pretrained", weights.DEFAULT))(build)


def _freeze(module: nn.Module) -> None:
    """Frozen norms in place of batch norms."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features))
        _freeze(child)


def _replace(name: str) -> None:
    """Put our constructor wherever torchvision's was imported."""
    theirs, ours = getattr(models, name), _constructor(name)
    registry.BUILTIN_MODELS[name] = ours
    homes = (models, models.resnet, models.detection, models.segmentation, backbone_utils)
    inner = [getattr(home, part) for home in homes for part in dir(home)]
    for module in [*homes, *(m for m in inner if isinstance(m, type(models)))]:
        if getattr(module, name, None) is theirs:
            setattr(module, name, ours)


for _name in _NETWORKS:
    _replace(_name)


@pytest.fixture
def mocker() -> Iterator[SimpleNamespace]:
    """What the tests use of pytest-mock."""
    with ExitStack() as stack:
        yield SimpleNamespace(patch=lambda target: stack.enter_context(mock.patch(target)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests that build one of the replaced networks, alone or inside a detector."""
    items[:] = [item for item in items if _is_ours(item)]
    if not originals.has_operators():
        reason = "torchvision's operators were built for another torch"
        for item in items:
            if item.name.partition("[")[0] in _NEED_OPERATORS:
                item.add_marker(pytest.mark.skip(reason=reason))


def _is_ours(item: Any) -> bool:
    given = getattr(item, "callspec", SimpleNamespace(params={})).params.values()
    names = [str(getattr(value, "__name__", value)) for value in given]
    return item.name.partition("[")[0] in _WHOLE or any(
        re.search(rf"(^|_){ours}(_|$)", name) and "quantized" not in item.name
        for name in names
        for ours in _NETWORKS
    )
