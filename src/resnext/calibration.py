"""Calibration of confidences, and the uncertainty of a measured accuracy. Loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from resnext.errors import InputError

_BOUNDS = 0.05, 20.0  # lowest and highest fitted temperature
_ROWS = 4096  # rows of logits converted to double precision at once
_FOLDS = 5
_MANY = 2000

Logits = Float[Any, "n k"]  # tensors or arrays
Targets = Int[Any, " n"]
Numbers = Float[np.ndarray, " n"]
Right = Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Bin:
    """Predictions of similar confidence. Without any, both means are NaN.

    Args:
        confidence: Mean confidence.
        accuracy: Fraction that is right.
        count: Number of predictions.
    """

    confidence: float
    accuracy: float
    count: int


def reliability(confidence: Numbers, right: Right, bins: int = 15) -> list[Bin]:
    """Accuracy by confidence, in bins of equal width from 0 to 1; each includes its upper edge.

    Args:
        confidence: Probability of each prediction.
        right: Whether each prediction is right.
        bins: Number of bins.

    Raises:
        InputError: The arrays are empty or of different lengths, or a confidence is not a
            probability.
    """
    confidence, right = _checked(confidence, right)
    if bins < 1:
        raise InputError(f"bins must be at least 1, not {bins}.")
    edges = np.arange(1, bins) / bins
    bin_of = np.searchsorted(edges, confidence, side="left")
    counts = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidences = np.bincount(bin_of, confidence, bins) / counts
        accuracies = np.bincount(bin_of, right, bins) / counts
    columns = confidences.tolist(), accuracies.tolist(), counts.tolist()
    return [Bin(*values) for values in zip(*columns, strict=True)]


def expected_calibration_error(confidence: Numbers, right: Right, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over bins, weighted by count (arXiv:1706.04599).

    Args:
        confidence: Probability of each prediction.
        right: Whether each prediction is right.
        bins: Number of bins.

    Raises:
        InputError: The arrays are empty or of different lengths, or a confidence is not a
            probability.
    """
    filled = [x for x in reliability(confidence, right, bins) if x.count]
    gap = sum(x.count * abs(x.accuracy - x.confidence) for x in filled)
    return gap / sum(x.count for x in filled)


def fit_temperature(logits: Logits, targets: Targets) -> float:
    """The temperature between 0.05 and 20 with the best softmax(logits / temperature).

    It minimizes the negative log-likelihood (arXiv:1706.04599, section 4.2), which is convex in
    1 / temperature. If every prediction is right, the likelihood only grows with confidence and has
    no maximum. The mean confidence then becomes (n + 1) / (n + 2), the expected accuracy after n
    right answers out of n (Laplace's rule of succession, which Platt's targets come from too).

    Args:
        logits: `(n, k)`, on images that were not trained on.
        targets: `(n,)`, the right class of each image.

    Returns:
        The temperature; 1 if all classes have equal logits, as a single class has.

    Raises:
        InputError: The arrays are empty or their shapes do not match, a target is not a class, or a
            logit is not finite.
    """
    z, y = _finite(logits, targets)
    if (z.max(1) == z.min(1)).all():
        return 1.0
    if (z[np.arange(len(y)), y] >= z.max(1)).all():
        return _temperature_of_confidence(z, (len(y) + 1) / (len(y) + 2))
    low, high = 1 / _BOUNDS[1], 1 / _BOUNDS[0]
    scale = 1.0
    for _ in range(60):  # Newton's method; a step that would leave the bracket halves it instead
        slope, curvature = _derivatives(z, y, scale)
        low, high = (scale, high) if slope < 0 else (low, scale)
        step = scale - slope / curvature if curvature > 0 else math.inf
        following = step if low < step < high else (low + high) / 2
        if abs(following - scale) <= 1e-10 * scale:
            break
        scale = following
    return min(max(1 / scale, _BOUNDS[0]), _BOUNDS[1])


