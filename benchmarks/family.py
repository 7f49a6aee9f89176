"""The search for the small networks: accuracy in the same minutes, and cost on a processor.

Run alone on the machine: `python benchmarks/family.py [NAME…] --data FOLDER [--minutes 1.5]
[--size 64]`, where FOLDER is any data set that `resnext train` takes. Every candidate changes one
property of a base: depth, channels, cardinality, width, expansion, stem or attention. Each is
trained for the same minutes, so a slower one has fewer epochs. Without names, all candidates run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import resnext
from resnext.config import ResNeXtConfig
from resnext.inference.fold import fold
from resnext.summary import summarize
from resnext.system.cpu import cpu_name

# For images from 64 pixels: four stages, a deep stem with pooling.
BASE: dict[str, Any] = {
    "layers": (1, 1, 2, 1),
    "cardinality": 4,
    "base_width": 16,
    "channels": (32, 64, 128, 256),
    "stem_type": "deep",
    "stem_width": 16,
}
# For images of about 32 pixels: three stages, and a stem without stride.
BASE_32: dict[str, Any] = {
    "layers": (1, 1, 2),
    "cardinality": 4,
    "base_width": 16,
    "channels": (32, 64, 128),
    "num_stages": 3,
    "strides": (2, 2, 2),
    "small_stem": True,
    "stem_channels": 32,
}
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "depth 1,1,1,1": {"layers": (1, 1, 1, 1)},
    "depth 1,2,3,1": {"layers": (1, 2, 3, 1)},
    "depth 2,2,2,2": {"layers": (2, 2, 2, 2)},
    "channels x 0.5": {"channels": (16, 32, 64, 128), "stem_width": 8},
    "channels x 0.75": {"channels": (24, 48, 96, 192)},
    "channels x 1.5": {"channels": (48, 96, 192, 384), "stem_width": 24},
    "cardinality 2x32d": {"cardinality": 2, "base_width": 32},
    "cardinality 8x8d": {"cardinality": 8, "base_width": 8},
    "cardinality 16x4d": {"cardinality": 16, "base_width": 4},
    "width 4x32d": {"base_width": 32},
    "width 4x8d": {"base_width": 8},
    "expansion 2": {"expansion": 2, "base_width": 32},
    "stem classic": {"stem_type": None, "stem_channels": 32},
    "attention se": {"attention": "se"},
    "attention eca": {"attention": "eca"},
}
CHANGES_32: dict[str, dict[str, Any]] = {
    "base": {},
    "depth 1,1,1": {"layers": (1, 1, 1)},
    "depth 2,2,2": {"layers": (2, 2, 2)},
    "channels x 0.5": {"channels": (16, 32, 64), "stem_channels": 16},
    "channels x 1.5": {"channels": (48, 96, 192), "stem_channels": 48},
    "channels x 2": {"channels": (64, 128, 256), "stem_channels": 48},
    "cardinality 2x32d": {"cardinality": 2, "base_width": 32},
    "cardinality 8x8d": {"cardinality": 8, "base_width": 8},
    "width 4x32d": {"base_width": 32},
    "expansion 2": {"expansion": 2, "base_width": 32},
    "stem 16": {"stem_channels": 16},
    "attention se": {"attention": "se"},
    "attention eca": {"attention": "eca"},
}


def main() -> None:
    """Train the candidates and print a row for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--minutes", type=float, default=1.5)
    parser.add_argument("--size", type=int, default=64)
    given = parser.parse_args()
    base, changes = (BASE_32, CHANGES_32) if given.size < 48 else (BASE, CHANGES)
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{given.data}, {given.size} pixels, {given.minutes:g} minutes each")
    print(
        "candidate           MMACs  Mparam  accuracy  epochs  step 32  forward 1  forward 32 (ms)"
    )
    for name in given.names or changes:
        config = ResNeXtConfig(num_classes=10, **{**base, **changes[name]})
        row(name, config, given.size, given.data, given.minutes)


def row(name: str, config: ResNeXtConfig, size: int, data: str, minutes: float) -> None:
    """Train one candidate, and print its accuracy and cost."""
    cost = summarize(config, size)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.safetensors"
        model = resnext.train(data, config, out=out, size=size, minutes=minutes, progress=False)
        assert model.card is not None
        accuracy = model.card.metrics["val_accuracy"]
        rows = (Path(folder) / "model.run" / "metrics.jsonl").read_text().splitlines()
    choice = model.card.provenance["minutes"]
    step = 32e3 / choice["candidates"][0]["images_per_second"]
    folded = fold(model).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    x = torch.rand(32, config.in_channels, size, size).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        forward = [milliseconds(lambda n=n: folded(x[:n])) for n in (1, 32)]
    print(
        f"{name:<18} {cost.macs / 1e6:6.1f}  {cost.parameters / 1e6:6.2f}  {accuracy:8.2%}  "
        f"{len(rows):6}  {step:7.1f}  {forward[0]:9.2f}  {forward[1]:10.1f}",
        flush=True,
    )


def milliseconds(run: Callable[[], object]) -> float:
    """Shortest of twenty times, after a warm-up."""
    times: list[float] = []
    for _ in range(21):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return 1e3 * min(times[1:])


if __name__ == "__main__":
    main()
