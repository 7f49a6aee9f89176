"""Finds the dialect of a checkpoint, and the ResNeXt in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from resnext.dialects.dialect import Dialect, ParameterNames
from resnext.dialects.table import DIALECTS
from resnext.errors import CheckpointError
from resnext.weights.formats.reading import Contents, to_tensors
from resnext.weights.heads import SELF_SUPERVISED, as_matrix, find_head, head_obstacle
from resnext.weights.structure import STRUCTURE, may_hold_structure, read_structure

# Where weights are in a dictionary, best first: averages are what was evaluated. mmengine swaps:
# its `state_dict` holds the average and `ema_state_dict` the raw weights.
_KEYS = ("model_ema", "state_dict_ema", "ema", "", "state_dict", "model", "model_state_dict")
_KEYS += ("net", "network", "weights", "content", "params", "ema_state_dict")
_WRAPPERS = {"module", "_orig_mod", "model", "network", "net", "backbone", "bottom_up", "resnet"}
_WRAPPERS |= {"timm_model", "encoder_q", "base_encoder", "encoder", "state_dict"}
_AVERAGES = {"ema_model", "model_ema", "ema"}
_CLASSIFIER = re.compile(
    r"(?:head\.fc|head|classifier|fc|last_linear)(?:\.\d{1,3})?\.(weight|bias)"
)
# An encoder of self-supervised training. A last layer inside it is a projection.
_ENCODER = re.compile(
    r"(?:^|\.)(?:encoder_q|base_encoder|online_(?:encoder|network|net|backbone))\."
)
_TRUNK = re.compile(r"(?:conv1|bn1|layer\d+)\.|fc\.(?:weight|bias)$")  # under our names


class ChosenWeights(NamedTuple):
    """The state dict chosen from a file."""

    state: dict[str, Tensor]
    key: str
    """Path of keys that leads to it in the file's dictionary; empty for the dictionary itself."""
    passed_over: tuple[str, ...] = ()
    """Paths of other networks."""
    dialect: Dialect | None = None
    """The dialect that unpacked it; None if its names decide."""


class DetectedNetwork(NamedTuple):
    """The ResNeXt in a state dict, under our names."""

    dialect: Dialect
    prefix: str
    """Prefix of its names."""
    state: dict[str, Tensor]
    norm: str
    """The kind of norm, as far as names show it."""
    heads: tuple[str, ...]
    """Weights of classifiers that are not one linear layer, and of self-supervised projections."""
    left: tuple[str, ...]
    """Names of everything else: other parts of a detector, averages of weights."""
    passed_over: tuple[str, ...]
    """Prefixes of other networks."""
    fields: Mapping[str, Any] = MappingProxyType({})
    """Fields of the config that the kind of file shows, besides names and shapes."""
    notes: tuple[str, ...] = ()
    """What was assumed about the classifier, or what was left out of it."""


def choose_weights(contents: Contents) -> ChosenWeights:
    """The best of the dictionaries in a file.

    Of those with a ResNeXt, averaged weights come first. A file without any gives its largest
    dictionary, so that `recognise` can name what is in it.

    Raises:
        CheckpointError: Several networks are equally good, or a tensor is not an ordinary one.
    """
    if contents.root is not None:
        return _unpacked(contents)
    dictionaries = contents.dictionaries
    ranked = sorted((key for key in dictionaries if holds_anchor(dictionaries[key])), key=_rank)
    if not ranked:
        structured = (key for key in dictionaries if may_hold_structure(dictionaries[key]))
        ranked = sorted(structured, key=_rank)
    if not ranked:
        ranked = [max(dictionaries, key=lambda key: len(dictionaries[key]))]
    best, *others = ranked
    if others and _rank(best) == _rank(others[0]):
        keys = " and ".join(map(repr, ranked))
        if {"student", "teacher"} <= set(ranked):
            raise CheckpointError(
                f"{contents.path}: several networks are in it, DINO's student and teacher. The "
                f"teacher is what is evaluated: save torch.load(…)['teacher']."
            )
        raise CheckpointError(
            f"{contents.path}: several networks are in it, under {keys}. Save one."
        )
    state = to_tensors(contents.path, dictionaries[best])
    return ChosenWeights(state, best, tuple(others))


