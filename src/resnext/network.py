"""The network on one page: a block, the trunk made of blocks, the classifier on top.

Paper: Xie et al., Aggregated Residual Transformations for Deep Neural Networks, CVPR 2017
(arXiv:1611.05431). Names of children are torchvision's, and timm's where torchvision has none.
The layers' variants are in `layers.py`; `backbone.py` makes maps for detection and segmentation.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from resnext.architectures import variant
from resnext.card import Card
from resnext.config import ResNeXtConfig, Stage, check_config
from resnext.layers import (
    DropPath,
    anti_alias,
    attention,
    check_images,
    checkpointed,
    conv,
    norm,
    projection,
    stem_conv,
    stem_pool,
)

Images = Float[Tensor, "n c h w"]
Maps = tuple[Float[Tensor, "n _ _ _"], ...]


class Bottleneck(nn.Module):
    """Reduce, transform in groups, expand, add to the input (paper, figure 3c)."""

    def __init__(
        self, config: ResNeXtConfig, stage: Stage, in_channels: int, stride: int, drop_path: float
    ) -> None:
        super().__init__()
        width, out_channels = stage.width, stage.out_channels
        stride1, stride2 = (stride, 1) if config.style == "caffe" else (1, stride)
        pool = config.anti_alias if stride2 > 1 else None

        self.conv1 = conv(config, in_channels, width, 1, stride=stride1)
        self.bn1 = norm(config, width)
        self.conv2 = conv(
            config,
            width,
            width,
            3,
            stride=1 if pool else stride2,
            dilation=stage.dilation,
            groups=stage.groups,
        )
        self.bn2 = norm(config, width)
        self.aa = anti_alias(pool, stride2) if pool else None
        self.conv3 = conv(config, width, out_channels, 1)
        self.bn3 = norm(config, out_channels)
        self.se = attention(config, out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(config, in_channels, out_channels, stride)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

        self.checkpointing = False

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h2 w2"]:
        """Input plus its transformation."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = checkpointed(self.residual, self, x) if self.checkpointing else self.residual(x)
        return self.relu(self.drop_path(y) + shortcut)

    def residual(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h2 w2"]:
        """The aggregated transformation."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))  # conv2 is the whole paper: groups=cardinality
        if self.aa is not None:
            y = self.aa(y)
        y = self.bn3(self.conv3(y))
        return y if self.se is None else self.se(y)


class Trunk(nn.Module):
    """Stem and stages: what `ResNeXt` and `Backbone` share."""

    block: type[Bottleneck] = Bottleneck

    def __init__(self, config: ResNeXtConfig, depth: int) -> None:
        """Build the stem and the first `depth` stages."""
        super().__init__()
        self.config = config
        self.card: Card | None = None
        self.conv1 = stem_conv(config)
        self.bn1 = norm(config, config.stem_out[-1])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = stem_pool(config)
        self.stage_names = tuple(f"layer{i + 1}" for i in range(depth))
        for name, stage in zip(self.stage_names, config.stages, strict=False):
            blocks = [
                self.block(
                    config,
                    stage,
                    in_channels=stage.out_channels if j else stage.in_channels,
                    stride=1 if j else stage.stride,
                    drop_path=drop_path,
                )
                for j, drop_path in enumerate(stage.drop_path)
            ]
            self.add_module(name, nn.Sequential(*blocks))
        self.num_features = config.stages[depth - 1].out_channels
        self.inplanes = self.num_features  # torchvision's detection builders read this name

    @property
    def stages(self) -> list[nn.Sequential]:
        """The stages that are built, first to last."""
        return [getattr(self, name) for name in self.stage_names]

    def enter(self, x: Images) -> Float[Tensor, "n _ _ _"]:
        """Images to the first stage's input."""
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))

    def features(self, x: Images, depth: int | None = None) -> Maps:
        """Maps of the first `depth` stages, by default of all that are built, finest first.

        Raises:
            InputError: `x` is not a batch of images with the config's number of channels, or
                they are too small.
        """
        check_images(x, self.config)
        x = self.enter(x)
        maps: list[Tensor] = []
        for stage in self.stages[:depth]:
            x = stage(x)
            maps.append(x)
        return tuple(maps)


class ResNeXt(Trunk):
    """Classifier: images `(n, in_channels, h, w)` to logits `(n, num_classes)`.

    Args:
        config: The architecture; kept as `model.config`.

    Attributes:
        card: How to use the weights, once they are trained or loaded: labels, preprocessing,
            provenance. None before.
        num_features: Channels of the last stage.

    Raises:
        ConfigTypeError: `config` is not a `ResNeXtConfig`.
    """

    def __init__(self, config: ResNeXtConfig) -> None:
        super().__init__(config, depth=check_config(config).num_stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(self.num_features, config.num_classes)
        init_weights(self, config.zero_init_residual)

    def forward(self, x: Images) -> Float[Tensor, "n k"]:
        """Logits."""
        return self.fc(self.dropout(self.embed(x)))

    def embed(self, x: Images) -> Float[Tensor, "n k"]:
        """Last map averaged over its pixels."""
        return self.avgpool(self.features(x)[-1]).flatten(1)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by an untrained one for `num_classes` classes.

        Raises:
            ConfigError: `num_classes` is not positive. `embed` gives features without a classifier.
        """
        self.config = self.config.replace(num_classes=num_classes)
        old = self.fc.weight
        self.fc = nn.Linear(self.num_features, num_classes, device=old.device, dtype=old.dtype)
        self.card = None  # its labels no longer fit


def init_weights(module: nn.Module, zero_init_residual: bool) -> None:
    """Initialise as the ResNet family is (arXiv:1502.01852), by fan-out over the whole filter."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
    if zero_init_residual:
        zero_init_residuals(module)


def zero_init_residuals(module: nn.Module) -> None:
    """Zero the last norm of every block, so that it starts as its shortcut."""
    for m in module.modules():
        if isinstance(m, Bottleneck):
            for parameter in m.bn3.parameters():
                nn.init.zeros_(parameter)


def create(name: str, **overrides: Any) -> ResNeXt:
    """An untrained network of a named variant.

    Args:
        name: As for `resnext.variant`.
        overrides: Fields of `ResNeXtConfig` to change, such as `num_classes=7`.

    Raises:
        UnknownNameError: No variant has that name.
        ConfigError: An override is wrong.
    """
    return ResNeXt(variant(name, **overrides))
