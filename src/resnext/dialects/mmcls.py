"""MMClassification 0.x and MMPretrain 1.x: names of whole classifiers, and which there can be."""

from __future__ import annotations

from typing import Any

from resnext.architectures import unsupported_reason
from resnext.config import ResNeXtConfig
from resnext.dialects.dialect import Dialect, NameRule, norm_rows
from resnext.mmcls.backbone import DEPTHS, LETTERS


def deep(config: ResNeXtConfig) -> bool:
    """Whether the stem has three convolutions."""
    return config.stem_type == "deep"


BLOCK_NORMS = tuple(NameRule(f"bn{i}.", f"{{n}}{i}.") for i in (1, 2, 3))
STEM_NORM = NameRule("bn1.", "{n}1.", lambda config: not deep(config))

_NETWORK = (
    NameRule("conv1.0.", "stem.0.conv."),
    NameRule("conv1.1.", "stem.0.{n}."),
    NameRule("conv1.3.", "stem.1.conv."),
    NameRule("conv1.4.", "stem.1.{n}."),
    NameRule("conv1.6.", "stem.2.conv."),
    NameRule("bn1.", "stem.2.{n}.", deep),
    STEM_NORM,
    NameRule("fc.", "head.fc."),
)
_BLOCK = (
    *BLOCK_NORMS,
    NameRule("se.fc1.", "se_layer.conv1.conv."),
    NameRule("se.fc2.", "se_layer.conv2.conv."),
)


def nearest(config: ResNeXtConfig) -> ResNeXtConfig:
    """The network that comes out if a config is told to mmcls as well as it can be."""
    stages, stem = config.stages, config.stem_out
    base, half = stages[0].out_channels // config.expansion, max(stem[-1] // 2, 1)
    width = base if stages[0].groups == 1 else stages[0].width
    channels = tuple(base * 2**i for i in range(config.num_stages))
    blocks = next((b for b in DEPTHS.values() if b[: config.num_stages] == config.layers), None)
    return ResNeXtConfig(
        blocks[: config.num_stages] if blocks else DEPTHS[50][: config.num_stages],
        stages[0].groups,
        1,
        config.num_classes,
        config.in_channels,
        stem_type=config.stem_type,
        avg_down=config.avg_down,
        channels=channels,
        num_stages=config.num_stages,
        strides=tuple(stage.stride for stage in stages),
        dilations=tuple(stage.dilation for stage in stages),
        style=config.style,
        expansion=config.expansion,
        widths=tuple(width * 2**i for i in range(config.num_stages)),
        stem_channels=(half, half, stem[-1]) if deep(config) else stem[0],
        norm=config.norm,
        norm_groups=config.norm_groups,
        norm_eps=config.norm_eps,
        norm_affine=config.norm_affine,
        norm_track=config.norm_track,
        conv=config.conv,
        conv_eps=config.conv_eps,
        padding_mode=config.padding_mode,
        attention="se" if config.gate == "se" else None,
        se_reduction=config.se_reduction,
        se_rounding="mmcls",
    )


def config_text(config: ResNeXtConfig) -> str:
    """The config file of a classifier that mmcls has, as its checkpoints hold it."""
    stages = config.stages
    norms = {"group": "GN", "sync": "SyncBN", "instance": "IN", "layer": "LN2d"}
    norm: dict[str, Any] = {"type": norms.get(config.norm, "BN"), "eps": config.norm_eps}
    norm |= {"num_groups": config.norm_groups} if config.norm == "group" else {}
    affine = "elementwise_affine" if config.norm == "layer" else "affine"
    norm |= {} if config.norm_affine else {affine: False}
    norm |= {} if config.norm_track else {"track_running_stats": False}
    convs = {"weight_standardized": "ConvWS", "affine_weight_standardized": "ConvAWS"}
    conv: dict[str, Any] = {"type": convs.get(config.conv, "Conv2d")}
    conv |= {"type": "Conv2dAdaptivePadding"} if config.conv == "same_padding" else {}
    conv |= {"eps": config.conv_eps} if config.conv == "weight_standardized" else {}
    conv |= {} if config.padding_mode == "zeros" else {"padding_mode": config.padding_mode}
    base = stages[0].out_channels // config.expansion
    backbone = {
        "type": "SEResNeXt" if config.gate else "ResNeXt",
        "depth": next(d for d, b in DEPTHS.items() if b[: config.num_stages] == config.layers),
        "groups": stages[0].groups,
        "width_per_group": stages[0].width // stages[0].groups,
        "in_channels": config.in_channels,
        "stem_channels": config.stem_out[-1],
        "base_channels": base,
        "expansion": config.expansion,
        "num_stages": config.num_stages,
        "strides": tuple(stage.stride for stage in stages),
        "dilations": tuple(stage.dilation for stage in stages),
        "out_indices": (config.num_stages - 1,),
        "style": config.style,
        "deep_stem": deep(config),
        "avg_down": config.avg_down,
        "conv_cfg": conv,
        "norm_cfg": norm,
        **({"se_ratio": config.se_reduction} if config.gate else {}),
    }
    head = {
        "type": "LinearClsHead",
        "num_classes": config.num_classes,
        "in_channels": stages[-1].out_channels,
    }
    model = {
        "type": "ImageClassifier",
        "backbone": backbone,
        "neck": {"type": "GlobalAveragePooling"},
        "head": head,
    }
    return f"model = {model!r}\n"


def _problem(config: ResNeXtConfig) -> str:
    return unsupported_reason(config, nearest(config))


MMCLS = Dialect(
    "mmcls",
    "MMClassification",
    network=norm_rows(_NETWORK, LETTERS),
    block=norm_rows(_BLOCK, LETTERS),
    trunk="backbone.",
    empty_pool=False,
    problem=_problem,
)
