"""Rebuilds the config of a network from the names and shapes in its state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from resnext.config import ResNeXtConfig, SERounding, eca_kernel_size
from resnext.errors import CheckpointError, ConfigError

Shape = tuple[int, ...]
_BLOCK = re.compile(r"layer(\d)\.(\d{1,4})\.")


ASSUMED = (
    "stride on the 3×3 convolution, strides 1, 2, 2, 2, no dilation, no anti-aliasing, plain "
    "convolutions, ReLU, average pooling, 1e-5 added to variances"
)
"""Assumed properties that names and shapes do not show."""


class InferredConfig(NamedTuple):
    """A config rebuilt from names and shapes."""

    config: ResNeXtConfig
    classifier: bool
    """Whether there is a last layer; without one, `config.num_classes` is meaningless."""


def infer_config(shapes: Mapping[str, Shape], norm: str = "batch") -> InferredConfig:
    """The config of the network that a state dict belongs to.

    Args:
        shapes: Shape of every entry, under our names.
        norm: The kind of norm, if another library's names show it.

    Raises:
        CheckpointError: The state dict is not a ResNeXt's, or several configs fit.
    """
    layers = _layers(shapes)
    firsts = [f"layer{i + 1}.0" for i in range(len(layers))]
    outs = [_shape(shapes, f"{first}.conv3.weight", 4)[0] for first in firsts]
    grouped = [_shape(shapes, f"{first}.conv2.weight", 4) for first in firsts]
    cardinalities = {shape[0] // shape[1] if shape[1] else 0 for shape in grouped}
    widths = [shape[0] for shape in grouped]
    if len(cardinalities) > 1 or 0 in cardinalities:
        raise CheckpointError(
            f"Its stages have {sorted(cardinalities)} groups; a ResNeXt has the same everywhere."
        )
    cardinality = cardinalities.pop()
    expansion = next((e for e in (4, 2, 1) if all(out % e == 0 for out in outs)), 1)
    channels = tuple(out // expansion for out in outs)
    tracked = "layer1.0.bn1.running_mean" in shapes
    norm = "batch" if tracked else norm
    if norm == "batch" and not tracked and any(x.endswith(".running_mean") for x in shapes):
        raise CheckpointError("layer1.0.bn1.running_mean is missing.")
    if norm == "batch" and not any(".bn1." in name and shape for name, shape in shapes.items()):
        raise CheckpointError(
            "It has no norms: they were folded into its convolutions, or have no parameters. For "
            "the latter pass its config."
        )
    if norm == "batch" and not tracked:
        raise CheckpointError(
            "Its norms have no running statistics, so they are group, layer or instance norms, and "
            "names and shapes do not show which. Pass its config."
        )
    if norm == "group":
        raise CheckpointError(
            "It has group norms. Names and shapes show neither their number of groups nor whether "
            "weights are standardized (GN or GN+WS). Pass its config."
        )
    avg_down = len(shapes.get(f"{firsts[-1]}.downsample.1.weight", ())) == 4
    fields: dict[str, Any] = {
        "layers": layers,
        "cardinality": cardinality,
        "channels": channels,
        "num_stages": len(layers),
        "expansion": expansion,
        "avg_down": avg_down,
        "norm": norm,
        "norm_affine": "bn1.weight" in shapes,
        **_stem(shapes),
        **_attention(shapes, outs),
    }
    if "layer1.0.conv1.weight_gamma" in shapes:
        fields["conv"] = "affine_weight_standardized"
    if classifier := "fc.weight" in shapes:
        fields["num_classes"] = _shape(shapes, "fc.weight", 2)[0]
    try:
        config = ResNeXtConfig(**fields, **_widths(widths, channels, cardinality))
    except ConfigError as error:
        raise CheckpointError(f"Its sizes are not those of a ResNeXt: {error}") from error
    return InferredConfig(config, classifier)


def _layers(shapes: Mapping[str, Shape]) -> tuple[int, ...]:
    """Number of blocks in each stage."""
    blocks: dict[int, set[int]] = {}
    for name in shapes:
        if block := _BLOCK.match(name):
            blocks.setdefault(int(block[1]), set()).add(int(block[2]))
    if sorted(blocks) != list(range(1, len(blocks) + 1)) or len(blocks) > 4:
        raise CheckpointError(f"It has stages {sorted(blocks)}; a ResNeXt has stages 1 to 4.")
    for stage, numbers in sorted(blocks.items()):
        if numbers != set(range(len(numbers))):
            missing = next(i for i in range(len(numbers) + 1) if i not in numbers)
            raise CheckpointError(f"Block {missing} of stage {stage} is missing.")
    return tuple(len(blocks[stage]) for stage in sorted(blocks))


def _stem(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    deep = "conv1.0.weight" in shapes
    names = [f"conv1.{i}.weight" for i in (0, 3, 6)] if deep else ["conv1.weight"]
    convs = [_shape(shapes, name, 4) for name in names]
    outs = tuple(shape[0] for shape in convs)
    fields: dict[str, Any] = {"in_channels": convs[0][1]}
    kernel = convs[0][2:]
    if deep:
        plain = outs[0] == outs[1] and outs[2] == 2 * outs[0]
        fields |= {"stem_type": "deep"}
        fields |= {"stem_width": outs[0]} if plain else {"stem_channels": outs}
    elif kernel in ((3, 3), (7, 7)):
        fields |= {"small_stem": kernel == (3, 3)}
        fields |= {} if outs == (64,) else {"stem_channels": outs[0]}
    else:
        raise CheckpointError(f"Its first convolution is {kernel[0]}×{kernel[1]}, not 7×7 or 3×3.")
    return fields


def _attention(shapes: Mapping[str, Shape], outs: list[int]) -> dict[str, Any]:
    firsts = [f"layer{i + 1}.0.se" for i in range(len(outs))]
    if f"{firsts[0]}.conv.weight" in shapes:
        for first, out in zip(firsts, outs, strict=True):
            size = _shape(shapes, f"{first}.conv.weight", 3)[2]
            if size != eca_kernel_size(out):
                raise CheckpointError(
                    f"Its ECA kernel on {out} channels has size {size}, not {eca_kernel_size(out)}."
                )
        return {"attention": "eca"}
    if f"{firsts[0]}.fc1.weight" not in shapes:
        return {}
    squeezed = [_shape(shapes, f"{first}.fc1.weight", 4)[0] for first in firsts]
    ratios = [16, *(out // max(s, 1) for out, s in zip(outs, squeezed, strict=True))]
    for reduction in dict.fromkeys(ratios):
        for rounding in get_args(SERounding):
            fields = {"attention": "se", "se_reduction": reduction, "se_rounding": rounding}
            if reduction < 1:
                continue
            like = ResNeXtConfig((1,), 1, 64, num_stages=1, channels=(1024,), **fields)
            if [like.squeezed(out) for out in outs] == squeezed:
                return fields
    raise CheckpointError(
        f"Its SE blocks squeeze {outs} channels to {squeezed}; no reduction gives that."
    )


def _widths(widths: list[int], channels: tuple[int, ...], cardinality: int) -> dict[str, Any]:
    """`base_width`, and `widths` too if they do not follow from it."""
    per_group = widths[0] // cardinality
    first = max(-(-per_group * 64 // channels[0]), 1)  # rounded up, as it is rounded down again
    if [c * first // 64 * cardinality for c in channels] == widths:
        return {"base_width": first}
    return {"base_width": first, "widths": tuple(widths)}


def _shape(shapes: Mapping[str, Shape], name: str, dimensions: int) -> Shape:
    shape = shapes.get(name)
    if shape is None:
        raise CheckpointError(f"{name} is missing.")
    if len(shape) != dimensions or min(shape) < 1:
        raise CheckpointError(f"{name} has shape {shape}; {dimensions} dimensions are needed.")
    return shape
