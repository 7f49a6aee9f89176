"""The tensors of a file as layers: convolutions, norms, linear layers, whatever their names.

Names that end as some library's parameters do group the tensors of a layer. Without such names the
order of the tensors groups them, and values tell the four vectors of a batch norm apart: only a
variance is never negative.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from resnext.errors import CheckpointError

Vectors = list[tuple[str, Tensor]]

_ROLES = {
    **dict.fromkeys(("weight", "weights", "kernel", "w", "gamma", "scale", "s"), "weight"),
    **dict.fromkeys(("bias", "b", "beta", "offset"), "bias"),
    **dict.fromkeys(("running_mean", "moving_mean", "_mean", "mean"), "running_mean"),
    **dict.fromkeys(
        ("running_var", "moving_var", "moving_variance", "_variance", "variance", "var"),
        "running_var",
    ),
    **{x: x for x in ("num_batches_tracked", "weight_gamma", "weight_beta")},
}
_ENDS = "|".join(sorted(_ROLES, key=len, reverse=True))
_PARAMETER = re.compile(rf"(?:(?P<layer>.+?)[._/])?(?P<end>{_ENDS})(?::0)?")
# The order in which torch writes them, and the same sorted by name
_NORM: tuple[str, ...] = ("weight", "bias", "running_mean", "running_var")
_SORTED: tuple[str, ...] = ("bias", "running_mean", "running_var", "weight")


class Layer(NamedTuple):
    """One layer of a file."""

    kind: str
    """conv, norm, linear, eca or other."""
    name: str
    """What its tensors' names start with."""
    shape: tuple[int, ...]
    """Shape of its weight; of a norm, the number of its channels."""
    tensors: Mapping[str, Tensor]
    """By our names of parameters."""
    names: tuple[str, ...]
    """Names of its tensors in the file."""
    position: int
    """Place among the layers of the file."""

    @property
    def biased(self) -> bool:
        """Whether it adds a bias."""
        return "bias" in self.tensors

    @property
    def path(self) -> tuple[str, ...]:
        """The parts of its name."""
        return tuple(re.split(r"[./]" if re.search(r"[./]", self.name) else "_", self.name))


class _Group(NamedTuple):
    """Tensors of one layer, by the ends of their names."""

    name: str
    parts: dict[str, Tensor]
    names: tuple[str, ...]


def layers_of(state: Mapping[str, Tensor]) -> list[Layer]:
    """The layers of a state dict, in the order of the file; layers that occur twice only once.

    Raises:
        CheckpointError: Names and values do not show which vectors of the norms are which.
    """
    state = {name: x for name, x in state.items() if not name.endswith("_momentum")}  # Caffe2
    groups = _by_name(state)
    if not _plausible(groups):
        groups = _by_order(state)
    groups = [group for group in _without_copies(groups) if group.parts]
    roles = _norm_roles(groups, is_sorted(state))
    turned = _stored_transposed(groups)
    return [_layer(group, roles, turned, i) for i, group in enumerate(groups)]


def split_name(name: str) -> tuple[str, str]:
    """The layer and the parameter in a tensor's name."""
    if found := _PARAMETER.fullmatch(name):
        return found["layer"] or "", found["end"]
    layer, _, end = name.rpartition(".")
    return layer, end


def is_sorted(state: Mapping[str, Tensor]) -> bool:
    """Whether the names of each type of tensor are sorted, so that their order means nothing."""
    kinds: dict[object, list[str]] = {}
    for name, x in state.items():
        kinds.setdefault(x.dtype, []).append(name)
    return all(names == sorted(names) for names in kinds.values())


# -- grouping --------------------------------------------------------------------------------------


def _by_name(state: Mapping[str, Tensor]) -> list[_Group]:
    """Tensors with equal names up to the parameter, as groups."""
    groups: dict[str, dict[str, str]] = {}
    for name in state:
        layer, end = split_name(name)
        groups.setdefault(layer, {})[end] = name
    return [
        _Group(layer, {end: state[name] for end, name in ends.items()}, tuple(ends.values()))
        for layer, ends in groups.items()
    ]


