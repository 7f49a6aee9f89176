"""timm: its names are ours. This file says which networks it can build, and reads its metadata.

Source: `timm.models.resnet`, version 1.0, whose `ResNet` takes stem, shortcut, anti-aliasing and
attention; and its table of pretrained weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from resnext.architectures import nearest_variant, unsupported_reason, variant, variants
from resnext.card import Card, Preprocessing
from resnext.config import ResNeXtConfig
from resnext.dialects.dialect import (
    CheckpointMetadata,
    Dialect,
    Documents,
    ParameterNames,
    Values,
    label_names,
)
from resnext.dilation import undilated, with_output_stride
from resnext.errors import CheckpointError, ResNeXtError

NAMES = {  # architectures that timm can create by our name
    "resnext50_32x4d",
    "resnext50d_32x4d",
    "resnext101_32x4d",
    "resnext101_32x8d",
    "resnext101_32x16d",
    "resnext101_32x32d",
    "resnext101_64x4d",
    "seresnext26d_32x4d",
    "seresnext26t_32x4d",
    "seresnext50_32x4d",
    "seresnext101_32x4d",
    "seresnext101_32x8d",
    "seresnext101_64x4d",
    "seresnext101d_32x8d",
    "seresnextaa101d_32x8d",
    "seresnextaa201d_32x8d",
    "ecaresnext26t_32x4d",
    "ecaresnext50t_32x4d",
}
# Arguments that concern training only
_TRAINING = ("drop_rate", "drop_path_rate", "drop_block_rate", "pretrained", "zero_init_last")
# Entries of `pretrained_cfg` that say where weights come from, or repeat what tensors show
_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "architecture")
_SOURCES += ("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes")
_SOURCES += ("num_classes", "label_names", "label_descriptions", "first_conv", "classifier")
_SOURCES += ("pool_size", "test_pool_size", "min_input_size", "fixed_input_size", "num_features")
_SOURCES += ("has_weights", "labels")
_IMAGES = ("input_size", "test_input_size", "interpolation", "crop_pct", "test_crop_pct")
_IMAGES += ("crop_mode", "mean", "std")
_CONFIG = ("architecture", "num_classes", "num_features", "global_pool", "pretrained_cfg")
_CONFIG += ("model_args", "label_names", "label_descriptions")
_LEGACY = "legacy_"  # Cadene's networks; see cadene.py
_ONLY_TIMM = re.compile(r"conv1\.0\.|layer1\.0\.se\.|.*\.downsample\.2\.")


def original(config: ResNeXtConfig) -> nn.Module:
    """timm's own network for a config that timm can build.

    Raises:
        ImportError: timm is not installed.
    """
    from timm.layers.blur_pool import BlurPool2d
    from timm.models.resnet import Bottleneck, ResNet

    args = arguments(config)
    if config.anti_alias:
        args["aa_layer"] = nn.AvgPool2d if config.anti_alias == "avg" else BlurPool2d
    return ResNet(Bottleneck, config.layers, **args)  # pyright: ignore[reportArgumentType]


def arguments(config: ResNeXtConfig) -> dict[str, Any]:
    """Arguments of timm's `ResNet`, except for block and layers."""
    args: dict[str, Any] = {
        "num_classes": config.num_classes,
        "in_chans": config.in_channels,
        "cardinality": config.stages[0].groups,
        "base_width": _base_width(config),
        "channels": tuple(stage.out_channels // 4 for stage in config.stages),
    }
    if config.stem_type == "deep":
        tiered = config.stem_out[0] != config.stem_out[1]
        args |= {"stem_type": "deep_tiered" if tiered else "deep"}
        args |= {"stem_width": config.stem_out[2] // 2}
    if config.avg_down:
        args["avg_down"] = True
    if config.anti_alias:
        args["aa_layer"] = config.anti_alias
    if config.gate:
        args["block_args"] = {"attn_layer": config.gate}
    return args | _undilated(config)[1]


def _undilated(config: ResNeXtConfig) -> tuple[ResNeXtConfig, dict[str, int]]:
    """The network without the dilation that timm can make, and timm's argument for it."""
    plain, stride = undilated(config, "timm")
    return (plain, {"output_stride": stride}) if stride in (8, 16) else (config, {})


def _base_width(config: ResNeXtConfig) -> int:
    """Width of a group at 64 channels, rounded up because timm rounds it down again."""
    first = config.stages[0]
    return max(-(-first.width // first.groups * 64 // (first.out_channels // 4 or 1)), 1)


def _problem(config: ResNeXtConfig) -> str:
    """Why timm cannot build a network; empty if it can."""
    if config.num_stages != 4:
        return f"has networks of four stages, not {config.num_stages}."
    config, _ = _undilated(config)
    half = config.stem_out[-1] // 2
    tiered = (3 * (half // 4), half, 2 * half)  # for 32: 24, 32, 64
    nearest = ResNeXtConfig(
        config.layers,
        config.stages[0].groups,
        _base_width(config),
        config.num_classes,
        config.in_channels,
        stem_type=config.stem_type,
        stem_channels=tiered if config.stem_out == tiered else None,
        stem_width=half if config.stem_type else 64,
        avg_down=config.avg_down,
        anti_alias=config.anti_alias,
        attention=config.gate,
        channels=tuple(max(stage.out_channels // 4, 1) for stage in config.stages),
    )
    return unsupported_reason(config, nearest)


def _is_timm(names: ParameterNames) -> bool:
    """A deep stem, attention or pooled shortcuts, which torchvision does not have."""
    return any(_ONLY_TIMM.match(name) for name in names.network)


def _hub_config(config: ResNeXtConfig, card: Card) -> dict[str, Any]:
    """`config.json` as timm writes it; empty for an architecture that timm cannot create."""
    plain, dilated = _undilated(config)
    name, other = nearest_variant(plain)
    if other or name not in NAMES:
        return {}
    preprocessing = card.preprocessing
    return {
        "architecture": name,
        "num_classes": config.num_classes,
        "num_features": config.stages[-1].out_channels,
        "model_args": {"in_chans": config.in_channels, **dilated},
        "pretrained_cfg": {
            "input_size": [config.in_channels, preprocessing.size, preprocessing.size],
            "crop_pct": preprocessing.size / preprocessing.resize,
            "interpolation": preprocessing.interpolation,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": config.num_classes,
            "license": card.licence,
            "first_conv": "conv1.0" if config.stem_type == "deep" else "conv1",
            "classifier": "fc",
        },
    }


def _metadata(documents: Documents) -> CheckpointMetadata:
    """From `config.json` as timm writes it.

    Raises:
        CheckpointError: `config.json` names an unsupported architecture or argument.
    """
    config = documents.config
    count = config.get("num_classes")
    if count is not None and type(count) is not int:
        raise CheckpointError(f"config.json: num_classes must be an integer, not {count!r}.")
    name = config.get("architecture")
    pretrained = config.get("pretrained_cfg")
    if pretrained is None and name is not None:  # timm before 0.9 wrote its entries flat
        pretrained = {
            key: x for key, x in config.items() if key not in ("global_pool", "model_args")
        }
    pretrained = pretrained if isinstance(pretrained, Mapping) else {}
    notes, preprocessing = _unknown(config, pretrained), None
    if pretrained.get("mean") is not None:
        preprocessing = _preprocessing(pretrained)
        if preprocessing is None:
            notes.append("the preprocessing in config.json is of another kind, so it is not used")
    stated = {**pretrained, **config}
    names = stated.get("label_names", stated.get("labels"))
    descriptions = stated.get("label_descriptions")
    if isinstance(names, list) and isinstance(descriptions, Mapping):
        names = [descriptions.get(x, x) if isinstance(x, str) else x for x in names]
    licence = pretrained.get("license")
    return CheckpointMetadata(
        label_names(names),
        preprocessing,
        provenance={"architecture": name} if isinstance(name, str) else {},
        licence=licence if isinstance(licence, str) else "",
        config=_network(str(name), config, count) if name is not None else None,
        num_classes=count,
        notes=tuple(notes),
    )


def _unknown(config: Values, pretrained: Values) -> list[str]:
    """A note on entries of `config.json` that are not known here.

    Raises:
        CheckpointError: timm would change the weights when it loads them.
    """
    if "architecture" not in config:
        return []
    for name in ("label_offset", "custom_load"):
        if pretrained.get(name):
            raise CheckpointError(
                f"config.json: {name} {pretrained[name]!r} of timm is not supported: it changes "
                f"the weights on loading."
            )
    known = (*_SOURCES, *_IMAGES, *_CONFIG, "label_offset", "custom_load")
    unknown = [str(name) for name in {**config, **pretrained} if name not in known]
    return [f"config.json: not known, so not used: {', '.join(unknown[:5])}"] if unknown else []


def _network(name: str, document: Values, count: int | None) -> ResNeXtConfig:
    """Our config for a timm architecture and its arguments.

    Raises:
        CheckpointError: The architecture or an argument is not supported here.
    """
    if name.removeprefix(_LEGACY) not in variants():
        raise CheckpointError(
            f"config.json names {name}, which is not a ResNeXt that is built here."
        )
    args = document.get("model_args") or {}
    args = dict(args) if isinstance(args, Mapping) else {"model_args": args}
    pool = args.pop("global_pool", document.get("global_pool"))
    if pool not in (None, "avg"):
        raise CheckpointError(f"config.json: global_pool {pool!r} is not supported, only 'avg'.")
    fields: dict[str, Any] = {"ceil_pooling": True} if name.startswith(_LEGACY) else {}
    fields |= {
        "num_classes": args.pop("num_classes", count),
        "in_channels": args.pop("in_chans", 3),
    }
    stride = args.pop("output_stride", None)
    if other := [key for key, value in args.items() if key not in _TRAINING and value is not None]:
        raise CheckpointError(f"config.json: the argument {other[0]!r} of timm is not supported.")
    try:
        config = variant(
            name.removeprefix(_LEGACY), **{key: x for key, x in fields.items() if x is not None}
        )
        return with_output_stride(config, stride, "timm")
    except ResNeXtError as error:
        raise CheckpointError(f"config.json: {error}") from error


def _preprocessing(pretrained: Values) -> Preprocessing | None:
    """From `pretrained_cfg`, at its test size; None if it is of another kind."""
    try:
        channels, height, width = pretrained.get("test_input_size") or pretrained["input_size"]
        fraction = pretrained.get("test_crop_pct") or pretrained.get("crop_pct") or 1.0
        if height != width or pretrained.get("crop_mode") not in (None, "center"):
            return None
        return Preprocessing(
            size=height,
            resize=int(height / fraction),
            interpolation=pretrained.get("interpolation", "bilinear"),
            mean=tuple(pretrained["mean"]),
            std=tuple(pretrained["std"]),
            colour="L" if channels == 1 else "RGB",
        )
    except (ResNeXtError, TypeError, KeyError, ValueError, ArithmeticError):
        return None


TIMM = Dialect(
    "timm",
    "timm",
    suffixes=(".pth", ".pt", ".safetensors", ".npz"),
    hub_config=_hub_config,
    metadata=_metadata,
    recognises=_is_timm,
    problem=_problem,
    arguments=arguments,
    original=original,
)
