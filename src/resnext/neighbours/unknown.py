"""Whether an image is like none that a model was trained on.

The score is the cosine distance to one of the nearest embeddings of the training images
(arXiv:2204.06507), the 50th if there are many, plus the energy of the logits (arXiv:2010.03759),
weighted so that both vary equally over validation images. The distance finds images of another
kind, the energy those of a new class that resembles a known one. benchmarks/unknown.py compares
the sum with its parts and with other scores.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float32

FALSE_ALARMS = 0.05
"""Share of the validation images above the threshold."""
_NEAREST = (5, 50)  # least: one image may be mislabelled, or a copy
_SHARE = 6  # of the images of a class, one in so many is nearer than the one that counts
_NUMBERS = 2_000_000  # of the embeddings that are compared: well below 1 ms an image
_FLAT = 1e-5  # deviation of energies that is only rounding
_FEWEST = 20  # validation images that a threshold is fitted to


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
        threshold: Highest score of an image that counts as one of the classes.
        weight: Cosine distance that counts as much as one unit of energy.
    """

    bank: Float32[np.ndarray, "m d"] = field(repr=False)
    threshold: float = np.inf
    weight: float = 0.0

    def __call__(
        self, logits: Float32[np.ndarray, "n k"], embeddings: Float32[np.ndarray, "n d"]
    ) -> Float32[np.ndarray, " n"]:
        """The score of each image."""
        k = self.rank(logits.shape[1])
        similarity = embeddings @ self.bank.T
        nearest = np.partition(similarity, -k, axis=1)[:, -k]
        distance = 1 - nearest / np.linalg.norm(embeddings, axis=1).clip(1e-30)
        return distance + self.weight * _energy(logits)

    def rank(self, classes: int) -> int:
        """Of a network with so many classes, which of the nearest embeddings counts, from 1."""
        most, (least, usual) = len(self.bank), _NEAREST
        return min(max(min(most // (_SHARE * classes), usual), least), most)

    def fitted(
        self, logits: Float32[np.ndarray, "n k"], embeddings: Float32[np.ndarray, "n d"]
    ) -> UnknownScore | None:
        """The score with the weight, and with the threshold that `FALSE_ALARMS` of images exceed.

        Args:
            logits: Of validation images.
            embeddings: Of the same images.

        Returns:
            None if there are too few.
        """
        if len(embeddings) < _FEWEST:
            return None
        deviation = float(_energy(logits).std())
        distance = replace(self, weight=0.0)(logits, embeddings)
        weight = float(distance.std()) / deviation if deviation > _FLAT else 0.0
        fitted = replace(self, weight=weight)
        values = np.sort(fitted(logits, embeddings))
        alarms = int(FALSE_ALARMS * len(values))
        threshold = float(values[-alarms - 1 :][:2].mean())  # between two, as sums are not exact
        return replace(fitted, threshold=threshold)


def _energy(logits: Float32[np.ndarray, "n k"]) -> Float32[np.ndarray, " n"]:
    """High if the network expects no class."""
    top = logits.max(1)
    return -top - np.log(np.exp(logits - top[:, None]).sum(1))
