"""`build`: modules from config dicts, and `BACKBONES`: the classes it finds by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

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

Kind = TypeVar("Kind", bound=type[nn.Module])


class Registry:
    """Classes by name, as mmcv's.

    Args:
        name: What the classes are, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.module_dict: dict[str, type[nn.Module]] = {}

    def register_module(
        self,
        name: str | Sequence[str] | type[nn.Module] | None = None,
        force: bool = False,
        module: type[nn.Module] | None = None,
    ) -> Any:
        """Register a class: as a decorator, `@BACKBONES.register_module()`, or the given `module`.

        Args:
            name: Its name or names in configs; None for the name of the class.
            force: Whether it may replace a class of that name.
            module: The class; None to decorate one.

        Raises:
            ConfigError: A name is taken. Also a `KeyError`.
            ConfigTypeError: It is not a class.
        """
        if isinstance(name, type):  # @BACKBONES.register_module, without parentheses
            return self.register_module(module=name)
        if module is None:
            return self._decorator(name, force)
        if not isinstance(module, type):
            raise ConfigTypeError(f"Only classes can be registered, not {brief(module)}.")
        names = (module.__name__,) if name is None else (name,) if isinstance(name, str) else name
        for known in names:
            if known in self.module_dict and not force:
                raise UnknownNameError(
                    f"{known} is already registered in {self.name}. Choose another name, or "
                    f"replace it with force=True."
                )
        self.module_dict.update(dict.fromkeys(names, module))
        return module

    def _decorator(self, name: str | Sequence[str] | None, force: bool) -> Callable[[Kind], Kind]:
        return lambda module: self.register_module(name, force, module)

    def get(self, name: str) -> type[nn.Module] | None:
        """The class of that name, or None."""
        return self.module_dict.get(name)

    def build(self, cfg: Cfg) -> nn.Module:
        """What `resnext.mmcls.build` builds."""
        return build(cfg)

    def __contains__(self, name: str) -> bool:
        return name in self.module_dict

    def __len__(self) -> int:
        return len(self.module_dict)


BACKBONES = Registry("BACKBONES")
BACKBONES.register_module(module=ResNeXt)
BACKBONES.register_module(module=SEResNeXt)


def build(cfg: Cfg) -> nn.Module:
    """Build the module that a config dict describes.

    Args:
        cfg: Its `type` is a class, a name in `BACKBONES` (ResNeXt, SEResNeXt and what was
            registered), or ImageClassifier (with GlobalAveragePooling and LinearClsHead). A whole
            config with a `model` entry works too. Entries for training only (`topk`, `cal_acc`,
            `train_cfg`, `data_preprocessor`) are ignored, and a `loss` other than mean
            cross-entropy is refused when it is asked for.

    Raises:
        ConfigError: An entry is missing, or its type is not supported. Also a `KeyError`.
    """
    if not isinstance(cfg, Mapping):
        raise ConfigTypeError(f"A config must be a dictionary, not {brief(cfg)}.")
    if "type" not in cfg and "model" in cfg:
        return build(cfg["model"])
    args = dict(cfg)
    kind = args.pop("type") if isinstance(args.get("type"), type) else pop_type(args, "The model")
    if kind in ("ImageClassifier", ImageClassifier):
        return _classifier(args)
    found = kind if isinstance(kind, type) else BACKBONES.get(kind)
    if found is None:
        raise UnknownNameError(
            f"Models of type {kind!r} are not built here, only {', '.join(BACKBONES.module_dict)} "
            f"and ImageClassifier. Register a class of yours with BACKBONES.register_module()."
        )
    return _call(found, args) if found in (ResNeXt, SEResNeXt) else found(**args)


def _classifier(args: dict[str, Any]) -> ImageClassifier:
    _only(args, "ImageClassifier", _CLASSIFIER_ARGS)
    backbone = build(args.get("backbone") or {})
    if isinstance(backbone, ImageClassifier):
        raise UnknownNameError("The backbone of an ImageClassifier must not be a classifier.")
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
    width = getattr(backbone, "feat_dim", in_channels)  # a class of a user may not say it
    if type(in_channels) is not int or in_channels != width:
        raise ConfigError(
            f"in_channels of the head must be {width}, the backbone's last width, "
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


def _call(kind: type[nn.Module], args: dict[str, Any]) -> nn.Module:
    try:
        return kind(**args)
    except TypeError as error:
        if isinstance(error, ConfigError):
            raise
        text = str(error).removeprefix(f"{kind.__name__}.").removeprefix("__init__() ")
        raise ConfigTypeError(f"{kind.__name__} {text}.") from None
