"""The roles of a block's layers: convolutions, the norm behind each, shortcut and attention.

Shapes decide where they can, then the order of the file, then names.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from resnext.errors import CheckpointError
from resnext.weights.layer_groups import Layer

_SHORTCUT = re.compile(r"shortcut|downsample|skip|short|proj|identity|branch1|residual")
SQUEEZE = re.compile(r"(?:^|[._])(?:se|scale)(?:[._\d]|$)|se_?(?:layer|block|module)|squeeze|excit")
"""Names of squeeze-and-excitation."""


class Pair(NamedTuple):
    """A convolution and the norm behind it."""

    conv: Layer
    norm: Layer


class Block(NamedTuple):
    """The layers of one block, and what their names have in common."""

    layers: Sequence[Layer]
    path: tuple[str, ...] = ()


class BlockRoles(NamedTuple):
    """A block whose layers are identified."""

    branch: tuple[Pair, Pair, Pair]
    shortcut: Pair | None
    gate: tuple[Layer, ...]
    block: Block

    @property
    def entry(self) -> int:
        """Channels of its input."""
        return self.branch[0].conv.shape[1]

    @property
    def out(self) -> int:
        """Channels of its output."""
        return self.branch[2].conv.shape[0]

    @property
    def position(self) -> int:
        """Place of its first layer in the file."""
        return min(layer.position for layer in self.block.layers)


# -- names and shapes ---------------------------------------------------------------------------


def natural(text: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts numbers in a text by value."""
    parts = re.split(r"(\d+)", text)
    return tuple((int(x), "") if x.isdigit() else (-1, x) for x in parts)


def skeleton(path: Iterable[str]) -> str:
    """A path with its numbers left out."""
    return re.sub(r"\d+", "#", ".".join(path))


def numbers_in(path: Iterable[str]) -> tuple[int, ...]:
    """The numbers in a path."""
    return tuple(map(int, re.findall(r"\d+", ".".join(path))))


def group_count(shape: Sequence[int]) -> int:
    """Groups of a convolution that keeps the number of channels."""
    return shape[0] // shape[1] if shape[1] and shape[0] % shape[1] == 0 else 0


def is_wide(layer: Layer) -> bool:
    """Whether a layer is a convolution of more than one pixel."""
    return layer.kind == "conv" and layer.shape[2:] != (1, 1)


def is_narrow(layer: Layer) -> bool:
    """Whether a layer is a 1×1 convolution without bias."""
    return layer.kind == "conv" and layer.shape[2:] == (1, 1) and not layer.biased


def is_grouped(layer: Layer) -> bool:
    """Whether a layer can be a grouped 3×3 convolution that keeps the number of channels."""
    return layer.kind == "conv" and layer.shape[2:] == (3, 3) and group_count(layer.shape) > 1


# -- roles --------------------------------------------------------------------------------------


def roles_of(block: Block, ordered: bool) -> BlockRoles:
    """The roles of a block's layers.

    Raises:
        CheckpointError: A layer has no role in a ResNeXt, or more than one fits.
    """
    narrow = [x for x in block.layers if is_narrow(x)]
    centres = [x for x in block.layers if is_wide(x)]
    norms = [x for x in block.layers if x.kind == "norm"]
    known = {id(x) for x in (*narrow, *centres, *norms)}
    gate = [x for x in block.layers if id(x) not in known]
    name = ".".join(block.path) or block.layers[0].name
    if len(centres) != 1 or len(narrow) not in (2, 3):
        kinds = f"{len(centres)} wider and {len(narrow)} 1×1 convolutions"
        raise CheckpointError(f"a block ({name}) has {kinds}, where a ResNeXt has 1 and 2 or 3")
    centre = centres[0]
    first, last, shortcut = _branch(block, centre, narrow, ordered, name)
    convs = [x for x in (first, centre, last, shortcut) if x is not None]
    pairs = pair_norms(sorted(convs, key=lambda x: x.position), norms, ordered, name)
    return BlockRoles(
        (pairs[first.name], pairs[centre.name], pairs[last.name]),
        pairs[shortcut.name] if shortcut else None,
        _gate(gate, last, ordered, name),
        block,
    )


