"""Classifiers that others exported: labels and preprocessing from metadata. Loads no torch."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from resnext.card import Card, Colour, Preprocessing
from resnext.errors import CheckpointError, ConfigError, InputError

_FLOATS = ("float", "float16", "f32", "f16")
_BYTES = ("uint8", "u8")
_RANGES = {  # of ONNX's Image.NominalPixelRange: mean and deviation of values from 0 to 1
    "NominalRange_0_255": (0.0, 1 / 255),
    "Normalized_0_1": (0.0, 1.0),
    "Normalized_1_1": (0.5, 0.5),
}

MODEL_INFO = ("model_type", "labels", "mean_values", "scale_values", "confidence_threshold")
"""Entries of OpenVINO's `model_info` that are read."""


class Port(NamedTuple):
    """An input or output of a file."""

    name: str
    type: str
    shape: tuple[int | str, ...]
    """Sizes; of those that may change, the name."""


@dataclass(frozen=True)
class _Stage:
    """The last stage of a network that is not known."""

    out_channels: int = 0


@dataclass(frozen=True)
class ForeignConfig:
    """What is known of the network in a foreign file.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of images.
    """

    num_classes: int
    in_channels: int

    num_stages = 1
    stages = (_Stage(),)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)


class Given(NamedTuple):
    """What a user says about a foreign file; the rest is taken from its metadata."""

    labels: tuple[str, ...] = ()
    """Name of each class, in the order of the values."""
    size: int | None = None
    """Side of the images, to which the shorter side is resized; pixels."""
    mean: tuple[float, ...] = ()
    """Of each channel, for values from 0 to 1."""
    std: tuple[float, ...] = ()
    """Of each channel, for values from 0 to 1."""


class Foreign(NamedTuple):
    """How a foreign classifier is used."""

    config: ForeignConfig
    card: Card
    input: str
    """"images" or "pixels"."""
    channels_last: bool
    outputs: tuple[str, ...]
    """Names of its outputs: "logits", and others by their position."""
    first: int
    """Position of the logits."""
    notes: tuple[str, ...]
    """What was found out."""


def describe_foreign(
    path: Path,
    metadata: Mapping[str, str],
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    given: Given,
) -> Foreign:
    """How to use a classifier that `export` did not write.

    Args:
        path: The file, for messages.
        metadata: Its metadata.
        inputs: Its inputs.
        outputs: Its outputs.
        given: Labels and preprocessing, where the metadata do not state them.

    Raises:
        CheckpointError: The file is not a classifier of images.
        InputError: Labels or preprocessing are not known, or their number does not fit.
    """
    task = metadata.get("task", metadata.get("model_type", "classify")).lower()
    if not task.startswith("classif"):
        raise CheckpointError(
            f"{path} is not a classifier: its metadata call its task {task}. Use the library that "
            f"it comes from."
        )
    if len(inputs) != 1:
        names = ", ".join(port.name for port in inputs)
        raise CheckpointError(
            f"{path} has {len(inputs)} inputs ({names}); a classifier of images has one."
        )
    port = inputs[0]
    channels_last, channels, side = _layout(path, port)
    position, classes = _logits(path, outputs)
    convention, found = _convention(metadata)
    found |= {name: value for name, value in given._asdict().items() if value}
    labels = found.get("labels", ())
    if not labels:
        number = f" with {classes} lines" if classes else ""
        raise InputError(
            f"{path} was not written by resnext export and does not name its classes. Give "
            f"--labels FILE{number}: one name a line."
        )
    if classes and len(labels) != classes:
        raise InputError(
            f"{path} returns {classes} values for each image, but {len(labels)} labels are given. "
            f"Give one for each, in the order of the values."
        )
    rule = _preprocessing(path, port, channels, side, found)
    kept = "images" if port.type in _FLOATS else "pixels"
    missing = [name for name in ("labels", "mean", "std") if not getattr(given, name)]
    source = convention if missing and convention else "what was given"
    names = tuple("logits" if i == position else f"output {i}" for i in range(len(outputs)))
    return Foreign(
        ForeignConfig(len(labels), channels),
        Card(tuple(labels), rule, threshold=found.get("threshold")),
        kept,
        channels_last,
        names,
        position,
        (f"Labels and preprocessing are from {source}.",),
    )


