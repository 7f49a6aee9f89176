"""The architecture of a ResNeXt as data: `ResNeXtConfig`. Loads no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_type_hints

from resnext.checks import (
    boolean,
    brief,
    choice,
    literals,
    number,
    plain,
    positive,
    positives,
    positives_or_tuples,
)
from resnext.errors import ConfigError, ConfigTypeError
from resnext.foreign_names import answering, refuse_unknown

Style = Literal["pytorch", "caffe"]
Norm = Literal["batch", "sync", "group", "layer", "instance"]
Conv = Literal[
    "standard", "weight_standardized", "affine_weight_standardized", "same_padding"
]  # the last two exist for mmcls: its ConvAWS and Conv2dAdaptivePadding
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
Attention = Literal["se", "eca"]
SERounding = Literal["timm", "mmcls", "floor"]
AntiAlias = Literal["avg", "blur"]
DropPathDecay = Literal["linear", "constant"]


class Stage(NamedTuple):
    """One stage as it is built, with all derived values."""

    in_channels: int
    """Channels of the stage's input."""
    width: int
    """Bottleneck width: channels of the 3×3 convolutions."""
    out_channels: int
    """Channels of each block's output."""
    groups: int
    """Groups of the 3×3 convolutions."""
    stride: int
    """Stride of the first block; the others have 1."""
    keeps_pooling: bool
    """Whether the first block pools at stride 1; see `keep_pooling` of the config."""
    dilations: tuple[int, ...]
    """Dilation of the 3×3 convolution of each block."""
    drop_path: tuple[float, ...]
    """Probability of dropping the residual branch, for each block."""

    @property
    def dilation(self) -> int:
        """Dilation of the last block; often only the first block has another."""
        return self.dilations[-1]


