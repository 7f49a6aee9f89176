"""OpenMMLab: MMClassification 0.x and MMPretrain 1.x, MMDetection and MMSegmentation.

This file holds two dialects: the projects share the names of norms, the contents of checkpoints and
the format of config files. They differ in the deep stem, which is flat in
mmdet, and in `avg_down`, which pools in every stage there. mmdet has no classifier; a file for it
keeps ours under `fc`, which mmdet leaves unread.

Source: the documentation of mmcls 0.25; mmdet 2.28 and mmseg 0.30, run with random weights.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from resnext.architectures import unsupported_reason
from resnext.card import Card
from resnext.checks import brief
from resnext.config import ResNeXtConfig
from resnext.dialects.dialect import (
    CheckpointMetadata,
    Dialect,
    Documents,
    NameRule,
    ParameterNames,
    Values,
    label_names,
)
from resnext.dialects.openmmlab_images import pipeline_preprocessing
from resnext.errors import CheckpointError, ResNeXtError
from resnext.mmcls.backbone import DEPTHS
from resnext.mmcls.config_file import parse_config
from resnext.mmcls.layer_cfg import LETTERS
from resnext.mmcls.registry import build

# Arguments of a backbone that do not change what it computes in evaluation
_UNUSED = ("pretrained", "init_cfg", "with_cp", "norm_eval", "frozen_stages", "out_indices")
_UNUSED += ("drop_path_rate", "stage_with_dcn")  # the latter only says where dcn is
# Arguments that do, unless they are None, false or empty
_UNSUPPORTED = ("dcn", "plugins")
# Backbones: our class and the arguments that theirs sets itself
_DEEP = {"groups": 1, "deep_stem": True}
_BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "ResNeXt": ("ResNeXt", {}),
    "SEResNeXt": ("SEResNeXt", {}),
    "ResNet": ("ResNeXt", {"groups": 1}),
    "ResNetV1c": ("ResNeXt", {**_DEEP, "avg_down": False}),
    "ResNetV1d": ("ResNeXt", {**_DEEP, "avg_down": True}),
    "ResNet_CIFAR": ("ResNeXt", {"groups": 1}),
    "SEResNet": ("SEResNeXt", {"groups": 1}),
}
# Arguments of mmcls's linear head; those after the second concern training only
_HEAD_ARGS = ("type", "num_classes", "in_channels", "loss", "topk", "cal_acc", "init_cfg")

_MMCLS_MODULES = re.compile(r"stem\.\d\.conv\.|.*\.se_layer\.")
_DETECTOR = re.compile(
    r"(?:^|\.)(?:neck|rpn_head|roi_head|bbox_head|mask_head|decode_head|auxiliary_head)\."
)


# -- names -----------------------------------------------------------------------------------------


def _deep(config: ResNeXtConfig) -> bool:
    """Whether the stem has three convolutions."""
    return config.stem_type == "deep"


_BLOCK_NORMS = tuple(NameRule(f"bn{i}.", f"{{n}}{i}.") for i in (1, 2, 3))
_STEM_NORM = NameRule("bn1.", "{n}1.", lambda config: not _deep(config))
_MMCLS_NETWORK = (
    NameRule("conv1.0.", "stem.0.conv."),
    NameRule("conv1.1.", "stem.0.{n}."),
    NameRule("conv1.3.", "stem.1.conv."),
    NameRule("conv1.4.", "stem.1.{n}."),
    NameRule("conv1.6.", "stem.2.conv."),
    NameRule("bn1.", "stem.2.{n}.", _deep),
    _STEM_NORM,
    NameRule("fc.", "head.fc."),
)
_MMCLS_BLOCK = (
    *_BLOCK_NORMS,
    NameRule("se.fc1.", "se_layer.conv1.conv."),
    NameRule("se.fc2.", "se_layer.conv2.conv."),
)
_MMDET_NETWORK = (
    NameRule("conv1.0.", "stem.0."),
    NameRule("conv1.1.", "stem.1."),
    NameRule("conv1.3.", "stem.3."),
    NameRule("conv1.4.", "stem.4."),
    NameRule("conv1.6.", "stem.6."),
    NameRule("bn1.", "stem.7.", _deep),
    _STEM_NORM,
)


# -- which networks there are ----------------------------------------------------------------------


def _nearest(config: ResNeXtConfig) -> ResNeXtConfig:
    """The most similar network that mmcls's arguments can describe."""
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
        stem_channels=(half, half, stem[-1]) if _deep(config) else stem[0],
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


