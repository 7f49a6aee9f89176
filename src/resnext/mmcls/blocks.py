"""mmcls's residual blocks and stages, under its names and with its arguments.

The blocks compute what ours do: their arguments become a `ResNeXtConfig` of one stage, and their
modules get mmcls's names, so that its checkpoints load strictly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from resnext import network
from resnext.config import ResNeXtConfig
from resnext.errors import ConfigError, ConfigTypeError
from resnext.foreign_names import answering_call
from resnext.layers import projection
from resnext.mmcls.layer_cfg import (
    LETTERS,
    Cfg,
    RefusedError,
    activation,
    conv_fields,
    freeze_norms,
    norm_fields,
)


class ConvModule(nn.Sequential):
    """mmcv's: a convolution `conv`, then a norm and `activate` where there are some."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__(OrderedDict(parts))


class SELayer(nn.Module):
    """mmcls's squeeze-and-excitation (arXiv:1709.01507).

    Args:
        channels: Channels of the map.
        ratio: Channels over squeezed channels, which are a multiple of 8.
    """

    @answering_call
    def __init__(self, channels: int, ratio: int = 16) -> None:
        super().__init__()
        config = ResNeXtConfig((1,) * 4, 1, 64, se_reduction=ratio, se_rounding="mmcls")
        squeezed = config.squeezed(channels)
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.conv1 = ConvModule(conv=nn.Conv2d(channels, squeezed, 1), activate=nn.ReLU())
        self.conv2 = ConvModule(conv=nn.Conv2d(squeezed, channels, 1), activate=nn.Sigmoid())

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Gate the channels."""
        return x * self.conv2(self.conv1(self.global_avgpool(x)))


class Bottleneck(network.Bottleneck):
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

    Attributes:
        mid_channels: Channels of the 3×3 convolution.
        conv1_stride: Stride of the first 1×1 convolution.
        conv2_stride: Stride of the 3×3 convolution.
        norm1_name: Name of the module `norm1`, such as "bn1"; so for `norm2` and `norm3`.

    Raises:
        ConfigError: An argument is out of range. Also an `AssertionError` where mmcls asserts.
    """

    expansion = 4

    @answering_call
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
        check_style(style)
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
            widths=(block_width(middle, base_channels, groups, width_per_group),),
            stem_channels=in_channels,
            strides=(stride,),
            dilations=(dilation,),
            style=style,  # type: ignore[arg-type]
            drop_path_rate=drop_path_rate,
            drop_path_decay="constant",
            **conv_fields(conv_cfg),
            **norm_fields(norm_cfg),
        )
        super().__init__(config, config.stages[0], 0)
        if self.drop_path is None:
            self.drop_path = nn.Identity()  # mmcls has the module
        self.downsample = downsample  # type: ignore[assignment]
        self.relu = activation(act_cfg)
        self._name_as_mmcls(LETTERS[config.norm])
        freeze_norms(self, norm_cfg)
        self.in_channels, self.out_channels, self.expansion = in_channels, out_channels, expansion
        self.mid_channels, self.groups = config.stages[0].width, groups
        self.width_per_group, self.stride, self.dilation = width_per_group, stride, dilation
        self.style, self.conv_cfg, self.norm_cfg = style, conv_cfg, norm_cfg
        self.conv1_stride, self.conv2_stride = self.conv1.stride[0], self.conv2.stride[0]
        self.with_cp = with_cp

    def _name_as_mmcls(self, letters: str) -> None:
        """Rename the norms, and bring all modules into mmcls's order."""
        modules = self._modules
        self.norm1_name, self.norm2_name, self.norm3_name = (f"{letters}{i}" for i in (1, 2, 3))
        for i in (1, 2, 3):  # every module moves to the end, so the order stays
            modules[f"conv{i}"] = modules.pop(f"conv{i}")
            modules[f"{letters}{i}"] = modules.pop(f"bn{i}")
        for name in ("relu", "downsample", "drop_path"):
            if name in modules:
                modules[name] = modules.pop(name)

    @property
    def with_cp(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        return self.checkpointing

    @with_cp.setter
    def with_cp(self, value: bool) -> None:
        self.checkpointing = value

    @property
    def norm1(self) -> nn.Module:
        """The norm after the first convolution."""
        return norm_module(self, self.norm1_name)

    @property
    def norm2(self) -> nn.Module:
        """The norm after the grouped convolution."""
        return norm_module(self, self.norm2_name)

    @property
    def norm3(self) -> nn.Module:
        """The norm after the last convolution."""
        return norm_module(self, self.norm3_name)

    # Our block's names. nn.Module sets modules past a property; only `se = None` meets its setter.
    bn1, bn2, bn3 = norm1, norm2, norm3
    se = property(
        lambda self: self._modules.get("se_layer"), lambda self, none: None, None, "`se_layer`."
    )


class SEBottleneck(Bottleneck):
    """mmcls's residual block with squeeze-and-excitation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        base_channels: Middle channels of the network's first stage.
        groups: Groups of the 3×3 convolution.
        width_per_group: Its width in the first stage; not used if `groups` is 1.
        se_ratio: Channels over squeezed channels.
        kwargs: Other arguments of `Bottleneck`.
    """

    @answering_call
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        base_channels: int = 64,
        groups: int = 32,
        width_per_group: int = 4,
        se_ratio: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            in_channels, out_channels, base_channels, groups, width_per_group, **kwargs
        )
        self.se_layer = SELayer(out_channels, se_ratio)


