"""Calibration and uncertainty: against scipy's and scikit-learn's numbers, and naive loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.originals import scipy, sklearn

from resnext.calibration import (
    cross_fit_temperatures,
    expected_calibration_error,
    fit_temperature,
    interval,
    loss_interval,
    mcnemar,
    recommend_threshold,
    reliability,
)
from resnext.errors import InputError

NOTHING = np.zeros(0)
seeds = st.integers(0, 2**32 - 1)


def answers(seed: int, count: int, digits: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, often equal where they have few digits, and whether each answer is right."""
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.random(count), digits)
    return confidence, rng.random(count) < confidence


def softmax(z: np.ndarray) -> np.ndarray:
    """Probabilities in double precision."""
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


# -- calibration error ------------------------------------------------------------------------


@settings(max_examples=60)
@given(seed=seeds, count=st.integers(1, 80), bins=st.integers(1, 20), digits=st.integers(1, 3))
def test_bins_are_those_of_a_loop(seed: int, count: int, bins: int, digits: int) -> None:
    """A confidence on an edge belongs to the lower bin, in every bin and at both ends."""
    confidence, right = answers(seed, count, digits)
    table = reliability(confidence, right, bins)
    assert len(table) == bins
    wanted = 0.0
    for i, row in enumerate(table):
        inside = [
            j
            for j, c in enumerate(confidence.tolist())
            if (i / bins < c or i == 0) and c <= (i + 1) / bins
        ]
        assert row.count == len(inside)
        if not inside:
            assert math.isnan(row.confidence)
            assert math.isnan(row.accuracy)
            continue
        assert row.confidence == pytest.approx(confidence[inside].mean())
        assert row.accuracy == pytest.approx(right[inside].mean())
        wanted += abs(confidence[inside].sum() - right[inside].sum()) / count
    got = expected_calibration_error(confidence, right, bins)
    assert got == pytest.approx(wanted, abs=1e-12)


def test_errors_one_knows() -> None:
    """Always sure and half right is wrong by a half; as right as sure is not wrong."""
    half = np.array([True, False])
    assert expected_calibration_error(np.ones(2), half) == 0.5
    assert expected_calibration_error(np.full(2, 0.5), half) == 0
    assert expected_calibration_error(np.zeros(2), ~half & half) == 0


@pytest.mark.parametrize(
    ("confidence", "right"),
    [
        (NOTHING, NOTHING),
        (np.ones(3), np.ones(2)),
        (np.ones((2, 2)), np.ones((2, 2))),
        (np.array([0.5, 1.2]), np.ones(2)),
        (np.array([-0.1]), np.ones(1)),
        (np.array([math.nan]), np.ones(1)),
    ],
)
def test_confidences_are_probabilities(confidence: np.ndarray, right: np.ndarray) -> None:
    """Logits in place of probabilities would all fall into the last bin."""
    for function in (reliability, expected_calibration_error, recommend_threshold):
        with pytest.raises(InputError, match=r"confidence|Confidences"):
            function(confidence, right)
    with pytest.raises(InputError, match="bins must be at least 1, not 0"):
        reliability(np.ones(1), np.ones(1), 0)


# -- temperature ------------------------------------------------------------------------------


@settings(max_examples=40)
@given(seed=seeds, k=st.integers(2, 7), count=st.integers(2, 90), scale=st.floats(0.05, 40))
def test_temperature_is_scipys(seed: int, k: int, count: int, scale: float) -> None:
    """The minimum, also where it lies at a bound, and whatever the logits' scale."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, k, count)
    logits = rng.normal(0, 1, (count, k))
    logits[np.arange(count), targets] += rng.normal(1, 1, count)
    logits *= scale
    if (logits.argmax(1) == targets).all():
        targets[0] = logits[0].argmin()

    def loss(log_t: float) -> float:
        z = logits / math.exp(log_t)
        top = z.max(1)
        return float(
            (top + np.log(np.exp(z - top[:, None]).sum(1)) - z[range(count), targets]).mean()
        )

    bounds = (math.log(0.05), math.log(20))
    best = scipy.optimize.minimize_scalar(
        loss, bounds=bounds, method="bounded", options={"xatol": 1e-10}
    )
    got = fit_temperature(logits, targets)
    assert 0.05 <= got <= 20
    assert loss(math.log(got)) <= best.fun + 1e-9
    assert got == fit_temperature(logits, targets)
    assert got == fit_temperature(torch.from_numpy(logits), torch.from_numpy(targets))


def test_logits_that_are_too_sure() -> None:
    """Calibrated logits times three need the temperature three, and fit better with it."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (20_000, 5))
    targets = (logits + rng.gumbel(size=logits.shape)).argmax(1)  # drawn from their softmax
    assert fit_temperature(logits, targets) == pytest.approx(1, abs=0.04)
    got = fit_temperature(3 * logits, targets)
    assert got == pytest.approx(3, abs=0.12)
    before, after = (sklearn.metrics.log_loss(targets, softmax(3 * logits / t)) for t in (1, got))
    assert after < before
    right = logits.argmax(1) == targets
    errors = [expected_calibration_error(softmax(3 * logits / t).max(1), right) for t in (1.0, got)]
    assert errors[1] < 0.02 < errors[0]


