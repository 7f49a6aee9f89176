"""MMClassification 0.x and MMPretrain 1.x: their backbone, its arguments, names and defaults.

Source: the documentation of mmcls 0.25, which wins where the released code differs from it. The
network inside is our own: this file translates arguments into a `ResNeXtConfig` and gives modules
mmcls's names, so that its checkpoints load strictly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from resnext import network
from resnext.backbone import Backbone
from resnext.config import ResNeXtConfig
from resnext.dilation import block_dilations
from resnext.errors import UnknownNameError
from resnext.foreign_names import answering_call
from resnext.layers import traceable
from resnext.mmcls.blocks import (
    Bottleneck,
    ConvModule,
    ResLayer,
    SEBottleneck,
    block_width,
    check_style,
    get_expansion,
    norm_module,
)
from resnext.mmcls.init_cfg import InitCfg, initialize, is_pretrained
from resnext.mmcls.layer_cfg import (
    LETTERS,
    Cfg,
    RefusedError,
    conv_fields,
    freeze_norms,
    norm_fields,
)

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ResNeXt(Backbone):
    """mmcls's backbone: images `(n, in_channels, h, w)` to feature maps of requested stages.

    Returns one tensor if one stage is requested, else a tuple. A new network has torch's default
    weights; `init_weights` applies `init_cfg`.

    A subclass may have depths of its own in `arch_settings`, and stages from its own
    `make_res_layer`. Every argument is also an attribute.

    Args:
        depth: A key of `arch_settings`: 50, 101 or 152.
        groups: Groups of every 3×3 convolution.
        width_per_group: Width of a group in the first stage; not used if `groups` is 1.
        in_channels: Channels of the images.
        stem_channels: Output channels of the stem.
        base_channels: Middle channels of the first stage.
        expansion: Output over middle channels of a stage; None for 4.
        num_stages: Stages to build, 1 to 4.
        strides: Stride of the first block of each stage.
        dilations: Dilation of the 3×3 convolutions of each stage, or of each of its blocks.
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
        contract_dilation: mmseg's: whether the first block of a stage has half of its dilation.
        multi_grid: mmseg's: dilations of the blocks of the last stage.

    Attributes:
        arch_settings: Class of the blocks and number of blocks of each stage, by depth.
        block: Class of the blocks.
        stage_blocks: Number of blocks of each stage.
        res_layers: Names of the stages.
        feat_dim: Channels of the last map.
        norm1_name: Name of the stem's norm, such as "bn1".

    Raises:
        KeyError: Unknown depth, or unknown type in `conv_cfg` or `norm_cfg`.
        ValueError: A value is out of range. Also an `AssertionError` where mmcls asserts.
        TypeError: A value has the wrong type.
    """

    arch_settings: ClassVar[Mapping[Any, tuple[type[nn.Module], Sequence[int]]]] = MappingProxyType(
        {depth: (Bottleneck, blocks) for depth, blocks in DEPTHS.items()}
    )
    builds_unused = True
    arch_fields: Mapping[str, Any] = MappingProxyType({})

    @answering_call
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
        contract_dilation: bool = False,
        multi_grid: Sequence[int] | None = None,
    ) -> None:
        if type(depth) not in (int, str) or depth not in self.arch_settings:
            known = ", ".join(map(str, self.arch_settings))
            raise UnknownNameError(
                f"invalid depth {depth!r} for {type(self).__name__}: it has {known}."
            )
        self.block, stage_blocks = self.arch_settings[depth]
        check_style(style)
        if type(num_stages) is not int or not 1 <= num_stages <= 4:
            raise RefusedError(f"num_stages must be 1, 2, 3 or 4, not {num_stages!r}.")
        if not len(strides) == len(dilations) == num_stages:
            raise RefusedError(
                f"strides and dilations must have one entry for each of the {num_stages} "
                f"stages, not {tuple(strides)!r} and {tuple(dilations)!r}. Pass all three."
            )
        expansion = get_expansion(self.block, expansion)
        if isinstance(out_indices, list | tuple) and any(i >= num_stages for i in out_indices):
            raise RefusedError(
                f"out_indices must name stages from 0 to {num_stages - 1}, not {out_indices!r}."
            )
        channels = tuple(base_channels * 2**i for i in range(num_stages))
        widths = tuple(block_width(c, base_channels, groups, width_per_group) for c in channels)
        half = stem_channels // 2
        layers = tuple(stage_blocks[:num_stages])
        config = ResNeXtConfig(
            layers=layers,
            cardinality=groups,
            base_width=width_per_group,
            in_channels=in_channels,
            stem_type="deep" if deep_stem else None,
            avg_down=avg_down,
            channels=channels,
            num_stages=num_stages,
            strides=tuple(strides),
            dilations=block_dilations(layers, dilations, contract_dilation, multi_grid),
            style=style,  # type: ignore[arg-type]
            expansion=expansion,
            widths=widths,
            stem_channels=(half, half, stem_channels) if deep_stem else stem_channels,
            drop_path_rate=0.0 if 0 <= drop_path_rate <= 1e-5 else drop_path_rate,
            drop_path_decay="constant",
            zero_init_residual=zero_init_residual,
            **self.arch_fields,
            **conv_fields(conv_cfg),
            **norm_fields(norm_cfg),
        )
        self.depth, self.groups, self.width_per_group = depth, groups, width_per_group
        self.in_channels, self.stem_channels = in_channels, stem_channels
        self.base_channels, self.expansion, self.num_stages = base_channels, expansion, num_stages
        self.strides, self.dilations, self.style = tuple(strides), tuple(dilations), style
        self.contract_dilation, self.multi_grid = contract_dilation, multi_grid
        self.deep_stem, self.avg_down, self.with_cp = deep_stem, avg_down, with_cp
        self.conv_cfg, self.norm_cfg, self.init_cfg = conv_cfg, norm_cfg, init_cfg
        self.zero_init_residual, self.drop_path_rate = zero_init_residual, config.drop_path_rate
        self.stage_blocks, self.norm1_name = config.layers, f"{LETTERS[config.norm]}1"
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
        self.res_layers = list(self.stage_names)
        self.feat_dim = getattr(self.stages[-1][-1], "out_channels", self.num_features)

    def build_stage(self, i: int) -> nn.Sequential:
        """What `make_res_layer` returns for stage `i`, counted from 0."""
        stage = self.config.stages[i]
        return self.make_res_layer(
            block=self.block,
            num_blocks=self.stage_blocks[i],
            in_channels=stage.in_channels,
            out_channels=stage.out_channels,
            expansion=self.expansion,
            stride=self.strides[i],
            dilation=(self.config.dilations or self.dilations)[i],
            style=self.style,
            avg_down=self.avg_down,
            with_cp=self.with_cp,
            conv_cfg=self.conv_cfg,
            norm_cfg=self.norm_cfg,
            drop_path_rate=self.drop_path_rate,
        )

    def make_res_layer(self, **kwargs: Any) -> nn.Sequential:
        """A stage, to be overridden for other ones.

        Args:
            kwargs: Arguments of `ResLayer`, except those that all stages share: `groups`,
                `width_per_group` and `base_channels`.
        """
        return ResLayer(
            groups=self.groups,
            width_per_group=self.width_per_group,
            base_channels=self.base_channels,
            **kwargs,
        )

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
                    ConvModule(**{"conv": c, prefix: n, "activate": a})
                    for c, n, a in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
                )
            )
        else:
            modules.update({"conv1": conv, f"{prefix}1": norm, "relu": relu})
        modules.update(rest)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations inside blocks in the backward pass: mmcls's `with_cp`."""
        super().set_grad_checkpointing(enable)
        self.with_cp = enable

    @property
    def norm1(self) -> nn.Module:
        """The norm of the classic stem."""
        return norm_module(self, self.norm1_name)

    bn1 = norm1  # our network's name

    @property
    def stem_parts(self) -> tuple[nn.Module, ...]:
        """The modules of the stem that have parameters."""
        return (self.stem,) if "stem" in self._modules else super().stem_parts

    def enter(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n _ _ _"]:
        """Images to the first stage's input."""
        return self.maxpool(self.stem(x)) if "stem" in self._modules else super().enter(x)

    @traceable
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

    arch_settings: ClassVar[Mapping[Any, Any]] = MappingProxyType(
        {depth: (SEBottleneck, blocks) for depth, blocks in DEPTHS.items()}
    )

    @answering_call
    def __init__(
        self,
        depth: int,
        groups: int = 32,
        width_per_group: int = 4,
        se_ratio: int = 16,
        **kwargs: Any,
    ) -> None:
        self.se_ratio = se_ratio
        self.arch_fields = {
            "attention": "se",
            "se_reduction": se_ratio,
            "se_rounding": "mmcls",
        }
        super().__init__(depth, groups, width_per_group, **kwargs)

    def make_res_layer(self, **kwargs: Any) -> nn.Sequential:
        """A stage of blocks with `se_ratio`, to be overridden for other ones.

        Args:
            kwargs: Arguments of `ResLayer`, except those that all stages share.
        """
        return super().make_res_layer(se_ratio=self.se_ratio, **kwargs)
