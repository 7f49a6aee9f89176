"""Logistic regression against scikit-learn's, and the choice of its strength."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from oracles.originals import sklearn

from resnext.training.logistic import STRENGTHS, Head, fit_head, folds


def blobs(counts: tuple[int, ...], d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clouds of unequal scale, one per class."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(counts)), counts)
    centres = rng.normal(size=(len(counts), d))
    x = (centres[y] + 1.5 * rng.normal(size=(len(y), d))) * rng.uniform(0.1, 5, d) + 3
    return x.astype(np.float32), y


def probabilities(head: Head, x: np.ndarray) -> np.ndarray:
    """Softmax of the head's logits, without any standardization."""
    return (torch.from_numpy(x).double() @ head.weight.T + head.bias).softmax(1).numpy()


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("d", [5, 80], ids=["more images", "more features"])
@pytest.mark.parametrize("strength", [1.0, 0.01, 1e-4])
def test_it_is_the_same_as_in_scikit_learn(strength: float, d: int, balanced: bool) -> None:
    """A penalty with another meaning, or a wrong standardization, gives other probabilities."""
    x, y = blobs((30, 12, 7), d)
    head = fit_head(x, y, 3, balanced=balanced, strengths=[strength])
    scaler = sklearn.preprocessing.StandardScaler().fit(x.astype(np.float64))
    other = sklearn.linear_model.LogisticRegression(
        C=1 / (strength * len(x)),
        class_weight="balanced" if balanced else None,
        tol=1e-10,
        max_iter=100_000,
    ).fit(scaler.transform(x.astype(np.float64)), y)
    new = blobs((20, 20, 20), d, seed=1)[0]
    wanted = other.predict_proba(scaler.transform(new.astype(np.float64)))
    assert np.abs(probabilities(head, new) - wanted).max() < 1e-4


def test_strength_is_the_best_of_those_tried() -> None:
    """Noise needs a strong penalty, clear classes a weak one."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    noise = rng.normal(size=(60, 30)).astype(np.float32)
    clear = noise + 20 * np.eye(3, 30, dtype=np.float32)[y]
    noisy, easy = fit_head(noise, y, 3), fit_head(clear, y, 3)
    assert noisy.strength > 0.3 > 0.001 > easy.strength
    for head in (noisy, easy):
        assert head.strength == min(head.tried, key=lambda row: row[1])[0]
        assert [strength for strength, _ in head.tried] == [*STRENGTHS[: len(head.tried)]]
    assert len(noisy.tried) < len(STRENGTHS)  # the search ended when the loss rose


def test_no_other_strength_is_tried_after_a_time() -> None:
    """With a thousand classes, the search took longer than a run of ten minutes."""
    x, y = blobs((30, 12, 7), 5)
    whole, cut = fit_head(x, y, 3), fit_head(x, y, 3, until=0.0)
    assert cut.tried == whole.tried[:1]
    assert cut.strength == STRENGTHS[0]
    assert np.isfinite(cut.unseen).all()
    assert fit_head(x, y, 3, until=math.inf).tried == whole.tried
    assert len(whole.tried) > 1


def test_few_directions_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is as large as the weights: a hundred of a thousand classes took 3 GB."""
    kept: list[int] = []
    step = torch.optim.LBFGS.step

    def counting(self: torch.optim.LBFGS, closure: Any) -> Any:
        result = step(self, closure)
        kept.extend(len(state["old_dirs"]) for state in self.state.values())
        return result

    monkeypatch.setattr(torch.optim.LBFGS, "step", counting)
    fit_head(*blobs((30, 12, 7), 5), 3, strengths=[1e-4])
    assert max(kept) == 10


def test_loss_is_that_of_cross_validation() -> None:
    """Scored on images that were trained on, the weakest penalty would always win."""
    x, y = blobs((40, 40, 40), 6)
    head = fit_head(x, y, 3, strengths=[0.1])
    ((strength, loss),) = head.tried
    z = sklearn.preprocessing.StandardScaler().fit_transform(x.astype(np.float64))
    fold_of = folds(y, 0)
    splits = [(np.flatnonzero(fold_of != i), np.flatnonzero(fold_of == i)) for i in range(5)]
    other = sklearn.linear_model.LogisticRegression(C=1 / (strength * 96), tol=1e-8)
    scores = sklearn.model_selection.cross_val_score(other, z, y, cv=splits, scoring="neg_log_loss")
    assert loss == pytest.approx(-scores.mean(), rel=1e-3)
    method = {"cv": splits, "method": "predict_proba"}
    unseen = sklearn.model_selection.cross_val_predict(other, z, y, **method)
    assert np.abs(head.unseen - unseen).max() < 1e-3


@pytest.mark.parametrize("counts", [(2, 2), (1, 2), (1, 9), (3, 2, 1), (40, 3)])
def test_few_images_of_a_class(counts: tuple[int, ...]) -> None:
    """A fold without training images of a class would teach that it does not exist."""
    x, y = blobs(counts, 8)
    fold_of = folds(y, seed=3)
    for label, count in enumerate(counts):
        own = fold_of[y == label]
        assert (own == -1).all() if count == 1 else len(set(own)) == min(count, 5)
    head = fit_head(x, y, len(counts), balanced=True)
    assert len(head.tried) >= 1
    assert torch.isfinite(head.weight).all()


def test_one_image_of_each_class() -> None:
    """Nothing can be held out, but the images can be told apart."""
    x, y = blobs((1, 1, 1), 8)
    head = fit_head(x, y, 3)
    assert head.tried == ()
    assert (probabilities(head, x).argmax(1) == y).all()


def test_features_that_hardly_vary_stay_harmless() -> None:
    """Divided by a tiny deviation, a dead feature that wakes up would decide everything."""
    x, y = blobs((20, 20), 6)
    x[:, 0], x[:, 1] = 2.0, 0.0
    x[0, 1] = 1e-7
    head = fit_head(x, y, 2)
    new = x.copy()
    new[:, :2] += 1.0
    moved = np.abs(probabilities(head, new) - probabilities(head, x)).max()
    assert moved < 0.5


def test_balance_helps_the_rare_class() -> None:
    """With balance, half of the errors must not all fall on the class with few images."""
    x, y = blobs((200, 8), 4)
    plain, balanced = (fit_head(x, y, 2, balanced=b, strengths=[0.1]) for b in (False, True))
    new, truth = blobs((100, 100), 4, seed=0)
    recall = [(probabilities(h, new).argmax(1) == truth)[100:].mean() for h in (plain, balanced)]
    assert recall[1] > recall[0]
