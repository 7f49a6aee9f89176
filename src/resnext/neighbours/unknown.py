"""Whether an image is like none that a model was trained on.

The score is the cosine distance to the fifth nearest embedding of the training images
(arXiv:2204.06507). benchmarks/unknown.py compares it with others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32

FALSE_ALARMS = 0.05
"""Share of the validation images above the threshold."""
_NEAREST = 5  # one image may be mislabelled, or a copy
_NUMBERS = 2_000_000  # of the embeddings that are compared: well below 1 ms an image
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
    """

    bank: Float32[np.ndarray, "m d"] = field(repr=False)
    threshold: float = np.inf

    def __call__(self, embeddings: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, " n"]:
        """The score of each embedding, from 0 to 2."""
        k = min(_NEAREST, len(self.bank))
        similarity = embeddings @ self.bank.T
        nearest = np.partition(similarity, -k, axis=1)[:, -k]
        return 1 - nearest / np.linalg.norm(embeddings, axis=1).clip(1e-30)

    def fitted(self, embeddings: Float32[np.ndarray, "n d"]) -> UnknownScore | None:
        """The score with the threshold that `FALSE_ALARMS` of the images are above.

        Args:
            embeddings: Of validation images.

        Returns:
            None if there are too few.
        """
        if len(embeddings) < _FEWEST:
            return None
        values = np.sort(self(embeddings))
        alarms = int(FALSE_ALARMS * len(values))
        threshold = float(values[-alarms - 1 :][:2].mean())  # between two, as sums are not exact
        return UnknownScore(self.bank, threshold)