def _branch(
    block: Block, centre: Layer, narrow: Sequence[Layer], ordered: bool, name: str
) -> tuple[Layer, Layer, Layer | None]:
    """Which 1×1 convolution reduces, which expands, and which is the shortcut."""
    width = centre.shape[0]
    fitting: list[tuple[Layer, Layer, Layer | None]] = []
    for order in itertools.permutations(narrow):
        first, last, shortcut = (*order, None)[:3]
        if first is None or last is None or first.shape[0] != width or last.shape[1] != width:
            continue
        ends = (shortcut.shape[:2]) if shortcut else (first.shape[1], first.shape[1])
        if ends == (last.shape[0], first.shape[1]):
            fitting.append((first, last, shortcut))
    if not fitting:
        shapes = ", ".join(str(x.shape) for x in (*narrow, centre))
        raise CheckpointError(f"the convolutions of a block ({name}) do not fit together: {shapes}")
    if len(fitting) > 1:
        fitting = [x for x in fitting if _is_usual(block, centre, *x, ordered)]
    if len(fitting) != 1:
        names = " and ".join(x.name for x in narrow)
        raise CheckpointError(
            f"convolution and shortcut are ambiguous in a block ({name}): {names} have shapes that "
            f"fit both, and neither order nor names decide"
        )
    first, last, shortcut = fitting[0]
    called = [x for x in narrow if _SHORTCUT.search(".".join(x.path[len(block.path) :]).lower())]
    if len(called) == 1 and shortcut is not None and called[0] is not shortcut:
        raise CheckpointError(
            f"names and structure disagree: {called[0].name} is called a shortcut, but by its "
            f"shape {shortcut.name} is one"
        )
    return fitting[0]


def _is_usual(
    block: Block,
    centre: Layer,
    first: Layer,
    last: Layer,
    shortcut: Layer | None,
    ordered: bool,
) -> bool:
    """Whether order or names show these roles."""
    if ordered:
        branch = first.position < centre.position < last.position
        return branch and not (shortcut and first.position < shortcut.position < last.position)
    depth = len(block.path)
    kinds = {skeleton(x.path[depth:]) for x in (first, centre, last)}
    numbers = [numbers_in(x.path[depth:]) for x in (first, centre, last)]
    numbered = len(kinds) == 1 and numbers[0] < numbers[1] < numbers[2]
    if shortcut is None:
        return numbered
    other = ".".join(shortcut.path[depth:]).lower()
    called = _SHORTCUT.search(other) and not any(
        _SHORTCUT.search(".".join(x.path[depth:]).lower()) for x in (first, last)
    )
    return (numbered and skeleton(shortcut.path[depth:]) not in kinds) or (
        bool(called) and (numbered or first.shape != last.shape)
    )


def pair_norms(
    convs: Sequence[Layer], norms: Sequence[Layer], ordered: bool, name: str
) -> dict[str, Pair]:
    """The norm behind each convolution.

    Raises:
        CheckpointError: There is another number of norms, or names and order do not show them.
    """
    if len(norms) != len(convs):
        raise CheckpointError(f"{name} has {len(convs)} convolutions and {len(norms)} norms")
    known = {conv.name: found for conv in convs if (found := _named_norm(conv, convs, norms))}
    pairs: dict[str, Layer] = {}
    if ordered:
        pairs = {conv.name: norm for conv, norm in zip(convs, norms, strict=True)}
    else:
        pairs = dict(known)
        while True:
            open_convs = [x for x in convs if x.name not in pairs]
            taken = {x.name for x in pairs.values()}
            left = [x for x in norms if x.name not in taken]
            sure = [
                (conv, fitting[0])
                for conv in open_convs
                if len(fitting := [x for x in left if x.shape[0] == conv.shape[0]]) == 1
            ]
            if not sure:
                break
            pairs[sure[0][0].name] = sure[0][1]
    if len(pairs) < len(convs) or len({norm.name for norm in pairs.values()}) < len(norms):
        raise CheckpointError(
            f"which norm follows which convolution in {name} is ambiguous: neither order nor names "
            f"show it"
        )
    for conv in convs:
        norm = pairs[conv.name]
        if norm.shape[0] != conv.shape[0]:
            raise CheckpointError(
                f"{norm.name} has {norm.shape[0]} channels, but {conv.name} before it has "
                f"{conv.shape[0]}"
            )
        if conv.name in known and known[conv.name] is not norm:
            raise CheckpointError(
                f"names and order disagree on which norm follows {conv.name}: {norm.name} or "
                f"{known[conv.name].name}"
            )
    return {conv.name: Pair(conv, pairs[conv.name]) for conv in convs}