def _plausible(groups: Sequence[_Group]) -> bool:
    """Whether names group tensors: most groups of vectors hold all vectors of one norm."""
    sizes = Counter(
        len(vectors)
        for group in groups
        if (vectors := _vectors(group))
        and len(vectors) == len(_floats(group))
        and max(x.numel() for _, x in vectors) > 1  # a number is a layer of its own
    )
    matrices = [sum(x.ndim > 1 for x in group.parts.values()) for group in groups]
    alone = 2 * matrices.count(1) >= sum(matrices)  # else the ends of names are not parameters
    return alone and sizes[4] + sizes[2] >= sizes[1] + sizes[3]


def _by_order(state: Mapping[str, Tensor]) -> list[_Group]:
    """Every matrix with a bias behind it, and every four vectors of one size, as groups."""
    groups: list[_Group] = []
    run: list[str] = []

    def finish() -> None:
        bias = len(run) % 4 == 1 and groups and _takes_bias(groups[-1], state[run[0]])
        if bias:
            last = groups.pop()
            parts = {**last.parts, "bias": state[run[0]]}
            groups.append(_Group(last.name, parts, (*last.names, run[0])))
        for start in range(int(bool(bias)), len(run), 4):
            names = run[start : start + 4]
            parts = {str(i): state[name] for i, name in enumerate(names)}
            groups.append(_Group(names[0], parts, tuple(names)))
        run.clear()

    for name, value in state.items():
        if value.ndim == 1 and value.is_floating_point():
            run.append(name)
        elif value.numel() > 1 or value.is_floating_point():
            finish()
            groups.append(_Group(name, {"weight": value}, (name,)))
    finish()
    return groups


def _takes_bias(group: _Group, vector: Tensor) -> bool:
    weight = group.parts.get("weight")
    return weight is not None and weight.ndim > 1 and vector.numel() in weight.shape[:2]


def _without_copies(groups: Iterable[_Group]) -> list[_Group]:
    """The groups without those whose tensors are all those of an earlier group."""
    seen: set[tuple[tuple[int, tuple[int, ...]], ...]] = set()
    kept: list[_Group] = []
    for group in groups:
        matrices = [x for x in group.parts.values() if x.is_floating_point() and x.numel() > 1]
        key = tuple((x.data_ptr(), tuple(x.shape)) for x in matrices)
        if key and key in seen:
            continue
        seen.add(key)
        kept.append(group)
    return kept


# -- the parameters of a layer ---------------------------------------------------------------------


def _floats(group: _Group) -> list[Tensor]:
    return [x for x in group.parts.values() if x.is_floating_point() and x.numel()]


def _vectors(group: _Group) -> Vectors:
    """The vectors of a group, if it has nothing else."""
    found = [(end, x) for end, x in group.parts.items() if x.is_floating_point()]
    return found if all(x.ndim == 1 for _, x in found) else []


def _norm_roles(groups: Sequence[_Group], sorted_names: bool) -> dict[str, str]:
    """Our parameter for every end of a name in a norm.

    Raises:
        CheckpointError: Neither names nor values show it.
    """
    norms = [vectors for group in groups if len(vectors := _vectors(group)) == 4]
    ends = {tuple(end for end, _ in vectors) for vectors in norms}
    if all(end in _ROLES for group in ends for end in group):
        return {}
    if len({tuple(sorted(group)) for group in ends}) > 1:
        raise CheckpointError("Its norms do not have the same parameters.")
    first = next(iter(ends))
    variances = {end for end in first if _is_variance(dict(vectors)[end] for vectors in norms)}
    scales, shifts = set[str](), set[str]()  # names that convolutions and linear layers have too
    for group in groups:
        if any(x.ndim > 1 for x in group.parts.values()):
            for end, x in group.parts.items():
                (scales if x.ndim > 1 else shifts).add(end)
    orders = itertools.permutations(_NORM) if sorted_names or len(ends) > 1 else (_NORM, _SORTED)
    fitting = [
        roles
        for roles in (dict(zip(first, order, strict=True)) for order in orders)
        if all(
            (role != "running_var" or end in variances)
            and (role == "weight" or end not in scales)
            and (role == "bias" or end not in shifts)
            for end, role in roles.items()
        )
    ]
    if len(fitting) != 1:
        raise CheckpointError(
            "Which of the four vectors of its norms is which is ambiguous: names, order and values "
            "do not show it."
        )
    return fitting[0]


