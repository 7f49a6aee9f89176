"""What an exact class map costs over a prediction of the same image.

    python benchmarks/explanation.py

Both take one JPEG of 640×480 pixels, in turns, with `resnext50_32x4d` at 224 pixels in torch and
1,000 classes. Weights are random: they do not change the time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import resnext
from resnext.inference import open_runner
from resnext.system.cpu import cpu_name


def main() -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnext50_32x4d")
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    network = resnext.create(arguments.model).eval()
    labels = tuple(f"class {i}" for i in range(network.config.num_classes))
    network.card = resnext.Card(labels, resnext.Preprocessing(224, 256))
    runner = open_runner(network, batch=1, plan=False)
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.jpg")
        noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(photo)
        tasks: dict[str, Callable[[], object]] = {
            "predict": lambda: resnext.predict(runner, photo),
            "explain": lambda: resnext.explain(runner, photo, against=False),
        }
        times: dict[str, list[float]] = {name: [] for name in tasks}
        for i in range(3 + arguments.rounds):
            for name, task in tasks.items():
                start = time.perf_counter()
                task()
                if i >= 3:
                    times[name].append(1000 * (time.perf_counter() - start))
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, {arguments.model}")
    predict, explain = (statistics.median(times[name]) for name in tasks)
    more = statistics.median(np.subtract(times["explain"], times["predict"]).tolist())
    print(f"predict {predict:.1f} ms, explain {explain:.1f} ms; {more:.1f} ms more an image")


if __name__ == "__main__":
    main()
