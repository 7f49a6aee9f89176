"""What torch leaves in the names of a state dict, taken out: wrappers and reparametrized weights.

Wrappers are those of DataParallel, torch.compile, FSDP, activation checkpointing, Opacus, DeepSpeed
and Lightning Fabric; each adds a word to the names of what it wraps. Reparametrized weights are
computed as the network computes them in evaluation mode.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resnext.errors import CheckpointError

Arrays = Mapping[str, Tensor | np.ndarray[Any, Any]]

WRAPPERS = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_fpw_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_module",
)
# What observers of quantization and counters of operations (thop) add; it changes no prediction
_OBSERVER = re.compile(
    r"(?:^|\.)(?:(?:\w*activation_post_process\w*|weight_fake_quant)\.|total_(?:ops|params)$)"
)
_INNER = re.compile(rf"(?<=\.)(?:{'|'.join(WRAPPERS)})\.")
_LEADING = re.compile(rf"(?:(?:{'|'.join(WRAPPERS)})\.)*")
_PARTS = re.compile(
    r"(.*\.)?(?:parametrizations\.(\w+)\.(original\d?|\d+\.\w+)|(weight|bias)_(g|v|u|orig|mask))"
)
_TRAINED = re.compile(r"(.*\.)modules_to_save\.([^.]+)\.(.+)")
# The parts that a weight is computed from, as `torch.nn.utils` names them
_WEIGHT_NORM = ({"original0", "original1"}, {"g", "v"})
_SPECTRAL_NORM = ({"original", "0._u", "0._v"}, {"orig", "u", "v"})
_PRUNED = {"orig", "mask"}


def plain(arrays: Arrays) -> Arrays:
    """A state dict without wrappers inside its names and observers, and with weights computed.

    Wrappers at the start of a name stay: they tell several networks in one file apart.

    Raises:
        CheckpointError: A weight is computed in a way that the file does not show, or is sharded.
    """
    names = {name: _without_wrappers(name) for name in arrays if not _OBSERVER.search(name)}
    if len(set(names.values())) == len(names):  # else two networks would become one
        arrays = {new: arrays[name] for name, new in names.items()}
    arrays = _without_originals(arrays)
    groups: dict[str, dict[str, str]] = {}
    for name in arrays:
        if name.rpartition(".")[2] in ("_flat_param", "flat_param"):
            raise CheckpointError(
                f"{name} holds one process's share of the weights. Save a full state dict of FSDP"
            )
        if found := _PARTS.fullmatch(name):
            weight = f"{found[1] or ''}{found[2] or found[4]}"
            groups.setdefault(weight, {})[found[3] or found[5]] = name
    if not groups:
        return arrays
    made = {weight: _weight(weight, group, arrays) for weight, group in groups.items()}
    computed = {weight: value for weight, value in made.items() if value is not None}
    parts = {part for weight in computed for part in groups[weight].values()}
    return {**{name: x for name, x in arrays.items() if name not in parts}, **computed}


def _without_originals(arrays: Arrays) -> Arrays:
    """The layers that peft trained whole (`modules_to_save`) in place of their originals.

    Raises:
        CheckpointError: There are those of several adapters.
    """
    trained = {name: found for name in arrays if (found := _TRAINED.fullmatch(name))}
    if not trained:
        return arrays
    adapters = sorted({found[2] for found in trained.values()})
    if len(adapters) > 1:
        raise CheckpointError(
            f"It has layers of several adapters of peft, {' and '.join(adapters)}. Save the state "
            f"dict of model.merge_and_unload()"
        )
    layers = {found[1] for found in trained.values()}
    return {
        f"{trained[name][1]}{trained[name][3]}" if name in trained else name: x
        for name, x in arrays.items()
        if name.partition("original_module.")[0] not in layers or name in trained
    }


def counter(value: Tensor) -> Tensor:
    """A batch norm's count of batches as one integer, whatever it was cast or reshaped to.

    One that overflowed in half precision is zero: only norms with a cumulative mean read it.
    """
    if value.numel() != 1:
        return value
    value = value.reshape(())
    if value.is_floating_point() and not value.isfinite():
        value = torch.zeros_like(value)
    return value.to(torch.int64)


def _without_wrappers(name: str) -> str:
    leading = _LEADING.match(name)
    start = leading.end() if leading else 0
    return name[:start] + _INNER.sub("", name[start:])


def _weight(name: str, group: Mapping[str, str], arrays: Arrays) -> Tensor | None:
    """A weight from the parts it was saved in; None if unknown, and not of a ResNeXt.

    Raises:
        CheckpointError: It is a convolution's or classifier's, of no kind that can be computed.
    """
    kinds = set(group)
    part = {kind: torch.as_tensor(arrays[group[kind]]).float() for kind in sorted(kinds)}
    values = list(part.values())
    if kinds in _WEIGHT_NORM:
        scale, direction = values
        others = [i for i, size in enumerate(direction.shape) if not _kept(scale, i, size)]
        return scale * direction / direction.square().sum(others, keepdim=True).sqrt()
    if kinds in _SPECTRAL_NORM:
        u, v, weight = (part[kind] for kind in sorted(kinds, key=_role))
        if (len(u), len(v)) == weight.flatten(1).shape:
            return weight / torch.dot(u, weight.flatten(1) @ v)
    if kinds == _PRUNED:
        return part["orig"] * part["mask"]
    if max(value.ndim for value in values) != 4 and not name.endswith("fc.weight"):
        return None
    raise CheckpointError(
        f"{name} is computed from {', '.join(sorted(group.values()))} in a way that the file does "
        f"not show. Before saving, call torch.nn.utils.parametrize.remove_parametrizations"
    )


def _role(kind: str) -> str:
    """Sorts the parts of spectral norm: u, v, the weight."""
    return {"u": "0", "0._u": "0", "v": "1", "0._v": "1"}.get(kind, "2")


def _kept(scale: Tensor, axis: int, size: int) -> bool:
    """Whether weight norm keeps an axis: its scale has the axis's size there."""
    return scale.ndim > axis and scale.shape[axis] == size and size > 1
