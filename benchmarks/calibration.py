"""Confidence from few validation images: our fit of the temperature beside the likelihood alone.

    python benchmarks/calibration.py MODEL DATA [MODEL DATA …]

MODEL is a trained model file, and DATA holds images that it was not trained on. Small validation
sets are drawn from them, some of which have no mistake; the temperature is fitted to each, and
judged on all other images. Without arguments, a model of scikit-learn's digits is trained first.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

import resnext
from resnext.calibration import expected_calibration_error, fit_temperature

DRAWS = 200
COUNTS = (20, 50, 100, 200, 500)


def main() -> None:
    """Print a row for each model, number of images, and kind of draw."""
    given = sys.argv[1:]
    if not given:
        given = [str(Path(tempfile.mkdtemp()) / "digits.safetensors"), "digits"]
        resnext.train("digits", out=given[0], progress=False)
    print("Calibration error on other images: mean of the draws")
    print("data        images  mistakes  draws  as trained  likelihood       fit")
    for file, data in zip(given[::2], given[1::2], strict=True):
        result = resnext.evaluate(file, data, keep_logits=True, progress=False)
        assert result.logits is not None
        table(Path(data).name, result.logits.astype(np.float64), result.targets)


def table(name: str, logits: np.ndarray, targets: np.ndarray) -> None:
    """The rows of one model."""
    draw = np.random.default_rng(0)
    right = logits.argmax(1) == targets
    for count in COUNTS:
        if count > len(targets) / 2:
            break
        errors: dict[str, list[list[float]]] = {"none": [], "some": []}
        for _ in range(DRAWS):
            chosen, others = np.split(draw.permutation(len(targets)), [count])
            fits = (
                1.0,
                likelihood(logits[chosen], targets[chosen]),
                fit_temperature(logits[chosen], targets[chosen]),
            )
            row = [error(logits[others], right[others], t) for t in fits]
            errors["none" if right[chosen].all() else "some"].append(row)
        for kind, rows in errors.items():
            if rows:
                a, b, c = np.mean(rows, 0)
                print(
                    f"{name:<10}  {count:6}  {kind:<8}  {len(rows):5}  {a:10.2%}  {b:10.2%}  "
                    f"{c:9.2%}",
                    flush=True,
                )


def likelihood(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature of the best likelihood alone; 1 without a mistake, where there is none."""
    if (logits.argmax(1) == targets).all():
        return 1.0

    def loss(log_t: float) -> float:
        log_p = log_softmax(logits / math.exp(log_t), axis=1)
        return -log_p[np.arange(len(targets)), targets].mean()

    return math.exp(minimize_scalar(loss, bounds=(math.log(0.05), math.log(20))).x)


def error(logits: np.ndarray, right: np.ndarray, temperature: float) -> float:
    """Calibration error at a temperature."""
    confidence = np.exp(log_softmax(logits / temperature, axis=1).max(1))
    return expected_calibration_error(confidence, right)


if __name__ == "__main__":
    main()
