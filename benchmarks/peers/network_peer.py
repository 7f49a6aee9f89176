"""A network of another library, for `family.py`, with the settings of our recipe `quick`.

`network_peer.py LIBRARY NETWORK SIZE train DATA EPOCHS FILE` prints accuracy on the test images,
multiply-accumulates and parameters as JSON, and writes the network to FILE; `… SIZE step` prints
milliseconds of a training step of 1 and of 32 images.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import shared
import torch
from torch import nn

LIBRARY = shared.declare_operators()

import torchvision  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from torchvision import transforms as T  # noqa: E402


def build(library: str, name: str) -> nn.Module:
    """An untrained network for ten classes."""
    if library == "timm":
        import timm

        return timm.create_model(name, num_classes=10)
    if library == "ultralytics":
        from ultralytics.nn.tasks import ClassificationModel

        return ClassificationModel(f"{name}.yaml", nc=10, verbose=False)
    return torchvision.models.get_model(name, num_classes=10)


class Logits(nn.Module):
    """A network that returns only logits: in evaluation, Ultralytics' also return probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images."""
        result = self.network(x)
        return result[-1] if isinstance(result, tuple) else result


def main() -> None:
    """Train a network, or time its training step."""
    library, name, size, part = sys.argv[1:5]
    torch.manual_seed(0)
    network = Logits(build(library, name)).to(memory_format=torch.channels_last)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    # as our recipe, without decay of norms and biases
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 0.003, foreach=True)
    bf16 = torch.cpu._is_avx512_bf16_supported()

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = criterion(network(x).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    if part == "step":
        x, y = torch.rand(32, 3, int(size), int(size)), torch.arange(32) % 10
        print(json.dumps({f"step {n}": milliseconds(step, x[:n], y[:n]) for n in (1, 32)}))
        return
    data, epochs, file = Path(sys.argv[5]), int(sys.argv[6]), sys.argv[7]
    train, test = loaders(data, int(size))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.003, epochs * len(train), pct_start=0.1, cycle_momentum=False
    )
    for _ in range(epochs):
        for x, y in train:
            step(x, y)
            schedule.step()
    network.eval()
    x = torch.rand(1, 3, int(size), int(size))
    with FlopCounterMode(display=False) as counter:
        network(x)
    result = {
        "accuracy": shared.validate(network, test),
        "count": len(test.dataset),  # pyright: ignore[reportArgumentType]
        "macs": counter.get_total_flops() // 2,
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    torch.jit.trace(network, x).save(file)
    print(json.dumps(result))


def loaders(data: Path, size: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Batches of training and test images."""
    normal = [T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    crop = T.RandomResizedCrop(size, (0.5, 1.0))
    train = torchvision.datasets.ImageFolder(
        str(data / "train"), T.Compose([crop, T.RandomHorizontalFlip(), *normal])
    )
    test = torchvision.datasets.ImageFolder(
        str(data / "test"), T.Compose([T.Resize((size, size)), *normal])
    )
    return DataLoader(train, 32, shuffle=True, drop_last=True), DataLoader(test, 64)


def milliseconds(step: Any, *given: torch.Tensor) -> float:
    """Shortest of twenty times, after a warm-up."""
    times: list[float] = []
    for _ in range(21):
        began = time.perf_counter()
        step(*given)
        times.append(time.perf_counter() - began)
    return round(1e3 * min(times[1:]), 3)


if __name__ == "__main__":
    main()
