"""How many flipped labels training finds: 5 % of Fashion-MNIST's, replaced by random other classes.

Prints the precision of the list of doubts down to a recall of 0.7, and of the whole list; or why
there is none.

    python benchmarks/label_doubts.py /usr/share/datasets/fashion-mnist --images 20000 --epochs 8
"""

from __future__ import annotations

import argparse
import gzip
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import resnext
from resnext.data import open_splits
from resnext.evaluation.label_doubts import read_doubts
from resnext.system.cpu import cpu_name

FLIPPED, RECALL = 0.05, 0.7


def main() -> None:
    """Train for each seed and print a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of Fashion-MNIST's idx files")
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--model", default="resnext_tiny_32px")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for seed in options.seeds:
        with tempfile.TemporaryDirectory(prefix="fashion-") as name:
            measure(options, seed, Path(name))


def measure(options: Any, seed: int, folder: Path) -> None:
    """Flip labels, train, and compare the doubts with the flips."""
    train = open_splits(options.data).train
    images = np.stack([np.asarray(image) for image in train.images])  # without the held-out ones
    labels = np.asarray(train.targets)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(images))[: options.images]
    images, labels = images[chosen], labels[chosen]
    flipped = rng.random(len(labels)) < FLIPPED
    given = np.where(flipped, (labels + rng.integers(1, 10, len(labels))) % 10, labels)
    write_idx(folder / "train-images-idx3-ubyte.gz", images)
    write_idx(folder / "train-labels-idx1-ubyte.gz", given)
    began = time.perf_counter()
    resnext.train(
        folder,
        options.model,
        out=folder / "m.safetensors",
        epochs=options.epochs,
        seed=seed,
        workers=0,
    )
    seconds = time.perf_counter() - began
    doubts = read_doubts(folder / "m.run" / "label_doubts.csv")
    if reason := re.search(r"There is no list[^<]*", (folder / "m.run/report.html").read_text()):
        print(f"seed {seed}, {options.epochs} epochs: {reason[0].strip()}")
    if not doubts:
        return
    found = np.array([int(path.rpartition(" ")[2]) for path, *_ in doubts])
    hits = flipped[found]
    names = resnext.load(folder / "m.safetensors").card.labels  # pyright: ignore
    right = [names[labels[i]] == doubt[2] for i, doubt in zip(found, doubts, strict=True)]
    recall = hits.cumsum() / flipped.sum()
    at = int(np.searchsorted(recall, RECALL))
    precision = hits[: at + 1].mean() if at < len(hits) else float("nan")
    print(
        f"seed {seed}: {len(labels):,} images, {flipped.sum():,} flipped, {options.epochs} epochs "
        f"in {seconds:.0f} s; precision {precision:.3f} at recall {RECALL}; whole list: "
        f"{len(found):,} doubts, precision {hits.mean():.3f}, recall {recall[-1]:.3f}; suggestion "
        f"right for {np.mean(np.array(right)[hits]):.1%} of the flips found"
    )


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write an array of bytes as an idx file."""
    shape = np.array(values.shape, ">u4").tobytes()
    content = bytes([0, 0, 8, values.ndim]) + shape + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content, 1))


if __name__ == "__main__":
    main()