class ResLayer(nn.Sequential):
    """mmcls's stage: blocks, of which the first strides and projects its shortcut.

    Args:
        block: Class of the blocks.
        num_blocks: Number of blocks.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        expansion: Output over middle channels; None for that of `block`.
        stride: Stride of the first block.
        dilation: Dilation of the 3×3 convolutions of all blocks, or of each.
        avg_down: Whether a strided shortcut average-pools, then projects.
        conv_cfg: Kind of convolution.
        norm_cfg: Kind of normalization.
        kwargs: Other arguments of `block`.
    """

    @answering_call
    def __init__(
        self,
        block: type[nn.Module],
        num_blocks: int,
        in_channels: int,
        out_channels: int,
        expansion: int | None = None,
        stride: int = 1,
        dilation: int | Sequence[int] = 1,
        avg_down: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = {"type": "BN"},  # noqa: B006 (never changed)
        **kwargs: Any,
    ) -> None:
        super().__init__()
        dilations = [dilation] * num_blocks if isinstance(dilation, int) else dilation
        self.block, self.expansion = block, get_expansion(block, expansion)
        kwargs.update(expansion=self.expansion, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        first = _shortcut(in_channels, out_channels, stride, avg_down, conv_cfg, norm_cfg)
        for i in range(num_blocks):
            self.append(
                block(
                    in_channels=out_channels if i else in_channels,
                    out_channels=out_channels,
                    stride=1 if i else stride,
                    dilation=dilations[i],
                    downsample=None if i else first,
                    **kwargs,
                )
            )


def get_expansion(block: type[nn.Module], expansion: int | None = None) -> int:
    """Output over middle channels of a block: the given number, or else that of the class.

    Raises:
        ConfigTypeError: The number is not an integer, or the class has none.
        ConfigError: The number is not positive. Also an `AssertionError`.
    """
    value = getattr(block, "expansion", None) if expansion is None else expansion
    if type(value) is not int or value <= 0:
        kind = RefusedError if type(value) is int else ConfigTypeError
        owner = f" of {block.__name__}" if expansion is None else ""
        raise kind(f"expansion{owner} must be a positive integer or None, not {value!r}.")
    return value


def check_style(style: object) -> None:
    """Check which convolution strides.

    Raises:
        RefusedError: It is neither "pytorch" nor "caffe".
    """
    if style not in ("pytorch", "caffe"):
        raise RefusedError(f"style must be 'pytorch' or 'caffe', not {style!r}.")


def block_width(channels: int, base_channels: int, groups: int, width_per_group: int) -> int:
    """Bottleneck width of a stage with `channels` middle channels.

    Raises:
        ConfigError: A number is not a positive integer.
    """
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


def norm_module(owner: nn.Module, name: str) -> nn.Module:
    """The norm called `name`, past the property of a block or network of that name."""
    found = owner._modules.get(name)
    if found is None:
        raise AttributeError(name)
    return found


def _shortcut(
    in_channels: int,
    out_channels: int,
    stride: int,
    avg_down: bool,
    conv_cfg: Cfg | None,
    norm_cfg: Cfg,
) -> nn.Sequential | None:
    """The projection of a stage's first block, without our empty pooling; None if it needs none."""
    config = ResNeXtConfig(
        layers=(1,),
        cardinality=1,
        base_width=64,
        channels=(out_channels,),
        num_stages=1,
        expansion=1,
        stem_channels=out_channels,
        avg_down=avg_down,
        **conv_fields(conv_cfg),
        **norm_fields(norm_cfg),
    )
    shortcut = projection(config, in_channels, out_channels, stride, keeps_pooling=False)
    if shortcut is None:
        return None
    freeze_norms(shortcut, norm_cfg)
    return nn.Sequential(*(m for m in shortcut if not isinstance(m, nn.Identity)))