def _unpacked(contents: Contents) -> ChosenWeights:
    """The arrays in a file that is not a dictionary, from the dialect that knows its objects."""
    for dialect in DIALECTS.values():
        try:
            arrays = dialect.unpack(contents.root)
        except CheckpointError as error:
            raise CheckpointError(f"{contents.path}: {error}") from error
        if arrays is not None:
            return ChosenWeights(to_tensors(contents.path, arrays), "", dialect=dialect)
    raise CheckpointError(
        f"{contents.path} holds one {type(contents.root).__name__}, not a dictionary of tensors."
    )


def _rank(key: str) -> int:
    first = key.partition(".")[0]
    return _KEYS.index(first) if first in _KEYS else len(_KEYS)


def holds_anchor(names: Iterable[str]) -> bool:
    """Whether a ResNeXt, or a ResNet, may be among these names."""
    anchors = _anchors()
    return any(_prefix(name, anchor) is not None for name in names for anchor in anchors)


def recognise(state: Mapping[str, Tensor], dialect: Dialect | None = None) -> DetectedNetwork:
    """Find the ResNeXt in a state dict.

    Args:
        state: Tensors by name.
        dialect: The dialect, if it is known; by default the names decide.

    Raises:
        CheckpointError: No ResNeXt is found, or several are.
    """
    anchor, prefix, others = _find(state)
    within = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
    network = [name for name in within if not SELF_SUPERVISED.search(name)]
    kept = {prefix + name for name in network}
    outside = [name for name in state if name not in kept]
    heads = _classifiers(state, prefix)
    dialect = dialect or _dialect(anchor, ParameterNames(set(network), outside, heads))
    trunk = [name for name in network if prefix + name not in heads]
    extra = [prefix + name for name in trunk if not _TRUNK.match(dialect.to_ours(name))]
    beside = {*extra, *outside} - heads.keys()
    ours = dialect.read({n: state[prefix + n] for n in trunk if prefix + n not in beside})
    weights = [name for name, part in heads.items() if part == "weight"]
    if heads and not weights:
        raise CheckpointError(f"{next(iter(heads))} exists, but not the weight that belongs to it.")
    features = _features(ours)
    matrix = as_matrix(state[weights[0]]) if len(weights) == 1 else torch.empty(0)
    one = matrix.ndim == 2 and features in (0, matrix.shape[1])
    one = one and not _is_projection(weights[0], prefix, outside)
    own = {x.data_ptr() for x in ours.values()}
    left = {
        name: x
        for name, x in state.items()
        if name in beside and not name.startswith(others) and x.data_ptr() not in own
    }
    note = ""
    if one:
        root = tuple(prefix.split(".")[:-1])
        head = {part: as_matrix(state[name]) for name, part in heads.items()}
        if left:
            note = head_obstacle(weights[0].removesuffix(".weight"), head, left, root)
        one = not note
    if one:
        ours |= {f"fc.{part}": as_matrix(state[name]) for name, part in heads.items()}
        if "fc.bias" not in ours:
            ours["fc.bias"] = ours["fc.weight"].new_zeros(len(ours["fc.weight"]))
            note = f"the classifier {weights[0]} has no bias; it is zero"
    elif left and not heads and features:
        head = find_head(left, features, tuple(prefix.split(".")[:-1]), named=True)
        ours, note = ours | head.state, head.note
        heads, beside = dict.fromkeys(head.used, ""), beside - {*head.used}
    return DetectedNetwork(
        dialect=dialect,
        prefix=prefix,
        state=ours,
        norm=dialect.norm_kind(network),
        heads=() if one or note else tuple(weights),
        left=tuple(name for name in state if name in beside),
        passed_over=others,
        notes=(note,) if note else (),
    )


