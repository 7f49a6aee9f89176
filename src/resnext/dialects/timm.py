"""timm: our names are its names too. This file says which of our networks it can build.

Source: `timm.models.resnet`, version 1.0, whose `ResNet` takes stem, shortcut, anti-aliasing and
attention; and its table of pretrained weights.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from resnext.architectures import unsupported_reason
from resnext.config import ResNeXtConfig
from resnext.dialects.dialect import Dialect

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


def original(config: ResNeXtConfig) -> nn.Module:
    """timm's own network of a config that it can build.

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
    """What timm's `ResNet` is called with, apart from block and layers."""
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
    if config.gate:
        args["block_args"] = {"attn_layer": config.gate}
    return args


def _base_width(config: ResNeXtConfig) -> int:
    """Width of a group where a stage has 64 channels, rounded up: it is rounded down again."""
    first = config.stages[0]
    return max(-(-first.width // first.groups * 64 // (first.out_channels // 4 or 1)), 1)


def _problem(config: ResNeXtConfig) -> str:
    if config.num_stages != 4:
        return f"has networks of four stages, not {config.num_stages}."
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


TIMM = Dialect("timm", "timm", problem=_problem)