def _is_variance(values: Iterable[Tensor]) -> bool:
    """Whether vectors can be variances: nowhere negative, and not all zero."""
    several = list(values)
    return all(bool((x >= 0).all()) for x in several) and any(bool((x > 0).any()) for x in several)


def _stored_transposed(groups: Iterable[_Group]) -> bool:
    """Whether linear layers are stored as inputs × outputs, as Paddle does."""
    for group in groups:
        parts = {_ROLES.get(end): x for end, x in group.parts.items()}
        weight, bias = parts.get("weight"), parts.get("bias")
        if weight is not None and bias is not None and weight.ndim == 2:
            if bias.numel() == weight.shape[1] != weight.shape[0]:
                return True
            if bias.numel() == weight.shape[0] != weight.shape[1]:
                return False
    return any("_variance" in group.parts for group in groups)


def _layer(group: _Group, roles: Mapping[str, str], turned: bool, position: int) -> Layer:
    """The layer that a group of tensors is."""
    vectors = _vectors(group)
    tensors = {
        (roles.get(end) if vectors else None) or _ROLES.get(end, end): x
        for end, x in group.parts.items()
        if x.is_floating_point() or x.numel() > 1
    }
    counters = [x for x in group.parts.values() if not x.is_floating_point() and x.numel() == 1]
    matrices = [(end, x) for end, x in tensors.items() if x.ndim > 1 and not _is_scale(end)]
    if len(vectors) > 1 and len({x.numel() for _, x in vectors}) == 1:
        if counters:
            tensors["num_batches_tracked"] = counters[0].reshape(())
        kind = "norm" if set(tensors) <= {*_NORM, "num_batches_tracked"} else "other"
        return Layer(kind, group.name, (vectors[0][1].numel(),), tensors, group.names, position)
    if len(matrices) != 1:
        shape = tuple(next(iter(tensors.values())).shape) if tensors else ()
        return Layer("other", group.name, shape, tensors, group.names, position)
    end, weight = matrices[0]
    rest = {name: x for name, x in tensors.items() if name != end}
    if weight.ndim == 2:  # the scale of cosines; see `heads.py`
        rest = {name: x for name, x in rest.items() if x.numel() > 1 or len(weight) == 1}
    if turned and weight.ndim == 2:
        weight = weight.T.contiguous()
    if len(rest) == 1 and "bias" not in rest and not _is_scale(next(iter(rest))):
        rest = {"bias": next(iter(rest.values()))}
    fits = all(x.ndim == 4 if _is_scale(name) else name == "bias" for name, x in rest.items())
    fits = fits and ("bias" not in rest or rest["bias"].shape == weight.shape[:1])
    kind = {4: "conv", 2: "linear"}.get(weight.ndim, "other") if fits else "other"
    if weight.ndim == 3 and weight.shape[:2] == (1, 1) and not rest:
        kind = "eca"
    return Layer(
        kind, group.name, tuple(weight.shape), {"weight": weight, **rest}, group.names, position
    )


def _is_scale(end: str) -> bool:
    """Whether a parameter is the fixed scale or shift of an affine weight standardization."""
    return end in ("weight_gamma", "weight_beta")
