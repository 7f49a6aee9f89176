"""Small networks and contenders for the tests of `bench`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from oracles.recorded import fill

from resnext import Card, Preprocessing, ResNeXt, ResNeXtConfig
from resnext.benchmark import Benchmark, bench
from resnext.benchmark.contenders import Contender

TINY = ResNeXtConfig(
    (1, 1), 2, 8, channels=(16, 32), num_stages=2, small_stem=True, num_classes=4, stem_channels=16
)
FOUR = ResNeXtConfig((1, 1, 1, 1), 2, 4, num_classes=4)  # torchvision and timm have it too
Choose = Callable[..., None]


def made(config: ResNeXtConfig, size: int) -> ResNeXt:
    """A network that answers differently to different images."""
    network = ResNeXt(config)
    fill(network)
    network.card = Card(("ant", "bee", "cat", "dog"), Preprocessing(size, size))
    return network.eval()


def honest(contender: Contender) -> tuple[Callable[[], np.ndarray], str]:
    """The network itself."""
    network, x = contender.network(), torch.from_numpy(contender.images())
    return torch.inference_mode()(lambda: network(x).numpy()), contender.way


def quick(model: Any = None, **options: Any) -> Benchmark:
    """A short run of the tiny network."""
    usual: dict[str, Any] = {"batches": [2], "seconds": 0.005, "memory": False}
    return bench(model or made(TINY, 12), **(usual | options))
