"""Lucid 2: names of its parameters, in both directions.

Source: its released code, run with random weights. Its arguments are those of `ResNeXtConfig`,
which took them over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor

from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError

# ours, Lucid's: first of the network, then of each block
_NETWORK = (("conv1.", "stem.0."), ("bn1.", "stem.1."))
_BLOCK = (
    ("conv1.", "conv1.conv."),
    ("bn1.", "conv1.bn."),
    ("conv2.", "conv2.conv."),
    ("bn2.", "conv2.bn."),
    ("conv3.", "conv3.0."),
    ("bn3.", "conv3.1."),
)

# Fields that change no weight and no answer, and two that are looked at as they work out
_FREE = ("norm_momentum", "drop_path_rate", "drop_path_decay", "dropout", "zero_init_residual")
_FREE += ("strides", "dilations")


def to_lucid(state: Mapping[str, Tensor], config: ResNeXtConfig) -> dict[str, Tensor]:
    """Our state dict under Lucid's names, in the same order.

    Lucid counts no batches, and squeezes channels with linear layers.

    Raises:
        CheckpointError: Lucid computes this architecture differently.
    """
    _refuse_what_differs(config)
    renamed = {_rename(key, 0): value for key, value in state.items() if not _is_counter(key)}
    return {key: v.flatten(1) if _is_squeeze(key) else v for key, v in renamed.items()}


def from_lucid(state: Mapping[str, Tensor], config: ResNeXtConfig) -> dict[str, Tensor]:
    """Lucid's state dict under our names.

    Raises:
        CheckpointError: Lucid computes this architecture differently.
    """
    _refuse_what_differs(config)
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _rename(key, 1)
        ours[name] = value[:, :, None, None] if _is_squeeze(key) else value
        if name.endswith("running_var"):
            ours[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    return ours


def _rename(key: str, side: int) -> str:
    place = re.match(r"layer\d+\.\d+\.", key)
    prefix = place.group() if place else ""
    rest = key.removeprefix(prefix)
    for pair in _BLOCK if place else _NETWORK:
        if rest.startswith(pair[side]):
            return prefix + pair[1 - side] + rest.removeprefix(pair[side])
    return key


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _is_squeeze(key: str) -> bool:
    return re.search(r"\.se\.fc[12]\.weight$", key) is not None


def _refuse_what_differs(config: ResNeXtConfig) -> None:
    if config.stem_type == "deep" or config.avg_down:
        what = "a deep stem" if config.stem_type == "deep" else "avg_down"
        raise CheckpointError(
            f"Lucid 2 computes networks with {what} differently (no norm after the stem's last "
            f"convolution, other padding in pooling), so weights of one give wrong answers in the "
            f"other. Its classic networks convert exactly."
        )
    default = {f.name: f.default for f in fields(config) if f.kw_only and f.name not in _FREE}
    own = [name for name, value in default.items() if getattr(config, name) != value]
    if any(stage.dilation != 1 for stage in config.stages):
        own.append("dilation")
    if [stage.stride for stage in config.stages] != [1, 2, 2, 2]:
        own.append("strides")
    if own:
        raise CheckpointError(f"Lucid 2 has no networks with other {' or '.join(own)} than usual.")
