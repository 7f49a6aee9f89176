"""The network on one page: the block, the trunk of blocks, the classifier on top.

Paper: Xie et al., Aggregated Residual Transformations for Deep Neural Networks, CVPR 2017
(arXiv:1611.05431). Modules have torchvision's names, and timm's where torchvision has none.

`layers.py` has the variants of each layer, `surface.py` methods that timm's users expect;
`backbone.py` returns maps. The config's `stages` hold the numbers each stage is built from.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from resnext.architectures import variant, warn_of_weights
from resnext.card import Card
from resnext.checks import is_zero
from resnext.config import ResNeXtConfig, Stage
from resnext.dilation import USUAL_DILATION, DilationConvention, with_output_stride
from resnext.foreign_names import answering_call
from resnext.layers import (
    DropPath,
    anti_alias,
    attention,
    check_config,
    check_images,
    checkpointed,
    conv,
    norm,
    projection,
    scriptable,
    stem_conv,
    stem_pool,
    traceable,
)
from resnext.surface import ClassifierSurface, TrunkSurface

Images = Float[Tensor, "n c h w"]
Maps = tuple[Float[Tensor, "n _ _ _"], ...]


class Bottleneck(nn.Module):
    """Residual block: reduce, convolve in groups, expand, add the input (paper, figure 3c).

    Args:
        config: The architecture.
        stage: The stage the block is in.
        index: Number of the block in the stage, from 0. Only the first one strides.
    """

    __prepare_scriptable__ = scriptable  # torch.jit.script asks for it

    def __init__(self, config: ResNeXtConfig, stage: Stage, index: int) -> None:
        super().__init__()
        width, out_channels = stage.width, stage.out_channels
        in_channels = out_channels if index else stage.in_channels
        stride = 1 if index else stage.stride
        stride1, stride2 = (stride, 1) if config.style == "caffe" else (1, stride)
        keeps_pooling = stage.keeps_pooling and index == 0
        pool = config.anti_alias if stride2 > 1 or keeps_pooling else None
        drop_path = stage.drop_path[index]

        self.conv1 = conv(config, in_channels, width, 1, stride=stride1)
        self.bn1 = norm(config, width)
        self.conv2 = conv(
            config,
            width,
            width,
            3,
            stride=1 if pool else stride2,
            dilation=stage.dilations[index],
            groups=stage.groups,  # the paper's cardinality
        )
        self.bn2 = norm(config, width)
        self.aa = anti_alias(pool, stride2) if pool else None  # has the stride in place of conv2
        self.conv3 = conv(config, width, out_channels, 1)
        self.bn3 = norm(config, out_channels)
        self.se = attention(config, out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(config, in_channels, out_channels, stride, keeps_pooling)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else None

        self.checkpointing = False  # `set_grad_checkpointing` sets it

    @traceable
    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h2 w2"]:
        """The input, projected if its shape changes, plus the residual branch."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = checkpointed(self.residual, self, x) if self.checkpointing else self.residual(x)
        y = y if self.drop_path is None else self.drop_path(y)
        return self.relu(y + shortcut)

    def residual(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h2 w2"]:
        """The residual branch: the sum of `cardinality` transformations of the input."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))  # conv2 in groups is the idea of the paper
        if self.aa is not None:
            y = self.aa(y)
        y = self.bn3(self.conv3(y))
        return y if self.se is None else self.se(y)


class Trunk(TrunkSurface):
    """Stem and stages, shared by `ResNeXt` and `Backbone`.

    Args:
        config: The architecture.
        depth: Number of stages to build.
    """

    __prepare_scriptable__ = scriptable  # torch.jit.script asks for it

    def __init__(self, config: ResNeXtConfig, depth: int) -> None:
        super().__init__()
        self.config = config
        self.card: Card | None = None
        self.conv1 = stem_conv(config)
        self.bn1 = norm(config, config.stem_out[-1])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = stem_pool(config)
        self.stage_names = tuple(f"layer{i + 1}" for i in range(depth))
        for i, name in enumerate(self.stage_names):
            self.add_module(name, self.build_stage(i))
        self.num_features = config.stages[depth - 1].out_channels
        self.inplanes = self.num_features  # torchvision's detection builders read this name

    def build_stage(self, i: int) -> nn.Sequential:
        """The blocks of stage `i`, counted from 0."""
        stage = self.config.stages[i]
        blocks = (Bottleneck(self.config, stage, j) for j in range(len(stage.dilations)))
        return nn.Sequential(*blocks)

    def enter(self, x: Images) -> Float[Tensor, "n _ _ _"]:
        """The stem: images to the input of the first stage."""
        return self.maxpool(self.stem_map(x))

    def stem_map(self, x: Images) -> Float[Tensor, "n _ _ _"]:
        """The stem's map before its pooling, with half the images' pixels on each side."""
        return self.relu(self.bn1(self.conv1(x)))

    def features(self, x: Images, depth: int | None = None) -> Maps:
        """Feature maps of the first `depth` stages, by default of all stages, finest first.

        Raises:
            InputError: `x` is not a batch of images with the config's number of channels, or
                the images are too small.
        """
        check_images(x, self.config)
        return self.staged(self.enter(x), depth)

    def staged(self, x: Float[Tensor, "n _ _ _"], depth: int | None = None) -> Maps:
        """Feature maps of the first `depth` stages from the stem's output."""
        maps: list[Tensor] = []
        for stage in self.stages[:depth]:
            x = stage(x)
            maps.append(x)
        return tuple(maps)


class ResNeXt(ClassifierSurface, Trunk):
    """Classifier: images `(n, in_channels, h, w)` to logits `(n, num_classes)`.

    Args:
        config: The architecture; also `model.config`.

    Attributes:
        card: Labels, preprocessing and provenance of trained or loaded weights, else None.
        num_features: Channels of the last feature map.

    Raises:
        ConfigTypeError: `config` is not a `ResNeXtConfig`.
    """

    @answering_call
    def __init__(self, config: ResNeXtConfig) -> None:
        super().__init__(config, depth=check_config(config).num_stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(self.num_features, config.num_classes)
        init_weights(self, config.zero_init_residual)

    @traceable
    def forward(self, x: Images) -> Float[Tensor, "n k"]:
        """Logits of each class."""
        return self.fc(self.dropout(self.embed(x)))

    def embed(self, x: Images) -> Float[Tensor, "n k"]:
        """Embeddings `(n, num_features)`: the last feature map averaged over its pixels."""
        return self.avgpool(self.features(x)[-1]).flatten(1)


def init_weights(module: nn.Module, zero_init_residual: bool) -> None:
    """Initialize convolutions from a normal distribution by their fan-out (arXiv:1502.01852)."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
    if zero_init_residual:
        zero_init_residuals(module)


def zero_init_residuals(module: nn.Module) -> None:
    """Zero the last norm of every block, so that each block starts as its shortcut."""
    for m in module.modules():
        if isinstance(m, Bottleneck):
            for parameter in m.bn3.parameters():
                nn.init.zeros_(parameter)


def create(
    name: str,
    *,
    output_stride: int | None = None,
    dilation_convention: DilationConvention = USUAL_DILATION,
    **overrides: Any,
) -> ResNeXt:
    """An untrained network of a named variant.

    Args:
        name: Name of the variant, such as "resnext50_32x4d"; `resnext.variants()` lists all.
        output_stride: 8, 16 or 32: later strides become dilation; None changes nothing.
        dilation_convention: Whose dilation: "timm", "torchvision", "mmseg" or "smp"; see
            `resnext.dilation.with_output_stride`.
        overrides: Fields of `ResNeXtConfig` to change, such as `num_classes=7`; with
            `num_classes=0` the network has no classifier and returns embeddings.

    Raises:
        UnknownNameError: No variant has that name.
        ConfigError: An argument is out of range or has the wrong type.

    Warns:
        UntrainedWarning: The name is that of trained weights, such as "resnext50_32x4d.a1_in1k".
    """
    if embeds := is_zero(overrides.get("num_classes")):
        del overrides["num_classes"]
    config = variant(name, **overrides)
    warn_of_weights(name)
    model = ResNeXt(with_output_stride(config, output_stride, dilation_convention))
    if embeds:
        model.reset_classifier(0)
    return model
