"""ResNeXt networks on PyTorch: define, load, train, evaluate, convert and run them.

Importing this package loads no torch and reads no files; each name is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnext import mmcls
    from resnext.architectures import variant, variants
    from resnext.backbone import Backbone
    from resnext.card import Card, Preprocessing
    from resnext.config import ResNeXtConfig
    from resnext.errors import ResNeXtError
    from resnext.evaluation.classification import evaluate
    from resnext.explanation.images import explain
    from resnext.exporting.export import export
    from resnext.inference.optimize import optimize
    from resnext.network import ResNeXt, create
    from resnext.prediction.images import predict
    from resnext.serving.run import serve
    from resnext.training import distill, train
    from resnext.weights.catalog import catalog
    from resnext.weights.conversion import convert
    from resnext.weights.diagnosis import diagnose
    from resnext.weights.load import load, load_backbone
    from resnext.weights.save import save

__version__ = "0.1.0"

_MODULE = {  # public name → module that defines it
    "Backbone": "backbone",
    "Card": "card",
    "Preprocessing": "card",
    "ResNeXt": "network",
    "ResNeXtConfig": "config",
    "ResNeXtError": "errors",
    "catalog": "weights.catalog",
    "convert": "weights.conversion",
    "create": "network",
    "diagnose": "weights.diagnosis",
    "distill": "training.launch",
    "evaluate": "evaluation.classification",
    "explain": "explanation.images",
    "export": "exporting.export",
    "load": "weights.load",
    "load_backbone": "weights.load",
    "optimize": "inference.optimize",
    "predict": "prediction.images",
    "save": "weights.save",
    "serve": "serving.run",
    "train": "training.launch",
    "variant": "architectures",
    "variants": "architectures",
} | dict.fromkeys(  # Lucid's factories, which completion does not offer
    (
        *("resnext_50_32x4d", "resnext_101_32x4d", "resnext_101_32x8d"),
        *("resnext_101_32x16d", "resnext_101_32x32d", "resnext_101_64x4d"),
    ),
    "lucid",
)

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
    "distill",
    "evaluate",
    "explain",
    "export",
    "load",
    "load_backbone",
    "mmcls",
    "optimize",
    "predict",
    "save",
    "serve",
    "train",
    "variant",
    "variants",
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it (PEP 562)."""
    if name in ("lucid", "mmcls"):
        return import_module(f"resnext.{name}")
    if name not in _MODULE:
        raise AttributeError(f"module 'resnext' has no attribute {name!r}")
    value = getattr(import_module(f"resnext.{_MODULE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, for completion."""
    return [*__all__, "__version__"]
