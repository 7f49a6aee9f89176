"""Reads a ResNeXt from the structure of a file: the shapes, roles and order of its layers.

This is how files whose names no dialect knows are read. Names still help: layers of a block or a
shortcut start with the same words, and numbers order blocks. The order of the file orders what
names do not. Wherever two readings are left, the file is refused with what is ambiguous.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from resnext.dialects.dialect import Dialect
from resnext.errors import CheckpointError
from resnext.weights.block_roles import (
    SQUEEZE,
    Block,
    BlockRoles,
    Pair,
    block_state,
    group_count,
    is_grouped,
    is_narrow,
    is_wide,
    natural,
    numbers_in,
    roles_of,
    skeleton,
)
from resnext.weights.layer_groups import Layer, is_sorted, layers_of
from resnext.weights.stem_roles import find_stem, stem_state

STRUCTURE = Dialect("structure", "a library whose names are not known")
"""Stands for the unknown library of a file that was read by its structure."""

AFFINE_EPS = 2.0**-17
"""Added to variances where norms are scales and shifts only: exact in every type of number."""

_ALIKE = "two orders fit"
_CADENE = "se_module"  # his word for squeeze-and-excitation


class Structure(NamedTuple):
    """A ResNeXt that structure shows."""

    state: dict[str, Tensor]
    """The trunk under our names."""
    used: frozenset[str]
    """Names of its tensors in the file."""
    root: tuple[str, ...]
    """What the names of all its layers start with."""
    notes: tuple[str, ...]
    """What was assumed."""
    fields: Mapping[str, Any]
    """Fields of the config that leave no trace in names and shapes of our own."""


def may_hold_structure(state: Mapping[str, object]) -> bool:
    """Whether a dictionary of arrays may hold a ResNeXt: it has grouped 3×3 convolutions."""
    shapes = [tuple(getattr(x, "shape", ())) for x in state.values()]
    convs = [shape for shape in shapes if len(shape) == 4]
    return len(convs) > 3 and any(
        s[2:] == (3, 3) and s[0] == s[1] * group_count(s) > s[1] for s in convs
    )


def read_structure(state: Mapping[str, Tensor], avg_down: bool | None = None) -> Structure:
    """The ResNeXt in a state dict, by the structure of its layers.

    Args:
        state: Tensors by name, in the order of the file.
        avg_down: Whether strided shortcuts average-pool, if it is known.

    Raises:
        CheckpointError: There is no ResNeXt, or something is ambiguous; the message says what.
    """
    layers = layers_of(state)
    dimensions = Counter(x.ndim for x in state.values())
    if dimensions[5] > dimensions[4]:
        raise CheckpointError("Its convolutions are 3-D: it is a network for videos or volumes.")
    ordered = not is_sorted(state)
    blocks = _blocks_by_name(layers)
    if blocks:
        ordered = ordered and all(_contiguous(block.layers) for block in blocks)
        return _network(blocks, layers, ordered, avg_down)
    if not ordered and not _is_enumerated(state):
        raise CheckpointError(
            "Neither names nor order group its layers: names are sorted, and no part of them is "
            "common to the layers of a block."
        )
    problems: list[CheckpointError] = []
    found: list[Structure] = []
    for first in (False, True):
        try:
            found.append(_network(_blocks_by_order(layers, first), layers, True, avg_down))
        except CheckpointError as error:
            problems.append(error)
    if len(found) == 2 and _same(found[0].state, found[1].state):
        found.pop()
    if not found:
        raise problems[0]
    if len(found) > 1:
        raise CheckpointError(
            f"{_ALIKE}: shortcuts may come before or after the other layers of a block."
        )
    return found[0]


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)


# -- names and order -------------------------------------------------------------------------------


def _is_enumerated(state: Mapping[str, Tensor]) -> bool:
    """Whether names only number the tensors."""
    return len({skeleton([name]) for name, x in state.items() if x.ndim}) == 1


def _contiguous(layers: Sequence[Layer]) -> bool:
    """Whether layers stand together in the file."""
    positions = [layer.position for layer in layers]
    return max(positions) - min(positions) == len(layers) - 1


# -- blocks ----------------------------------------------------------------------------------------


def _blocks_by_name(layers: Sequence[Layer]) -> list[Block]:
    """For every grouped 3×3, all layers with the shortest prefix that no other has.

    Empty if names do not group the three convolutions of a block.
    """
    wide = Counter(layer.path[:i] for layer in layers if is_wide(layer) for i in _depths(layer))
    prefixes: dict[tuple[str, ...], list[Layer]] = {}
    for layer in layers:
        if is_grouped(layer):
            start = next((i for i in _depths(layer) if wide[layer.path[:i]] == 1), None)
            if start is not None:
                prefixes[layer.path[:start]] = []
    for layer in layers:
        for i in _depths(layer):
            if layer.path[:i] in prefixes:
                prefixes[layer.path[:i]].append(layer)
                break
    blocks = [Block(inner, path) for path, inner in prefixes.items()]
    return [block for block in blocks if sum(map(is_narrow, block.layers)) >= 2]


def _depths(layer: Layer) -> range:
    return range(len(layer.path) + 1)


def _blocks_by_order(layers: Sequence[Layer], shortcut_first: bool) -> list[Block]:
    """The layers around each grouped 3×3 that follows a 1×1 convolution.

    Args:
        layers: The layers in their order.
        shortcut_first: Whether shortcuts stand before the other layers of a block, or after them.

    Raises:
        CheckpointError: Some 3×3 convolution has no 1×1 convolutions around it.
    """
    convs = [layer for layer in layers if is_wide(layer) or is_narrow(layer)]
    centres = [i for i, x in enumerate(convs) if i and is_grouped(x) and is_narrow(convs[i - 1])]
    if not centres:
        raise CheckpointError("no 3×3 convolution in groups follows a 1×1 convolution")
    starts = []
    for centre in centres:
        start = centre - 1
        # A 1×1 before it is a shortcut, if the block before has its last convolution further up
        before = convs[start - 1] if start > 0 else None
        if shortcut_first and before is not None and is_narrow(before):
            far = convs[start - 2] if start > 1 else None
            if far is None or not is_grouped(far):
                start -= 1
        starts.append(convs[start].position)
    ends = [*starts[1:], _end(convs, centres[-1], layers)]
    return [
        Block([x for x in layers if start <= x.position < end])
        for start, end in zip(starts, ends, strict=True)
    ]


def _end(convs: Sequence[Layer], centre: int, layers: Sequence[Layer]) -> int:
    """Where the last block ends: before the first layer of a classifier or of another part."""
    last = centre
    while last + 1 < len(convs) and last < centre + 2 and is_narrow(convs[last + 1]):
        last += 1
    out = convs[centre + 1].shape[0] if last > centre else 0
    if last == centre + 2 and convs[last].shape[0] != out:
        last -= 1
    end = convs[last].position + 1
    inside = [x for x in layers if convs[centre - 1].position <= x.position < end]
    convolutions = sum(is_narrow(x) or is_wide(x) for x in inside)
    norms = sum(x.kind == "norm" for x in inside)
    for layer in [x for x in layers if x.position >= end]:
        squeezes = layer.kind == "conv" and layer.shape[2:] == (1, 1) and out in layer.shape[:2]
        gate = layer.kind == "eca" or (layer.biased and squeezes)
        if layer.kind == "norm" and norms < convolutions:
            norms += 1
        elif not gate:
            break
        end = layer.position + 1
    return end


# -- the network -----------------------------------------------------------------------------------


def _network(
    blocks: Sequence[Block], layers: Sequence[Layer], ordered: bool, avg_down: bool | None
) -> Structure:
    """Blocks and stem as a network under our names."""
    roles = [roles_of(block, ordered) for block in blocks]
    stages = _stages(roles, ordered)
    inner = {id(x) for block in blocks for x in block.layers}
    outside = [x for x in layers if id(x) not in inner]
    start = min(x.position for x in roles) if ordered else None
    stem, root = find_stem(outside, stages[0][0], start, [block.path for block in blocks])
    if ordered:
        _refuse_between(outside, stem, roles, root)
    _refuse_blocks(outside, stem, roles[0])
    notes = ["its names are not known; it was recognized by the structure of its layers"]
    state = stem_state(stem, notes)
    pooled = _pools_shortcuts(stages, len(stem) == 3, avg_down, notes)
    fields: dict[str, Any] = {}
    if avg_down is None and len(stem) == 1 and _pools_as_caffe(stages[0][0], stem[0], root, layers):
        fields["ceil_pooling"] = True
        notes.append("its names are Cadene's, so its max pooling does not pad")
    affine = _is_affine(stem, roles)
    used = {name for pair in stem for x in pair for name in x.names}
    for i, stage in enumerate(stages):
        for j, block in enumerate(stage):
            state |= block_state(f"layer{i + 1}.{j}.", block, pooled)
            used |= {name for x in block.block.layers for name in x.names}
    if affine:
        notes.append("its norms are scales and shifts; mean 0 and variance 1 are added")
        state = _with_statistics(state)
        fields["norm_eps"] = AFFINE_EPS
    return Structure(state, frozenset(used), root, tuple(notes), fields)


def _is_affine(stem: Sequence[Pair], roles: Sequence[BlockRoles]) -> bool:
    """Whether all norms are Caffe2's scales `_s` and shifts `_b`, without statistics."""
    norms = [pair.norm for pair in (*stem, *(x for block in roles for x in block.branch))]
    return all(
        set(norm.tensors) == {"weight", "bias"} and any(x.endswith("_s") for x in norm.names)
        for norm in norms
    )


