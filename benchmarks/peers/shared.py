"""What the peers' scripts share: arguments, the image size, operators that torchvision may lack."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

SIZE = 64
"""Image size, pixels: small images are enlarged, because these networks divide them by 32."""


def arguments() -> tuple[Path, float]:
    """The folder of the data and the minutes."""
    return Path(sys.argv[1]), float(sys.argv[2])


def declare_operators() -> torch.library.Library:
    """Declare operators without which a torchvision built for another torch cannot be imported."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, arguments in (("nms", "Tensor d, Tensor s"), ("qnms", "Tensor d, Tensor s")):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}({arguments}, float t) -> Tensor")
    return library


def finish(accuracy: float, epochs: int) -> None:
    """Print the result as the last line."""
    print(json.dumps({"accuracy": accuracy, "epochs": epochs}))