def recognise_structure(
    state: Mapping[str, Tensor], *, avg_down: bool | None = None
) -> DetectedNetwork:
    """Find the ResNeXt in a state dict by the structure of its layers, whatever their names.

    Args:
        state: Tensors by name, in the order of the file.
        avg_down: Whether strided shortcuts average-pool, if it is known.

    Raises:
        CheckpointError: There is no ResNeXt, or something is ambiguous; the message says what.
    """
    found = read_structure(state, avg_down)
    left = {name: x for name, x in state.items() if name not in found.used}
    head = find_head(left, _features(found.state), found.root)
    notes = [*found.notes, *([head.note] if head.note else [])]
    return DetectedNetwork(
        dialect=STRUCTURE,
        prefix="".join(f"{part}." for part in found.root),
        state=found.state | head.state,
        norm="batch",
        heads=(),
        left=tuple(name for name in left if name not in head.used),
        passed_over=(),
        fields=found.fields,
        notes=tuple(notes),
    )


def same_trunk(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts under our names have the same tensors as their trunks.

    Counters of batches do not count: a missing one is replaced.
    """
    return all(
        name in one and one[name].data_ptr() == x.data_ptr()
        for name, x in other.items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    )


def _features(ours: Mapping[str, Tensor]) -> int:
    """Channels of the last stage's map; 0 if they are not known."""
    names = [name for name in ours if name.endswith(".0.conv3.weight")]
    return ours[max(names)].shape[0] if names else 0


def _is_projection(head: str, prefix: str, outside: Iterable[str]) -> bool:
    """Whether an encoder's last layer makes the vectors of self-supervised training, not classes.

    A layer beside the encoder, such as solo-learn's `classifier`, is one of classes.
    """
    if not head.startswith(prefix):
        return False
    return bool(_ENCODER.search(prefix)) or any(map(SELF_SUPERVISED.search, outside))


def _anchors() -> tuple[str, ...]:
    """Ends of names that every file of some dialect contains, the longest first."""
    return tuple(sorted({x.anchor for x in DIALECTS.values()}, key=lambda x: (-len(x), x)))


def _prefix(name: str, anchor: str) -> str | None:
    """The prefix before an anchor, if a name ends with the anchor."""
    prefix = name.removesuffix(anchor)
    return prefix if prefix != name and (not prefix or prefix.endswith(".")) else None


def _find(state: Mapping[str, Tensor]) -> tuple[str, str, tuple[str, ...]]:
    """The anchor of the network, its prefix, and the prefixes of other networks.

    Of several networks, averaged weights are taken, then the one under the fewest unusual words.
    """
    anchors, networks = _anchors(), list[tuple[int, str, str]]()
    for name in state:
        for anchor in anchors:
            if (prefix := _prefix(name, anchor)) is not None:
                words = [x for x in prefix.split(".") if x and x not in _WRAPPERS]
                unusual = -1 if words and set(words) <= _AVERAGES else len(words)
                networks.append((unusual, prefix, anchor))
                break
    if not networks:
        first = next(iter(state), None)
        content = f"its first tensor is {first!r}" if state else "it holds no tensors"
        raise CheckpointError(
            f"No ResNeXt is in it: no tensor has a name that a library gives to it; {content}."
        )
    networks.sort(key=lambda network: network[0])
    if len(networks) > 1 and networks[0][0] == networks[1][0]:
        prefixes = " and ".join(repr(prefix) for _, prefix, _ in networks)
        raise CheckpointError(f"Several networks are in it, under {prefixes}. Save one of them.")
    _, prefix, anchor = networks[0]
    return anchor, prefix, tuple(prefix for _, prefix, _ in networks[1:])


def _dialect(anchor: str, names: ParameterNames) -> Dialect:
    """The last row of the table with this anchor that recognises the names."""
    for dialect in reversed(DIALECTS.values()):
        if dialect.anchor == anchor and dialect.recognises(names):
            return dialect
    raise CheckpointError(f"No known library uses {anchor} together with such names.")


def _classifiers(state: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """Possible names of the last layer, inside or outside the network, and their parameter."""
    parts = prefix.split(".")[:-1]
    roots = ["".join(f"{part}." for part in parts[:i]) for i in range(len(parts) + 1)]
    heads: dict[str, str] = {}
    for name in state:
        for root in roots:
            if name.startswith(root) and (part := _CLASSIFIER.fullmatch(name.removeprefix(root))):
                heads[name] = part[1]
    return heads