def _layout(path: Path, port: Port) -> tuple[bool, int, int]:
    """Whether channels are last, how many there are, and the size if it is fixed, else 0.

    Raises:
        CheckpointError: The input is not images.
    """
    refused = CheckpointError(
        f"{path} takes {port.type} values of shape {list(port.shape)}; a classifier of images "
        f"takes floats or bytes (n, 3, h, w) or (n, h, w, 3)."
    )
    if len(port.shape) != 4 or port.type not in (*_FLOATS, *_BYTES):
        raise refused
    first, last = port.shape[1], port.shape[3]
    if first not in (1, 3) and last not in (1, 3):
        raise refused
    channels_last = first not in (1, 3)
    channels = last if channels_last else first
    sides = port.shape[1:3] if channels_last else port.shape[2:]
    fixed = [side for side in sides if isinstance(side, int)]
    if len(set(fixed)) > 1:
        raise CheckpointError(f"{path} takes images of {sides[0]}×{sides[1]} pixels, not squares.")
    assert isinstance(channels, int)
    return channels_last, channels, fixed[0] if fixed else 0


def _logits(path: Path, outputs: Sequence[Port]) -> tuple[int, int]:
    """Position of the output with one value for each class, and their number, 0 if not fixed.

    Raises:
        CheckpointError: There is none: the file is a detector, or a backbone.
    """
    for i, port in enumerate(outputs):
        if len(port.shape) >= 2 and all(size == 1 for size in port.shape[2:]):
            return i, port.shape[1] if isinstance(port.shape[1], int) else 0
    shapes = ", ".join(f"{port.name} {list(port.shape)}" for port in outputs)
    raise CheckpointError(
        f"{path} is not a classifier: it returns {shapes}, not one value for each class."
    )


def _convention(metadata: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The convention of metadata, and what they say: labels, size, mean, std, colour, threshold."""
    if "names" in metadata:
        return "the metadata of Ultralytics", _ultralytics(metadata)
    if "labels" in metadata:
        return "OpenVINO's model_info", _model_info(metadata)
    found = _image_properties(metadata)
    return "ONNX's Image properties" if found else "", found


def _ultralytics(metadata: Mapping[str, str]) -> dict[str, Any]:
    """`names` and `imgsz`; Ultralytics' classifiers take values from 0 to 1, and resize to crop."""
    found: dict[str, Any] = {"mean": 0.0, "std": 1.0, **_image_properties(metadata)}
    names, size = _literal(metadata["names"]), _literal(metadata.get("imgsz", ""))
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    if isinstance(names, list | tuple):
        found["labels"] = tuple(map(str, names))
    if isinstance(size, int):
        size = [size]
    if isinstance(size, list | tuple) and size and isinstance(size[0], int):
        found["size"] = size[0]
    return found


def _model_info(metadata: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {"labels": tuple(metadata["labels"].split())}
    found["mean"] = _scaled(metadata.get("mean_values", "")) or 0.0
    found["std"] = _scaled(metadata.get("scale_values", "")) or 1 / 255
    if "confidence_threshold" in metadata:
        found["threshold"] = float(metadata["confidence_threshold"])
    return found


def _image_properties(metadata: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    kind = metadata.get("Image.BitmapPixelFormat", "")
    colours: dict[str, Colour] = {"Gray": "L", "Rgb": "RGB", "Bgr": "BGR"}
    for start, colour in colours.items():
        if kind.startswith(start):
            found["colour"] = colour
    if (values := metadata.get("Image.NominalPixelRange", "")) in _RANGES:
        found["mean"], found["std"] = _RANGES[values]
    return found


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def _scaled(text: str) -> tuple[float, ...]:
    """Numbers for values up to 255 as numbers for values up to 1."""
    try:
        return tuple(float(x) / 255 for x in text.split())
    except ValueError:
        return ()


def _preprocessing(
    path: Path, port: Port, channels: int, side: int, found: Mapping[str, Any]
) -> Preprocessing:
    """The preprocessing that metadata state.

    Raises:
        InputError: They do not say how large images are, or how they are normalized.
    """
    size = found.get("size", side)
    if not size:
        raise InputError(f"{path} does not say how large its images are. Give --size.")
    if side not in (0, size):
        raise InputError(f"{path} takes images of {side} pixels, not {size}. Give --size {side}.")
    if port.type in _FLOATS and not {"mean", "std"} <= set(found):
        raise InputError(
            f"{path} does not say how its images are normalized. Give --mean and --std, for values "
            f"from 0 to 1: --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 is usual."
        )
    numbers = [found.get("mean", 0.0), found.get("std", 1.0)]
    mean, std = (x if isinstance(x, tuple) else (x,) * channels for x in numbers)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise InputError(
                f"{path} takes images of {channels} channels, but --{name} has {len(values)} "
                f"numbers. Give one for each."
            )
    colour = found.get("colour", "RGB" if channels == 3 else "L")
    try:
        return Preprocessing(size, size, mean=mean, std=std, colour=colour)
    except ConfigError as error:
        raise InputError(f"{path}: its metadata cannot be used: {error}") from error
