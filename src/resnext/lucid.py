"""Lucid's factories: `resnext_50_32x4d(num_classes=1000, **fields)` and its siblings."""

from __future__ import annotations

from enum import Enum
from typing import Any

from resnext.architectures import variant
from resnext.backbone import Backbone
from resnext.errors import ConfigTypeError
from resnext.network import ResNeXt

_PRESET = ("layers", "cardinality", "base_width")


def _built(
    name: str, num_classes: int, weights: str | Enum | None, fields: dict[str, Any]
) -> ResNeXt:
    """The network of a factory.

    Raises:
        ConfigTypeError: A preset field is given, or a field besides `num_classes` with weights.
        ConfigError: A field is out of range.
        UnknownNameError: Lucid has no such weights.
        CheckpointError: The weights cannot be loaded.
    """
    if given := [field for field in _PRESET if field in fields]:
        raise ConfigTypeError(
            f"{name} does not allow overriding its preset {given[0]}. Build a network of other "
            f"sizes with ResNeXt(ResNeXtConfig(layers, cardinality, base_width))."
        )
    if weights is None:
        return ResNeXt(variant(name, num_classes=num_classes, **fields))
    if fields:
        raise ConfigTypeError(f"{next(iter(fields))} cannot be changed in a network with weights.")
    from resnext.weights.load import load

    tag = weights.name if isinstance(weights, Enum) else weights.rpartition(".")[2]
    network = load(f"lucid/{name}.{tag}", num_classes=num_classes)
    assert not isinstance(network, Backbone)
    return network


def resnext_50_32x4d(
    num_classes: int = 1000, *, weights: str | Enum | None = None, **fields: Any
) -> ResNeXt:
    """ResNeXt-50, 32×4d: untrained, or with Lucid's weights; `fields` are of `ResNeXtConfig`."""
    return _built("resnext_50_32x4d", num_classes, weights, fields)


def resnext_101_32x4d(
    num_classes: int = 1000, *, weights: str | Enum | None = None, **fields: Any
) -> ResNeXt:
    """ResNeXt-101, 32×4d: untrained, or with Lucid's weights; `fields` are of `ResNeXtConfig`."""
    return _built("resnext_101_32x4d", num_classes, weights, fields)


def resnext_101_32x8d(
    num_classes: int = 1000, *, weights: str | Enum | None = None, **fields: Any
) -> ResNeXt:
    """ResNeXt-101, 32×8d: untrained, or with Lucid's weights; `fields` are of `ResNeXtConfig`."""
    return _built("resnext_101_32x8d", num_classes, weights, fields)


def resnext_101_32x16d(
    num_classes: int = 1000, *, weights: str | Enum | None = None, **fields: Any
) -> ResNeXt:
    """ResNeXt-101, 32×16d: untrained; `fields` are of `ResNeXtConfig`."""
    return _built("resnext_101_32x16d", num_classes, weights, fields)


def resnext_101_32x32d(
    num_classes: int = 1000, *, weights: str | Enum | None = None, **fields: Any
) -> ResNeXt:
    """ResNeXt-101, 32×32d: untrained; `fields` are of `ResNeXtConfig`."""
    return _built("resnext_101_32x32d", num_classes, weights, fields)


def resnext_101_64x4d(
    num_classes: int = 1000, *, weights: str | Enum | None = None, **fields: Any
) -> ResNeXt:
    """ResNeXt-101, 64×4d: untrained, or with Lucid's weights; `fields` are of `ResNeXtConfig`."""
    return _built("resnext_101_64x4d", num_classes, weights, fields)
