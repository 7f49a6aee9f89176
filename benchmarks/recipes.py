"""Which settings learn most in the first epochs of a small network, from scratch.

Run alone on the machine: `python benchmarks/recipes.py [FOLDER]`. FOLDER has `train` and `val`, for
example the CIFAR-10 images that `benchmarks/minutes.py --make cifar` draws; by default the digits.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import resnext
from resnext.system.cpu import cpu_name

NO_ZERO: dict[str, Any] = {"zero_init_residual": False}
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {},
    "rate 0.05": {"learning_rate": 0.05},
    "rate 0.05, no zero initialization": {"learning_rate": 0.05, **NO_ZERO},
    "the same, crops from half": {"learning_rate": 0.05, "min_area": 0.5, **NO_ZERO},
    "rate 0.1, shifts instead of crops": {"learning_rate": 0.1, "padding": 3, **NO_ZERO},
    "rate 0.05, shifts, averaged weights": {
        "learning_rate": 0.05,
        "padding": 3,
        "ema": 0.99,
        **NO_ZERO,
    },
}


def main() -> None:
    """Print the validation accuracy of each of five epochs, for all settings."""
    data = sys.argv[1] if len(sys.argv) > 1 else "digits"
    print(f"{cpu_name()}: resnext_tiny_32px at 32 pixels on {Path(data).name}, five epochs")
    for name, changes in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "m.safetensors"
            resnext.train(
                data,
                "resnext_tiny_32px",
                out=out,
                size=32,
                recipe="small",
                epochs=5,
                progress=False,
                **changes,
            )
            lines = (Path(folder) / "m.run" / "metrics.jsonl").read_text().splitlines()
        values = [f"{json.loads(line)['val_accuracy']:.1%}" for line in lines]
        print(f"{name:<36} {'  '.join(values)}", flush=True)


if __name__ == "__main__":
    main()
