"""The recipes `probe` and `finetune` beside training from scratch, with stand-in weights.

A network is trained on one half of the classes; on the other half it is then probed, fine-tuned,
and trained from scratch. Weights from the same data set suit the new classes better than public
weights would. For fine-tuning, which starts from the probe's classifier, the accuracy after each
epoch shows whether its first steps spoil what was there; settings of `--tune` epochs are compared.
With `--epochs 0` the weights are random, and only the times of probe and predict mean anything.

`python benchmarks/probe.py FOLDER` takes a folder with one folder of images per class; without a
folder it writes scikit-learn's digits as PNG. Run alone on the machine.
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
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", nargs="?", type=Path)
    options.add_argument("--model", default="resnext11_8x16d")
    options.add_argument("--size", type=int, default=32)
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--tune", type=int, default=10)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    usual: dict[str, Any] = {"size": chosen.size, "seed": chosen.seed, "progress": False}
    scratch = {"epochs": chosen.epochs, "flip": chosen.folder is not None}
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["RESNEXT_HOME"] = str(work / "cache")  # no embeddings of earlier runs
        first, second = halves(chosen.folder or digits(work / "digits"), work)
        weights = work / "first.safetensors"
        if chosen.epochs:
            resnext.train(first, chosen.model, out=weights, **scratch, **usual)
        else:
            resnext.save(resnext.create(chosen.model, num_classes=1000), weights)
        out = work / "second.safetensors"
        tuned = {"weights": weights, "recipe": "finetune", "epochs": chosen.tune}
        tuned["flip"] = scratch["flip"]
        for name, model, how in (
            ("probe", None, {"weights": weights, "recipe": "probe"}),
            ("probe, embeddings cached", None, {"weights": weights, "recipe": "probe"}),
            ("from scratch", chosen.model, scratch),
            *((name, None, {**tuned, **how}) for name, how in TUNED.items()),
        )[: None if chosen.epochs else 2]:
            began, busy = time.perf_counter(), time.process_time()
            resnext.train(second, model, out=out, overwrite=True, **how, **usual)
            seconds, used = time.perf_counter() - began, time.process_time() - busy
            result = resnext.evaluate(out, second)
            low, high = result.interval()
            print(
                f"{name}: {result.accuracy:.2%} of {result.count} held-out images "
                f"({low:.2%} to {high:.2%}), {seconds:.1f} s, processor {used:.1f} s"
            )
            metrics = out.with_suffix(".run") / "metrics.jsonl"
            if how.get("recipe") == "finetune":
                rows = map(json.loads, metrics.read_text().splitlines())
                print("  after each epoch:", *(f"{row['val_accuracy']:.1%}" for row in rows))
        began = time.perf_counter()
        resnext.predict(out, second)
        print(f"predict on the same images: {time.perf_counter() - began:.1f} s")


def halves(folder: Path, work: Path) -> tuple[Path, Path]:
    """Two folders with links to the images of every other class of a folder."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    parts = work / "first", work / "second"
    for i, path in enumerate(classes):
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
