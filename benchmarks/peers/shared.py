"""What the peers' scripts share: arguments, the image size, operators that torchvision may lack."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Keras' environment has no torch
    import torch
    from torch import Tensor

SIZE = 64
"""Image size, pixels: small images are enlarged, because these networks divide them by 32."""


def arguments() -> tuple[Path, float]:
    """The folder of the data and the minutes."""
    return Path(sys.argv[1]), float(sys.argv[2])


def declare_operators() -> torch.library.Library:
    """Declare operators without which a torchvision built for another torch cannot be imported."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, arguments in (("nms", "Tensor d, Tensor s"), ("qnms", "Tensor d, Tensor s")):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}({arguments}, float t) -> Tensor")
    return library


def validate(classify: Callable[[Tensor], Tensor], loader: Iterable[Any]) -> float:
    """Accuracy on the batches of a loader."""
    import torch

    right = total = 0
    with torch.inference_mode():
        for x, y in loader:
            right += int((classify(x).argmax(1) == y).sum())
            total += len(y)
    return right / total


def finish(accuracy: float, epochs: int) -> None:
    """Print the result as the last line."""
    print(json.dumps({"accuracy": accuracy, "epochs": epochs}))