def _mmcls_problem(config: ResNeXtConfig) -> str:
    """Why mmcls cannot build a network; empty if it can."""
    return unsupported_reason(config, _nearest(config))


def _mmdet_problem(config: ResNeXtConfig) -> str:
    """Why mmdet cannot build a network; empty if it can."""
    if config.gate:
        return f"does not support {config.gate.upper()} attention."
    if config.expansion != 4:
        return "supports only expansion 4."
    return unsupported_reason(config, _nearest(config))


def _is_mmdet(names: ParameterNames) -> bool:
    """A flat deep stem, or a detector's other parts, without modules that only mmcls has."""
    if any(_MMCLS_MODULES.match(name) for name in names.network):
        return False
    return "stem.3.weight" in names.network or any(map(_DETECTOR.search, names.outside))


def _is_mmcls(names: ParameterNames) -> bool:
    """Modules, a head or letters of norms that only mmcls has."""
    if any(_MMCLS_MODULES.match(name) for name in names.network):
        return True
    if any(name.endswith("head.fc.weight") for name in names.classifier):
        return True
    norms = tuple(f"layer1.0.{letters}1." for letters in LETTERS.values() if letters != "bn")
    return any(name.startswith(norms) for name in names.network)


# -- files -----------------------------------------------------------------------------------------


def _mmcls_content(state: dict[str, Tensor], config: ResNeXtConfig, card: Card) -> dict[str, Any]:
    """A checkpoint as mmcv writes it, with labels and config."""
    content = _mmdet_content(state, config, card)
    content["meta"]["config"] = config_text(config)
    return content


def _mmdet_content(state: dict[str, Tensor], config: ResNeXtConfig, card: Card) -> dict[str, Any]:
    """A checkpoint as mmcv writes it, with labels."""
    meta = {"CLASSES": card.labels} if card.labels else {}
    return {"meta": meta, "state_dict": OrderedDict(state)}


def _backbone(config: ResNeXtConfig) -> dict[str, Any]:
    """A backbone in mmcls's config files."""
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
    return {
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
        "deep_stem": _deep(config),
        "avg_down": config.avg_down,
        "conv_cfg": conv,
        "norm_cfg": norm,
        **({"se_ratio": config.se_reduction} if config.gate else {}),
    }


def _mmdet_backbone(config: ResNeXtConfig) -> dict[str, Any]:
    """A backbone in mmdet's config files."""
    backbone = _backbone(config)
    return {**backbone, "base_width": backbone.pop("width_per_group")}


def config_text(config: ResNeXtConfig) -> str:
    """The text of mmcls's config file for a classifier, as its checkpoints hold it."""
    head = {
        "type": "LinearClsHead",
        "num_classes": config.num_classes,
        "in_channels": config.stages[-1].out_channels,
    }
    model = {
        "type": "ImageClassifier",
        "backbone": _backbone(config),
        "neck": {"type": "GlobalAveragePooling"},
        "head": head,
    }
    return f"model = {model!r}\n"


def _metadata(documents: Documents) -> CheckpointMetadata:
    """From `meta` in a file that mmcv or mmengine wrote.

    Raises:
        CheckpointError: `meta` holds the config of a ResNeXt that cannot be built.
    """
    meta = documents.file.get("meta")
    if not isinstance(meta, dict):
        return CheckpointMetadata()
    data = meta.get("dataset_meta")
    classes = meta.get("CLASSES") or (data.get("classes") if isinstance(data, Mapping) else None)
    text = meta.get("config") or meta.get("cfg")
    config, preprocessing, head, notes = None, None, "", list[str]()
    if isinstance(text, str):
        try:
            settings = parse_config(text)
        except ResNeXtError:
            settings = {}
            notes.append("the config in the file could not be read, so it is not used")
        model = settings.get("model")
        config = model_config(model) if isinstance(model, Mapping) else None
        preprocessing = pipeline_preprocessing(settings, notes)
        head = head_problem(model.get("head")) if isinstance(model, Mapping) else ""
    provenance = {
        name: meta[name]
        for name in ("mmcls_version", "mmengine_version", "mmcv_version", "exp_name", "epoch")
        if isinstance(meta.get(name), str | int)
    }
    return CheckpointMetadata(
        label_names(classes),
        preprocessing,
        provenance,
        config=config,
        head=head,
        notes=tuple(notes),
    )


