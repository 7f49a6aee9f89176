"""How often tests of a classifier's answers raise a false alarm, and find a new class.

    python benchmarks/drift.py NETWORKS DATA... [--without CLASS...] [--epochs 8]

Each DATA is a folder of class folders, such as Fashion-MNIST or CIFAR-10 as images, or has two of
them, `train` and `test`; without those, half of the images of every class are trained on and the
others measured. For each class, or those of `--without`, a network of the other classes is trained,
and answers all measured images. It stays in NETWORKS as `DATA-without-CLASS.safetensors`; one that
is there, such as a network of `benchmarks/unknown.py`, is not trained again.

Then, `--rounds` times: the answers to the known classes are split at random into a reference and
1,000 new ones. A false alarm is drift found in those; for the other table, a tenth of them is
replaced by images of the class that was left out. Rates are of 5 % tests.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import chi2_contingency, ks_2samp

import resnext
from resnext.inference import open_runner
from resnext.prediction import predict
from resnext.prediction.drift import ALPHA, Answers, find_drift
from resnext.system.cpu import cpu_name

COUNTS = 250, 500, 1_000
SHARES = 0.05, 0.1
Test = Callable[[np.ndarray, np.ndarray], bool]


def main() -> None:
    """Train what is missing, measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", type=Path)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--without", nargs="*")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=400)
    given = parser.parse_args()
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    for data in given.data:
        trained, measured = images(data)
        for hidden in (x for x in measured if not given.without or x in given.without):
            name = f"{data.name}-without-{hidden}"
            known, new = answers(given, name, trained, measured, hidden)
            measure(name, known, new, given.rounds)


def images(data: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """The images to train on and those to measure, by class."""

    def by_class(folder: Path) -> dict[str, list[Path]]:
        return {x.name: sorted(x.iterdir()) for x in sorted(folder.iterdir()) if x.is_dir()}

    if (data / "train").is_dir():
        return by_class(data / "train"), by_class(data / "test")
    whole = by_class(data)
    return {name: x[::2] for name, x in whole.items()}, {name: x[1::2] for name, x in whole.items()}


def answers(
    given: Any,
    name: str,
    trained: dict[str, list[Path]],
    measured: dict[str, list[Path]],
    hidden: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the images of the known classes and of the one that was left out."""
    stored, model = (given.networks / f"{name}.{end}" for end in ("npz", "safetensors"))
    if not stored.exists():
        if not model.exists():
            folder = given.networks / name
            for label in trained.keys() - {hidden}:
                (folder / label).mkdir(parents=True, exist_ok=True)
                for image in trained[label]:
                    link = folder / label / image.name
                    if not link.is_symlink():
                        link.symlink_to(image.absolute())
            options: dict[str, Any] = {"size": 32, "epochs": given.epochs, "overwrite": True}
            resnext.train(folder, "resnext_nano_32px", out=model, recipe="quick", **options)
        runner = open_runner(model)
        known = [image for label in measured if label != hidden for image in measured[label]]
        np.savez(stored, known=softmax(runner, known), new=softmax(runner, measured[hidden]))
    arrays = np.load(stored)
    return arrays["known"], arrays["new"]


def softmax(runner: Any, some: list[Path]) -> np.ndarray:
    """Probabilities of all classes, in the order of the card."""
    labels = runner.card.labels
    rows = predict(runner, some, top=len(labels))
    by_label = (dict(zip(row.labels, row.probabilities, strict=True)) for row in rows)
    return np.array([[row[label] for label in labels] for row in by_label])


def measure(title: str, known: np.ndarray, new: np.ndarray, rounds: int) -> None:
    """Print the rates of one network."""
    rng = np.random.default_rng(0)
    settings = [(n, share) for n in COUNTS for share in (0.0, *SHARES)]
    found = {name: dict.fromkeys(settings, 0) for name in TESTS}
    seconds = dict.fromkeys(TESTS, 0.0)
    for _ in range(rounds):
        order = rng.permutation(len(known))
        for n, share in settings:
            strange = rng.choice(len(new), round(share * n), replace=False)
            usual = order[: n - len(strange)]
            window = np.concatenate([known[usual], new[strange]])
            reference = known[order[COUNTS[-1] :]]
            for name, test in TESTS.items():
                began = time.perf_counter()
                found[name][n, share] += test(window, reference)
                seconds[name] += time.perf_counter() - began
    print(f"{title}: reference of {len(known) - COUNTS[-1]:,}, {rounds} rounds")
    shares = ("none", *(f"{share:.0%}" for share in SHARES))
    heads = "".join(f"{f'{n}, {share}':>12}" for n in COUNTS for share in shares)
    print(f"    {'images, new class':<34}{heads}{'ms':>8}")
    for name, rates in found.items():
        cells = "".join(f"{count / rounds:12.1%}" for count in rates.values())
        print(f"    {name:<34}{cells}{1e3 * seconds[name] / rounds / len(settings):8.1f}")
    print(flush=True)


# -- the tests that are compared --------------------------------------------------------------


def counts(x: np.ndarray) -> np.ndarray:
    """How often each class is answered."""
    return np.bincount(x.argmax(1), minlength=x.shape[1])


def chi_square(a: np.ndarray, b: np.ndarray) -> float:
    """The p-value for the classes that are answered."""
    table = np.stack([counts(a), counts(b)])
    return float(np.asarray(chi2_contingency(table[:, table.sum(0) > 0])[1]))


def smirnov(a: np.ndarray, b: np.ndarray) -> float:
    """The p-value of Kolmogorov and Smirnov."""
    result: Any = ks_2samp(a, b, method="asymp")
    return float(result.pvalue)


def each_class(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov–Smirnov for the probability of each class (arXiv:1810.11953)."""
    return a.shape[1] * min(smirnov(x, y) for x, y in zip(a.T, b.T, strict=True))


def entropy(x: np.ndarray) -> np.ndarray:
    """Of the probabilities of each image."""
    return -(x * np.log(x.clip(1e-12))).sum(1)


def as_answers(x: np.ndarray) -> Answers:
    """What a table of answers with `--top 1` holds."""
    return Answers(tuple(map(str, range(x.shape[1]))), counts(x), np.sort(x.max(1)))


TESTS: dict[str, Test] = {
    "classes": lambda a, b: chi_square(a, b) < ALPHA,
    "probability": lambda a, b: smirnov(a.max(1), b.max(1)) < ALPHA,
    "entropy": lambda a, b: smirnov(entropy(a), entropy(b)) < ALPHA,
    "each class's probability": lambda a, b: each_class(a, b) < ALPHA,
    "classes + probability (ours)": lambda a, b: find_drift(as_answers(a), as_answers(b)).drifted,
    "each class's + classes": lambda a, b: 2 * min(each_class(a, b), chi_square(a, b)) < ALPHA,
}

if __name__ == "__main__":
    main()
