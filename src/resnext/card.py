"""How to use weights: preprocessing, labels, provenance. Travels inside every model file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from resnext.checks import is_finite, number, one_of, positive
from resnext.errors import ConfigError, ConfigTypeError, InputError

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Colour = Literal["RGB", "BGR", "L"]


@dataclass(frozen=True)
class Preprocessing:
    """From an image file to the network's input.

    The image's shorter side is resized to `resize`, its centre cut out at `size`, its values
    divided by 255, then `mean` subtracted and the result divided by `std`.

    Args:
        size: Side of the square input, pixels.
        resize: Length of the shorter side before cropping, pixels.
        interpolation: Filter used for resizing, antialiased as Pillow does.
        mean: One per channel, in the order of `colour`.
        std: One per channel, likewise.
        colour: "RGB", "BGR" or "L" for grey.

    Raises:
        ConfigError: A value is out of range or of the wrong type.
    """

    size: int = 224
    resize: int = 256
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    colour: Colour = "RGB"

    def __post_init__(self) -> None:
        """Refuse what no image can be prepared with."""
        for name in ("size", "resize"):
            positive(name, getattr(self, name))
        one_of("interpolation", self.interpolation, get_args(Interpolation))
        one_of("colour", self.colour, get_args(Colour))
        channels = 1 if self.colour == "L" else 3
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
                value = tuple(value)
            numbers = isinstance(value, tuple) and all(map(is_finite, value))
            if not numbers or len(value) != channels:
                raise ConfigError(f"{name} must hold {channels} numbers, not {value!r}.")
        if min(self.std) <= 0:
            raise ConfigError(f"std must be greater than 0, not {self.std!r}.")


@dataclass(frozen=True)
class Card:
    """What somebody who gets only the weights needs to know.

    Args:
        labels: Name of each class, in the order of the logits.
        preprocessing: How images become the network's input.
        metrics: What was measured, by name: `{"val_accuracy": 0.991}`.
        provenance: Where the weights come from: data, split, recipe, seed, versions.
        licence: Licence of the weights, as an SPDX identifier; empty if unknown.
        temperature: What logits are divided by before softmax, so that a confidence is the part
            of such answers that is right. 1 leaves them as they are.
        threshold: Lowest confidence of an answer that counts as sure; None if that is unknown.

    Raises:
        ConfigError: A value is out of range or of the wrong type.
    """

    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    metrics: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    temperature: float = 1.0
    threshold: float | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be written or read back."""
        if isinstance(self.labels, list):
            object.__setattr__(self, "labels", tuple(self.labels))
        if not isinstance(self.labels, tuple) or not all(isinstance(x, str) for x in self.labels):
            raise ConfigTypeError(f"labels must be a list of names, not {self.labels!r}.")
        if not isinstance(self.preprocessing, Preprocessing):
            raise ConfigTypeError(
                f"preprocessing must be a Preprocessing, not {self.preprocessing!r}."
            )
        for name, kind in (("metrics", dict), ("provenance", dict), ("licence", str)):
            if not isinstance(getattr(self, name), kind):
                raise ConfigTypeError(
                    f"{name} must be a {kind.__name__}, not {getattr(self, name)!r}."
                )
        number("temperature", self.temperature, lambda x: x > 0, "above 0")
        if self.threshold is not None:
            number("threshold", self.threshold, lambda x: 0 <= x <= 1, "from 0 to 1 or None")

    def to_dict(self) -> dict[str, Any]:
        """The card as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Card:
        """The card that `to_dict` described.

        Raises:
            ConfigError: A field is unknown or wrong.
        """
        if not isinstance(values, Mapping):
            raise ConfigTypeError(f"A card must be a dictionary, not {values!r}.")
        values = dict(values)
        inner = values.pop("preprocessing", {})
        for given, target in ((values, cls), (inner, Preprocessing)):
            known = {f.name for f in fields(target)}
            if not isinstance(given, Mapping) or not set(given) <= known:
                raise ConfigTypeError(
                    f"{target.__name__} must have fields among {sorted(known)}, not {given!r}."
                )
        return cls(preprocessing=Preprocessing(**inner), **values)


@runtime_checkable
class Described(Protocol):
    """What may have a card, as a network does."""

    @property
    def card(self) -> Card | None: ...  # noqa: D102
    @property
    def config(self) -> Any: ...  # noqa: D102


def card_of(model: Described) -> Card:
    """The card, complete enough to use the model with image files.

    Raises:
        InputError: It is missing, or has not one label for each class.
    """
    if model.card is None or not model.card.labels:
        raise InputError(
            "The model has no labels. Set model.card = resnext.Card(labels=…, preprocessing=…), or "
            "add them with resnext convert --labels."
        )
    if len(model.card.labels) != model.config.num_classes:
        raise InputError(
            f"The card has {len(model.card.labels)} labels, the network "
            f"{model.config.num_classes} classes. Give model.card one label for each."
        )
    return model.card