@answering
@dataclass(frozen=True, repr=False)
class ResNeXtConfig:
    """Architecture of a ResNeXt. The first ten fields are Lucid's, the others are keyword-only.

    Lists become tuples, NumPy's numbers Python's, and dictionaries are copied, so nothing is shared
    with the caller.

    Args:
        layers: Number of bottleneck blocks in each stage.
        cardinality: Number of groups of the 3×3 convolution, the paper's C.
        base_width: Width of one group in the first stage, the paper's d. The bottleneck width of
            stage i is `floor(channels[i] * base_width / 64) * cardinality`.
        num_classes: Outputs of the classifier.
        in_channels: Channels of the input images.
        stem_width: Width of the deep stem, whose three convolutions have `stem_width`,
            `stem_width` and `2 * stem_width` outputs. The classic stem always has 64.
        stem_type: None for one 7×7 stride-2 convolution, "deep" for three 3×3 convolutions.
        avg_down: Strided projection shortcuts average-pool, then project at stride 1.
        channels: Width of each residual stage; its output has `expansion` times as many channels.
        block_args: Overrides for every block, as in Lucid: `cardinality`, `base_width`,
            `dilation`, `se` (bool) and `se_args` (`{"reduction": 16}`, used if `se` is true).
        num_stages: Number of entries of `layers` and `channels`, 1 to 4.
        strides: Stride of the first block of each stage; None for 1, 2, 2, 2.
        dilations: Dilation of the 3×3 convolutions of each stage; None for 1 everywhere. An entry
            may be a tuple with the dilation of each block; equal numbers become one number.
        style: Which convolution of a block has the stride: "pytorch" the 3×3, "caffe" the first
            1×1.
        expansion: Output channels of a stage divided by its `channels`.
        widths: Bottleneck width of each stage, overriding the formula of `base_width`.
        stem_channels: Outputs of the stem, overriding `stem_width`: one number for the classic
            stem, three for the deep one (timm's tiered stem is `(24, 32, 64)`).
        small_stem: A 3×3 stride-1 stem without pooling, for images of about 32 pixels
            (paper, section 5.3).
        norm: Kind of normalization: "batch", "sync", "group", "layer" (over channels, at each
            pixel) or "instance".
        norm_groups: Groups of the group norm.
        norm_eps: Added to the variance.
        norm_momentum: Weight of the new batch in running statistics; None for a cumulative mean.
        norm_affine: Whether norms have a learnable scale and shift.
        norm_track: Whether batch norms keep running statistics for evaluation.
        conv: Kind of convolution: "standard", "weight_standardized" (arXiv:1903.10520),
            "affine_weight_standardized" or "same_padding", as in mmcls.
        conv_eps: Added to the standard deviation of standardized weights.
        padding_mode: How convolutions pad: "zeros", "reflect", "replicate" or "circular".
        attention: Channel attention at the end of each residual branch: None, "se"
            (arXiv:1709.01507) or "eca" (arXiv:1910.03151).
        se_reduction: Channels divided by squeezed channels of the SE block.
        se_rounding: How squeezed channels are rounded: "timm" (nearest multiple of 8), "mmcls"
            (nearest multiple of 8, but the next if that is more than 10 % lower) or "floor"
            (Lucid: integer division).
        anti_alias: Pooling that follows the 3×3 convolutions in place of their stride, timm's
            `aa`: None, "avg" or "blur" (arXiv:1904.11486).
        keep_pooling: Whether stages after the first that have stride 1 still pool, at stride 1:
            2×2 means in the shortcuts of `avg_down`, and the blur of `anti_alias`. timm's dilated
            networks do.
        ceil_pooling: Whether the stem's max pooling does not pad and rounds sizes up, as in
            Cadene's SE-ResNeXts, timm's `legacy_seresnext50_32x4d` and its siblings.
        drop_path_rate: Probability of dropping the last block's residual branch in training.
        drop_path_decay: "linear" from 0 in the first block (arXiv:1603.09382) or "constant".
        dropout: Dropout probability before the classifier.
        zero_init_residual: Whether the last norm of each block is initialized to zero, so that
            every block starts as its shortcut (arXiv:1706.02677).

    Raises:
        ConfigError: A value is out of range or contradicts another. Also a `ValueError`.
        ConfigTypeError: A value has the wrong type, or `block_args` an unknown key. Also a
            `TypeError`.
    """

    layers: tuple[int, ...] | list[int]
    cardinality: int
    base_width: int
    num_classes: int = 1000
    in_channels: int = 3
    stem_width: int = 64
    stem_type: Literal["deep"] | None = None
    avg_down: bool = False
    channels: tuple[int, ...] | list[int] = (64, 128, 256, 512)
    block_args: dict[str, Any] = field(default_factory=dict, hash=False)
    _: KW_ONLY
    num_stages: int = 4
    strides: tuple[int, ...] | None = None
    dilations: tuple[int | tuple[int, ...], ...] | None = None
    style: Style = "pytorch"
    expansion: int = 4
    widths: tuple[int, ...] | None = None
    stem_channels: int | tuple[int, int, int] | None = None
    small_stem: bool = False
    norm: Norm = "batch"
    norm_groups: int = 32
    norm_eps: float = 1e-5
    norm_momentum: float | None = 0.1
    norm_affine: bool = True
    norm_track: bool = True
    conv: Conv = "standard"
    conv_eps: float = 1e-5
    padding_mode: PaddingMode = "zeros"
    attention: Attention | None = None
    se_reduction: int = 16
    se_rounding: SERounding = "timm"
    anti_alias: AntiAlias | None = None
    keep_pooling: bool = False
    ceil_pooling: bool = False
    drop_path_rate: float = 0.0
    drop_path_decay: DropPathDecay = "linear"
    dropout: float = 0.0
    zero_init_residual: bool = False

    # -- derived values -----------------------------------------------------------------------

    @property
    def stem_out(self) -> tuple[int, ...]:
        """Outputs of the stem's convolutions: one for the classic stem, three for the deep one."""
        if self.stem_channels is not None:
            channels = self.stem_channels
            return channels if isinstance(channels, tuple) else (channels,)
        if self.stem_type == "deep":
            return (self.stem_width, self.stem_width, 2 * self.stem_width)
        return (64,)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages as they are built, with `block_args` applied."""
        cardinality = self.block_args.get("cardinality", self.cardinality)
        base_width = self.block_args.get("base_width", self.base_width)
        strides = self.strides or (1, 2, 2, 2)[: self.num_stages]
        dilations = self.dilations or (1,) * self.num_stages
        if "dilation" in self.block_args:
            dilations = (self.block_args["dilation"],) * self.num_stages

        stages: list[Stage] = []
        in_channels, done, last = self.stem_out[-1], 0, max(sum(self.layers) - 1, 1)
        for i, blocks in enumerate(self.layers):
            rates = [self.drop_path_rate * (done + j) / last for j in range(blocks)]
            if self.drop_path_decay == "constant":
                rates = [self.drop_path_rate] * blocks
            width = self.channels[i] * base_width // 64 * cardinality
            dilation = dilations[i]
            stage = Stage(
                in_channels=in_channels,
                width=self.widths[i] if self.widths else width,
                out_channels=self.channels[i] * self.expansion,
                groups=cardinality,
                stride=strides[i],
                keeps_pooling=self.keep_pooling and i > 0 and strides[i] == 1,
                dilations=(dilation,) * blocks if isinstance(dilation, int) else dilation,
                drop_path=tuple(rates),
            )
            stages.append(stage)
            in_channels, done = stage.out_channels, done + blocks
        return tuple(stages)

    @property
    def stem_stride(self) -> int:
        """Input pixels per pixel after the stem."""
        return 1 if self.small_stem else 4

    @property
    def stride(self) -> int:
        """Input pixels per pixel of the last stage's map."""
        return self.stem_stride * math.prod([stage.stride for stage in self.stages])

    @property
    def min_size(self) -> int:
        """Smallest side of an image, pixels, that padding and pooling can work on."""
        stem_pad = 3 if self.stem_type is None and not self.small_stem else 1
        needs = [(1, self._padded(stem_pad))]  # stride of a map, pixels it must have
        if (self.anti_alias or self.ceil_pooling) and not self.small_stem:
            needs.append((2, 2))
        stride = self.stem_stride
        for stage in self.stages:
            if self.anti_alias == "blur" and (stage.stride > 1 or stage.keeps_pooling):
                needs.append((stride, 2))
            stride *= stage.stride
            needs.append((stride, self._padded(max(stage.dilations))))
        return max((pixels - 1) * stride + 1 for stride, pixels in needs)

    def _padded(self, padding: int) -> int:
        """Smallest side of a map that can be padded by `padding` pixels."""
        return {"reflect": padding + 1, "circular": padding}.get(self.padding_mode, 1)

    @property
    def gate(self) -> Attention | None:
        """Channel attention of the blocks, with `block_args` applied."""
        return "se" if self.block_args.get("se") else self.attention

    def squeezed(self, channels: int) -> int:
        """Squeezed channels of an SE block on `channels` channels."""
        if self.block_args.get("se"):  # Lucid's own SE block
            return channels // self.block_args.get("se_args", {}).get("reduction", 16)
        if self.se_rounding == "floor":
            return channels // self.se_reduction
        wanted = channels / self.se_reduction
        if self.se_rounding == "mmcls":
            wanted = channels // self.se_reduction
        rounded = max(8, int(wanted + 4) // 8 * 8)
        return rounded + 8 if self.se_rounding == "mmcls" and rounded < 0.9 * wanted else rounded

    # -- round trips --------------------------------------------------------------------------

    def replace(self, **changes: Any) -> ResNeXtConfig:
        """A validated copy with some fields changed.

        Raises:
            ConfigTypeError: A name is not a field, or a value has the wrong type.
            ConfigError: A value is out of range or contradicts another.
        """
        refuse_unknown(changes, type(self))
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values: tuples become lists."""
        return json.loads(self.to_json())

    def to_json(self) -> str:
        """All fields as one line of JSON; `keep_pooling` and `ceil_pooling` only if they are set.

        Files and fingerprints of networks from before those fields stay the same.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("keep_pooling", "ceil_pooling"):
            if not values[name]:
                del values[name]
        return json.dumps(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ResNeXtConfig:
        """A config from the fields that `to_dict` returns; fields with a default may be missing.

        Raises:
            ConfigError: A required field is missing, or a field is unknown or wrong.
        """
        if not isinstance(values, Mapping):
            raise ConfigTypeError(f"A config must be a dictionary of fields, not {brief(values)}.")
        refuse_unknown(values, cls)
        for name in ("layers", "cardinality", "base_width"):
            if name not in values:
                raise ConfigTypeError(f"{name} is missing from the config.")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> ResNeXtConfig:
        """A config from the JSON that `to_json` returns.

        Raises:
            ConfigError: The text is not JSON, or not a config.
        """
        try:
            values = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"The config is not JSON: {error}.") from error
        return cls.from_dict(values)

    def __repr__(self) -> str:
        """The three required fields, and those that differ from their defaults."""
        shown = []
        for f in fields(self):
            value = getattr(self, f.name)
            default = {} if f.name == "block_args" else f.default
            if value != default:
                shown.append(f"{f.name}={value!r}")
        return f"ResNeXtConfig({', '.join(shown)})"

    # -- validation ---------------------------------------------------------------------------

    def __post_init__(self) -> None:
        """Copy mutable values, then check all fields."""
        set_field = object.__setattr__  # the dataclass is frozen
        for f in fields(self):
            value = plain(getattr(self, f.name))
            is_list = isinstance(value, list) and f.name != "block_args"
            set_field(self, f.name, tuple(value) if is_list else value)
        if isinstance(self.block_args, dict):
            set_field(self, "block_args", deepcopy(self.block_args))
        self._check_each_field()
        self._check_block_args()
        self._check_together()

    def _check_each_field(self) -> None:
        for name, kind in _KINDS.items():
            if kind is int:
                positive(name, getattr(self, name))
            elif kind is bool:
                boolean(name, getattr(self, name))
            elif choices := literals(kind):
                choice(name, getattr(self, name), choices)
        if self.num_stages > 4:
            raise ConfigError(f"num_stages must be 1, 2, 3 or 4, not {self.num_stages}.")
        for name in ("layers", "channels", "strides", "widths"):
            value = getattr(self, name)
            if value is not None or name in ("layers", "channels"):
                positives(name, value, self.num_stages, _stages_hint(name, value))
        if self.dilations is not None:
            object.__setattr__(
                self, "dilations", positives_or_tuples("dilations", self.dilations, self.layers)
            )
        if max(self.layers) > 1000:
            raise ConfigError(
                f"layers must hold at most 1000 blocks each, not {brief(self.layers)}."
            )
        number("norm_eps", self.norm_eps, lambda x: x > 0, "greater than 0")
        number("conv_eps", self.conv_eps, lambda x: x > 0, "greater than 0")
        if self.norm_momentum is not None:
            number("norm_momentum", self.norm_momentum, lambda x: 0 <= x <= 1, "from 0 to 1")
        for name in ("drop_path_rate", "dropout"):
            number(name, getattr(self, name), lambda x: 0 <= x < 1, "at least 0 and below 1")

    def _check_block_args(self) -> None:
        if not isinstance(self.block_args, dict):
            raise ConfigTypeError(f"block_args must be a dictionary, not {brief(self.block_args)}.")
        for key, value in self.block_args.items():
            name = f"block_args[{key!r}]"
            if key in ("cardinality", "base_width", "dilation"):
                positive(name, value)
            elif key == "se":
                boolean(name, value)
            elif key == "se_args":
                if not isinstance(value, dict):
                    raise ConfigTypeError(f"{name} must be a dictionary, not {brief(value)}.")
                for inner, reduction in value.items():
                    if inner != "reduction":
                        raise ConfigTypeError(f"{name} knows only 'reduction', not {inner!r}.")
                    positive(f"{name}['reduction']", reduction)
            else:
                raise ConfigTypeError(
                    f"block_args has no key {key!r}; its keys are cardinality, base_width, "
                    f"dilation, se and se_args."
                )

    def _check_together(self) -> None:
        deep = self.stem_type == "deep"
        if self.stem_channels is not None:
            if deep:
                positives("stem_channels of a deep stem", self.stem_channels, 3)
            else:
                positive("stem_channels of a classic stem", self.stem_channels)
        if self.small_stem and deep:
            raise ConfigError("small_stem and stem_type='deep' exclude each other: choose one.")
        if self.ceil_pooling and (self.small_stem or self.anti_alias):
            other = "small_stem" if self.small_stem else "anti_alias"
            raise ConfigError(
                f"ceil_pooling is about the stem's max pooling, which {other} replaces: choose one."
            )
        if self.conv != "standard" and self.padding_mode != "zeros":
            raise ConfigError(
                f"padding_mode must be 'zeros' unless conv is 'standard', not "
                f"{self.padding_mode!r} with {self.conv!r}."
            )
        if self.anti_alias and self.style == "caffe":
            raise ConfigError("anti_alias follows the strided 3×3, so it needs style='pytorch'.")
        for i, stage in enumerate(self.stages):
            if stage.width < 1 or stage.width % stage.groups:
                raise ConfigError(
                    f"Stage {i + 1} has bottleneck width {stage.width}, which must be a positive "
                    f"multiple of cardinality {stage.groups}. Raise base_width, channels or widths."
                )
            if self.gate == "se" and self.squeezed(stage.out_channels) < 1:
                by_block = self.block_args.get("se_args", {}).get("reduction")
                name = "block_args['se_args']['reduction']" if by_block else "se_reduction"
                raise ConfigError(
                    f"{name} must be at most {stage.out_channels}, the channels of stage {i + 1}, "
                    f"not {by_block or self.se_reduction}."
                )
            if self.norm == "group":
                for channels in (*self.stem_out, stage.width, stage.out_channels):
                    if channels % self.norm_groups:
                        raise ConfigError(
                            f"norm_groups must divide the channels of every norm; {channels} is "
                            f"not divisible by {self.norm_groups}."
                        )


_KINDS = get_type_hints(ResNeXtConfig)  # of the fields: integers, switches and choices need no more


def _stages_hint(name: str, value: Any) -> str:
    """Advice if the number of stages is wrong."""
    is_count = name in ("layers", "channels") and isinstance(value, tuple) and 0 < len(value) < 4
    return f" num_stages={len(value)} changes that." if is_count else ""


def eca_kernel_size(channels: int) -> int:
    """Odd kernel size of ECA, which grows with the logarithm of the channels (γ=2, b=1)."""
    size = int((math.log2(channels) + 1) / 2)
    return max(size if size % 2 else size + 1, 3)
