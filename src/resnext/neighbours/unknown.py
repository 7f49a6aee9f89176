"""Whether an image is like none that a model was trained on.

The score is the energy of the logits (arXiv:2010.03759) plus the cosine distance to the nearest
embedding of the training images (arXiv:2204.06507), each with mean 0 and deviation 1 on images of
the classes. benchmarks/unknown.py compares it with others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from resnext.card import Card

FALSE_ALARMS = 0.05
"""Share of the validation images above the threshold."""
_NUMBERS = 2_000_000  # of the embeddings that are compared: well below 1 ms an image
_FEWEST = 20  # validation images that a threshold is fitted to

Logits = Float32[np.ndarray, "n k"]
Vectors = Float32[np.ndarray, "n d"]


def bank_rows(count: int, width: int) -> list[int]:
    """Rows of an index that a score compares with: all, or as many as are fast, spread over it.

    Args:
        count: Number of rows.
        width: Length of an embedding.
    """
    most = max(_NUMBERS // width, 1)
    return [i * count // min(count, most) for i in range(min(count, most))]


@dataclass(frozen=True)
class UnknownScore:
    """Scores images: the higher, the less they are like the training images.

    Args:
        bank: Embeddings of training images, of length 1.
        energy: Mean and deviation of the energy of validation images.
        distance: Mean and deviation of their distance.
        threshold: Highest score of an image that counts as one of the classes.
    """

    bank: Float32[np.ndarray, "m d"] = field(repr=False)
    energy: tuple[float, float] = (0.0, 1.0)
    distance: tuple[float, float] = (0.0, 1.0)
    threshold: float = np.inf

    def __call__(self, logits: Logits, embeddings: Vectors) -> Float64[np.ndarray, " n"]:
        """The score of each image.

        Args:
            logits: Its logits.
            embeddings: Its embedding, of any length but 0.
        """
        parts = zip((self.energy, self.distance), self._parts(logits, embeddings), strict=True)
        return np.sum([(values - mean) / deviation for (mean, deviation), values in parts], axis=0)

    def fitted(self, logits: Logits, embeddings: Vectors) -> UnknownScore | None:
        """The score with means, deviations and threshold of validation images.

        Args:
            logits: Their logits.
            embeddings: Their embeddings.

        Returns:
            None if there are too few.
        """
        if len(logits) < _FEWEST:
            return None
        energy, distance = (
            (float(values.mean()), max(float(values.std()), 1e-6))
            for values in self._parts(logits, embeddings)
        )
        score = UnknownScore(self.bank, energy, distance)
        values = np.sort(score(logits, embeddings))
        alarms = int(FALSE_ALARMS * len(values))
        threshold = float(values[-alarms - 1 :][:2].mean())  # between two, as sums are not exact
        return UnknownScore(self.bank, energy, distance, threshold)

    def to_dict(self) -> dict[str, Any]:
        """All but the bank, as JSON values."""
        return {"energy": self.energy, "distance": self.distance, "threshold": self.threshold}

    def _parts(
        self, logits: Logits, embeddings: Vectors
    ) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
        """Energies, and distances to the nearest embedding of the bank."""
        z = logits.astype(np.float64)
        highest = z.max(1)
        energy = -highest - np.log(np.exp(z - highest[:, None]).sum(1))
        norms = np.linalg.norm(embeddings, axis=1).clip(1e-30)
        nearest = (self.bank @ embeddings.T).max(0) / norms
        return energy, 1 - nearest.astype(np.float64)


def read_score(
    bank: Float32[np.ndarray, "m d"], values: Mapping[str, Any], card: Card
) -> UnknownScore:
    """A score from what `to_dict` returned; the card's threshold, if it has one, comes first.

    Raises:
        KeyError, TypeError, ValueError: The values are damaged.
    """
    energy, distance = ((float(x), float(y)) for x, y in (values["energy"], values["distance"]))
    threshold = values["threshold"] if card.unknown_threshold is None else card.unknown_threshold
    return UnknownScore(bank, energy, distance, float(threshold))
