"""How far confidences can be trusted, and how sure a measured accuracy is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from resnext.errors import InputError

_BOUNDS = 0.05, 20.0  # of a fitted temperature
_ROWS = 4096  # of logits that are in memory in double precision at a time

Numbers = Float[np.ndarray, " n"]
Right = Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Bin:
    """Answers of similar confidence. Without answers, both means are NaN.

    Args:
        confidence: Their mean confidence.
        accuracy: Part of them that is right.
        count: How many.
    """

    confidence: float
    accuracy: float
    count: int


def reliability(confidence: Numbers, right: Right, bins: int = 15) -> list[Bin]:
    """Accuracy by confidence, in bins of equal width from 0 to 1, each with its upper end.

    Args:
        confidence: Probability of each answer.
        right: Whether each answer is right.
        bins: How many.

    Raises:
        InputError: The arrays do not fit each other or are empty, or a confidence is not a
            probability.
    """
    confidence, right = _checked(confidence, right)
    if bins < 1:
        raise InputError(f"bins must be at least 1, not {bins}.")
    edges = np.arange(1, bins) / bins
    place = np.searchsorted(edges, confidence, side="left")
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = np.bincount(place, confidence, bins) / counts
        parts = np.bincount(place, right, bins) / counts
    return [Bin(*row) for row in zip(means.tolist(), parts.tolist(), counts.tolist(), strict=True)]


def expected_calibration_error(confidence: Numbers, right: Right, bins: int = 15) -> float:
    """Mean distance of confidence and accuracy over bins, weighted by count (arXiv:1706.04599).

    Args:
        confidence: Probability of each answer.
        right: Whether each answer is right.
        bins: How many.

    Raises:
        InputError: As `reliability`.
    """
    rows = [row for row in reliability(confidence, right, bins) if row.count]
    distance = sum(row.count * abs(row.accuracy - row.confidence) for row in rows)
    return distance / sum(row.count for row in rows)


def fit_temperature(
    logits: Float[Tensor, "n k"] | Float[np.ndarray, "n k"],
    targets: Int[Tensor, " n"] | Int[np.ndarray, " n"],
) -> float:
    """The temperature between 0.05 and 20 whose softmax(logits / temperature) fits best.

    It minimises the negative log-likelihood (arXiv:1706.04599, section 4.2), which is convex in
    1 / temperature. If every answer is right there is no minimum, only ever more confidence; the
    temperature is 1 then, which leaves the logits as they are.

    Args:
        logits: Answers to images that were not learnt from.
        targets: The right class of each.

    Raises:
        InputError: There are none, they do not fit each other, or a logit is not finite.
    """
    z = _array(logits)
    y = _array(targets).astype(np.int64)
    if z.ndim != 2 or not z.size or y.shape != z.shape[:1]:
        raise InputError(f"Logits (n, k) need targets (n,), not {z.shape} and {y.shape}.")
    if y.min() < 0 or y.max() >= z.shape[1]:
        raise InputError(f"Targets must be from 0 to {z.shape[1] - 1}, not {y.min()} to {y.max()}.")
    if not np.isfinite(z).all():
        raise InputError("Logits must be finite to fit a temperature, but some are not.")
    if (z[np.arange(len(y)), y] >= z.max(1)).all():
        return 1.0
    low, high = 1 / _BOUNDS[1], 1 / _BOUNDS[0]
    scale = 1.0
    for _ in range(60):  # Newton's steps, halving the bracket where one would leave it
        slope, curvature = _derivatives(z, y, scale)
        low, high = (scale, high) if slope < 0 else (low, scale)
        step = scale - slope / curvature if curvature > 0 else math.inf
        following = step if low < step < high else (low + high) / 2
        if abs(following - scale) <= 1e-10 * scale:
            break
        scale = following
    return min(max(1 / scale, _BOUNDS[0]), _BOUNDS[1])


def recommend_threshold(confidence: Numbers, right: Right, wanted: float = 0.95) -> float | None:
    """The lowest confidence from which on upwards at least `wanted` of the answers are right.

    Answers of equal confidence are accepted together. The more are accepted the better, so a
    higher confidence below which accuracy dips for a while is passed over.

    Args:
        confidence: Probability of each answer.
        right: Whether each answer is right.
        wanted: Part that must be right.

    Returns:
        A threshold to compare confidences with by `>=`; 0 if all answers together are right often
        enough, None if not even the most confident ones are.

    Raises:
        InputError: As `reliability`, or `wanted` is not between 0 and 1.
    """
    confidence, right = _checked(confidence, right)
    if not 0 < wanted <= 1:
        raise InputError(f"wanted must be above 0 and at most 1, not {wanted}.")
    order = np.argsort(-confidence, kind="stable")
    falling = confidence[order]
    accepted = np.arange(1, len(falling) + 1)
    enough = np.cumsum(right[order]) >= wanted * accepted - 1e-9
    enough &= np.append(falling[1:] < falling[:-1], True)  # at the last one of its confidence
    if enough[-1]:
        return 0.0
    places = np.flatnonzero(enough)
    return float(falling[places[-1]]) if len(places) else None


def interval(
    right: Right, seed: int = 0, rounds: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap interval of the part that is right (Efron's percentiles).

    To draw as many answers as there are with replacement, and to count the right ones, is to draw
    from a binomial distribution, so that is what happens. Where all answers are right, or all
    wrong, every draw is the same; then the bound is the exact one (Clopper and Pearson's).

    Args:
        right: Whether each answer is right.
        seed: Where chance starts.
        rounds: How many draws.
        level: Part of the draws inside.

    Raises:
        InputError: There are no answers, or an argument makes no sense.
    """
    right = np.asarray(right, dtype=bool)
    count, good = len(right), int(right.sum())
    if not count or rounds < 1 or not 0 < level < 1:
        raise InputError(
            f"An interval needs answers, at least one round and a level between 0 and 1, not "
            f"{count}, {rounds} and {level}."
        )
    outside = (1 - level) / 2
    if good in (0, count):
        bound = outside ** (1 / count)
        return (bound, 1.0) if good else (0.0, 1 - bound)
    draws = np.random.default_rng(seed).binomial(count, good / count, rounds) / count
    low, high = np.quantile(draws, [outside, 1 - outside])
    return float(low), float(high)


