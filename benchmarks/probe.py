"""The recipes `probe` and `finetune` beside training from scratch, with stand-in weights.

A network is trained on one half of the classes; on the other half it is then probed, fine-tuned,
and trained from scratch. Weights from the same data set suit the new classes better than public
weights would. For fine-tuning, which starts from the probe's classifier, the accuracy after each
epoch shows whether its first steps spoil what was there; settings of `--tune` epochs are compared.
With `--epochs 0` the weights are random, and only the times of probe and predict mean anything.

`python benchmarks/probe.py [FOLDER] [--only NAME…] [--keep FOLDER]` takes a folder with one folder
of images per class; without one it writes scikit-learn's digits as PNG. With `--keep`, weights and
runs stay in that folder: those that are there are not repeated, and one that was stopped is
resumed. Times mean something only for runs that were not stopped, alone on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import resnext
from resnext.data import open_splits
from resnext.system.cpu import cpu_name

TUNED: dict[str, dict[str, Any]] = {
    "fine-tuned": {},
    "fine-tuned, a third of the rate": {"learning_rate": 0.0017},
    "fine-tuned, a tenth of the rate": {"learning_rate": 0.0005},
    "fine-tuned, frozen norms": {"frozen_norms": True},
    "fine-tuned, random classifier": {"probe": False},
    "fine-tuned, warm-up of a third": {"warmup": 0.33},
    "fine-tuned, two stages frozen": {"frozen_stages": 2},
    **{
        f"the same, {views} cached views": {"frozen_stages": 2, "cached_views": views}
        for views in (1, 2, 4, 8)
    },
}


def main() -> None:
    """Train, probe, and print the accuracy on held-out images of the second half."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--model", default="resnext11_8x16d")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--tune", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        compare(given, given.keep or Path(temporary))


def compare(given: argparse.Namespace, work: Path) -> None:
    """Train the first half's weights, and all runs on the second half that are asked for."""
    os.environ["RESNEXT_HOME"] = str(work / "cache")  # no embeddings of earlier runs
    usual: dict[str, Any] = {"size": given.size, "seed": given.seed, "progress": False}
    usual |= {"resume": given.keep is not None, "index": False}
    scratch = {"epochs": given.epochs, "flip": given.folder is not None}
    first, second = halves(given.folder or digits(work / "digits"), work)
    weights = work / "first.safetensors"
    if given.epochs:
        resnext.train(first, given.model, out=weights, **scratch, **usual)
    elif not weights.exists():
        resnext.save(resnext.create(given.model, num_classes=1000), weights)
    probe: dict[str, Any] = {"weights": weights, "recipe": "probe"}
    runs: dict[str, dict[str, Any]] = {"probe": probe, "probe, embeddings cached": probe}
    if given.epochs:
        tuned = {"weights": weights, "recipe": "finetune", "epochs": given.tune}
        tuned["flip"] = scratch["flip"]
        runs["from scratch"] = {"model": given.model, **scratch}
        runs |= {name: {**tuned, **changes} for name, changes in TUNED.items()}
    for name in given.only or runs:
        out = work / f"{name}.safetensors"
        began, busy = time.perf_counter(), time.process_time()
        resnext.train(second, out=out, **runs[name], **usual)
        seconds, used = time.perf_counter() - began, time.process_time() - busy
        result = resnext.evaluate(out, second)
        low, high = result.interval()
        print(
            f"{name}: {result.accuracy:.2%} of {result.count} held-out images "
            f"({low:.2%} to {high:.2%}), {seconds:.1f} s, processor {used:.1f} s",
            flush=True,
        )
        if runs[name].get("recipe") == "finetune":
            rows = (work / f"{name}.run" / "metrics.jsonl").read_text().splitlines()
            accuracies = (json.loads(row)["val_accuracy"] for row in rows)
            print("  after each epoch:", *(f"{accuracy:.1%}" for accuracy in accuracies))
    began = time.perf_counter()
    resnext.predict(out, second)
    print(f"predict on the same images: {time.perf_counter() - began:.1f} s")


def halves(folder: Path, work: Path) -> tuple[Path, Path]:
    """Two folders with links to the images of every other class of a folder."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    parts = work / "first", work / "second"
    for i, path in enumerate(classes if not parts[0].exists() else []):
        target = parts[i % 2] / path.name
        target.mkdir(parents=True)
        for file in path.iterdir():
            os.link(file, target / file.name)
    return parts


def digits(folder: Path) -> Path:
    """scikit-learn's digits as PNG files, without the test split."""
    images = open_splits("digits", val_fraction=0.01).train
    for i in range(len(images)):
        path = folder / images.labels[images.targets[i]] / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.open(i, "L").resize((32, 32)).save(path)
    return folder


if __name__ == "__main__":
    main()