def cross_fit_temperatures(logits: Logits, targets: Targets) -> Float[np.ndarray, " n"]:
    """For each image, a temperature that was fitted without it.

    With these, images that the temperature is fitted to can also show how well it fits. Each
    temperature is fitted to four fifths of the images, those of other classes and of its own.

    Args:
        logits: `(n, k)`, on images that were not trained on.
        targets: `(n,)`, the right class of each image.

    Returns:
        `(n,)`. The same temperature for all if there are fewer than ten images, or at least 2,000,
        of which one image hardly changes the fit.

    Raises:
        InputError: As for `fit_temperature`.
    """
    z, y = _finite(logits, targets)
    if not _FOLDS * 2 <= len(y) < _MANY:
        return np.full(len(y), fit_temperature(z, y))
    order = np.random.default_rng(0).permutation(len(y))
    temperatures = np.empty(len(y))
    for fold in range(_FOLDS):
        own = np.zeros(len(y), bool)
        own[order[fold::_FOLDS]] = True
        temperatures[own] = fit_temperature(z[~own], y[~own])
    return temperatures


def recommend_threshold(confidence: Numbers, right: Right, wanted: float = 0.95) -> float | None:
    """The lowest threshold at which at least `wanted` of the accepted predictions are right.

    A prediction is accepted if its confidence is at least the threshold, so predictions of equal
    confidence are accepted together. The lowest threshold accepts the most, even if accuracy dips
    below `wanted` at some higher one.

    Args:
        confidence: Probability of each prediction.
        right: Whether each prediction is right.
        wanted: Fraction of the accepted predictions that must be right.

    Returns:
        The threshold; 0 if all predictions together are accurate enough, None if not even the most
        confident ones are.

    Raises:
        InputError: The arrays are empty or of different lengths, a confidence is not a probability,
            or `wanted` is not above 0 and at most 1.
    """
    confidence, right = _checked(confidence, right)
    if not 0 < wanted <= 1:
        raise InputError(f"wanted must be above 0 and at most 1, not {wanted}.")
    order = np.argsort(-confidence, kind="stable")
    falling = confidence[order]
    accepted = np.arange(1, len(falling) + 1)
    enough = np.cumsum(right[order]) >= wanted * accepted - 1e-9
    enough &= np.append(falling[1:] < falling[:-1], True)  # the last of equal confidence
    if enough[-1]:
        return 0.0
    good = np.flatnonzero(enough)
    return float(falling[good[-1]]) if len(good) else None