def mcnemar(right_a: Right, right_b: Right) -> tuple[int, int, float]:
    """Whether two classifiers differ by more than chance, on the same images (exact test).

    Args:
        right_a: Whether each answer of one is right.
        right_b: The same for the other.

    Returns:
        Images that only the first has right, those that only the second has right, and the
        two-sided p-value: how likely so uneven a division is if both are equally good.

    Raises:
        InputError: They are not over the same number of images.
    """
    a, b = np.asarray(right_a, dtype=bool), np.asarray(right_b, dtype=bool)
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(f"Both need an answer for each image, not {a.shape} and {b.shape}.")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    count, term, tail = only_a + only_b, 1, 0
    for i in range(min(only_a, only_b) + 1):
        tail += term
        term = term * (count - i) // (i + 1)
    return only_a, only_b, min(1.0, 2 * tail / 2**count)


def _derivatives(
    z: Float[np.ndarray, "n k"], y: Int[np.ndarray, " n"], scale: float
) -> tuple[float, float]:
    """First and second derivative of the summed likelihood loss with respect to the scale."""
    slope = curvature = 0.0
    for start in range(0, len(y), _ROWS):
        part = z[start : start + _ROWS].astype(np.float64)
        part -= part.max(1, keepdims=True)
        p = np.exp(scale * part)
        p /= p.sum(1, keepdims=True)
        mean = (p * part).sum(1)
        slope += float((mean - part[np.arange(len(part)), y[start : start + _ROWS]]).sum())
        curvature += float((p * (part - mean[:, None]) ** 2).sum())
    return slope, curvature


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype.itemsize == 2 else values).numpy()
    return np.asarray(values)


def _checked(confidence: Numbers, right: Right) -> tuple[Numbers, Right]:
    confidence, right = np.asarray(confidence, np.float64), np.asarray(right, dtype=bool)
    if confidence.ndim != 1 or not len(confidence) or confidence.shape != right.shape:
        raise InputError(
            f"Each answer needs a confidence and whether it is right, not arrays of "
            f"{confidence.shape} and {right.shape}."
        )
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise InputError(
            f"Confidences must be probabilities from 0 to 1, not from {confidence.min()} to "
            f"{confidence.max()}."
        )
    return confidence, right
