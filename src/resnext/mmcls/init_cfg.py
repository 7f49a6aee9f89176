"""mmcv's `init_cfg`: how OpenMMLab's configs describe the initialization of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnext.checks import brief
from resnext.errors import CheckpointError, ConfigError, MissingFileError, UnknownNameError
from resnext.system.download import fetch

InitCfg = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None


def initialize(module: nn.Module, init_cfg: InitCfg) -> None:
    """Fill a network's weights as `init_cfg` says, in mmcv's order: children before parents.

    Args:
        module: The network.
        init_cfg: One dict or several: `type` Constant, Normal, TruncNormal, Uniform, Xavier,
            Kaiming, Caffe2Xavier or Pretrained, `layer` (class names it applies to, all by
            default) and arguments.

    Raises:
        ConfigError: An entry has an unknown type or argument.
        MissingFileError: A `Pretrained` checkpoint does not exist.
        CheckpointError: A `Pretrained` checkpoint cannot be read, or none of its keys is one of the
            network's.
    """
    for cfg in _entries(init_cfg):
        args = dict(cfg)
        kind = args.pop("type", None)
        if kind == "Pretrained":
            _load(module, args)
            continue
        if kind not in _FILLS:
            raise UnknownNameError(
                f"init_cfg must have a 'type' among {', '.join(_FILLS)} and Pretrained, "
                f"not {kind!r}."
            )
        layers = args.pop("layer", None)
        layers = {layers} if isinstance(layers, str) else layers and set(layers)
        bias = args.pop("bias", 0.0)
        if (probability := args.pop("bias_prob", None)) is not None:
            bias = -math.log((1 - probability) / probability)
        unknown = set(args) - set(_FILLS[kind][1])
        if unknown:
            raise ConfigError(
                f"init_cfg of type {kind} has no argument {sorted(unknown)[0]!r}; it has layer, "
                f"bias, bias_prob, {', '.join(_FILLS[kind][1])}."
            )
        module.apply(_filler(_FILLS[kind][0], {**_FILLS[kind][1], **args}, layers, bias))


def is_pretrained(init_cfg: InitCfg) -> bool:
    """Whether the first weights come from a checkpoint, so that none may be zeroed afterwards."""
    return isinstance(init_cfg, Mapping) and init_cfg.get("type") == "Pretrained"


def _entries(init_cfg: InitCfg) -> Sequence[Mapping[str, Any]]:
    if init_cfg is None:
        return ()
    entries = [init_cfg] if isinstance(init_cfg, Mapping) else init_cfg
    if not isinstance(entries, list | tuple) or not all(isinstance(e, Mapping) for e in entries):
        raise ConfigError(
            f"init_cfg must be a dictionary or a list of them, not {brief(init_cfg)}."
        )
    return entries


def _filler(
    fill: Callable[..., object], args: dict[str, Any], layers: set[str] | None, bias: float
) -> Callable[[nn.Module], None]:
    def apply(module: nn.Module) -> None:
        classes = {kind.__name__ for kind in type(module).__mro__}
        if layers is not None and not layers & classes:
            return
        for name, value in (("weight", None), ("bias", bias)):
            tensor = getattr(module, name, None)
            if not isinstance(tensor, Tensor):
                continue
            if value is not None:
                nn.init.constant_(tensor, value)
            elif tensor.ndim > 1 or fill not in (_xavier, _kaiming):  # those need fan-in and -out
                fill(tensor, **args)

    return apply


def _xavier(weight: Tensor, gain: float, distribution: str) -> None:
    draw = {"uniform": nn.init.xavier_uniform_, "normal": nn.init.xavier_normal_}
    _chosen(draw, distribution)(weight, gain)


def _kaiming(weight: Tensor, a: float, mode: str, nonlinearity: str, distribution: str) -> None:
    draw = {"uniform": nn.init.kaiming_uniform_, "normal": nn.init.kaiming_normal_}
    _chosen(draw, distribution)(weight, a, mode, nonlinearity)  # pyright: ignore


def _chosen(draw: dict[str, Callable[..., Tensor]], distribution: str) -> Callable[..., Tensor]:
    if distribution not in draw:
        raise ConfigError(f"distribution must be uniform or normal, not {distribution!r}.")
    return draw[distribution]


_KAIMING = {"a": 0.0, "mode": "fan_out", "nonlinearity": "relu", "distribution": "normal"}
_CAFFE2 = {"a": 1.0, "mode": "fan_in", "nonlinearity": "leaky_relu", "distribution": "uniform"}
_FILLS: dict[str, tuple[Callable[..., object], dict[str, Any]]] = {
    "Constant": (nn.init.constant_, {"val": 0.0}),
    "Normal": (nn.init.normal_, {"mean": 0.0, "std": 1.0}),
    "TruncNormal": (nn.init.trunc_normal_, {"mean": 0.0, "std": 1.0, "a": -2.0, "b": 2.0}),
    "Uniform": (nn.init.uniform_, {"a": 0.0, "b": 1.0}),
    "Xavier": (_xavier, {"gain": 1.0, "distribution": "normal"}),
    "Kaiming": (_kaiming, _KAIMING),
    "Caffe2Xavier": (_kaiming, _CAFFE2),
}


def _load(module: nn.Module, args: dict[str, Any]) -> None:
    """Load a checkpoint, or the entries under `prefix`; missing keys keep their values."""
    source = str(args.get("checkpoint", ""))
    path = _file(source)
    try:
        state = torch.load(path, map_location=args.get("map_location", "cpu"), weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is not a checkpoint of tensors only: {error}") from error
    state = state.get("state_dict", state)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    if prefix := str(args.get("prefix") or "").rstrip("."):
        start = f"{prefix}."
        state = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        if not state:
            raise CheckpointError(f"{source} has no keys that start with {start!r}.")
    wanted = module.state_dict()
    if wanted.keys().isdisjoint(state):
        raise CheckpointError(
            f"{source} has no key of the {type(module).__name__}: it starts with "
            f"{next(iter(state), 'nothing')!r}, not {next(iter(wanted))!r}. Give the prefix of its "
            f"names, such as prefix='backbone'."
        )
    try:
        module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # of other shapes
        reason = " ".join(str(error).split()).partition("\t")[0]
        raise CheckpointError(f"{source} does not fit: {reason}") from error


def _file(source: str) -> Path:
    """The file that `checkpoint` names, downloaded if it is a URL."""
    scheme, separator, _ = source.partition("://")
    if scheme in ("http", "https"):
        return fetch(source)
    if separator:
        raise CheckpointError(
            f"Pretrained reads files and https:// addresses, not {source}. Give the address or "
            f"the file of these weights; `resnext catalog` lists public ones."
        )
    path = Path(source)
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist. Pretrained needs a file or an address.")
    return path
