"""How to use weights: preprocessing, labels, provenance. Stored inside every model file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from resnext.checks import brief, is_finite, number, one_of, plain, positive
from resnext.errors import ConfigError, ConfigTypeError, InputError

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Colour = Literal["RGB", "BGR", "L"]


@dataclass(frozen=True, repr=False)
class Preprocessing:
    """How an image becomes the network's input.

    The shorter side is resized to `resize`, the centre is cropped to `size`, values are divided by
    255, then `mean` is subtracted and the result divided by `std`.

    Args:
        size: Image size: side of the square input, pixels.
        resize: Length of the shorter side before cropping, pixels.
        interpolation: Filter for resizing, antialiased as in Pillow.
        mean: One number per channel, in the order of `colour`.
        std: One number per channel, in the order of `colour`.
        colour: "RGB", "BGR" or "L" for grey.
        value_range: Values of grey images of 16 and 32 bits that become 0 and 255, those between
            in proportion; None to take the upper 8 of 16 bits.

    Raises:
        ConfigError: A value is out of range or of the wrong type.
    """

    size: int = 224
    resize: int = 256
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    colour: Colour = "RGB"
    value_range: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check all fields."""
        for name in ("size", "resize"):
            object.__setattr__(self, name, plain(getattr(self, name)))
            positive(name, getattr(self, name))
        one_of("interpolation", self.interpolation, get_args(Interpolation))
        one_of("colour", self.colour, get_args(Colour))
        channels = 1 if self.colour == "L" else 3
        for name in ("mean", "std"):
            value = plain(getattr(self, name))
            if isinstance(value, list | tuple):
                value = tuple(value)
                object.__setattr__(self, name, value)
            numbers = isinstance(value, tuple) and all(map(is_finite, value))
            if not numbers or len(value) != channels:
                raise ConfigError(f"{name} must hold {channels} numbers, not {brief(value)}.")
        if min(self.std) <= 0:
            raise ConfigError(f"std must be greater than 0, not {self.std!r}.")
        if isinstance(self.value_range, list):
            object.__setattr__(self, "value_range", tuple(self.value_range))
        ends = self.value_range
        whole = isinstance(ends, tuple) and all(type(end) is int for end in ends)
        if ends is not None and not (whole and len(ends) == 2 and ends[0] < ends[1]):
            raise ConfigError(
                f"value_range must hold two whole numbers, the lower one first, not {brief(ends)}."
            )

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values; `value_range` only if there is one, as in older files."""
        values = asdict(self)
        if self.value_range is None:
            del values["value_range"]
        return values

    def __repr__(self) -> str:
        """The fields of `to_dict`, because digests are made of this text."""
        values = ", ".join(f"{name}={value!r}" for name, value in self.to_dict().items())
        return f"Preprocessing({values})"


@dataclass(frozen=True)
class Card:
    """Everything needed to use the weights, apart from the architecture.

    Args:
        labels: Name of each class, in the order of the logits.
        preprocessing: How images become the network's input.
        metrics: Measured values by name: `{"val_accuracy": 0.991}`.
        provenance: Origin of the weights: data, split, recipe, seed, versions.
        licence: Licence of the weights, as an SPDX identifier; empty if unknown.
        temperature: Divisor of the logits before softmax, so that confidences are calibrated:
            of the predictions with confidence p, a fraction p is right. 1 changes nothing.
        threshold: Lowest confidence of a prediction that counts as certain; None if unknown.
        unknown_threshold: Score above which an image is like none of the classes
            (`neighbours/unknown.py`); None if unknown.
        unknown_weight: Weight of the energy in that score, beside a cosine distance.

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
    unknown_threshold: float | None = None
    unknown_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check the types of all fields."""
        for name in ("labels", "temperature", "threshold"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        if isinstance(self.labels, list):
            object.__setattr__(self, "labels", tuple(self.labels))
        if not isinstance(self.labels, tuple) or not all(isinstance(x, str) for x in self.labels):
            raise ConfigTypeError(f"labels must be a list of names, not {brief(self.labels)}.")
        if not isinstance(self.preprocessing, Preprocessing):
            raise ConfigTypeError(
                f"preprocessing must be a Preprocessing, not {brief(self.preprocessing)}."
            )
        for name, kind in (("metrics", dict), ("provenance", dict), ("licence", str)):
            if not isinstance(getattr(self, name), kind):
                raise ConfigTypeError(
                    f"{name} must be a {kind.__name__}, not {brief(getattr(self, name))}."
                )
        number("temperature", self.temperature, lambda x: x > 0, "above 0")
        if self.threshold is not None:
            number("threshold", self.threshold, lambda x: 0 <= x <= 1, "from 0 to 1 or None")
        if self.unknown_threshold is not None:
            number("unknown_threshold", self.unknown_threshold, lambda x: True, "finite or None")
        number("unknown_weight", self.unknown_weight, lambda x: x >= 0, "at least 0")

    def without_classes(self) -> Card:
        """The card for another classifier: without labels, metrics, temperature and threshold."""
        return replace(self, labels=(), metrics={}, temperature=1.0, threshold=None)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values; threshold and weight of unknown images if there are any."""
        values = asdict(self) | {"preprocessing": self.preprocessing.to_dict()}
        if self.unknown_threshold is None:
            del values["unknown_threshold"]
        if not self.unknown_weight:
            del values["unknown_weight"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Card:
        """A card from the fields that `to_dict` returns; any may be missing.

        Raises:
            ConfigError: A field is unknown or wrong.
        """
        if not isinstance(values, Mapping):
            raise ConfigTypeError(f"A card must be a dictionary, not {brief(values)}.")
        values = dict(values)
        preprocessing = values.pop("preprocessing", {})
        for given, kind in ((values, cls), (preprocessing, Preprocessing)):
            known = {f.name for f in fields(kind)}
            if not isinstance(given, Mapping) or not set(given) <= known:
                raise ConfigTypeError(
                    f"{kind.__name__} must have fields among {sorted(known)}, not {brief(given)}."
                )
        return cls(preprocessing=Preprocessing(**preprocessing), **values)


@runtime_checkable
class Described(Protocol):
    """A model with a card and a config: a network or a runner."""

    @property
    def card(self) -> Card | None: ...  # noqa: D102
    @property
    def config(self) -> Any: ...  # noqa: D102


def card_of(model: Described) -> Card:
    """The model's card, checked to have one label for each class.

    Raises:
        InputError: The card or its labels are missing, or their number is wrong.
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
