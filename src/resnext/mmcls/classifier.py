"""mmcls's classifiers and `build`, which makes what a config dict describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from resnext.errors import ConfigError, ConfigTypeError, UnknownNameError
from resnext.mmcls.backbone import Cfg, ResNeXt, SEResNeXt, pop_type
from resnext.mmcls.init_cfg import InitCfg, initialize, is_pretrained

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


class LinearClsHead(nn.Module):
    """mmcls's linear classifier."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(in_channels, num_classes)

    def init_weights(self) -> None:
        """Draw weights from a normal distribution of deviation 0.01."""
        initialize(self, {"type": "Normal", "layer": "Linear", "std": 0.01})


class ImageClassifier(nn.Module):
    """mmcls's classifier: a backbone, global average pooling and a linear head.

    Called with images it gives logits. `return_loss=True` with labels gives the loss and
    `return_loss=False` a list of probabilities, as mmcls's training and testing loops expect.
    """

    def __init__(
        self, backbone: ResNeXt, head: LinearClsHead, init_cfg: InitCfg | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = nn.AdaptiveAvgPool2d(1)
        self.head = head
        self.init_cfg = init_cfg

    def forward(
        self,
        img: Float[Tensor, "n c h w"],
        gt_label: Tensor | None = None,
        return_loss: bool | None = None,
    ) -> Any:
        """Logits `(n, k)`; or `{"loss": …}`; or a list of n arrays of k probabilities.

        Raises:
            ConfigTypeError: The loss is asked for without labels.
        """
        logits = self.head.fc(self.extract_feat(img))
        if return_loss is None:
            return logits
        if not return_loss:
            return list(logits.softmax(1).detach().cpu().numpy())
        if gt_label is None:
            raise ConfigTypeError("return_loss=True needs gt_label, the class of each image.")
        return {"loss": nn.functional.cross_entropy(logits, gt_label)}

    def extract_feat(
        self, img: Float[Tensor, "n c h w"], stage: str = "neck"
    ) -> Float[Tensor, "n _ _ _"] | Float[Tensor, "n c"]:
        """The last map ("backbone") or its average over pixels ("neck" or "pre_logits")."""
        if stage not in ("backbone", "neck", "pre_logits"):
            raise ConfigError(f"stage must be backbone, neck or pre_logits, not {stage!r}.")
        maps = self.backbone(img)
        last = maps[-1] if isinstance(maps, tuple) else maps
        return last if stage == "backbone" else self.neck(last).flatten(1)

    def simple_test(self, img: Float[Tensor, "n c h w"]) -> list[Any]:
        """Probabilities of each image, as n arrays of k numbers."""
        return self(img, return_loss=False)

    def init_weights(self) -> None:
        """Apply `init_cfg`, then initialise backbone and head unless it was a checkpoint.

        Raises:
            MissingFileError: A `Pretrained` checkpoint does not exist.
            ConfigError: `init_cfg` is not understood.
        """
        initialize(self, self.init_cfg)
        if is_pretrained(self.init_cfg):
            return
        self.backbone.init_weights()
        self.head.init_weights()


def build(cfg: Cfg) -> nn.Module:
    """Build what a config dict describes.

    Args:
        cfg: Its `type` is ResNeXt, SEResNeXt or ImageClassifier (with GlobalAveragePooling and
            LinearClsHead). A whole config with a `model` entry works too. What concerns training
            only (`loss`, `topk`, `cal_acc`, `train_cfg`, `data_preprocessor`) is left aside.

    Raises:
        ConfigError: A part is missing, or of a type that is not built here. Also a `KeyError`.
    """
    if not isinstance(cfg, Mapping):
        raise ConfigTypeError(f"A config must be a dictionary, not {cfg!r}.")
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
    for part, name, wanted in (
        (neck, "neck", "GlobalAveragePooling"),
        (head, "head", "LinearClsHead"),
    ):
        if (kind := pop_type(part, f"The {name}")) != wanted:
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
    return ImageClassifier(backbone, LinearClsHead(num_classes, in_channels), init_cfg)


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
