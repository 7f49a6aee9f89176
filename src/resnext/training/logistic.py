"""Multinomial logistic regression with a penalty whose strength cross-validation chooses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from resnext.data.dataset import class_weights

STRENGTHS = tuple(float(f"{10 ** (step / 2):.3g}") for step in range(2, -11, -1))
"""Strengths that are tried, strongest first: 10 to 1e-5, two per decade."""

_WITHOUT_FOLDS = 0.01  # the strength if every class has one image, so that none can be held out
_FOLDS = 5
_FLOOR = 1e-3  # smallest standard deviation, relative to the root mean square of all


@dataclass(frozen=True, eq=False)
class Head:
    """A linear classifier of embeddings, in double precision.

    Args:
        weight: Rows of weights, one per class.
        bias: One number per class.
        strength: Strength of its penalty.
        tried: Log loss in cross-validation, in nats, of each strength that was tried.
        unseen: Probabilities of each image by heads that were not fitted to it, of the same
            strength; NaN for the only image of a class.
    """

    weight: Float[Tensor, "k d"]
    bias: Float[Tensor, " k"]
    strength: float
    tried: tuple[tuple[float, float], ...]
    unseen: Float[np.ndarray, "n k"]


def fit_head(
    embeddings: Float[np.ndarray, "n d"],
    targets: Int[np.ndarray, " n"],
    num_classes: int,
    *,
    balanced: bool = False,
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
    until: float | None = None,
) -> Head:
    """The head with the strength that is best in stratified cross-validation.

    It minimizes the mean log loss of the standardized embeddings plus strength / 2 times the
    squared norm of the weights; biases are free. This is scikit-learn's `LogisticRegression` with
    `C = 1 / (strength * n)`. The standardization becomes part of weights and bias.

    Args:
        embeddings: The embeddings of the training images.
        targets: Class of each.
        num_classes: Number of classes; each needs an embedding.
        balanced: Whether all classes weigh the same, whatever their number of images.
        seed: Seed of the folds.
        strengths: Strengths to try, strongest first. The search ends at the first one that is
            worse than the one before it.
        until: Time, by `time.monotonic`, after which no other strength is tried; None for no limit.
    """
    x = torch.tensor(embeddings, dtype=torch.float64)
    mean, std = x.mean(0), x.std(0, correction=0)
    std = std.clamp(min=max(_FLOOR * std.square().mean().sqrt().item(), 1e-12))
    x = x.sub_(mean).div_(std)  # in place: it may be a large part of the memory
    basis = None
    if len(x) < x.shape[1]:  # the best weights are sums of the rows of x: a smaller, equal problem
        basis, triangle = torch.linalg.qr(x.T)
        x = triangle.T
    y, weights = torch.from_numpy(targets).long(), torch.ones(len(targets), dtype=torch.float64)
    if balanced:
        weights = torch.from_numpy(class_weights(targets, num_classes))[y]
    problem = _Problem(x, y, num_classes)
    tried, unseen = _cross_validate(problem, weights, folds(targets, seed), strengths, until)
    strength = min(tried, key=lambda row: row[1])[0] if tried else _WITHOUT_FOLDS
    weight, bias = problem.fit(weights, strength, tolerance=1e-10)
    weight = (weight if basis is None else weight @ basis.T) / std
    return Head(weight, bias - weight @ mean, strength, tuple(tried), unseen.numpy())


def folds(targets: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " n"]:
    """Fold of each image, from 0 to 4: the images of a class are spread over all folds.

    The only image of a class gets -1: it is always trained on.
    """
    shuffled = np.random.default_rng(seed).permutation(len(targets))
    order = shuffled[np.argsort(targets[shuffled], kind="stable")]
    result = np.empty(len(targets), np.int64)
    result[order] = np.arange(len(targets)) % _FOLDS
    result[np.bincount(targets)[targets] == 1] = -1
    return result


def _cross_validate(
    problem: _Problem,
    weights: Float[Tensor, " n"],
    fold_of: Int[np.ndarray, " n"],
    strengths: Sequence[float],
    until: float | None,
) -> tuple[list[tuple[float, float]], Float[Tensor, "n k"]]:
    """Each strength that was tried, with its log loss; none if no image can be held out.

    Also the probabilities of held-out images with the best one; NaN for images never held out.
    """
    masks = [torch.from_numpy(fold_of == fold) for fold in np.unique(fold_of[fold_of >= 0])]
    starts = [problem.zero()] * len(masks)
    tried: list[tuple[float, float]] = []
    unseen = torch.full((len(weights), problem.num_classes), torch.nan, dtype=torch.float64)
    for strength in strengths if masks else ():
        losses = torch.zeros(len(weights), dtype=torch.float64)
        logits = torch.full_like(unseen, torch.nan)
        for i, held_out in enumerate(masks):
            starts[i] = problem.fit(weights * ~held_out, strength, starts[i], tolerance=1e-5)
            losses += problem.losses(starts[i]) * held_out
            logits[held_out] = problem.logits(starts[i], held_out)
        held = torch.from_numpy(fold_of >= 0)
        tried.append((strength, float((losses * weights).sum() / (weights * held).sum())))
        if len(tried) > 1 and tried[-1][1] > tried[-2][1]:
            break
        unseen = logits.softmax(1)
        if until is not None and time.monotonic() > until:
            break
    return tried, unseen


@dataclass(frozen=True, eq=False)
class _Problem:
    """Logistic regression on fixed features.

    Args:
        x: Features.
        targets: Class of each row.
        num_classes: Number of classes.
    """

    x: Float[Tensor, "n d"]
    targets: Int[Tensor, " n"]
    num_classes: int

    def zero(self) -> tuple[Tensor, Tensor]:
        """Weights and bias from which a fit starts."""
        shape = self.num_classes, self.x.shape[1]
        return torch.zeros(shape, dtype=torch.float64), torch.zeros(shape[0], dtype=torch.float64)

    def logits(self, head: tuple[Tensor, Tensor], rows: Tensor) -> Float[Tensor, "m k"]:
        """Logits of some rows."""
        return self.x[rows] @ head[0].T + head[1]

    def losses(self, head: tuple[Tensor, Tensor]) -> Float[Tensor, " n"]:
        """Log loss of each row."""
        return F.cross_entropy(self.x @ head[0].T + head[1], self.targets, reduction="none")

    def fit(
        self,
        weights: Float[Tensor, " n"],
        strength: float,
        start: tuple[Tensor, Tensor] | None = None,
        *,
        tolerance: float,
    ) -> tuple[Tensor, Tensor]:
        """Weights and bias that minimize the penalized loss, by L-BFGS.

        Args:
            weights: Weight of each row's loss.
            strength: Strength of the penalty.
            start: Weights and bias to start from.
            tolerance: Largest derivative at which the search ends.
        """
        head = [part.clone().requires_grad_() for part in start or self.zero()]
        share = weights / weights.sum()
        search = torch.optim.LBFGS(
            head,
            max_iter=1000,
            history_size=10,  # as in scikit-learn; 100 take gigabytes for a thousand classes
            tolerance_grad=tolerance,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            search.zero_grad()
            penalty = strength / 2 * head[0].square().sum()
            value = (self.losses((head[0], head[1])) * share).sum() + penalty
            value.backward()
            return value

        search.step(closure)
        return head[0].detach(), head[1].detach()
