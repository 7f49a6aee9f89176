"""The test of Adebayo et al. (arXiv:1810.03292): does the map depend on what was learned?

The layers are randomized from the top, one after another, and the map is computed again. A map
that stays the same shows edges of the image, not reasons of the network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from resnext.explanation.deletion import random_maps
from resnext.network import ResNeXt

Map = np.ndarray
_SEEDS = 4  # random networks that are averaged
_RANDOM_MAPS = 200

LOST = 0.5
"""Largest rank correlation of a map that counts as lost."""


@dataclass(frozen=True)
class SanityCheck:
    """How similar the map stays while layers are randomized from the top.

    Args:
        layers: Name of the layer that was randomized last, in order.
        similarity: Rank correlation with the original map after each, from -1 to 1: the mean of
            four random networks.
        chance: The 95th percentile of this correlation for random maps of the same smoothness.
    """

    layers: tuple[str, ...]
    similarity: tuple[float, ...]
    chance: float

    @property
    def conclusive(self) -> bool:
        """Whether the map has enough places: of a few, random maps are similar too."""
        return self.chance <= LOST

    @property
    def passed(self) -> bool:
        """Whether the map is lost once all layers are random."""
        return self.conclusive and self.similarity[-1] <= LOST

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        if not self.conclusive:
            return "the map has too few places to tell"
        return "the map got lost" if self.passed else "the map stayed, so it explains nothing"


def check_by_randomizing(network: ResNeXt, compute: Callable[[ResNeXt], Map]) -> SanityCheck:
    """Randomize a copy of the network from the top and compare the maps.

    Args:
        network: The network; left unchanged.
        compute: Computes the map of a network.
    """
    original = compute(network)
    layers = [name for name, module in network.named_children() if [*module.parameters()]][::-1]
    similarity = np.zeros(len(layers))
    with torch.random.fork_rng(devices=[]):
        for seed in range(_SEEDS):
            torch.manual_seed(seed)
            randomized = copy.deepcopy(network)
            for i, name in enumerate(layers):
                _randomize(getattr(randomized, name))
                similarity[i] += rank_correlation(original, compute(randomized)) / _SEEDS
    by_chance = [
        np.mean([rank_correlation(original, one) for one in random_maps(original, _SEEDS, i)])
        for i in range(_RANDOM_MAPS)
    ]
    chance = float(np.percentile(by_chance, 95))
    return SanityCheck(tuple(layers), tuple(similarity.tolist()), chance)


def rank_correlation(a: Map, b: Map) -> float:
    """Spearman's rank correlation of two maps; 0 if one of them is constant."""
    first, second = (np.argsort(np.argsort(x, axis=None)).astype(np.float64) for x in (a, b))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _randomize(layer: nn.Module) -> None:
    """Draw every parameter again, as if the layer had never been trained."""
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # pyright: ignore[reportCallIssue]
