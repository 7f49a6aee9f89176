"""A network, and images that it learns in a few steps: are they reddish or greenish?"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import resnext

CONFIG = resnext.ResNeXtConfig(
    (1, 1, 1, 1), 4, 16, num_classes=2, channels=(16, 24, 32, 48), stem_channels=16
)


def images(count: int = 32, size: int = 32) -> tuple[Tensor, Tensor]:
    """Noisy images, and which channel is bright."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    x = 0.3 * torch.rand((count, 3, size, size), generator=generator)
    for image, label in zip(x, labels.tolist(), strict=True):
        image[label] += 0.5
    return x, labels


def network() -> resnext.ResNeXt:
    """An untrained network."""
    torch.manual_seed(0)
    return resnext.ResNeXt(CONFIG)


def accuracy(model: torch.nn.Module) -> float:
    """Of the images that `images` returns."""
    x, labels = images()
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == labels).float().mean())


def loads_as(path: str | Path, model: torch.nn.Module) -> None:
    """Require that a file that a library wrote loads as the same network."""
    x, _ = images(4)
    loaded = resnext.load(path, config=CONFIG)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model.cpu().eval()(x))
