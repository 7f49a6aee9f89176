"""Which settings learn most in the first epochs of a small network, from scratch.

`python benchmarks/recipes.py [FOLDER] [NETWORK] [SIZE] [EPOCHS]`. FOLDER is any data of `resnext
train`, for example the CIFAR-10 images that `benchmarks/minutes.py --make cifar` draws; by default
the digits, with 12 epochs of resnext_tiny_32px. Nothing is timed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import resnext
from resnext.system.cpu import cpu_name

SGD: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "weight_decay": 5e-4,
    "min_area": 0.5,
    "zero_init_residual": False,
}
ADAMW: dict[str, Any] = {**SGD, "optimizer": "adamw", "learning_rate": 0.003}
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {},
    "SGD, rate 0.05, milder crops": SGD,
    "rate 0.1": {**SGD, "learning_rate": 0.1},
    "batches of 64, rate 0.1": {**SGD, "batch_size": 64, "learning_rate": 0.1},
    "batches of 16, rate 0.03": {**SGD, "batch_size": 16, "learning_rate": 0.03},
    "decay 0.002": {**SGD, "weight_decay": 0.002},
    "averaged weights": {**SGD, "ema": 0.99},
    "warm-up of a quarter": {**SGD, "warmup": 0.25},
    "AdamW, decay 0.05": {**ADAMW, "weight_decay": 0.05},
    "AdamW, decay 0.05, rate 0.01": {**ADAMW, "weight_decay": 0.05, "learning_rate": 0.01},
    "AdamW, decay 0.2: quick": {**ADAMW, "weight_decay": 0.2},
}


def main() -> None:
    """Print the validation accuracy of each epoch, for all settings."""
    defaults = ["digits", "resnext_tiny_32px", "32", "12"]
    data, network, size, epochs = sys.argv[1:] + defaults[len(sys.argv) - 1 :]
    print(f"{cpu_name()}: {network} at {size} pixels on {Path(data).name}, {epochs} epochs")
    for name, changes in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "m.safetensors"
            resnext.train(
                data,
                network,
                out=out,
                size=int(size),
                recipe="small",
                epochs=int(epochs),
                progress=False,
                **changes,
            )
            lines = (Path(folder) / "m.run" / "metrics.jsonl").read_text().splitlines()
        values = [f"{json.loads(line)['val_accuracy']:.1%}" for line in lines]
        print(f"{name:<36} {'  '.join(values)}", flush=True)


if __name__ == "__main__":
    main()