def _with_statistics(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Norms with the mean 0 and the variance that makes 1 with `AFFINE_EPS`."""
    whole = dict(state)
    for name, scale in state.items():
        norm = name.removesuffix("weight")
        if norm != name and scale.ndim == 1:
            whole[f"{norm}running_mean"] = torch.zeros_like(scale)
            whole[f"{norm}running_var"] = torch.full_like(scale, 1 - AFFINE_EPS)
            whole[f"{norm}num_batches_tracked"] = torch.tensor(0)
    return whole


def _pools_as_caffe(
    block: BlockRoles, stem: Pair, root: tuple[str, ...], layers: Sequence[Layer]
) -> bool:
    """Whether an SE-ResNeXt is Cadene's by its names: `se_module`, and the stem in a Sequential.

    Raises:
        CheckpointError: Names do not show which max pooling it has.
    """
    if len(block.gate) != 2 or stem.conv.shape[2:] != (7, 7):
        return False
    names = [layer.name.lower() for layer in layers]
    inside, cadene = len(stem.conv.path) == len(root) + 2, any(_CADENE in name for name in names)
    if inside == cadene and any(map(SQUEEZE.search, names)):
        return cadene
    raise CheckpointError(
        "which max pooling its stem has is ambiguous: timm's SE-ResNeXts pad, Cadene's do not, and "
        "names do not show whose it is. Pass config=, with ceil_pooling=True for Cadene's"
    )


def _stages(roles: Sequence[BlockRoles], ordered: bool) -> list[list[BlockRoles]]:
    """Blocks in their order, grouped into stages; each stage starts with a shortcut.

    Raises:
        CheckpointError: The order of blocks is ambiguous, or channels do not chain.
    """
    roles = sorted(roles, key=lambda x: x.position if ordered else natural(".".join(x.block.path)))
    if not ordered:
        roles = _chained(roles)
    stages: list[list[BlockRoles]] = []
    for block in roles:
        before = stages[-1][-1] if stages else None
        if before is not None and before.out != block.entry:
            raise CheckpointError(
                f"{block.branch[0].conv.name} takes {block.entry} channels, but the block before "
                f"it gives {before.out}"
            )
        if before is None or block.shortcut is not None:
            stages.append([block])
        else:
            stages[-1].append(block)
    groups = sorted({group_count(block.branch[1].conv.shape) for block in roles})
    if len(groups) > 1:
        raise CheckpointError(
            f"its 3×3 convolutions have {groups} groups; a ResNeXt's have equally many"
        )
    if len(stages) > 4:
        raise CheckpointError(f"it has {len(stages)} stages; a ResNeXt has 1 to 4")
    for stage in stages:
        _check_numbers(stage, ordered)
    return stages


def _chained(roles: Sequence[BlockRoles]) -> list[BlockRoles]:
    """Blocks in natural order, with stages in the order in which their channels follow."""
    by_out: dict[tuple[int, int], list[BlockRoles]] = {}
    for block in roles:
        by_out.setdefault((block.out, block.branch[1].conv.shape[0]), []).append(block)
    if any(sum(x.shortcut is not None for x in stage) > 1 for stage in by_out.values()):
        return list(roles)
    chained: list[BlockRoles] = []
    outs = {out for out, _ in by_out}
    entry = next((x.entry for x in roles if x.shortcut and x.entry not in outs), None)
    while by_out:
        following = [
            key
            for key, stage in by_out.items()
            if (entry is None and not any(x.shortcut for x in stage))
            or any(x.shortcut is not None and x.entry == entry for x in stage)
        ]
        if len(following) != 1:
            return list(roles)
        stage = by_out.pop(following[0])
        chained += sorted(stage, key=lambda x: x.shortcut is None)  # stable: natural order stays
        entry = stage[0].out
    return chained


def _check_numbers(stage: Sequence[BlockRoles], ordered: bool) -> None:
    """Refuse a stage whose blocks names number otherwise, or whose order nothing shows.

    Raises:
        CheckpointError: A number is missing, or names and order disagree.
    """
    paths = [block.block.path for block in stage]
    numbered = len({skeleton(path) for path in paths}) == 1 and all(map(numbers_in, paths))
    if not all(paths):
        return
    if not numbered:
        # the first block is known by its shortcut; with two blocks, so is the other
        if not ordered and len(stage) > (2 if stage[0].shortcut else 1):
            raise CheckpointError(
                f"the order of blocks is ambiguous: neither numbers in names nor the order of the "
                f"file show it, as in {' and '.join('.'.join(path) for path in paths[:2])}"
            )
        return
    numbers = [numbers_in(path) for path in paths]
    if numbers != sorted(numbers):
        raise CheckpointError(
            f"{_ALIKE}: names number the blocks of a stage otherwise than the file orders them, as "
            f"in {' and '.join('.'.join(path) for path in paths[:2])}"
        )
    changing = [set(column) for column in zip(*numbers, strict=True) if len(set(column)) > 1]
    for column in changing:
        steps = {b - a for a, b in itertools.pairwise(sorted(column))}
        if len(steps) > 1:
            raise CheckpointError(
                f"a block is missing: those of a stage are numbered {sorted(column)}"
            )


def _refuse_between(
    outside: Sequence[Layer],
    stem: Sequence[Pair],
    roles: Sequence[BlockRoles],
    root: tuple[str, ...],
) -> None:
    """Refuse layers between stem and last block of which names do not say that they are apart.

    Raises:
        CheckpointError: There are such layers.
    """
    own = {x.name for pair in stem for x in pair}
    last = max(x.position for block in roles for x in block.block.layers)
    named = all(block.block.path for block in roles)
    first = min(pair.conv.position for pair in stem)
    for layer in outside:
        inside = first < layer.position < last and layer.name not in own
        beside = layer.path[len(root) :] if layer.path[: len(root)] == root else ()
        if inside and (not named or (beside and beside[0].isdigit())):
            raise CheckpointError(f"{layer.name} {layer.shape} stands between its blocks")


def _refuse_blocks(outside: Sequence[Layer], stem: Sequence[Pair], block: BlockRoles) -> None:
    """Refuse a file in which only a part of the blocks was found.

    Raises:
        CheckpointError: A convolution outside has as many groups as those of the blocks.
    """
    own = {pair.conv.name for pair in stem}
    for layer in outside:
        if (
            is_grouped(layer)
            and layer.name not in own
            and group_count(layer.shape) == group_count(block.branch[1].conv.shape)
        ):
            raise CheckpointError(f"{layer.name} {layer.shape} is in none of its blocks")


def _pools_shortcuts(
    stages: Sequence[Sequence[BlockRoles]], deep: bool, avg_down: bool | None, notes: list[str]
) -> bool:
    """Whether shortcuts average-pool, as their convolution's number in its Sequential shows.

    Raises:
        CheckpointError: It is not known, and networks with such a stem exist with and without.
    """
    if avg_down is not None:
        return avg_down
    numbers: set[int] = set()
    for block in itertools.chain(*stages):
        if block.shortcut is not None:
            conv, norm = block.shortcut.conv.path, block.shortcut.norm.path
            beside = [x for x in block.block.layers if x.path[: len(conv) - 1] == conv[:-1]]
            if conv[:-1] == norm[:-1] and conv[-1].isdigit() and len(beside) == 2:
                numbers.add(int(conv[-1]))
    if numbers:
        return max(numbers) > 0
    if deep:
        raise CheckpointError(
            "whether its shortcuts average-pool (avg_down) is ambiguous: its stem has three "
            "convolutions, and names do not show it. Pass config="
        )
    notes.append("not visible in its names, so assumed: shortcuts do not average-pool")
    return False
