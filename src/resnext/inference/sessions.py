"""Engines that are loaded and ready: images in, logits and embeddings out. No torch here."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from jaxtyping import Float32, UInt8

from resnext.card import Card
from resnext.config import ResNeXtConfig

Answers = tuple[Float32[np.ndarray, "n k"], Float32[np.ndarray, "n d"]]
"""Logits, and embeddings: the last map averaged over its pixels."""


class Runner(Protocol):
    """What prediction needs of a model, whatever computes it. Safe to call from several threads."""

    @property
    def card(self) -> Card | None:
        """Labels and preprocessing."""
        ...

    @property
    def config(self) -> ResNeXtConfig:
        """The architecture."""
        ...

    @property
    def batch(self) -> int:
        """How many images at a time it is fastest with; it takes any number."""
        ...

    def pixels(self, x: UInt8[np.ndarray, "n h w c"]) -> Answers:
        """Answers for pixels as `pictures.pixels` makes them."""
        ...
