"""Pytest plugin: `import mmcls`, `mmpretrain` and the parts of mmcv they need give `resnext.mmcls`.

What the test files use and no ResNeXt has is added here: ResNet as a ResNeXt with one group, its
basic block, tuples of one map, and a file for torchvision's address.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import nn

from resnext import mmcls
from resnext.mmcls.blocks import get_expansion


class _Original:
    """What we do otherwise on purpose (docs/compatibility.md): one map is a tuple of one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        cfg = kwargs.get("init_cfg")
        if isinstance(cfg, dict) and str(cfg.get("checkpoint")).startswith("torchvision://"):
            kwargs["init_cfg"] = {**cfg, "checkpoint": _random_resnet50()}
        super().__init__(*args, **kwargs)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A tuple, whatever was asked for."""
        maps = super().forward(x)  # type: ignore[misc]
        return maps if isinstance(maps, tuple) else (maps,)


def _random_resnet50() -> str:
    path = Path(tempfile.gettempdir()) / "resnext-peers-resnet50.pth"
    if not path.is_file():
        torch.save(mmcls.ResNeXt(50, groups=1).state_dict(), path)
    return str(path)


class BasicBlock(nn.Module):
    """The block of ResNet-18, for stages of a block that is not ours."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: int = 1,
        stride: int = 1,
        downsample: nn.Module | None = None,
        with_cp: bool = False,
        **_: Any,
    ) -> None:
        super().__init__()
        assert expansion == 1
        self.in_channels, self.mid_channels, self.out_channels = in_channels, *(out_channels,) * 2
        self.stride, self.with_cp = stride, with_cp
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The shortcut plus two convolutions."""
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class Bottleneck(mmcls.Bottleneck):
    """ResNet's block: one group."""

    def __init__(self, in_channels: int, out_channels: int, **kwargs: Any) -> None:
        super().__init__(in_channels, out_channels, **{"groups": 1, **kwargs})


class SEBottleneck(mmcls.SEBottleneck):
    """SE-ResNet's block: one group."""

    def __init__(self, in_channels: int, out_channels: int, **kwargs: Any) -> None:
        super().__init__(in_channels, out_channels, **{"groups": 1, **kwargs})


class ResNeXt(_Original, mmcls.ResNeXt):
    """Gives tuples."""


class SEResNeXt(_Original, mmcls.SEResNeXt):
    """Gives tuples."""


_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class ResNet(_Original, mmcls.ResNeXt):
    """A ResNeXt with one group."""

    arch_settings: ClassVar = {
        depth: (BasicBlock if depth < 50 else Bottleneck, blocks)
        for depth, blocks in _BLOCKS.items()
    }

    def __init__(self, depth: int, **kwargs: Any) -> None:
        super().__init__(depth, groups=1, **kwargs)


class SEResNet(_Original, mmcls.SEResNeXt):
    """A SE-ResNeXt with one group."""

    arch_settings: ClassVar = {50: (SEBottleneck, (3, 4, 6, 3))}

    def __init__(self, depth: int, **kwargs: Any) -> None:
        super().__init__(depth, groups=1, **kwargs)


def _v1c(**kwargs: Any) -> ResNet:
    return ResNet(deep_stem=True, avg_down=False, **kwargs)


def _v1d(**kwargs: Any) -> ResNet:
    return ResNet(deep_stem=True, avg_down=True, **kwargs)


def _module(name: str, **contents: Any) -> None:
    """Make `import name` give the contents."""
    for i in range(1, name.count(".") + 2):
        part = ".".join(name.split(".")[:i])
        sys.modules.setdefault(part, ModuleType(part)).__path__ = []  # a package
    vars(sys.modules[name]).update(contents)


_module("mmcv.cnn", ConvModule=mmcls.ConvModule)
for _library in ("mmcv.utils", "mmengine.utils.dl_utils"):
    _module(f"{_library}.parrots_wrapper", _BatchNorm=nn.modules.batchnorm._BatchNorm)
for _library in ("mmcls", "mmpretrain"):
    _backbones = f"{_library}.models.backbones"
    _module(
        _backbones,
        ResNet=ResNet,
        ResNetV1c=_v1c,
        ResNetV1d=_v1d,
        ResNeXt=ResNeXt,
        SEResNet=SEResNet,
        SEResNeXt=SEResNeXt,
    )
    _module(
        f"{_backbones}.resnet",
        BasicBlock=BasicBlock,
        Bottleneck=Bottleneck,
        ResLayer=mmcls.ResLayer,
        get_expansion=get_expansion,
    )
    _module(f"{_backbones}.resnext", Bottleneck=mmcls.Bottleneck)
    _module(f"{_backbones}.seresnet", SEBottleneck=SEBottleneck, SELayer=mmcls.SELayer)
    _module(f"{_backbones}.seresnext", SEBottleneck=mmcls.SEBottleneck)
