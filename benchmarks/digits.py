"""The demo's claim: accuracy on unseen digits and training time in seconds, over several seeds.

Run alone on the machine: `python benchmarks/digits.py`.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from pathlib import Path

import torch

import resnext
from resnext.system.cpu import cpu_name


def main() -> None:
    """Train with three seeds, the first one twice, and print the results."""
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    hashes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in (0, 0, 1, 2):
            out = Path(folder) / "digits.safetensors"
            began = time.perf_counter()
            resnext.train(
                "digits", "resnext11_8x16d", out=out, seed=seed, overwrite=True, progress=False
            )
            seconds = time.perf_counter() - began
            accuracy = resnext.evaluate(out, "digits").accuracy
            hashes.append(hashlib.sha256(out.read_bytes()).hexdigest())
            print(f"seed {seed}: {accuracy:.2%} of 359 unseen digits, {seconds:.1f} s of training")
    print(f"seed 0 twice gives the same file: {hashes[0] == hashes[1]}")


if __name__ == "__main__":
    main()
