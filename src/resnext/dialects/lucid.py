"""Lucid 2 and 3.

Sources: the released code of Lucid 2, run with random weights, whose arguments are the first fields
of `ResNeXtConfig`; the source code of Lucid 3, which has classic ResNeXts only.
"""

from __future__ import annotations

from resnext.architectures import unsupported_reason
from resnext.config import ResNeXtConfig
from resnext.dialects.dialect import Dialect, NameRule, ParameterNames
from resnext.errors import CheckpointError

_STEM = (NameRule("conv1.", "stem.0."), NameRule("bn1.", "stem.1."))
_BLOCK = (
    NameRule("conv1.", "conv1.conv."),
    NameRule("bn1.", "conv1.bn."),
    NameRule("conv2.", "conv2.conv."),
    NameRule("bn2.", "conv2.bn."),
    NameRule("conv3.", "conv3.0."),
    NameRule("bn3.", "conv3.1."),
)


def _differs(what: str) -> str:
    """Why networks with a deep stem or `avg_down` do not convert."""
    return (
        f"computes networks with {what} differently (no norm after the stem's last convolution, "
        f"other padding in pooling), so weights of one give wrong answers in the other. Its "
        f"classic networks convert exactly."
    )


def _problem(config: ResNeXtConfig) -> str:
    """Why Lucid cannot build a network, or builds another one; empty if it builds the same."""
    if config.stem_type == "deep" or config.avg_down:
        return _differs("a deep stem" if config.stem_type == "deep" else "avg_down")
    blocks = {name: x for name, x in config.block_args.items() if name != "dilation"}
    if config.gate == "se" and not blocks.get("se"):
        out = config.stages[0].out_channels
        reduction = max(out // config.squeezed(out), 1)
        blocks |= {"se": True, "se_args": {"reduction": reduction}}
    nearest = ResNeXtConfig(
        config.layers,
        config.cardinality,
        config.base_width,
        config.num_classes,
        config.in_channels,
        channels=config.channels,
        block_args=blocks,
        num_stages=config.num_stages,
    )
    if config.num_stages != 4:
        return f"has networks of four stages, not {config.num_stages}."
    return unsupported_reason(config, nearest)


def _is_lucid2(names: ParameterNames) -> bool:
    """Always, because no other library has its anchor.

    Raises:
        CheckpointError: The file is of a network with a deep stem.
    """
    if "stem.3.weight" in names.network:
        raise CheckpointError(f"Lucid 2 {_differs('a deep stem')}")
    return True


def _is_lucid3(names: ParameterNames) -> bool:
    """A stem that is a sequence with one convolution."""
    return "stem.0.weight" in names.network and "stem.3.weight" not in names.network


LUCID = Dialect(
    "lucid",
    "Lucid 2",
    network=_STEM,
    block=_BLOCK,
    counters=False,
    linear_squeeze=True,
    suffixes=(".safetensors", ".lcd", ".npz"),
    recognises=_is_lucid2,
    problem=_problem,
    unreadable=_problem,
)
LUCID3 = Dialect(
    "lucid3",
    "Lucid 3",
    network=(*_STEM, NameRule("fc.", "classifier.")),
    recognises=_is_lucid3,
    problem=_problem,
    unreadable=_problem,
)
