"""MMClassification 0.x and MMPretrain 1.x: their backbone, its arguments, names and defaults.

Source: the documentation of mmcls 0.25, which wins where the released code differs from it. The
network inside is our own: this file translates arguments into a `ResNeXtConfig` and gives modules
mmcls's names, so that its checkpoints load strictly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from resnext import network
from resnext.backbone import Backbone
from resnext.config import ResNeXtConfig, Stage
from resnext.errors import ConfigError, ConfigTypeError, UnknownNameError
from resnext.layers import SqueezeExcitation
from resnext.mmcls.init_cfg import InitCfg, initialize, is_pretrained
from resnext.mmcls.layer_cfg import (
    LETTERS,
    Cfg,
    RefusedError,
    activation,
    conv_fields,
    freeze_norms,
    norm_fields,
)

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class _Block(network.Bottleneck):
    """Our block under mmcls's names: `gn1` for a group norm, `se_layer`, no empty pooling."""

    def __init__(
        self, config: ResNeXtConfig, stage: Stage, in_channels: int, stride: int, drop_path: float
    ) -> None:
        super().__init__(config, stage, in_channels, stride, drop_path)
        if self.drop_path is None:
            self.drop_path = nn.Identity()  # mmcls has the module
        self.config = config
        self.in_channels, self.out_channels = in_channels, stage.out_channels
        self.mid_channels, self.stride, self.dilation = stage.width, stride, stage.dilation
        shortcut = self.downsample
        if shortcut is not None and isinstance(shortcut[0], nn.Identity):
            self.downsample = nn.Sequential(*list(shortcut)[1:])
        modules = self._modules
        for i in (1, 2, 3):  # every module moves to the end, so the order stays
            modules[f"conv{i}"] = modules.pop(f"conv{i}")
            modules[f"{LETTERS[config.norm]}{i}"] = modules.pop(f"bn{i}")
        gate = modules.pop("se", None)
        for name in ("relu", "downsample", "drop_path"):
            if name in modules:
                modules[name] = modules.pop(name)
        if isinstance(gate, SqueezeExcitation):
            self.se_layer = SELayer(gate)

    @property
    def norm1(self) -> nn.Module:
        """The norm after the first convolution."""
        return _norm(self, 1)

    @property
    def norm2(self) -> nn.Module:
        """The norm after the grouped convolution."""
        return _norm(self, 2)

    @property
    def norm3(self) -> nn.Module:
        """The norm after the last convolution."""
        return _norm(self, 3)

    # Our block's names. nn.Module sets modules past a property; only `se = None` meets its setter.
    bn1, bn2, bn3 = norm1, norm2, norm3
    se = property(
        lambda self: self._modules.get("se_layer"), lambda self, none: None, None, "`se_layer`."
    )


def _norm(module: _Block | ResNeXt, i: int) -> nn.Module:
    norm = module._modules.get(f"{LETTERS[module.config.norm]}{i}")
    if norm is None:
        raise AttributeError(f"norm{i}")
    return norm


def _conv_module(**parts: nn.Module) -> nn.Sequential:
    """mmcv's ConvModule: `conv`, then a norm and `activate` where there are some."""
    return nn.Sequential(OrderedDict(parts))


class SELayer(nn.Module):
    """Our SE block under mmcls's names."""

    def __init__(self, gate: SqueezeExcitation) -> None:
        super().__init__()
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.conv1 = _conv_module(conv=gate.fc1, activate=nn.ReLU())
        self.conv2 = _conv_module(conv=gate.fc2, activate=nn.Sigmoid())

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Gate the channels."""
        return x * self.conv2(self.conv1(self.global_avgpool(x)))


class Bottleneck(_Block):
    """mmcls's residual block, `(n, in_channels, h, w)` to `(n, out_channels, h / stride, …)`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        base_channels: Middle channels of the network's first stage.
        groups: Groups of the 3×3 convolution.
        width_per_group: Its width in the first stage; not used if `groups` is 1.
        expansion: Output channels over base channels.
        stride: Stride of the block.
        dilation: Dilation of the 3×3 convolution.
        downsample: The shortcut; None adds the input as it is.
        style: "pytorch" strides the 3×3, "caffe" the first 1×1 convolution.
        with_cp: Whether activations are recomputed in the backward pass.
        conv_cfg: Kind of convolution.
        norm_cfg: Kind of normalization.
        act_cfg: Kind of activation.
        drop_path_rate: Probability of dropping the residual branch in training.

    Raises:
        ConfigError: An argument is out of range. Also an `AssertionError` where mmcls asserts.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        base_channels: int = 64,
        groups: int = 32,
        width_per_group: int = 4,
        *,
        expansion: int = 4,
        stride: int = 1,
        dilation: int = 1,
        downsample: nn.Module | None = None,
        style: str = "pytorch",
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = {"type": "BN"},  # noqa: B006 (never changed)
        act_cfg: Cfg = {"type": "ReLU", "inplace": True},  # noqa: B006
        drop_path_rate: float = 0.0,
    ) -> None:
        _check_style(style)
        if out_channels % expansion:
            raise RefusedError(
                f"expansion must divide out_channels {out_channels}, not {expansion}."
            )
        middle = out_channels // expansion
        config = ResNeXtConfig(
            layers=(1,),
            cardinality=groups,
            base_width=width_per_group,
            channels=(middle,),
            num_stages=1,
            expansion=expansion,
            widths=(_width(middle, base_channels, groups, width_per_group),),
            stem_channels=in_channels,
            strides=(stride,),
            dilations=(dilation,),
            style=style,  # type: ignore[arg-type]
            drop_path_rate=drop_path_rate,
            **conv_fields(conv_cfg),
            **norm_fields(norm_cfg),
        )
        super().__init__(config, config.stages[0], in_channels, stride, drop_path_rate)
        self.checkpointing = with_cp
        self.downsample = downsample  # type: ignore[assignment]
        self.relu = activation(act_cfg)
        freeze_norms(self, norm_cfg)


