"""Parameters, MACs and receptive field of a network, from its config alone. Loads no torch.

`_Walk` follows one image through the network: each layer changes the size of the map, adds
parameters and multiply-accumulates (MACs), and widens the receptive field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from resnext.checks import brief, plain
from resnext.config import ResNeXtConfig, Stage, eca_kernel_size
from resnext.errors import InputError
from resnext.foreign_names import answering_call


class StageSummary(NamedTuple):
    """Output and cost of the stem, a stage or the classifier."""

    name: str
    """"stem" (with its pooling), "stage 1", …, "classifier" (with the global average)."""
    size: tuple[int, int]
    """Height and width of its output."""
    channels: int
    """Channels of its output."""
    blocks: int
    """Bottleneck blocks; 0 for the stem and the classifier."""
    width: int
    """Bottleneck width; 0 for the stem and the classifier."""
    groups: int
    """Groups of the 3×3 convolutions."""
    dilation: int
    """Dilation of the 3×3 convolutions; that of the last block if the first has another."""
    parameters: int
    """Learnable parameters; running statistics are not counted."""
    macs: int
    """Multiply-accumulates for one image, of the convolutions, including those of SE and ECA, and
    of the linear layer. Norms, pooling (including the blur), activations and sums do not count."""
    receptive_field: int
    """Side of the square of input pixels that one output pixel depends on through convolutions
    and pooling, along the residual branches. Global averages, as in SE, ECA and some norms, see
    the whole image and are not included. 0 for the classifier."""
    stride: int
    """Input pixels from one output pixel to the next; 0 for the classifier."""


class Summary(NamedTuple):
    """Output and cost of each part of a network, and their totals."""

    rows: tuple[StageSummary, ...]
    """Stem, stages and classifier, in this order."""
    parameters: int
    """Learnable parameters of the network."""
    macs: int
    """Multiply-accumulates for one image."""
    receptive_field: int
    """Receptive field of the last stage, pixels."""
    size: tuple[int, int]
    """Height and width of the input image."""


@answering_call
def summarize(config: ResNeXtConfig, size: int | tuple[int, int] | None = None) -> Summary:
    """Parameters, MACs and receptive field of a network, for one image.

    Args:
        config: The architecture.
        size: Image size in pixels, one number or height and width; None for `default_size`.

    Raises:
        InputError: `size` is not a size, or is too small for the network.
    """
    image = _checked_size(config, default_size(config) if size is None else size)
    walk = _Walk(config, image)
    walk.stem()
    rows = [walk.row("stem", config.stem_out[-1])]
    for i, stage in enumerate(config.stages):
        for j in range(config.layers[i]):
            walk.block(stage, j)
        rows.append(walk.row(f"stage {i + 1}", stage.out_channels, config.layers[i], stage))
    receptive_field = walk.receptive_field
    rows.append(walk.classifier())
    parameters = sum(row.parameters for row in rows)
    macs = sum(row.macs for row in rows)
    return Summary(tuple(rows), parameters, macs, receptive_field, image)


def default_size(config: ResNeXtConfig) -> int:
    """Image size the paper uses with this stem: 32 (CIFAR) or 224 (ImageNet) pixels."""
    return 32 if config.small_stem else 224


@dataclass
class _Walk:
    """The state of one image's pass through the network, and the cost since the last row."""

    config: ResNeXtConfig
    size: tuple[int, int]
    stride: int = 1
    receptive_field: int = 1
    parameters: int = 0
    macs: int = 0

    def stem(self) -> None:
        config = self.config
        kernel = 3 if config.small_stem or config.stem_type == "deep" else 7
        inputs, stride = config.in_channels, 1 if config.small_stem else 2
        for outputs in config.stem_out:
            self.conv(inputs, outputs, kernel, stride)
            inputs, stride = outputs, 1
        if config.small_stem:
            return
        if config.anti_alias == "avg" or config.ceil_pooling:  # they drop an odd row or column
            self.size = (self.size[0] // 2 * 2, self.size[1] // 2 * 2)
            self.slide(3 if config.ceil_pooling else 2, 2)
        else:
            if config.anti_alias == "blur":
                self.slide(3)  # the maximum pooling before the blur
            self.slide(3, 2)

    def block(self, stage: Stage, index: int) -> None:
        config, width, outputs = self.config, stage.width, stage.out_channels
        inputs, stride = (outputs, 1) if index else (stage.in_channels, stage.stride)
        stride1, stride2 = (stride, 1) if config.style == "caffe" else (1, stride)
        pooled = config.anti_alias and (stride2 > 1 or (stage.keeps_pooling and index == 0))
        self.conv(inputs, width, 1, stride1)
        dilation = stage.dilations[index]
        self.conv(width, width, 3, 1 if pooled else stride2, dilation, stage.groups)
        if pooled:
            self.slide(stride2 if config.anti_alias == "avg" else 3, stride2)
        self.conv(width, outputs, 1)
        self.attention(outputs)
        if stride > 1 or inputs != outputs:
            self.conv(inputs, outputs, 1)  # the projection computes a map of this size

    def attention(self, channels: int) -> None:
        if self.config.gate == "se":
            squeezed = self.config.squeezed(channels)
            self.parameters += 2 * channels * squeezed + squeezed + channels
            self.macs += 2 * channels * squeezed
        elif self.config.gate == "eca":
            self.parameters += eca_kernel_size(channels)
            self.macs += eca_kernel_size(channels) * channels

    def conv(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        """Add a convolution without bias and the norm that follows it."""
        self.slide(kernel, stride, dilation)
        weights = outputs * (inputs // groups) * kernel**2
        self.parameters += weights + (2 * outputs if self.config.norm_affine else 0)
        self.macs += weights * self.size[0] * self.size[1]

    def slide(self, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        """Move a window over the map, padded so that there is one output per `stride` pixels."""
        self.receptive_field += (kernel - 1) * dilation * self.stride
        self.stride *= stride
        self.size = (-(-self.size[0] // stride), -(-self.size[1] // stride))  # rounded up

    def classifier(self) -> StageSummary:
        classes, features = self.config.num_classes, self.config.stages[-1].out_channels
        self.size, self.receptive_field, self.stride = (1, 1), 0, 0
        self.parameters, self.macs = (features + 1) * classes, features * classes
        return self.row("classifier", classes)

    def row(
        self, name: str, channels: int, blocks: int = 0, stage: Stage | None = None
    ) -> StageSummary:
        """Output and cost since the last row; resets the cost."""
        row = StageSummary(
            name=name,
            size=self.size,
            channels=channels,
            blocks=blocks,
            width=stage.width if stage else 0,
            groups=stage.groups if stage else 1,
            dilation=stage.dilation if stage else 1,
            parameters=self.parameters,
            macs=self.macs,
            receptive_field=self.receptive_field,
            stride=self.stride,
        )
        self.parameters = self.macs = 0
        return row


def _checked_size(config: ResNeXtConfig, size: object) -> tuple[int, int]:
    size = plain(size)
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, tuple | list) or [type(side) for side in sides] != [int, int]:
        raise InputError(f"size must be a number of pixels or (height, width), not {brief(size)}.")
    height, width = sides
    if min(height, width) < config.min_size:
        least = f"Images must have at least {config.min_size} pixels on each side"
        raise InputError(f"{least}, not {height}×{width}.")
    return height, width
