"""Seconds to export a network: conversion, the proof in a fresh process, and the file.

    python benchmarks/export.py --model resnext50_32x4d --size 224

The weights are random: other weights take as long. Each format is exported by a fresh process, as
by the command, so that importing counts. Run alone on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import resnext
from resnext import Card, Preprocessing
from resnext.system.cpu import available_cores, cpu_name


def main() -> None:
    """Write a model file, export it, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnext50_32x4d")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--to", nargs="+", default=["onnx", "openvino"])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    network = resnext.create(given.model)
    labels = tuple(f"class {i}" for i in range(network.config.num_classes))
    network.card = Card(labels, Preprocessing(size=given.size, resize=given.size * 8 // 7))
    print(f"{cpu_name()}, {available_cores()} cores")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "net.safetensors"
        resnext.save(network, model)
        for to in given.to:
            command = [sys.executable, "-m", "resnext", "export", str(model), "--to", to]
            seconds = []
            for _ in range(given.rounds):
                began = time.perf_counter()
                subprocess.run([*command, "--overwrite"], cwd=folder, check=True)
                seconds.append(time.perf_counter() - began)
            values = ", ".join(f"{x:.1f}" for x in sorted(seconds))
            print(f"{given.model} to {to}: {statistics.median(seconds):.1f} s (of {values})")


if __name__ == "__main__":
    main()
