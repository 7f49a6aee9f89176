"""The stem of a network: its one or three convolutions and the norms behind them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from resnext.errors import CheckpointError
from resnext.weights.block_roles import BlockRoles, Pair, pair_norms, pair_state
from resnext.weights.layer_groups import Layer


def find_stem(
    outside: Sequence[Layer],
    first: BlockRoles,
    start: int | None,
    paths: Sequence[tuple[str, ...]],
) -> tuple[list[Pair], tuple[str, ...]]:
    """The one or three convolutions of the stem with their norms, and the common prefix of all.

    Raises:
        CheckpointError: There is none, or several fit.
    """
    root = _common(paths)
    for depth in range(len(root), -1, -1):
        scope = [x for x in outside if x.path[:depth] == root[:depth]]
        convs = [x for x in scope if x.kind == "conv" and not x.biased]
        if start is not None:
            convs = [x for x in convs if x.position < start]
        stems = _stem_convs(convs, first.entry, start is not None)
        if len(stems) > 1:
            names = " or ".join(stem[0].name for stem in stems)
            raise CheckpointError(f"its first convolution is ambiguous: {names}")
        if stems:
            return _stem_pairs(stems[0], scope, start), root[:depth]
    raise CheckpointError(
        f"the first convolution is missing: none gives the {first.entry} channels that "
        f"{first.branch[0].conv.name} takes"
    )


def _stem_convs(convs: Sequence[Layer], out: int, ordered: bool) -> list[tuple[Layer, ...]]:
    """The stems that convolutions can be: three 3×3 in a chain, or one."""
    kernels = {x.name: x.shape[2:] for x in convs}
    three = [x for x in convs if kernels[x.name] == (3, 3)]
    chains = [
        (a, b, c)
        for a, b, c in itertools.permutations(three, 3)
        if c.shape[0] == out
        and c.shape[1] == b.shape[0]
        and b.shape[1] == a.shape[0]
        and a.shape[1] not in {x.shape[0] for x in three}
        and (not ordered or a.position < b.position < c.position)
    ]
    if chains:
        return chains
    single = [x for x in convs if x.shape[0] == out and x.shape[2:] in ((7, 7), (3, 3), (1, 1))]
    single = [x for x in single if x.shape[1] not in {y.shape[0] for y in convs}]
    return [(x,) for x in single]


def _stem_pairs(stem: Sequence[Layer], scope: Sequence[Layer], start: int | None) -> list[Pair]:
    """The stem's convolutions with the norms behind them."""
    norms = [x for x in scope if x.kind == "norm"]
    if start is not None:
        norms = [x for x in norms if x.position < start]
    norms = [x for x in norms if x.shape[0] in {conv.shape[0] for conv in stem}]
    pairs = pair_norms(stem, norms, start is not None, "the stem")
    return [pairs[conv.name] for conv in stem]


def _common(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """What all paths start with; of one block, everything above its stage."""
    if len(paths) == 1:
        return paths[0][:-2]
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*paths, strict=False))
    return tuple(column[0] for column in columns)


def stem_state(stem: Sequence[Pair], notes: list[str]) -> dict[str, Tensor]:
    """The stem under our names; notes get what was changed."""
    names = [("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1")]
    state: dict[str, Tensor] = {}
    for pair, (conv, norm) in zip(
        stem, names if len(stem) == 3 else [("conv1", "bn1")], strict=True
    ):
        state |= pair_state(pair, conv, norm)
    weight = state.get("conv1.weight")
    if weight is not None and weight.shape[2:] == (1, 1):
        state["conv1.weight"] = F.pad(weight, (1, 1, 1, 1))
        notes.append("its first convolution is 1×1, written as 3×3 with zeros around it")
    return state
