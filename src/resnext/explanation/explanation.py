"""An explanation: a map of the evidence, its numbers, and whether it can be relied on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from resnext.explanation.classes import Target
from resnext.explanation.deletion import DeletionCheck
from resnext.explanation.overlay import Box, draw_overlay
from resnext.neighbours.index import Neighbour

METHODS = {
    "map": "exact class map",
    "occlusion": "occlusion",
    "layercam": "LayerCAM",
    "ig": "integrated gradients",
}
"""The methods by name, with their title."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why an image got, or did not get, a class.

    The explained number is the logit of the class or, against another class, the difference
    `logit - gamma * logit of the other` (Finer-CAM, arXiv:2501.11309). With the methods "map" and
    "ig" it is the sum of all values of the map plus the bias. The values of the other methods do
    not add up to it.

    Args:
        name: File name of the image, or "image".
        label: The class that is explained.
        against: The class that it is compared with; None for none.
        predicted: The most likely class.
        probability: Calibrated probability of the class.
        logit: Logit of the class.
        score: The explained number.
        map: Evidence for the class (positive) and against it (negative) at each place of the crop.
            For "map" and "ig", each value is the place's share of the explained number; for
            "occlusion", by how much hiding the place lowers it; for "layercam", without a unit.
        bias: The share of the explained number that belongs to no place: the classifier's bias for
            "map", the number of an image of the mean colour for "ig", else 0.
        completeness_error: Difference between the explained number and map plus bias, relative to
            the largest logit; None for methods that do not add up.
        how: The method: "map", "occlusion", "layercam" or "ig".
        stage: The stage whose feature map is shown; 0 for methods that show pixels.
        target: The classes by number, and the weight of the other one.
        image: The whole image, at most 640 pixels on its longer side.
        crop: Left, top, right and bottom of the part that the network saw, as fractions of the
            image's width and height. Parts outside the image are black to the network.
        check: Result of hiding what the map points at; None if it was not asked for.
        like: The nearest images of the model's index, of each of the two most likely classes.
    """

    name: str
    label: str
    against: str | None
    predicted: str
    probability: float
    logit: float
    score: float
    map: Float32[np.ndarray, "h w"] = field(repr=False)
    bias: float
    completeness_error: float | None
    how: str
    stage: int
    target: Target
    image: Image.Image = field(repr=False)
    crop: Box
    check: DeletionCheck | None = None
    like: tuple[Neighbour, ...] = ()

    @property
    def evidence_for(self) -> float:
        """Sum of the positive values of the map."""
        return float(self.map.clip(min=0).sum(dtype=np.float64))

    @property
    def evidence_against(self) -> float:
        """Sum of the negative values of the map."""
        return float(self.map.clip(max=0).sum(dtype=np.float64))

    @property
    def reliable(self) -> bool | None:
        """Whether the map passed its check; None if it was not checked."""
        return None if self.check is None else self.check.passed

    def overlay(self, side: int = 512) -> Image.Image:
        """The whole image with the map over it and the crop outlined.

        Evidence for the class is orange, evidence against it blue: colours that people with any
        common kind of colour blindness can tell apart.

        Args:
            side: Length of the longer side, pixels.
        """
        return draw_overlay(self.image, self.map, self.crop, side)

    def to_dict(self) -> dict[str, Any]:
        """All numbers as JSON values; the map as rows of numbers, without the image."""
        names = ("name", "label", "against", "predicted", "probability", "logit", "score", "bias")
        more = ("completeness_error", "how", "stage")
        values: dict[str, Any] = {name: getattr(self, name) for name in names + more}
        values["gamma"] = None if self.against is None else self.target.gamma
        finite = {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}
        values |= {name: None for name in values if name not in finite}
        values |= {"evidence_for": self.evidence_for, "evidence_against": self.evidence_against}
        check = None if self.check is None else self.check.to_dict()
        rows = [[float(f"{value:.6g}") for value in row] for row in self.map.tolist()]
        like = [one.to_dict() for one in self.like]
        return {**values, "crop": list(self.crop), "check": check, "like": like, "map": rows}
