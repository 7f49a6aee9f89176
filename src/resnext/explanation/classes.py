"""Which class is explained, against which other one, and the number that this makes."""

from __future__ import annotations

from difflib import get_close_matches
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from resnext.card import Card
from resnext.checks import brief
from resnext.data.labels import shortened
from resnext.errors import InputError
from resnext.inference.runner import top_classes

GAMMA = 0.6
"""Default weight of the other class: 0 explains the class alone, 1 the difference of both logits.

Between the two, what both classes have in common still shows, but weaker (arXiv:2501.11309).
"""


class Target(NamedTuple):
    """The explained number: the logit of a class minus `gamma` times that of another."""

    label: int
    against: int | None
    gamma: float

    def weights(self, classes: int) -> Float[np.ndarray, " k"]:
        """One weight for each logit; the explained number is their product."""
        weights = np.zeros(classes)
        weights[self.label] = 1.0
        if self.against is not None:
            weights[self.against] = -self.gamma
        return weights


def choose_target(
    logits: Float32[np.ndarray, " k"],
    card: Card,
    label: str | int | None,
    against: str | int | bool | None,
    gamma: float,
) -> Target:
    """The class to explain and the one to compare it with.

    Args:
        logits: The model's logits.
        card: Labels, temperature and threshold.
        label: A class; None for the most likely one.
        against: A class; True for the most likely other class, None for that class if the model is
            not sure, False for none.
        gamma: Weight of the other class.

    Raises:
        InputError: A class is unknown, or both are the same.
    """
    order, probabilities = top_classes(logits[None], card.temperature, min(2, len(logits)))
    likely = order[0].tolist()
    chosen = likely[0] if label is None else class_index(label, card.labels)
    if against is None:
        sure = card.threshold is None or float(probabilities[0, 0]) >= card.threshold
        against = not sure and len(likely) > 1
    if against is False:
        return Target(chosen, None, gamma)
    if against is True:
        if len(likely) < 2:
            raise InputError("The model has a single class, so there is none to compare with.")
        other = likely[0] if chosen != likely[0] else likely[1]
    else:
        other = class_index(against, card.labels)
    if other == chosen:
        raise InputError(
            f"{card.labels[chosen]} cannot be compared with itself. Give two different classes."
        )
    return Target(chosen, other, gamma)


def class_index(wanted: str | int, labels: tuple[str, ...]) -> int:
    """The position of a class, from its name or its number.

    Raises:
        InputError: No class has that name or number, or several have that name.
    """
    if isinstance(wanted, str):
        found = [i for i, label in enumerate(labels) if label == wanted]
        if len(found) == 1:
            return found[0]
        if found:
            numbers = " and ".join(map(str, found))
            raise InputError(f"Classes {numbers} are both called {wanted}. Give a number.")
        if wanted.isdecimal() and int(wanted) < len(labels):
            return int(wanted)
        near = [] if wanted.isdecimal() else get_close_matches(wanted, labels, 1)
        hint = f"Did you mean {near[0]}?" if near else f"It has {shortened(labels)}."
        raise InputError(f"The model has no class {brief(wanted)}. {hint}")
    number = isinstance(wanted, int | np.integer) and not isinstance(wanted, bool)
    if not number or not 0 <= wanted < len(labels):
        raise InputError(
            f"A class must be a name or a number from 0 to {len(labels) - 1}, not {brief(wanted)}."
        )
    return int(wanted)