def interval(
    right: Right, seed: int = 0, rounds: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap confidence interval of the accuracy (Efron's percentile method).

    Resampling the predictions with replacement and counting the right ones is the same as drawing
    from a binomial distribution, which is what this does. If all predictions are right, or all are
    wrong, every resample is the same; the exact bound (Clopper and Pearson) is used instead.

    Args:
        right: Whether each prediction is right.
        seed: Random seed.
        rounds: Number of resamples.
        level: Fraction of the resamples inside the interval.

    Raises:
        InputError: `right` is empty, or an argument is out of range.
    """
    right = np.asarray(right, dtype=bool)
    count, good = len(right), int(right.sum())
    if not count or rounds < 1 or not 0 < level < 1:
        raise InputError(
            f"An interval needs predictions, at least one round and a level between 0 and 1, not "
            f"{count}, {rounds} and {level}."
        )
    outside = (1 - level) / 2
    if good in (0, count):
        bound = outside ** (1 / count)
        return (bound, 1.0) if good else (0.0, 1 - bound)
    draws = np.random.default_rng(seed).binomial(count, good / count, rounds) / count
    low, high = np.quantile(draws, [outside, 1 - outside])
    return float(low), float(high)


def loss_interval(
    right_a: Right, right_b: Right, seed: int = 0, rounds: int = 2000
) -> tuple[float, float]:
    """95 % bootstrap interval of the first accuracy minus the second, on the same images.

    Images are resampled together with both predictions, so only those count that exactly one of the
    two has right: the interval is narrower than the two intervals of the accuracies suggest. If
    there is no such image, every resample is the same; the bound is then the exact one of their
    fraction (Clopper and Pearson), in both directions.

    Args:
        right_a: Whether each prediction of the first is right.
        right_b: Whether each prediction of the second is right.
        seed: Random seed.
        rounds: Number of resamples.

    Raises:
        InputError: The arrays do not cover the same number of images, or are empty.
    """
    only_a, only_b, _ = mcnemar(right_a, right_b)
    count = len(right_a)
    if not count:
        raise InputError("An interval needs predictions, not 0.")
    if only_a == only_b == 0:
        bound = 1 - 0.025 ** (1 / count)
        return -bound, bound
    split = np.array([only_a, only_b, count - only_a - only_b]) / count
    draws = np.random.default_rng(seed).multinomial(count, split, rounds)
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / count, [0.025, 0.975])
    return float(low), float(high)


def mcnemar(right_a: Right, right_b: Right) -> tuple[int, int, float]:
    """McNemar's exact test: whether two classifiers differ significantly on the same images.

    Args:
        right_a: Whether each prediction of the first is right.
        right_b: Whether each prediction of the second is right.

    Returns:
        How many images only the first has right, how many only the second has right, and the
        two-sided p-value: the probability of a split at least this uneven if both are equally good.

    Raises:
        InputError: The arrays do not cover the same number of images.
    """
    a, b = np.asarray(right_a, dtype=bool), np.asarray(right_b, dtype=bool)
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(f"Both need a prediction for each image, not {a.shape} and {b.shape}.")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    count, term, tail = only_a + only_b, 1, 0
    for i in range(min(only_a, only_b) + 1):
        tail += term
        term = term * (count - i) // (i + 1)
    return only_a, only_b, min(1.0, 2 * tail / 2**count)


def _temperature_of_confidence(z: Float[np.ndarray, "n k"], wanted: float) -> float:
    """The temperature at which the mean confidence is as wanted, by bisection."""
    low, high = (math.log(bound) for bound in _BOUNDS)
    while high - low > 1e-10:
        middle = (low + high) / 2
        total = 0.0
        for start in range(0, len(z), _ROWS):
            rows = z[start : start + _ROWS].astype(np.float64)
            rows -= rows.max(1, keepdims=True)
            total += float((1 / np.exp(rows / math.exp(middle)).sum(1)).sum())
        low, high = (middle, high) if total > wanted * len(z) else (low, middle)
    return math.exp(low)


def _derivatives(
    z: Float[np.ndarray, "n k"], y: Int[np.ndarray, " n"], scale: float
) -> tuple[float, float]:
    """First and second derivative of the summed negative log-likelihood by the scale."""
    slope = curvature = 0.0
    for start in range(0, len(y), _ROWS):
        rows = z[start : start + _ROWS].astype(np.float64)
        rows -= rows.max(1, keepdims=True)
        p = np.exp(scale * rows)
        p /= p.sum(1, keepdims=True)
        mean = (p * rows).sum(1)
        slope += float((mean - rows[np.arange(len(rows)), y[start : start + _ROWS]]).sum())
        curvature += float((p * (rows - mean[:, None]) ** 2).sum())
    return slope, curvature


def _finite(logits: Logits, targets: Targets) -> tuple[np.ndarray, np.ndarray]:
    """Logits `(n, k)` and targets `(n,)` that fit together, as arrays."""
    z = _array(logits)
    y = _array(targets).astype(np.int64)
    if z.ndim != 2 or not z.size or y.shape != z.shape[:1]:
        raise InputError(f"Logits (n, k) need targets (n,), not {z.shape} and {y.shape}.")
    if y.min() < 0 or y.max() >= z.shape[1]:
        raise InputError(f"Targets must be from 0 to {z.shape[1] - 1}, not {y.min()} to {y.max()}.")
    if not np.isfinite(z).all():
        raise InputError("Logits must be finite to fit a temperature, but some are not.")
    return z, y


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        return (values.float() if values.dtype.itemsize == 2 else values).numpy()
    return np.asarray(values)


def _checked(confidence: Numbers, right: Right) -> tuple[Numbers, Right]:
    confidence, right = np.asarray(confidence, np.float64), np.asarray(right, dtype=bool)
    if confidence.ndim != 1 or not len(confidence) or confidence.shape != right.shape:
        raise InputError(
            f"Each prediction needs a confidence and whether it is right, not arrays of "
            f"{confidence.shape} and {right.shape}."
        )
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise InputError(
            f"Confidences must be probabilities from 0 to 1, not from {confidence.min()} to "
            f"{confidence.max()}."
        )
    return confidence, right
