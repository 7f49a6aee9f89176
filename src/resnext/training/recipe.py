"""How to train, as data. A recipe is a function that returns a `Recipe`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from resnext.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, besides data, network and seed.

    Stochastic gradient descent with Nesterov momentum; the rate rises linearly over the warm-up,
    then falls to zero along a cosine. Weight decay spares norms and biases.

    Args:
        epochs: Passes over the training images.
        batch_size: Images of a step.
        learning_rate: Highest rate.
        momentum: Of Nesterov's method.
        weight_decay: On the weights of convolutions and linear layers.
        warmup: Part of all steps in which the rate rises.
        label_smoothing: Probability shared among all classes (arXiv:1512.00567).
        min_area: Smallest part of an image that a random crop keeps.
        flip: Whether every other image is mirrored. Wrong for digits and letters.
        zero_init_residual: Whether blocks start as their shortcuts, which keeps the first steps of
            deep networks stable (arXiv:1706.02677).

    Raises:
        ConfigError: A value is out of range.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.1
    label_smoothing: float = 0.1
    min_area: float = 0.25
    flip: bool = True
    zero_init_residual: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        for field in fields(self):
            low, high = _RANGES.get(field.name, (0.0, 1.0))
            value = getattr(self, field.name)
            whole = field.name in ("epochs", "batch_size")
            number = type(value) is int or (type(value) is float and not whole)
            switch = field.name in ("flip", "zero_init_residual")
            if not switch and not (number and low <= value <= high):
                kind = "a whole number" if whole else "a number"
                raise ConfigError(
                    f"{field.name} must be {kind} from {low:g} to {high:g}, not {value!r}."
                )


_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 1_000_000),
    "batch_size": (2, 1_000_000),  # batch norm needs two images
    "learning_rate": (1e-12, 1e3),
    "min_area": (0.01, 1.0),
}


def small() -> Recipe:
    """For a few hundred to some ten thousand photographs, from scratch.

    Source: the ResNeXt paper's optimizer (section 4: rate 0.1 for 256 images, so 0.0125 for 32)
    with a cosine schedule (arXiv:1608.03983), and wider random crops than ImageNet's, which cut
    away too much of few images.
    """
    return Recipe(epochs=60, batch_size=32, learning_rate=0.0125)


def digits() -> Recipe:
    """For scikit-learn's 8×8 digits: mild crops, no mirroring.

    `benchmarks/digits.py` measures it.
    """
    return Recipe(
        epochs=20,
        batch_size=64,
        learning_rate=0.2,
        min_area=0.7,
        flip=False,
        zero_init_residual=False,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"small": small, "digits": digits}
