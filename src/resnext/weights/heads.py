"""Which layer beside a trunk is its classifier: one linear layer directly on pooled features."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from resnext.weights.layer_groups import Layer, layers_of

# Parts of self-supervised training. A last layer beside them is a projection.
SELF_SUPERVISED = re.compile(
    r"(?:^|\.)(?:encoder_k|momentum_encoder|queue\w*|memory_bank|prototypes?|projector|projection\w*|predictor|"
    r"proj_head|dino_head|last_layer)(?:\.|$)"
)
_NAMES = re.compile(
    r"(?:^|[._])(?:fc\d*|linear|head|heads|classifier|cls|logits?|last_linear|output|out|pred)$"
)
# Linear layers on normalized features, as ArcFace's, and those that make embeddings
_MARGIN = re.compile(
    r"arc|cosface|margin|proj|embed|metric|proxies|angular|normface|sphereface|feat|reduc|descr|"
    r"hash|whiten|latent|bottleneck"
)
_POOLING = re.compile(
    r"(?:^|[._])(?:gem|[a-z]*pool\w*|global_pool|attn\w*|attention\w*)(?:[._]|$)|(?:^|\.)p$"
)
_SHOWN = 4


class Head(NamedTuple):
    """The classifier beside a trunk, or why none can be expressed."""

    state: dict[str, Tensor]
    """`fc.weight` and `fc.bias`; empty if there is no classifier."""
    used: tuple[str, ...] = ()
    """Names of its tensors in the file."""
    note: str = ""
    """What was assumed or left out; empty if nothing was."""


def find_head(
    left: Mapping[str, Tensor], features: int, root: tuple[str, ...], *, named: bool = False
) -> Head:
    """The classifier among the tensors that are not of the trunk.

    Args:
        left: Those tensors by name.
        features: Channels of the trunk's last map.
        root: What the names of the trunk start with. Layers that start with it too may be part of
            the trunk's computation.
        named: Whether a layer beside others counts only if it is called a classifier.
    """
    layers = [_on_pooled(x) for x in layers_of({n: x for n, x in left.items() if x.numel()})]
    linear = [x for x in layers if x.kind == "linear" and x.shape[1] == features]
    called = [x for x in linear if _is_called_classifier(x)]
    alone = len([x for x in layers if x.kind != "other"]) == 1
    linear = called if len(called) == 1 or (named and not alone) else linear
    if not linear:
        return Head(
            {}, note=_note(layers, "no classifier was found: no linear layer takes its features")
        )
    if any(SELF_SUPERVISED.search(name) for name in left):
        return Head({}, note=_note(layers, "its last layers are those of self-supervised training"))
    if len(linear) > 1:
        return Head({}, note=_note(linear, "several linear layers take its features"))
    last = linear[0]
    if reason := _obstacle(last, left, [x for x in layers if x is not last], features, root):
        return Head({}, note=reason)
    weight = last.tensors["weight"]
    state, note = {"fc.weight": weight, "fc.bias": last.tensors.get("bias", weight[:, 0])}, ""
    if not last.biased:
        state["fc.bias"] = torch.zeros(len(weight), dtype=weight.dtype)
        note = f"the classifier {last.name} has no bias; it is zero"
    return Head(state, last.names, note)


def as_matrix(weight: Tensor) -> Tensor:
    """A 1×1 convolution's weight as a linear layer's: on pooled features they are the same."""
    return weight.flatten(1) if weight.shape[2:] == (1, 1) else weight


def _on_pooled(layer: Layer) -> Layer:
    """A 1×1 convolution that is called a classifier, as the linear layer that it is."""
    if layer.kind != "conv" or not _is_called_classifier(layer):
        return layer
    weight = as_matrix(layer.tensors["weight"])
    kind = "linear" if weight.ndim == 2 else layer.kind
    tensors = {**layer.tensors, "weight": weight}
    return layer._replace(kind=kind, shape=tuple(weight.shape), tensors=tensors)


def head_obstacle(
    name: str,
    head: Mapping[str, Tensor],
    left: Mapping[str, Tensor],
    root: tuple[str, ...],
) -> str:
    """Why a classifier beside these tensors is not linear on pooled features; else empty.

    Args:
        name: What the names of its tensors start with.
        head: `weight` and, if there is one, `bias`.
        left: The other tensors that are not of the trunk, by name.
        root: What the names of the trunk start with.
    """
    layers = layers_of({name: x for name, x in left.items() if x.numel()})
    classes, features = head["weight"].shape
    return _cosine(name, "bias" in head, left) or _between(layers, features, root, classes)


def _cosine(name: str, biased: bool, left: Mapping[str, Tensor]) -> str:
    """The scale of a classifier on normalized features, as a note; empty if there is none.

    It is a number in the same layer or, without a bias, beside it.
    """
    places = {name} if biased else {name, name.rpartition(".")[0]}
    scales = [
        other
        for other, x in left.items()
        if x.numel() == 1 and x.is_floating_point() and other.rpartition(".")[0] in places
    ]
    if not scales:
        return ""
    return f"{name} is left out: {scales[0]} scales it, as cosines of normalized features are"


def _obstacle(
    last: Layer,
    left: Mapping[str, Tensor],
    others: Iterable[Layer],
    features: int,
    root: tuple[str, ...],
) -> str:
    """Why a linear layer is not a classifier directly on pooled features; else empty."""
    if _MARGIN.search(last.name.lower()):
        return f"{last.name} is left out: by its name it is not a plain classifier"
    if not (last.biased or _is_called_classifier(last)):
        return f"{last.name} {last.shape} is left out: it has no bias, and no name of a classifier"
    cosine = _cosine(last.name, last.biased, left)
    return cosine or _between(others, features, root, last.shape[0])


def _is_called_classifier(layer: Layer) -> bool:
    return bool(_NAMES.search(re.sub(r"\.\d+$", "", layer.name)))


def _between(others: Iterable[Layer], features: int, root: tuple[str, ...], classes: int) -> str:
    """The layers that may stand between features and classifier, as a note; empty if none do."""
    several = list(others)
    found = [
        x
        for x in several
        if (x.kind == "norm" and x.shape[0] in (features, classes))
        or (x.kind == "linear" and x.shape[1] == classes)  # behind it
        or (x.kind == "linear" and x.shape == (features, features))  # before it
        or _POOLING.search(x.name)
        or any(_POOLING.search(name) for name in x.names)
        or (x.kind == "conv" and x.shape[0] > 1 and x.path[: len(root)] == root)
    ]
    return _note(found, "its classifier is not directly on pooled features") if found else ""


def _note(layers: Iterable[Layer], reason: str) -> str:
    names = [f"{x.name or x.names[0]} {x.shape}" for x in layers]
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{reason}; left out, as a ResNeXt cannot express it: {', '.join(names[:_SHOWN])}{more}"
