"""Dilation in place of strides, and within a stage, as each library has it. Loads no torch.

The libraries agree on all blocks of a dilated stage but the first, which had a stride before:
timm, torchvision and mmseg's `contract_dilation` give it the dilation of the stage before,
segmentation_models_pytorch and Detectron2 that of its own stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from resnext.checks import boolean, brief, choice
from resnext.config import ResNeXtConfig
from resnext.errors import ConfigError, ConfigTypeError
from resnext.foreign_names import answering_call

DilationConvention = Literal["timm", "torchvision", "mmseg", "smp"]
USUAL_DILATION: DilationConvention = "timm"  # for networks of torchvision, it is torchvision's too


@answering_call
def with_output_stride(
    config: ResNeXtConfig,
    output_stride: int | None,
    dilation_convention: DilationConvention = USUAL_DILATION,
) -> ResNeXtConfig:
    """The config with dilation in place of the strides beyond `output_stride`.

    The same weights fit. Of the first block of a dilated stage, the conventions say:

    - "timm" and "torchvision": it has the dilation of the stage before, as in timm's
      `output_stride` and torchvision's `replace_stride_with_dilation`. Pooling that went with its
      stride stays, at stride 1 (`keep_pooling`); torchvision has no network with such pooling.
    - "mmseg": the same without pooling, as in mmseg's `contract_dilation=True`.
    - "smp": it is dilated like the others, as in segmentation_models_pytorch, in Detectron2, and
      in mmseg without `contract_dilation`.

    Args:
        config: The architecture. If it is dilated already, it must be so by the same convention.
        output_stride: Input pixels per pixel of the last map: 8, 16 or 32; None for no change.
        dilation_convention: The library to follow.

    Raises:
        ConfigError: The network cannot have this output stride.
    """
    choice("dilation_convention", dilation_convention, get_args(DilationConvention))
    if output_stride is None:
        return config
    if type(output_stride) is not int or output_stride not in (8, 16, 32):
        raise ConfigError(f"output_stride must be 8, 16 or 32, not {brief(output_stride)}.")
    if "dilation" in config.block_args:
        raise ConfigError(
            f"output_stride={output_stride} sets dilations, but block_args['dilation'] overrides "
            f"them. Leave one of both out."
        )
    plain, stride = undilated(config, dilation_convention)
    if stride is None and any(max(stage.dilations) > 1 for stage in config.stages):
        raise ConfigError(
            f"output_stride={output_stride}: the network is dilated already, and not as "
            f"{dilation_convention} does. Leave output_stride out, or change its strides and "
            f"dilations."
        )
    if plain.stride < output_stride:
        raise ConfigError(
            f"output_stride must be at most {plain.stride}, the stride of this network, not "
            f"{output_stride}."
        )
    changed = _dilated(plain, output_stride, dilation_convention)
    if changed.stride != output_stride:
        raise ConfigError(
            f"output_stride={output_stride} cannot be had with the strides "
            f"{tuple(stage.stride for stage in plain.stages)}; the nearest is {changed.stride}."
        )
    return changed


def undilated(
    config: ResNeXtConfig, convention: DilationConvention
) -> tuple[ResNeXtConfig, int | None]:
    """The network with strides in place of dilation, and the `output_stride` that undoes it.

    The network as it is, and None, if it is not dilated, or not by this convention.
    """
    plain = config.replace(strides=None, dilations=None, keep_pooling=False)
    undone = _dilated(plain, config.stride, convention).stages == config.stages != plain.stages
    return (plain, config.stride) if undone else (config, None)


def _dilated(config: ResNeXtConfig, output_stride: int, convention: str) -> ResNeXtConfig:
    """The config with dilation in place of strides once `output_stride` is reached."""
    stride, dilation = config.stem_stride, 1
    strides, dilations = list[int](), list[tuple[int, ...]]()
    for stage in config.stages:
        before = dilation
        if stride >= output_stride:
            dilation *= stage.stride
            strides.append(1)
        else:
            stride *= stage.stride
            strides.append(stage.stride)
        first = dilation if convention == "smp" else before
        dilations.append((first, *[dilation] * (len(stage.dilations) - 1)))
    if dilation == 1:
        return config
    pools = config.avg_down or config.anti_alias == "blur"
    return config.replace(
        strides=tuple(strides),
        dilations=tuple(dilations),
        keep_pooling=pools and convention not in ("mmseg", "smp"),
    )


def block_dilations(
    layers: Sequence[int],
    dilations: Sequence[Any],
    contract_dilation: bool = False,
    multi_grid: Sequence[int] | None = None,
) -> tuple[Any, ...]:
    """mmseg's two arguments for dilations within a stage, as `dilations` of our config.

    Args:
        layers: Number of blocks in each stage.
        dilations: Dilation of each stage.
        contract_dilation: Whether the first block of a stage has half of it, rounded down.
        multi_grid: Dilations of the blocks of the last stage, in place of all others; more than it
            has blocks are not used.

    Raises:
        ConfigTypeError: An argument has the wrong type.
        ConfigError: `multi_grid` has too few entries.
    """
    boolean("contract_dilation", contract_dilation)
    blocks = list(dilations)
    if contract_dilation:
        for i, (dilation, count) in enumerate(zip(dilations, layers, strict=True)):
            if type(dilation) is int and dilation > 1:
                blocks[i] = (dilation // 2, *[dilation] * (count - 1))
    if multi_grid is not None:
        if not isinstance(multi_grid, list | tuple):
            raise ConfigTypeError(f"multi_grid must be a list or None, not {brief(multi_grid)}.")
        if len(multi_grid) < layers[-1]:
            raise ConfigError(
                f"multi_grid must hold a dilation for each of the {layers[-1]} blocks of the last "
                f"stage, not {brief(multi_grid)}."
            )
        blocks[-1] = tuple(multi_grid[: layers[-1]])
    return tuple(blocks)
