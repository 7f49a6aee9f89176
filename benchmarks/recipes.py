"""Which settings learn most from the same work in a small network, from scratch.

`python benchmarks/recipes.py [FOLDER] [--network NAME] [--size PIXELS] [--epochs N] [--seeds N]
[--only NAME…] [--keep FOLDER]`. FOLDER is any data of `resnext train`, for example the CIFAR-10
images that `benchmarks/minutes.py --make cifar` draws; by default the digits.

Settings with smaller training images get as many more epochs as their operations allow. For each
setting the script prints the best validation accuracy of each seed, their mean, and the processor
time; nothing else is timed, so the machine need not be quiet. With `--keep`, runs stay in that
folder: those that are there are not repeated, and one that was stopped is resumed.

The rule: a setting enters the recipe `quick` if its mean is ahead by more than a point, with every
seed ahead of the same seed of `quick`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import resnext
from resnext.architectures import variant
from resnext.summary import summarize
from resnext.system.cpu import cpu_name
from resnext.training.recipes import quick, small

SGD: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "weight_decay": 5e-4,
    "min_area": 0.5,
    "zero_init_residual": False,
}
ADAMW: dict[str, Any] = {**SGD, "optimizer": "adamw", "learning_rate": 0.003}
FROM_SMALL: dict[str, dict[str, Any]] = {
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
}
FROM_QUICK: dict[str, dict[str, Any]] = {
    "quick": {},
    "quick, trained at 7/8": {"train_size": 7 / 8},
    "quick, trained at 3/4": {"train_size": 3 / 4},
    "quick, growing from 1/2": {"first_size": 1 / 2},
    "quick, growing from 3/4": {"first_size": 3 / 4},
    "quick, growing from 1/2 to 7/8": {"first_size": 1 / 2, "train_size": 7 / 8},
    "quick, shifts of 1/8": {"padding": 1 / 8},
    "quick, no smoothing": {"label_smoothing": 0.0},
    "quick, mixup 0.2": {"mixup": 0.2},
    "quick, cutmix 1": {"cutmix": 1.0},
    "quick, erasing 0.25": {"erasing": 0.25},
    "quick, averaged weights": {"ema": 0.99},
    "quick, rate 0.006": {"learning_rate": 0.006},
    "quick, rate 0.0015": {"learning_rate": 0.0015},
    "quick, decay 0.5": {"weight_decay": 0.5},
    "quick, batches of 64": {"batch_size": 64, "learning_rate": 0.0042},
    "quick, crops of 0.35": {"min_area": 0.35},
    "quick, warm-up of a quarter": {"warmup": 0.25},
    "quick, no mirroring": {"flip": False},
}
_OF_THE_SIZE = ("train_size", "padding")  # above as fractions of the image size


def main() -> None:
    """Print the validation accuracy of all settings that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", default="digits")
    parser.add_argument("--network", default="resnext_tiny_32px")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[*FROM_SMALL, *FROM_QUICK])
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    name, threads = Path(given.data).resolve().name, torch.get_num_threads()
    print(f"{cpu_name()}, threads: {threads}, torch {torch.__version__}")
    print(f"{given.network} at {given.size} pixels on {name}, the work of {given.epochs} epochs")
    print("setting                               epochs  mean    of each seed     processor time")
    with tempfile.TemporaryDirectory() as temporary:
        for setting in given.only:
            runs = [
                run(given, setting, seed, given.keep or Path(temporary))
                for seed in range(given.seeds)
            ]
            best = [each["accuracy"] for each in runs]
            print(
                f"{setting:<36}  {runs[0]['epochs']:6}  {mean(best):.1%}  "
                f"{'  '.join(f'{value:.1%}' for value in best):<15}  "
                f"{mean(each['seconds'] for each in runs):.0f} s",
                flush=True,
            )


def run(given: argparse.Namespace, setting: str, seed: int, folder: Path) -> dict[str, Any]:
    """Accuracy, epochs and processor time of one run; from the folder if it is there."""
    out = folder / f"{setting}, {given.network}, {given.size}, {given.epochs}, {seed}".replace(
        "/", " of "
    )
    result = out.with_name(f"{out.name}.json")
    if result.exists():
        return json.loads(result.read_text())
    changes = dict(FROM_SMALL[setting] if setting in FROM_SMALL else FROM_QUICK[setting])
    changes |= {name: round(changes[name] * given.size) for name in _OF_THE_SIZE if name in changes}
    base = small if setting in FROM_SMALL else quick
    epochs = equal_epochs(given, changes)
    began = time.process_time()
    resnext.train(
        given.data,
        given.network,
        out=out.with_name(f"{out.name}.safetensors"),
        size=given.size,
        seed=seed,
        recipe=base.__name__,
        epochs=epochs,
        progress=False,
        workers=0,
        resume=given.keep is not None,
        index=False,
        **changes,
    )
    seconds = time.process_time() - began
    own = out.with_name(f"{out.name}.run")
    rows = [json.loads(line) for line in (own / "metrics.jsonl").read_text().splitlines()]
    best = max(max(row["val_accuracy"], row["ema_accuracy"] or 0.0) for row in rows)
    values = {"accuracy": best, "epochs": epochs, "seconds": seconds}
    result.write_text(json.dumps(values))
    shutil.rmtree(own)
    return values


def equal_epochs(given: argparse.Namespace, changes: dict[str, Any]) -> int:
    """Epochs that take as many operations as those that were asked for at full size."""
    config, recipe = variant(given.network), quick(1).changed(**changes)
    smallest = max(config.stride, config.min_size)
    sides = [recipe.side(given.size, smallest, part) for part in (0.0, 0.25, 0.5, 0.75)]
    cost = mean(summarize(config, side).macs for side in sides)
    return round(given.epochs * summarize(config, given.size).macs / cost)


if __name__ == "__main__":
    main()
