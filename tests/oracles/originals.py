"""Other libraries themselves, to be run beside ours. Each is imported at its first use.

A torchvision built for another torch cannot load its C++ operators, and then it cannot even be
imported: it describes `nms` to the compiler and finds no such operator. Its networks need none of
them, so the missing ones are declared here first. Import both from this module only.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_MISSING = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _declare_missing_operators() -> torch.library.Library:
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None, "the tests need torchvision: pip install 'resnext[dev]'"
    assert spec.origin is not None
    for file in Path(spec.origin).parent.glob("_C.*"):
        with contextlib.suppress(OSError):
            torch.ops.load_library(file)
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _MISSING:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library.define(schema)
    return library


_LIBRARY = _declare_missing_operators()  # what it declares goes away with it


class OnFirstUse:
    """A library that is imported when the first of its attributes is read."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        """An attribute of the library, not the private ones that pytest reads of every object."""
        if attribute.startswith("_") and attribute != "__version__":
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self.name), attribute)


torchvision, timm = OnFirstUse("torchvision"), OnFirstUse("timm")
sklearn, scipy = OnFirstUse("sklearn"), OnFirstUse("scipy")
captum = OnFirstUse("captum")


def has_operators() -> bool:
    """Whether torchvision's own operators can run here."""
    return torchvision.extension._has_ops()


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Fill every parameter and statistic with numbers that hide nothing.

    Norms that start at one and zero would hide one that is left out or swapped, and blocks whose
    last norm starts at zero hide everything before it.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, deviation: float, mean: float = 0.0) -> None:
        like.normal_(mean, deviation, generator=generator)

    with torch.no_grad():
        for name, value in module.state_dict().items():
            kind = name.rpartition(".")[2]
            if not value.is_floating_point():
                value.zero_()
            elif kind == "running_var":
                value.uniform_(0.5, 1.5, generator=generator)
            elif kind in ("running_mean", "bias"):
                normal(value, 0.1)
            elif value.ndim == 1:  # the scale of a norm
                value.uniform_(0.4, 0.9, generator=generator)
            else:
                normal(value, (2 / value[0].numel()) ** 0.5)
