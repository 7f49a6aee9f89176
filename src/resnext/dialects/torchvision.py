"""torchvision: its names are ours. This file says which networks it can build.

Source: `torchvision.models.resnet`, version 0.28.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from resnext.architectures import unsupported_reason
from resnext.config import ResNeXtConfig
from resnext.dialects.dialect import Dialect
from resnext.dilation import undilated


def original(config: ResNeXtConfig) -> nn.Module:
    """torchvision's own network for a config that torchvision can build.

    Raises:
        ImportError: torchvision is not installed.
    """
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, list(config.layers), **arguments(config))


def arguments(config: ResNeXtConfig) -> dict[str, Any]:
    """Arguments of torchvision's `ResNet`, except for block and layers."""
    args: dict[str, Any] = {
        "num_classes": config.num_classes,
        "groups": config.stages[0].groups,
        "width_per_group": _base_width(config),
    }
    _, stride = undilated(config, "torchvision")
    if stride is not None:
        args["replace_stride_with_dilation"] = [False, stride < 16, stride < 32]
    return args


def _base_width(config: ResNeXtConfig) -> int:
    """Width of a group at 64 channels."""
    return max(config.stages[0].width // config.stages[0].groups, 1)


def _problem(config: ResNeXtConfig) -> str:
    """Why torchvision cannot build a network; empty if it can."""
    if config.num_stages != 4:
        return f"has networks of four stages, not {config.num_stages}."
    plain, stride = undilated(config, "torchvision")
    if stride in (8, 16):
        config = plain
    nearest = ResNeXtConfig(
        config.layers, config.stages[0].groups, _base_width(config), config.num_classes
    )
    return unsupported_reason(config, nearest)


TORCHVISION = Dialect(
    "torchvision",
    "torchvision",
    suffixes=(".pth", ".pt", ".safetensors", ".npz"),
    problem=_problem,
    arguments=arguments,
    original=original,
)