def model_config(model: Values) -> ResNeXtConfig | None:
    """Our config for the backbone in `model`, OpenMMLab's settings; None without bottlenecks.

    A ResNet of bottlenecks is a ResNeXt of one group.

    Raises:
        CheckpointError: The backbone is not a ResNeXt that is built here.
    """
    backbone = model.get("backbone")
    if not isinstance(backbone, Mapping):
        return None
    library, _, name = str(backbone.get("type")).rpartition(".")
    if name not in _BACKBONES:
        raise CheckpointError(
            f"The backbone is not a ResNeXt or SEResNeXt of OpenMMLab, nor a ResNet, but "
            f"{brief(name)} in its config. If it has the same layers, pass config=."
        )
    kind, meant = _BACKBONES[name]
    if meant and backbone.get("depth") in (18, 34):
        return None
    classifier = str(model.get("type")).endswith("ImageClassifier")
    args = {**backbone, **meant, "type": kind}
    for unsupported in _UNSUPPORTED:
        if args.get(unsupported):
            raise CheckpointError(
                f"Its config has {unsupported}={brief(args[unsupported])}, which is not supported: "
                f"the network would give other feature maps without it."
            )
    for unused in (*_UNUSED, *_UNSUPPORTED):
        args.pop(unused, None)
    stages = args.get("num_stages", 4)
    args["out_indices"] = (stages - 1,) if isinstance(stages, int) else (3,)
    of_mmcls = classifier or library in ("mmcls", "mmpretrain") or "width_per_group" in backbone
    if not of_mmcls:  # mmdet's and mmseg's own class
        args["groups"] = args.get("groups", 1)
        args["width_per_group"] = args.pop("base_width", 4)
        args["stem_channels"] = args.get("stem_channels") or args.get("base_channels", 64)
    if classifier:
        _check_neck(model.get("neck"))
    try:
        network = build({**args, "init_cfg": None}).config
    except (ResNeXtError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"The config in it does not describe a valid network: {error}"
        ) from error
    assert isinstance(network, ResNeXtConfig)
    if name == "ResNet_CIFAR":
        network = network.replace(small_stem=True)
    head = model.get("head")
    classes = head.get("num_classes") if isinstance(head, Mapping) and classifier else None
    return network.replace(num_classes=classes) if isinstance(classes, int) else network


def _check_neck(necks: object) -> None:
    """Check that a classifier averages its last map over the pixels.

    Raises:
        CheckpointError: It pools in another way.
    """
    for neck in necks if isinstance(necks, list | tuple) else (necks,):
        if not isinstance(neck, Mapping):
            continue
        kind = str(neck.get("type")).rpartition(".")[2]
        if kind != "GlobalAveragePooling":
            raise CheckpointError(f"Its neck is {kind}, not GlobalAveragePooling.")
        if neck.get("dim", 2) != 2:
            raise CheckpointError(f"Its neck pools {brief(neck['dim'])} dimensions, not 2.")


def head_problem(head: object) -> str:
    """Why a head is not one linear layer with one answer per image; empty if it is, or is none."""
    if not isinstance(head, Mapping):
        return ""
    kind = str(head.get("type", "LinearClsHead")).rpartition(".")[2]
    if kind != "LinearClsHead":
        return f"its head is {kind}, not LinearClsHead"
    unknown = [name for name in head if name not in _HEAD_ARGS]
    return f"its head has {unknown[0]!r}, which is not known here" if unknown else ""


MMCLS = Dialect(
    "mmcls",
    "MMClassification",
    network=_MMCLS_NETWORK,
    block=_MMCLS_BLOCK,
    trunk="backbone.",
    norms=LETTERS,
    empty_pool=False,
    suffixes=(".pth", ".pt"),
    backbones=True,
    holds_config=True,
    content=_mmcls_content,
    metadata=_metadata,
    recognises=_is_mmcls,
    problem=_mmcls_problem,
)
MMDET = Dialect(
    "mmdet",
    "MMDetection",
    network=_MMDET_NETWORK,
    block=_BLOCK_NORMS,
    norms=LETTERS,
    suffixes=(".pth", ".pt"),
    backbones=True,
    content=_mmdet_content,
    recognises=_is_mmdet,
    problem=_mmdet_problem,
    arguments=_mmdet_backbone,
)
