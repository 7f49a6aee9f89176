"""Mean and deviation of a layer that normalizes images inside the network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from resnext.card import Card
from resnext.errors import ConfigError

# Layers that normalize the image inside the network: robustness, RobustBench
_NORMALIZER = re.compile(r"((?:.*\.)?)(new_mean|mean|mu)")
_DEVIATION = {"new_mean": "new_std", "mean": "std", "mu": "sigma"}


def with_normalizer(
    card: Card, state: Mapping[str, Tensor], left: Iterable[str], notes: list[str]
) -> Card:
    """The card with mean and deviation of a layer before the network, as robustness files have."""
    for name in sorted(left, key=len):
        found = _NORMALIZER.fullmatch(name)
        std = found and state.get(found[1] + _DEVIATION[found[2]])
        if not found or std is None or not state[name].numel() == std.numel() == 3:
            continue
        mean, std = state[name].flatten().tolist(), std.flatten().tolist()
        try:
            if not all(0 <= x <= 1 for x in (*mean, *std)):
                raise ConfigError("They are not of values from 0 to 1.")
            changed = replace(card.preprocessing, mean=tuple(mean), std=tuple(std))
        except ConfigError as error:
            notes.append(f"mean and deviation in {name} are not used: {error}")
            continue
        notes.append(f"mean and deviation are those in {name}")
        return replace(card, preprocessing=changed)
    return card
