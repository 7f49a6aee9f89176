"""The self-check: hide what a map points at, and see whether the explained number falls.

The deletion curve of RISE (arXiv:1806.07421), with a blurred baseline. A map must make the number
fall faster than random maps of the same smoothness do: a smooth map that points anywhere near the
object lowers it too, so a comparison with single random pixels would flatter every map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from resnext.explanation.occlusion import Score, blurred, in_batches

RANDOM_MAPS = 20
ENOUGH = 19
"""Random maps, and how many of them a reliable map beats. By chance, one in ten maps does so."""

FRACTIONS = (0.02, 0.05, 0.1, 0.25, 0.5)
"""Parts of the image that are hidden: small ones first, for evidence in a small place."""


@dataclass(frozen=True)
class DeletionCheck:
    """How well a map does against random maps of the same smoothness.

    Args:
        beaten: Number of the 20 random maps that lower the explained number less.
        curve: The explained number with 0, 2, 5, 10, 25 and 50 % of the image hidden, those places
            first whose values are largest.
        random: The same, as the mean of the random maps.
    """

    beaten: int
    curve: tuple[float, ...]
    random: tuple[float, ...]

    @property
    def passed(self) -> bool:
        """Whether the map beats at least 19 of the 20 random maps."""
        return self.beaten >= ENOUGH

    def to_dict(self) -> dict[str, Any]:
        """All numbers and the verdict, as JSON values."""
        values = {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self).items()}
        return {**values, "of": RANDOM_MAPS, "reliable": self.passed}


def check_by_deletion(
    x: UInt8[np.ndarray, "h w c"],
    values: Float32[np.ndarray, "h2 w2"],
    score: Score,
    batch: int = 64,
) -> DeletionCheck:
    """Compare a map with random maps.

    Args:
        x: Pixels as the network takes them.
        values: The map.
        score: Computes the explained number.
        batch: Images per call.
    """
    maps = [values, *random_maps(values, RANDOM_MAPS)]
    hidden = blurred(x)

    def variants() -> Iterator[np.ndarray]:
        yield x
        for one in maps:
            order = np.argsort(-_enlarged(one, x.shape[:2]), axis=None, kind="stable")
            for fraction in FRACTIONS:
                image = x.copy().reshape(-1, x.shape[2])
                first = order[: round(fraction * len(order))]
                image[first] = hidden.reshape(-1, x.shape[2])[first]
                yield image.reshape(x.shape)

    scores = in_batches(variants(), score, batch)
    curves = scores[1:].reshape(len(maps), len(FRACTIONS)).astype(np.float64)
    areas = curves.mean(1)
    beaten = int((areas[0] < areas[1:]).sum()) if np.ptp(values) > 0 else 0
    start = float(scores[0])
    mean = curves[1:].mean(0).tolist()
    return DeletionCheck(beaten, (start, *curves[0].tolist()), (start, *mean))


def random_maps(
    values: Float32[np.ndarray, "h w"], count: int, seed: int = 0
) -> list[Float[np.ndarray, "h w"]]:
    """Random maps with the spectrum of a map, so with its smoothness: their phases are drawn."""
    amplitude = np.abs(np.fft.rfft2(values))
    rng = np.random.default_rng(seed)
    maps: list[Float[np.ndarray, "h w"]] = []
    for _ in range(count):
        noise = np.fft.rfft2(rng.normal(size=values.shape))
        phases = noise / np.maximum(np.abs(noise), 1e-30)
        maps.append(np.fft.irfft2(amplitude * phases, s=values.shape))
    return maps


def _enlarged(values: np.ndarray, shape: tuple[int, ...]) -> Float[np.ndarray, "h w"]:
    if values.shape == shape:
        return values
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
