"""The interface of everything that predicts: images in, logits and embeddings out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int, Shaped, UInt8

from resnext.card import Card, Described
from resnext.config import ResNeXtConfig
from resnext.errors import ResNeXtError
from resnext.inference.foreign import ForeignConfig

Outputs = tuple[Float32[np.ndarray, "n k"], Float32[np.ndarray, "n d"]]
"""Logits, and embeddings: the last feature map averaged over its pixels."""

Session = Callable[[Shaped[np.ndarray, "n _ _ _"]], Outputs]
"""A loaded engine for images or for pixels; takes any number; safe to call from several threads."""

MapOutputs = tuple[Float32[np.ndarray, "n k"], Float32[np.ndarray, "n d h w"]]
"""Logits, and the last feature maps, whose average over the pixels is the embedding."""

MapSession = Callable[[Shaped[np.ndarray, "n _ _ _"]], MapOutputs]
"""A session that returns feature maps."""


class Classifier(NamedTuple):
    """The linear layer from an embedding to logits."""

    weight: Float32[np.ndarray, "k d"]
    bias: Float32[np.ndarray, " k"]


@runtime_checkable
class Runner(Protocol):
    """A model that predicts, independent of its engine. Safe to call from several threads."""

    @property
    def card(self) -> Card | None:
        """Labels and preprocessing."""
        ...

    @property
    def config(self) -> ResNeXtConfig | ForeignConfig:
        """The architecture."""
        ...

    @property
    def batch(self) -> int:
        """The fastest batch size; any other is accepted too."""
        ...

    def pixels(self, x: UInt8[np.ndarray, "n h w c"]) -> Outputs:
        """Logits and embeddings of pixels as `data.decoding.pixels` returns them."""
        ...


def embedding_width(runner: Described) -> int:
    """Values of an embedding; 0 for a file of another runtime that returns none."""
    outputs = getattr(runner, "outputs", ("embedding",))
    return runner.config.stages[-1].out_channels if "embedding" in outputs else 0


@runtime_checkable
class MapRunner(Runner, Protocol):
    """A runner that also returns what its logits are the sums of."""

    @property
    def classifier(self) -> Classifier:
        """The last layer of the network."""
        ...

    def maps(self, x: UInt8[np.ndarray, "n h w c"]) -> MapOutputs:
        """Logits and last feature maps of pixels as `data.decoding.pixels` returns them."""
        ...


def returns_maps(runner: Runner) -> bool:
    """Whether a runner returns feature maps; a file of another runtime may not."""
    return "map" in getattr(runner, "outputs", ("map",)) and isinstance(runner, MapRunner)


def check_finite(logits: Float32[np.ndarray, "n k"], name: Callable[[int], str]) -> None:
    """Refuse outputs that hold no probabilities.

    Args:
        logits: The logits of several images.
        name: The name of the image with a number, for the message.

    Raises:
        ResNeXtError: A logit is NaN or infinite.
    """
    finite = np.isfinite(logits).all(1)
    if not finite.all():
        raise ResNeXtError(
            f"The model's output for {name(int(finite.argmin()))} is NaN or infinite. Check the "
            f"weights with resnext doctor, or compute in fp32."
        )


def probabilities(
    logits: Float32[np.ndarray, "n k"], temperature: float
) -> Float64[np.ndarray, "n k"]:
    """Calibrated probabilities of all classes."""
    scaled = logits.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return p


def top_classes(
    logits: Float32[np.ndarray, "n k"], temperature: float, top: int
) -> tuple[Int[np.ndarray, "n t"], Float64[np.ndarray, "n t"]]:
    """The `top` most likely classes of each image and their probabilities, most likely first."""
    p = probabilities(logits, temperature)
    if top == 1:
        best = p.argmax(1)[:, None]
    else:
        best = np.sort(np.argpartition(-p, top - 1)[:, :top])
        order = np.argsort(-np.take_along_axis(p, best, 1), kind="stable")
        best = np.take_along_axis(best, order, 1)
    return best, np.take_along_axis(p, best, 1)