def _named_norm(conv: Layer, convs: Iterable[Layer], norms: Iterable[Layer]) -> Layer | None:
    """The norm that belongs to a convolution by their names; None if names do not show it."""
    norms, parent, last = list(norms), conv.path[:-1], conv.path[-1]
    beside = [x for x in norms if x.path[:-1] == parent and len(x.path) == len(conv.path)]
    alone = sum(x.path[:-1] == parent for x in convs) == 1 == len(beside)
    number = re.search(r"\d+$", last)
    inside = [x for x in norms if x.path[:-1] == conv.path]  # conv1.norm
    if inside or alone:
        found = inside or beside
    elif last.isdigit():  # a Sequential
        found = [x for x in beside if x.path[-1] == str(int(last) + 1)]
    else:
        ends = {x.name: re.search(r"\D(\d+)$", x.path[-1]) for x in beside}
        found = [x for x in beside if number and (end := ends[x.name]) and end[1] == number[0]]
    return found[0] if len(found) == 1 else None


def _gate(layers: Sequence[Layer], last: Layer, ordered: bool, name: str) -> tuple[Layer, ...]:
    """The layers of channel attention at the end of a block.

    Raises:
        CheckpointError: A layer is of another kind, or stands elsewhere.
    """
    out = last.shape[0]
    if not layers:
        return ()
    eca = len(layers) == 1 and layers[0].kind == "eca"
    squeeze = len(layers) == 2 and all(_squeezes(x, out) for x in layers)
    if squeeze and layers[0].shape[1] != out:
        layers = layers[::-1]
    one, two = layers[0], layers[-1]
    squeeze = squeeze and one.shape[:2] == two.shape[1::-1] and one.shape[1] == out
    if squeeze and one.shape == two.shape and not ordered:
        squeeze = natural(one.name) < natural(two.name)
    if not (eca or squeeze):
        other = next((x for x in layers if x.kind not in ("conv", "linear")), layers[0])
        raise CheckpointError(
            f"{other.name} {other.shape} in a block ({name}) has no role in a ResNeXt"
        )
    if ordered and one.position < last.position:
        raise CheckpointError(
            f"{one.name} scales channels before the last convolution of a block ({name}), where a "
            f"ResNeXt does so behind it"
        )
    return tuple(layers)


def _squeezes(layer: Layer, out: int) -> bool:
    """Whether a layer can be one of the two of an SE block."""
    plain = layer.kind == "linear" or (layer.kind == "conv" and layer.shape[2:] == (1, 1))
    named = bool(SQUEEZE.search(layer.name.lower()))
    return plain and out in layer.shape[:2] and (layer.biased or named)


# -- under our names ----------------------------------------------------------------------------


def block_state(prefix: str, block: BlockRoles, pooled: bool) -> dict[str, Tensor]:
    """A block under our names, with the index of pooled shortcuts if `pooled`."""
    state: dict[str, Tensor] = {}
    for number, pair in enumerate(block.branch, 1):
        state |= pair_state(pair, f"{prefix}conv{number}", f"{prefix}bn{number}")
    if block.shortcut is not None:
        names = [f"{prefix}downsample.{i + pooled}" for i in (0, 1)]
        state |= pair_state(block.shortcut, *names)
    if len(block.gate) == 1:
        state[f"{prefix}se.conv.weight"] = block.gate[0].tensors["weight"]
    for number, layer in enumerate(block.gate if len(block.gate) == 2 else (), 1):
        weight = layer.tensors["weight"]
        state[f"{prefix}se.fc{number}.weight"] = weight.reshape(*weight.shape[:2], 1, 1)
        bias = layer.tensors.get("bias", torch.zeros(weight.shape[0], dtype=weight.dtype))
        state[f"{prefix}se.fc{number}.bias"] = bias
    return state


def pair_state(pair: Pair, conv: str, norm: str) -> dict[str, Tensor]:
    """A convolution and its norm under these names."""
    state = {f"{conv}.{end}": x for end, x in pair.conv.tensors.items()}
    state |= {f"{norm}.{end}": x for end, x in pair.norm.tensors.items()}
    if "running_var" in pair.norm.tensors and "num_batches_tracked" not in pair.norm.tensors:
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    return state
