"""`build`: modules from config dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from resnext.checks import brief
from resnext.errors import ConfigError, ConfigTypeError, UnknownNameError
from resnext.mmcls.backbone import ResNeXt, SEResNeXt
from resnext.mmcls.classifier import ImageClassifier, LinearClsHead
from resnext.mmcls.layer_cfg import Cfg, pop_type

_TRAINING_ARGS = ("loss", "topk", "cal_acc", "init_cfg")
_CLASSIFIER_ARGS = (
    "backbone",
    "neck",
    "head",
    "pretrained",
    "init_cfg",
    "train_cfg",
    "data_preprocessor",
)


def build(cfg: Cfg) -> nn.Module:
    """Build the module that a config dict describes.

    Args:
        cfg: Its `type` is ResNeXt, SEResNeXt or ImageClassifier (with GlobalAveragePooling and
            LinearClsHead). A whole config with a `model` entry works too. Entries for training
            only (`topk`, `cal_acc`, `train_cfg`, `data_preprocessor`) are ignored, and a `loss`
            other than mean cross-entropy is refused when it is asked for.

    Raises:
        ConfigError: An entry is missing, or its type is not supported. Also a `KeyError`.
    """
    if not isinstance(cfg, Mapping):
        raise ConfigTypeError(f"A config must be a dictionary, not {brief(cfg)}.")
    if "type" not in cfg and "model" in cfg:
        return build(cfg["model"])
    args = dict(cfg)
    kind = pop_type(args, "The model")
    if kind == "ResNeXt":
        return _call(ResNeXt, args)
    if kind == "SEResNeXt":
        return _call(SEResNeXt, args)
    if kind != "ImageClassifier":
        raise UnknownNameError(
            f"Models of type {kind!r} are not built here, only ResNeXt, SEResNeXt and "
            f"ImageClassifier."
        )
    _only(args, "ImageClassifier", _CLASSIFIER_ARGS)
    backbone = build(args.get("backbone") or {})
    if not isinstance(backbone, ResNeXt):
        raise UnknownNameError("The backbone of an ImageClassifier must be a ResNeXt or SEResNeXt.")
    neck, head = dict(args.get("neck") or {}), dict(args.get("head") or {})
    for entry, name, wanted in (
        (neck, "neck", "GlobalAveragePooling"),
        (head, "head", "LinearClsHead"),
    ):
        if (kind := pop_type(entry, f"The {name}")) != wanted:
            raise UnknownNameError(f"The {name} must be {wanted}, not {kind!r}.")
    _only(head, "LinearClsHead", ("num_classes", "in_channels", *_TRAINING_ARGS))
    num_classes, in_channels = head.get("num_classes"), head.get("in_channels")
    if type(num_classes) is not int or num_classes <= 0:
        raise ConfigError(f"num_classes of the head must be positive, not {num_classes!r}.")
    if type(in_channels) is not int or in_channels != backbone.feat_dim:
        raise ConfigError(
            f"in_channels of the head must be {backbone.feat_dim}, the backbone's last width, "
            f"not {in_channels!r}."
        )
    init_cfg = args.get("init_cfg")
    if args.get("pretrained"):
        init_cfg = {"type": "Pretrained", "checkpoint": args["pretrained"]}
    linear = LinearClsHead(num_classes, in_channels)
    return ImageClassifier(backbone, linear, init_cfg, head.get("loss"))


def _only(given: Cfg, what: str, known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigTypeError(f"{what} has no argument {name!r}; it has {', '.join(known)}.")


def _call(kind: type[ResNeXt], args: dict[str, Any]) -> ResNeXt:
    try:
        return kind(**args)
    except TypeError as error:
        if isinstance(error, ConfigError):
            raise
        text = str(error).removeprefix(f"{kind.__name__}.").removeprefix("__init__() ")
        raise ConfigTypeError(f"{kind.__name__} {text}.") from None
