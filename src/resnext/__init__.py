"""The ResNeXt library: define, load, train, run, explain and ship ResNeXt networks.

Importing this touches neither torch nor the disk; each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnext import mmcls
    from resnext.backbone import Backbone
    from resnext.card import Card, Preprocessing
    from resnext.config import ResNeXtConfig
    from resnext.conversion import convert
    from resnext.diagnosis import diagnose
    from resnext.errors import ResNeXtError
    from resnext.evaluation import evaluate
    from resnext.inference.optimizing import optimize
    from resnext.network import ResNeXt, create
    from resnext.prediction import predict
    from resnext.training import train
    from resnext.weights.catalog import catalog
    from resnext.weights.files import save
    from resnext.weights.loading import load, load_backbone
    from resnext.zoo import variant, variants

__version__ = "0.1.0"

_HOME = {  # public name → module that defines it
    "Backbone": "backbone",
    "Card": "card",
    "Preprocessing": "card",
    "ResNeXt": "network",
    "ResNeXtConfig": "config",
    "ResNeXtError": "errors",
    "catalog": "weights.catalog",
    "convert": "conversion",
    "create": "network",
    "diagnose": "diagnosis",
    "evaluate": "evaluation",
    "load": "weights.loading",
    "load_backbone": "weights.loading",
    "optimize": "inference.optimizing",
    "predict": "prediction",
    "save": "weights.files",
    "train": "training",
    "variant": "zoo",
    "variants": "zoo",
}

__all__ = [
    "Backbone",
    "Card",
    "Preprocessing",
    "ResNeXt",
    "ResNeXtConfig",
    "ResNeXtError",
    "catalog",
    "convert",
    "create",
    "diagnose",
    "evaluate",
    "load",
    "load_backbone",
    "mmcls",
    "optimize",
    "predict",
    "save",
    "train",
    "variant",
    "variants",
]


def __getattr__(name: str) -> Any:
    """Load a public name where it is defined (PEP 562)."""
    if name == "mmcls":
        return import_module("resnext.mmcls")
    if name not in _HOME:
        raise AttributeError(f"module 'resnext' has no attribute {name!r}")
    value = getattr(import_module(f"resnext.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, for completion."""
    return [*__all__, "__version__"]
