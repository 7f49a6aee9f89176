"""Transformers: its `ResNetForImageClassification`, which is only read, and only if grouped.

Source: its `models/resnet/modeling_resnet.py`. The class itself has no groups: files with groups
come from forks, files without are plain ResNets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resnext.card import Preprocessing
from resnext.config import ResNeXtConfig
from resnext.dialects.dialect import (
    CheckpointMetadata,
    Dialect,
    Documents,
    NameRule,
    Values,
    label_names,
)
from resnext.errors import CheckpointError, ResNeXtError

_BLOCK = (
    *(NameRule(f"conv{i + 1}.", f"layer.{i}.convolution.") for i in range(3)),
    *(NameRule(f"bn{i + 1}.", f"layer.{i}.normalization.") for i in range(3)),
    NameRule("downsample.0.", "shortcut.convolution."),
    NameRule("downsample.1.", "shortcut.normalization."),
)


_VARIATIONS: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("relu",),
    "downsample_in_first_stage": (False,),
    "downsample_in_bottleneck": (False,),
    "output_stride": (None, 32),
    "dilation": (None, False, 1),
    "dilations": (None, [1, 1, 1, 1]),
    "strides": (None, [1, 2, 2, 2]),
    "replace_stride_with_dilation": (None, [False] * 3),
    "padding_mode": (None, "zeros"),
    "batch_norm_eps": (None, 1e-5),
    "layer_norm_eps": (None, 1e-5),
    "avg_down": (None, False),
    "pooling": (None, "avg"),
}
_STEPS = ("do_resize", "do_normalize", "do_rescale", "do_center_crop")


def _metadata(documents: Documents) -> CheckpointMetadata:
    """From `config.json` and `preprocessor_config.json` as Transformers writes them.

    Raises:
        CheckpointError: The files describe an unsupported ResNet.
    """
    config, preprocessor = documents.config, documents.preprocessor
    count = config.get("num_labels")
    if count is not None and type(count) is not int:
        raise CheckpointError(f"config.json: num_labels must be an integer, not {count!r}.")
    _check(config)
    preprocessing = _preprocessing(preprocessor) if preprocessor else None
    unused = "the preprocessing in preprocessor_config.json is of another kind, so it is not used"
    return CheckpointMetadata(
        _labels(config),
        preprocessing,
        num_classes=count,
        notes=(unused,) if preprocessor and preprocessing is None else (),
        head=_head_problem(config),
    )


def _check(config: Values) -> None:
    """Refuse variations of its ResNet that names and shapes do not show.

    The last rows are no arguments of its own class, but forks have them.
    """
    for name, usual in _VARIATIONS.items():
        if (value := config.get(name, usual[0])) not in usual:
            raise CheckpointError(
                f"config.json: {name} {value!r} is not supported, only {usual[0]}."
            )


def _head_problem(config: Values) -> str:
    """Why the classifier does not give each image one class; empty if it does."""
    kind = config.get("problem_type")
    usual = (None, "single_label_classification")
    return "" if kind in usual else f"config.json: problem_type is {kind!r}"


def _labels(config: Values) -> tuple[str, ...]:
    """Names of the classes in `id2label`.

    Raises:
        CheckpointError: The numbers are not 0, 1, 2, …
    """
    numbered = config.get("id2label")
    if not isinstance(numbered, Mapping):
        return ()
    order = [str(i) for i in range(len(numbered))]
    if sorted(order) != sorted(map(str, numbered)):
        raise CheckpointError("config.json: id2label must number the classes 0, 1, 2, …")
    by_number = {str(number): name for number, name in numbered.items()}
    return label_names([by_number[number] for number in order])


def _preprocessing(processor: Values) -> Preprocessing | None:
    """From an image processor's settings, as ConvNeXt's reads them; None for another kind."""
    given = [(str(name), value) for name, value in processor.items()]
    kinds = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    if not all(processor.get(name, True) for name in _STEPS):
        return None
    known = (*_STEPS, "do_convert_rgb")
    if any(value and name.startswith("do_") and name not in known for name, value in given):
        return None  # such as do_flip_channel_order, do_pad
    if abs(processor.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        return None
    size, crop = processor.get("size"), processor.get("crop_size")
    edge: Any = size.get("shortest_edge") if isinstance(size, Mapping) else size
    inner: Any = crop.get("height") if isinstance(crop, Mapping) else crop
    if isinstance(size, Mapping) and set(size) != {"shortest_edge"}:
        return None  # the whole image is stretched, or its longest side is bounded
    if isinstance(crop, Mapping) and crop.get("width", inner) != inner:
        return None
    try:
        fraction = processor.get("crop_pct")
        if fraction and not inner and edge >= 384:
            return None  # ConvNeXt's stretches the whole image
        return Preprocessing(
            size=inner or edge,
            resize=int(edge / fraction) if fraction and not inner else edge,
            interpolation=kinds[processor.get("resample", 2)],  # type: ignore[arg-type]
            mean=tuple(processor["image_mean"]),
            std=tuple(processor["image_std"]),
        )
    except (ResNeXtError, TypeError, KeyError, ValueError, ArithmeticError):
        return None


def _unreadable(config: ResNeXtConfig) -> str:
    """Why a network cannot be used; empty if it can."""
    if config.cardinality > 1:
        return ""
    return "wrote a plain ResNet: its 3×3 convolutions have no groups."


TRANSFORMERS = Dialect(
    "transformers",
    "Transformers",
    network=(
        NameRule("conv1.", "embedder.embedder.convolution."),
        NameRule("bn1.", "embedder.embedder.normalization."),
    ),
    block=_BLOCK,
    block_prefix="encoder.stages.{stage}.layers.{block}.",
    first_stage=0,
    metadata=_metadata,
    unreadable=_unreadable,
)