class ResNeXt(Backbone):
    """mmcls's backbone: images `(n, in_channels, h, w)` to feature maps of requested stages.

    Returns one tensor if one stage is requested, else a tuple. A new network has torch's default
    weights; `init_weights` applies `init_cfg`.

    Args:
        depth: 50, 101 or 152.
        groups: Groups of every 3×3 convolution.
        width_per_group: Width of a group in the first stage; not used if `groups` is 1.
        in_channels: Channels of the images.
        stem_channels: Output channels of the stem.
        base_channels: Middle channels of the first stage.
        expansion: Output over middle channels of a stage; None for 4.
        num_stages: Stages to build, 1 to 4.
        strides: Stride of the first block of each stage.
        dilations: Dilation of the 3×3 convolutions of each stage.
        out_indices: Stages to return, counted from 0.
        style: "pytorch" strides the 3×3, "caffe" the first 1×1 convolution.
        deep_stem: Whether three 3×3 convolutions replace the 7×7.
        avg_down: Whether strided shortcuts average-pool, then project.
        frozen_stages: -1 for none, 0 for the stem, i for the stem and the first i stages. Frozen
            stages get no gradients and stay in evaluation mode, also after `train()`.
        conv_cfg: `type` Conv2d, Conv, ConvWS, ConvAWS or Conv2dAdaptivePadding.
        norm_cfg: `type` BN, BN2d, SyncBN, GN, IN, IN2d or LN2d, its arguments, `requires_grad`.
        norm_eval: Whether `train()` leaves batch norms in evaluation mode.
        with_cp: Whether activations are recomputed in the backward pass.
        zero_init_residual: Whether `init_weights` zeroes the last norm of each block.
        init_cfg: The initialization that `init_weights` applies.
        drop_path_rate: Probability of dropping each block's residual branch in training.

    Raises:
        KeyError: Unknown depth, or unknown type in `conv_cfg` or `norm_cfg`.
        ValueError: A value is out of range. Also an `AssertionError` where mmcls asserts.
        TypeError: A value has the wrong type.
    """

    block = _Block
    builds_unused = True
    arch_fields: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        depth: int,
        groups: int = 32,
        width_per_group: int = 4,
        in_channels: int = 3,
        stem_channels: int = 64,
        base_channels: int = 64,
        expansion: int | None = None,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (3,),
        style: str = "pytorch",
        deep_stem: bool = False,
        avg_down: bool = False,
        frozen_stages: int = -1,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = {"type": "BN", "requires_grad": True},  # noqa: B006 (never changed)
        norm_eval: bool = False,
        with_cp: bool = False,
        zero_init_residual: bool = True,
        init_cfg: InitCfg = (
            {"type": "Kaiming", "layer": ["Conv2d"]},
            {"type": "Constant", "val": 1, "layer": ["_BatchNorm", "GroupNorm"]},
        ),
        drop_path_rate: float = 0.0,
    ) -> None:
        if type(depth) is not int or depth not in DEPTHS:
            raise UnknownNameError(f"invalid depth {depth!r} for ResNeXt: it has 50, 101 and 152.")
        _check_style(style)
        if type(num_stages) is not int or not 1 <= num_stages <= 4:
            raise RefusedError(f"num_stages must be 1, 2, 3 or 4, not {num_stages!r}.")
        if not len(strides) == len(dilations) == num_stages:
            raise RefusedError(
                f"strides and dilations must have one entry for each of the {num_stages} "
                f"stages, not {tuple(strides)!r} and {tuple(dilations)!r}. Pass all three."
            )
        if expansion is not None and (type(expansion) is not int or expansion <= 0):
            kind = RefusedError if type(expansion) is int else ConfigTypeError
            raise kind(f"expansion must be a positive integer or None, not {expansion!r}.")
        if isinstance(out_indices, list | tuple) and any(i >= num_stages for i in out_indices):
            raise RefusedError(
                f"out_indices must name stages from 0 to {num_stages - 1}, not {out_indices!r}."
            )
        channels = tuple(base_channels * 2**i for i in range(num_stages))
        widths = tuple(_width(c, base_channels, groups, width_per_group) for c in channels)
        half = stem_channels // 2
        config = ResNeXtConfig(
            layers=DEPTHS[depth][:num_stages],
            cardinality=groups,
            base_width=width_per_group,
            in_channels=in_channels,
            stem_type="deep" if deep_stem else None,
            avg_down=avg_down,
            channels=channels,
            num_stages=num_stages,
            strides=tuple(strides),
            dilations=tuple(dilations),
            style=style,  # type: ignore[arg-type]
            expansion=expansion or 4,
            widths=widths,
            stem_channels=(half, half, stem_channels) if deep_stem else stem_channels,
            drop_path_rate=0.0 if 0 <= drop_path_rate <= 1e-5 else drop_path_rate,
            drop_path_decay="constant",
            zero_init_residual=zero_init_residual,
            **self.arch_fields,
            **conv_fields(conv_cfg),
            **norm_fields(norm_cfg),
        )
        super().__init__(
            config,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            checkpointing=with_cp,
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
        freeze_norms(self, norm_cfg)
        self._name_as_mmcls()
        self.train()
        self.norm_eval = norm_eval  # mmcls applies it in train(), not when the network is built
        self.init_cfg = init_cfg
        self.depth, self.groups, self.width_per_group = depth, groups, width_per_group
        self.base_channels, self.stem_channels = base_channels, stem_channels
        self.expansion, self.num_stages = config.expansion, num_stages
        self.stage_blocks = config.layers
        self.res_layers = list(self.stage_names)
        self.feat_dim = self.num_features

    def _name_as_mmcls(self) -> None:
        """Rename the stem's modules."""
        modules, prefix = self._modules, LETTERS[self.config.norm]
        conv, norm, relu = modules.pop("conv1"), modules.pop("bn1"), modules.pop("relu")
        rest = dict(modules)
        modules.clear()
        if isinstance(conv, nn.Sequential):
            parts = [*conv, norm, relu]
            self.stem = nn.Sequential(
                *(
                    _conv_module(**{"conv": c, prefix: n, "activate": a})
                    for c, n, a in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
                )
            )
        else:
            modules.update({"conv1": conv, f"{prefix}1": norm, "relu": relu})
        modules.update(rest)

    @property
    def norm1(self) -> nn.Module:
        """The norm of the classic stem."""
        return _norm(self, 1)

    bn1 = norm1  # our network's name

    @property
    def stem_parts(self) -> tuple[nn.Module, ...]:
        """The modules of the stem that have parameters."""
        return (self.stem,) if "stem" in self._modules else super().stem_parts

    def enter(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n _ _ _"]:
        """Images to the first stage's input."""
        return self.maxpool(self.stem(x)) if "stem" in self._modules else super().enter(x)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, "n _ _ _"] | tuple[Float[Tensor, "n _ _ _"], ...]:
        """The requested feature map, or a tuple of several, finest first."""
        maps = super().forward(x)
        return maps[0] if len(maps) == 1 else maps

    def init_weights(self) -> None:
        """Apply `init_cfg`, then zero the last norm of each block with `zero_init_residual`.

        Raises:
            MissingFileError: A `Pretrained` checkpoint does not exist.
            ConfigError: `init_cfg` has an unknown type or argument.
        """
        initialize(self, self.init_cfg)
        if self.config.zero_init_residual and not is_pretrained(self.init_cfg):
            network.zero_init_residuals(self)


class SEResNeXt(ResNeXt):
    """mmcls's backbone with SE blocks.

    Args:
        depth: 50, 101 or 152.
        groups: Groups of every 3×3 convolution.
        width_per_group: Width of a group in the first stage.
        se_ratio: Channels over squeezed channels; mmcls 0.25 ignores it and uses 16.
        kwargs: Other arguments of `ResNeXt`.
    """

    def __init__(
        self,
        depth: int,
        groups: int = 32,
        width_per_group: int = 4,
        se_ratio: int = 16,
        **kwargs: Any,
    ) -> None:
        self.arch_fields = {
            "attention": "se",
            "se_reduction": se_ratio,
            "se_rounding": "mmcls",
        }
        super().__init__(depth, groups, width_per_group, **kwargs)


def _check_style(style: object) -> None:
    if style not in ("pytorch", "caffe"):
        raise RefusedError(f"style must be 'pytorch' or 'caffe', not {style!r}.")


def _width(channels: int, base_channels: int, groups: int, width_per_group: int) -> int:
    """Bottleneck width of a stage with `channels` middle channels."""
    for name, value in (
        ("base_channels", base_channels),
        ("groups", groups),
        ("width_per_group", width_per_group),
    ):
        if type(value) is not int:
            raise ConfigTypeError(f"{name} must be a positive integer, not {value!r}.")
        if value <= 0:
            raise ConfigError(f"{name} must be a positive integer, not {value!r}.")
    return channels if groups == 1 else groups * width_per_group * channels // base_channels
