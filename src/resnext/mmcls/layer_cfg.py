"""The config dicts of layers, `conv_cfg`, `norm_cfg` and `act_cfg`: mmcv's types as our fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from resnext.checks import brief
from resnext.errors import ConfigError, ConfigTypeError, UnknownNameError
from resnext.layers import NORM_LAYERS

Cfg = Mapping[str, Any]

# Type in a config → our kind, letters of its module names, our fields by their arguments
_BATCH = {
    "eps": "norm_eps",
    "momentum": "norm_momentum",
    "affine": "norm_affine",
    "track_running_stats": "norm_track",
}
_GROUP = {"num_groups": "norm_groups", "eps": "norm_eps", "affine": "norm_affine"}
_INSTANCE = {"eps": "norm_eps", "momentum": "norm_momentum", "affine": "norm_affine"}
_LAYER = {"eps": "norm_eps", "elementwise_affine": "norm_affine"}
_NORMS = {
    "BN": ("batch", "bn", _BATCH),
    "BN2d": ("batch", "bn", _BATCH),
    "SyncBN": ("sync", "bn", _BATCH),
    "GN": ("group", "gn", _GROUP),
    "IN": ("instance", "in", _INSTANCE),
    "IN2d": ("instance", "in", _INSTANCE),
    "LN2d": ("layer", "ln", _LAYER),
}
_CONVS = {
    "Conv2d": ("standard", {"padding_mode": "padding_mode"}),
    "Conv": ("standard", {"padding_mode": "padding_mode"}),
    "ConvWS": ("weight_standardized", {"eps": "conv_eps"}),
    "ConvAWS": ("affine_weight_standardized", {}),
    "Conv2dAdaptivePadding": ("same_padding", {}),
}
LETTERS = {ours: letters for ours, letters, _ in _NORMS.values()}
"""Letters that a norm's module name starts with, by our kind of norm."""

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "ReLU": nn.ReLU,
    "LeakyReLU": nn.LeakyReLU,
    "PReLU": nn.PReLU,
    "RReLU": nn.RReLU,
    "ReLU6": nn.ReLU6,
    "ELU": nn.ELU,
    "Sigmoid": nn.Sigmoid,
    "Tanh": nn.Tanh,
    "SiLU": nn.SiLU,
    "GELU": nn.GELU,
}


class RefusedError(ConfigError, AssertionError):
    """An error where mmcls asserts without a message; also an `AssertionError`."""


def pop_type(cfg: dict[str, Any], what: str) -> str:
    """Take the `type` out of a config dict, without the name of its library.

    Raises:
        UnknownNameError: The `type` is missing.
    """
    kind = cfg.pop("type", None)
    if not isinstance(kind, str):
        raise UnknownNameError(f"{what} must have a 'type' that is a name, not {brief(kind)}.")
    return kind.removeprefix("mmcls.").removeprefix("mmpretrain.")


def _fields_of(
    cfg: Cfg, what: str, kinds: Mapping[str, tuple[Any, ...]], free: tuple[str, ...] = ()
) -> tuple[str, dict[str, Any]]:
    """Type of a layer config, and its arguments as our fields."""
    if not isinstance(cfg, Mapping):
        raise ConfigTypeError(f"{what} must be a dictionary, not {brief(cfg)}.")
    kind = cfg.get("type")
    if not isinstance(kind, str) or kind not in kinds:
        raise UnknownNameError(
            f"{what} must have a 'type' among {', '.join(kinds)}, not {brief(dict(cfg))}."
        )
    known: Mapping[str, str] = kinds[kind][-1]
    for name in cfg:
        if name not in ("type", *free, *known):
            raise ConfigTypeError(
                f"{what} of type {kind} has no argument {name!r}; it has "
                f"{', '.join((*free, *known)) or 'none'}."
            )
    return kind, {ours: cfg[theirs] for theirs, ours in known.items() if theirs in cfg}


def conv_fields(cfg: Cfg | None) -> dict[str, Any]:
    """Fields of our config for `conv_cfg`; none for None.

    Raises:
        UnknownNameError: The type is not known.
        ConfigTypeError: The value is not a dictionary, or has an unknown argument.
    """
    if cfg is None:
        return {}
    kind, given = _fields_of(cfg, "conv_cfg", _CONVS)
    return {"conv": _CONVS[kind][0], **given}


def norm_fields(cfg: Cfg) -> dict[str, Any]:
    """Fields of our config for `norm_cfg`.

    Raises:
        UnknownNameError: The type is not known.
        ConfigTypeError: The value is not a dictionary, or has an unknown argument.
        RefusedError: A group norm has no `num_groups`.
    """
    kind, given = _fields_of(cfg, "norm_cfg", _NORMS, free=("requires_grad",))
    ours = _NORMS[kind][0]
    if ours == "group" and "norm_groups" not in given:
        raise RefusedError("norm_cfg of type GN needs num_groups.")
    if ours == "instance":
        given.setdefault("norm_affine", False)
    return {"norm": ours, **given}


def freeze_norms(module: nn.Module, cfg: Cfg) -> None:
    """Turn off gradients of all norms in a module if `norm_cfg` says so."""
    if not cfg.get("requires_grad", True):
        for child in module.modules():
            if isinstance(child, NORM_LAYERS):
                child.requires_grad_(False)


def activation(cfg: Cfg) -> nn.Module:
    """The module of `act_cfg`.

    Raises:
        UnknownNameError: The type is not known.
    """
    args = dict(cfg)
    kind = pop_type(args, "act_cfg")
    if kind not in _ACTIVATIONS:
        raise UnknownNameError(f"act_cfg must be one of {', '.join(_ACTIVATIONS)}, not {kind!r}.")
    return _ACTIVATIONS[kind](**args)
