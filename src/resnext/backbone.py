"""The network as a backbone: feature maps, frozen stages, activation checkpointing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from torch import nn

from resnext.checks import boolean, brief, plain
from resnext.config import ResNeXtConfig
from resnext.dilation import USUAL_DILATION, DilationConvention, with_output_stride
from resnext.errors import ConfigError, ConfigTypeError
from resnext.foreign_names import answering_call
from resnext.layers import check_config, check_images, traceable
from resnext.network import Images, Maps, Trunk, init_weights

B = TypeVar("B", bound="Backbone")  # beartype supports `Self` only if it decorates the class


class Feature(NamedTuple):
    """Description of one feature map that a `Backbone` returns."""

    name: str
    """Name of the stage: "layer1" to "layer4"."""
    channels: int
    """Channels of the map."""
    stride: int
    """Input pixels per pixel of the map."""


class FeatureInfo(tuple[Feature, ...]):
    """The maps that a `Backbone` returns, with timm's methods."""

    def channels(self) -> list[int]:
        """Channels of each map."""
        return [feature.channels for feature in self]

    def reduction(self) -> list[int]:
        """Input pixels per pixel of each map."""
        return [feature.stride for feature in self]

    def module_name(self) -> list[str]:
        """Name of the module that makes each map."""
        return [feature.name for feature in self]


class Backbone(Trunk):
    """Feature maps of chosen stages, for detection, segmentation and other heads.

    The state dict is that of a `ResNeXt` without `fc` and without stages that are not built, so
    `backbone.load_state_dict(model.state_dict(), strict=False)` loads it.

    Args:
        config: The architecture. `num_classes` and `dropout` are not used.
        out_indices: Stages to return, counted from 0; None for all. Stages after the last one are
            not built.
        frozen_stages: -1 for none, 0 for the stem, i for the stem and the first i stages. Frozen
            stages get no gradients and stay in evaluation mode, also after `train()`.
        norm_eval: Whether batch norms stay in evaluation mode during training.
        checkpointing: Whether to recompute the activations inside blocks in the backward pass,
            which saves memory but takes about a third more time.
        with_stem: Whether the stem's map, at half the size of the images, comes first, as in timm.
        output_stride: Input pixels per pixel of the fourth stage's map, 8, 16 or 32: later strides
            become dilation; None changes nothing.
        dilation_convention: Whose dilation: "timm", "torchvision", "mmseg" or "smp"; see
            `resnext.dilation.with_output_stride`.

    Attributes:
        card: Preprocessing and provenance of loaded weights, else None.

    Raises:
        ConfigError: `out_indices` or `frozen_stages` does not fit the number of stages, or
            `output_stride` not the strides.
    """

    builds_unused = False

    @answering_call
    def __init__(
        self,
        config: ResNeXtConfig,
        *,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        checkpointing: bool = False,
        with_stem: bool = False,
        output_stride: int | None = None,
        dilation_convention: DilationConvention = USUAL_DILATION,
    ) -> None:
        config = with_output_stride(check_config(config), output_stride, dilation_convention)
        indices = wanted_stages(out_indices, config.num_stages)
        frozen_stages = plain(frozen_stages)
        if type(frozen_stages) is not int:
            raise ConfigTypeError(f"frozen_stages must be an integer, not {brief(frozen_stages)}.")
        if frozen_stages > config.num_stages:
            raise ConfigError(
                f"frozen_stages must be from -1 (none) to {config.num_stages}, not {frozen_stages}."
            )
        boolean("with_stem", with_stem)
        super().__init__(config, config.num_stages if self.builds_unused else indices[-1] + 1)
        self.out_indices = indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_stem = with_stem
        self.set_grad_checkpointing(checkpointing)
        init_weights(self, config.zero_init_residual)
        self.train()

    @property
    def feature_info(self) -> FeatureInfo:
        """Name, channels and stride of each returned map, finest first."""
        stem, *stages = (Feature(*described) for described in self.described_maps())
        first = (stem,) if self.with_stem else ()
        return FeatureInfo((*first, *(stages[i] for i in self.out_indices)))

    @property
    def stem_parts(self) -> tuple[nn.Module, ...]:
        """The modules of the stem that have parameters."""
        return (self.conv1, self.bn1)

    @traceable
    def forward(self, x: Images) -> Maps:
        """Maps of the stages in `out_indices`, finest first, after the stem's if it is wanted."""
        if not self.with_stem:
            maps = self.features(x, depth=self.out_indices[-1] + 1)
            return tuple(maps[i] for i in self.out_indices)
        check_images(x, self.config)
        stem = self.stem_map(x)
        maps = self.staged(self.maxpool(stem), depth=self.out_indices[-1] + 1)
        return (stem, *(maps[i] for i in self.out_indices))

    def train(self: B, mode: bool = True) -> B:
        """Set training mode, except for frozen stages and, with `norm_eval`, batch norms."""
        super().train(mode)
        if self.frozen_stages >= 0:
            for module in (*self.stem_parts, *self.stages[: self.frozen_stages]):
                module.requires_grad_(False)
                if not isinstance(module, nn.Conv2d):  # a convolution is the same in both modes
                    module.eval()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def wanted_stages(out_indices: Sequence[int] | None, num_stages: int) -> tuple[int, ...]:
    """Indices of the stages to return, sorted and without repetition; None for all.

    Raises:
        ConfigTypeError: `out_indices` is not a list or tuple of integers.
        ConfigError: `out_indices` is empty, or names a stage that does not exist.
    """
    out_indices = plain(out_indices)
    if out_indices is None:
        return tuple(range(num_stages))
    allowed = f"out_indices must name stages from 0 to {num_stages - 1}, at least one"
    if not isinstance(out_indices, list | tuple) or any(type(i) is not int for i in out_indices):
        raise ConfigTypeError(
            f"{allowed}, as a tuple or list of integers, not {brief(out_indices)}."
        )
    if not out_indices or not set(out_indices) <= set(range(num_stages)):
        raise ConfigError(f"{allowed}, not {brief(out_indices)}.")
    return tuple(sorted(set(out_indices)))