@pytest.mark.parametrize("count", [1, 2, 20, 359, 5000])
@pytest.mark.parametrize("scale", [1.0, 3.0, 8.0])
def test_perfect_answers_follow_the_rule_of_succession(count: int, scale: float) -> None:
    """With every answer right, the likelihood has no maximum: 1 said 36 % of a right answer."""
    rng = np.random.default_rng(count)
    targets = rng.integers(0, 4, count)
    logits = rng.normal(0, 1, (count, 4))
    logits[np.arange(count), targets] = logits.max(1) + rng.uniform(0.5, 3, count)
    got = fit_temperature(scale * logits, targets)
    confidence = softmax(scale * logits / got).max(1).mean()
    assert confidence == pytest.approx((count + 1) / (count + 2), abs=1e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_equal_logits_keep_the_temperature(k: int) -> None:
    """There is nothing to choose by; a bound would be noted in the card for nothing."""
    assert fit_temperature(np.zeros((4, k)), np.array([0, k - 1, 0, k - 1])) == 1


@pytest.mark.parametrize("count", [9, 10, 57, 1999, 2000])
def test_cross_fitted_temperatures_do_not_know_their_image(count: int) -> None:
    """A temperature that was fitted to an image judges itself."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, count)
    logits = rng.normal(0, 1, (count, 3))
    logits[np.arange(count), targets] += 1
    got = cross_fit_temperatures(logits, targets)
    assert np.array_equal(got, cross_fit_temperatures(torch.tensor(logits), torch.tensor(targets)))
    changed = targets.copy()
    changed[4] = logits[4].argmin()
    moved = cross_fit_temperatures(logits, changed) != got
    if count in (9, 2000):
        assert np.unique(got).tolist() == [fit_temperature(logits, targets)]
        assert moved.all()
    else:
        assert len(np.unique(got)) == 5
        assert not moved[4]
        own = got == got[4]
        assert not moved[own].any()
        assert moved[~own].all()
        assert got[4] == fit_temperature(logits[~own], targets[~own])


@pytest.mark.parametrize(("sign", "wanted"), [(-1.0, 20.0), (1.0, 0.05)])
def test_temperatures_have_bounds(sign: float, wanted: float) -> None:
    """Answers that are worse than none want an infinite temperature, faint ones nearly zero."""
    targets = np.array([0, 1] * 50)
    logits = sign * np.eye(2)[targets] * (9 if sign < 0 else 1e-3)
    if sign > 0:
        logits[0] = logits[1]
    assert fit_temperature(logits, targets) == pytest.approx(wanted)


def test_half_precision_and_inference_tensors() -> None:
    """Logits come as the network made them."""
    with torch.inference_mode():
        z = torch.tensor([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.bfloat16)
        y = torch.tensor([0, 1, 1])
    assert fit_temperature(z, y) == fit_temperature(z.double().numpy(), y.numpy())


@pytest.mark.parametrize(
    ("logits", "targets", "problem"),
    [
        (np.zeros((0, 3)), NOTHING, "need targets"),
        (np.zeros((2, 3)), np.zeros(3), "need targets"),
        (np.zeros(3), np.zeros(3), "need targets"),
        (np.zeros((2, 3)), np.array([0, 3]), "from 0 to 2"),
        (np.zeros((2, 3)), np.array([-1, 0]), "from 0 to 2"),
        (np.array([[0, math.nan]]), np.array([0]), "finite"),
        (np.array([[0, math.inf]]), np.array([0]), "finite"),
    ],
)
def test_logits_that_fit_nothing(logits: np.ndarray, targets: np.ndarray, problem: str) -> None:
    """NaN compares false with everything, so the search would end somewhere."""
    with pytest.raises(InputError, match=problem):
        fit_temperature(logits, targets)


# -- threshold --------------------------------------------------------------------------------


@settings(max_examples=100)
@given(
    seed=seeds,
    count=st.integers(1, 40),
    digits=st.integers(1, 3),
    wanted=st.sampled_from([0.5, 0.8, 0.95, 1.0]),
)
def test_thresholds_are_the_lowest(seed: int, count: int, digits: int, wanted: float) -> None:
    """Answers of equal confidence cannot be told apart, so half of them cannot be accepted."""
    confidence, right = answers(seed, count, digits)
    good = [
        t for t in np.unique(confidence).tolist() if right[confidence >= t].mean() >= wanted - 1e-12
    ]
    got = recommend_threshold(confidence, right, wanted)
    if right.mean() >= wanted:
        assert got == 0
    else:
        assert got == (min(good) if good else None)


def test_thresholds_one_knows() -> None:
    """None where the surest answers are wrong; the dip at 0.8 is passed over."""
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    right = np.array([True, False, True, True, False])
    assert recommend_threshold(confidence, right, 0.75) == 0.6
    assert recommend_threshold(confidence, right, 0.9) == 0.9
    assert recommend_threshold(confidence, ~right, 0.9) is None
    for wanted in (0, -1, 1.1, math.nan):
        with pytest.raises(InputError, match="wanted must be above 0 and at most 1"):
            recommend_threshold(confidence, right, wanted)


# -- uncertainty ------------------------------------------------------------------------------


@settings(max_examples=40)
@given(count=st.integers(2, 2000), part=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_intervals_are_the_binomials(count: int, part: float, seed: int) -> None:
    """Percentiles of what is drawn, not of a normal curve that reaches past one."""
    good = min(max(round(count * part), 1), count - 1)
    right = np.arange(count) < good
    low, high = interval(right, seed, rounds=20_000)
    assert 0 <= low <= good / count <= high <= 1
    tails = scipy.stats.binom.ppf([0.015, 0.035, 0.965, 0.985], count, good / count) / count
    assert tails[0] <= low <= tails[1]
    assert tails[2] <= high <= tails[3]
    assert interval(right, seed) == interval(right[::-1], seed)


@pytest.mark.parametrize("count", [1, 5, 300])
def test_intervals_without_a_mistake(count: int) -> None:
    """Resampling five right answers gives an interval from 100 % to 100 %."""
    exact = scipy.stats.binomtest(count, count).proportion_ci(method="exact")
    assert interval(np.ones(count, bool)) == pytest.approx((exact.low, 1))
    assert interval(np.zeros(count, bool)) == pytest.approx((0, 1 - exact.low))


def test_intervals_of_nothing() -> None:
    """The mean of no answers is undefined."""
    cases: list[dict[str, Any]] = [{}, {"rounds": 0}, {"level": 1.0}, {"level": 0.0}]
    for arguments in cases:
        right = np.ones(3, bool) if arguments else NOTHING
        with pytest.raises(InputError, match="An interval needs predictions"):
            interval(right, **arguments)


@settings(max_examples=30, deadline=None)
@given(only_a=st.integers(0, 30), only_b=st.integers(1, 30), rest=st.integers(0, 300))
def test_intervals_of_a_loss_are_those_of_pairs(only_a: int, only_b: int, rest: int) -> None:
    """A naive bootstrap of images, each with both predictions."""
    parts = (only_a, only_b, rest, rest // 3)
    a = np.repeat([True, False, True, False], parts)
    b = np.repeat([False, True, True, False], parts)
    low, high = loss_interval(a, b, rounds=20_000)
    drawn = np.random.default_rng(1).integers(len(a), size=(4000, len(a)))
    losses = a[drawn].mean(1) - b[drawn].mean(1)
    tails = np.quantile(losses, [0.015, 0.035, 0.965, 0.985])
    near = 1e-9
    assert tails[0] - near <= low <= tails[1] + near
    assert tails[2] - near <= high <= tails[3] + near
    assert loss_interval(a, b) == loss_interval(a[::-1], b[::-1])


@pytest.mark.parametrize("count", [1, 20, 300])
def test_intervals_of_a_loss_without_a_difference(count: int) -> None:
    """Equal predictions of twenty images do not show that those of all images are equal."""
    right = np.arange(count) % 3 > 0
    exact = scipy.stats.binomtest(0, count).proportion_ci(method="exact").high
    assert loss_interval(right, right) == pytest.approx((-exact, exact))
    with pytest.raises(InputError, match="a prediction for each image"):
        loss_interval(right, right[1:])
    with pytest.raises(InputError, match="An interval needs predictions"):
        loss_interval(NOTHING, NOTHING)


@settings(max_examples=80)
@given(
    only_a=st.integers(0, 60),
    only_b=st.integers(0, 60),
    both=st.integers(0, 9),
    neither=st.integers(0, 9),
)
def test_mcnemar_is_the_binomial_test(only_a: int, only_b: int, both: int, neither: int) -> None:
    """Exact, two-sided, and never above one."""
    parts = (only_a, only_b, both, neither)
    a = np.repeat([True, False, True, False], parts)
    b = np.repeat([False, True, True, False], parts)
    order = np.random.default_rng(0).permutation(len(a))
    got = mcnemar(a[order], b[order])
    assert got[:2] == (only_a, only_b)
    wanted = scipy.stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert got[2] == pytest.approx(wanted, rel=1e-9)
    assert got[2] <= 1


def test_mcnemar_of_many_images() -> None:
    """Two to the number of images is more than a float can hold."""
    a = np.arange(5000) < 2600
    got = mcnemar(a, ~a)
    assert got[2] == pytest.approx(scipy.stats.binomtest(2400, 5000).pvalue, rel=1e-9)
    with pytest.raises(InputError, match="a prediction for each image"):
        mcnemar(a, a[1:])
