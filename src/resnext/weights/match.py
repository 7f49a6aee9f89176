"""From the tensors of a checkpoint to the network they fit: by names, else by structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from resnext.architectures import title
from resnext.backbone import Backbone
from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError, ConfigError
from resnext.network import ResNeXt
from resnext.weights import in_memory
from resnext.weights.causes import cause_of, hidden_cause
from resnext.weights.formats.reading import Contents
from resnext.weights.infer_config import ASSUMED, infer_config
from resnext.weights.lookalikes import choose_lookalike
from resnext.weights.recognise import (
    ChosenWeights,
    DetectedNetwork,
    holds_anchor,
    recognise,
    recognise_structure,
    same_trunk,
)
from resnext.weights.structure import may_hold_structure


def detect_network(
    weights: ChosenWeights,
    known: ResNeXtConfig | None,
    head: str,
    contents: Contents,
    notes: list[str],
) -> tuple[DetectedNetwork, ResNeXt | Backbone, str]:
    """The network that names show or, if they show none, the structure of the layers.

    Raises:
        CheckpointError: Neither shows one.
    """
    if not weights.state:
        keys = ", ".join(map(repr, [*contents.metadata][:5])) or "nothing"
        raise CheckpointError(
            f"No ResNeXt is in it: it holds no tensors by name, only {keys}. Save "
            f"model.state_dict(), not an optimizer's."
        )
    by_name: DetectedNetwork | None = None
    named = list[str]()
    try:
        by_name = _without(head, recognise(weights.state, weights.dialect), named)
        if hidden := hidden_cause(weights.state, by_name.prefix, by_name.left):
            raise CheckpointError(hidden)
        found = _network(by_name, known, weights.state, contents, named)
        notes += named
        return by_name, *found
    except CheckpointError as error:
        if weights.dialect is not None or (by_name is None and holds_anchor(weights.state)):
            raise
        problem = error
    try:
        detected = recognise_structure(weights.state, avg_down=known.avg_down if known else None)
    except CheckpointError as error:
        ending = cause_of(weights.state)
        if not ending and may_hold_structure(weights.state):
            ending = f"By the structure of its layers: {error}"
        if ending:
            raise CheckpointError(f"{_sentence(str(problem))} {_sentence(ending)}") from error
        raise problem from error
    if by_name is not None and same_trunk(by_name.state, detected.state):
        raise problem  # names were right; the file is incomplete or contradicts its config
    if hidden := hidden_cause(weights.state, detected.prefix, detected.left):
        raise CheckpointError(hidden)
    detected = _without(head, detected, notes)
    return detected, *_network(detected, known, weights.state, contents, notes)


def _without(head: str, detected: DetectedNetwork, notes: list[str]) -> DetectedNetwork:
    """The network without its last layer, if that is not a classifier of one label per image."""
    if head and detected.state.pop("fc.weight", None) is not None:
        detected.state.pop("fc.bias", None)
        notes.append(f"its last layer was left out: {head}")
    return detected


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _network(
    detected: DetectedNetwork,
    known: ResNeXtConfig | None,
    state: Mapping[str, Tensor],
    contents: Contents,
    notes: list[str],
) -> tuple[ResNeXt | Backbone, str]:
    """The known network if the weights fit it, else the one that names and shapes show.

    The text names another network that fits as well if nothing decides between them.
    """
    shapes = {name: tuple(value.shape) for name, value in detected.state.items()}
    config, ambiguity = known, ""
    if config is None:
        inferred, _ = infer_config(shapes, detected.norm)
        unseen = detected.dialect.unseen(inferred)
        inferred = inferred.replace(**unseen)
        outside = [
            n for n in (*detected.left, *detected.heads) if n in state and state[n].ndim == 4
        ]
        config, reason, ambiguity = choose_lookalike(
            inferred,
            contents.path,
            contents.metadata,
            outside,
            in_memory=contents.format == in_memory.FORMAT,
        )
        notes += [text for text in (ambiguity, reason) if text]
        if config == inferred:
            notes.append(
                f"not visible in names and shapes, so the usual values are assumed: {ASSUMED}"
            )
        if unseen:
            values = ", ".join(f"{name}={value!r}" for name, value in unseen.items())
            notes.append(f"as in all files of {detected.dialect.title}: {values}")
    config = config.replace(**detected.fields)
    network, problem = match_network(config, detected.state, classifier="fc.weight" in shapes)
    if network is not None:
        return network, ambiguity
    if known is None:
        raise CheckpointError(f"{problem}. The file is incomplete, or is not a ResNeXt.")
    try:
        looks = f"its weights are those of {title(infer_config(shapes, detected.norm).config)}"
    except CheckpointError as error:
        looks = str(error)
    raise CheckpointError(f"it should be {title(config)}, but {problem}; {looks}")


def match_network(
    config: ResNeXtConfig, state: Mapping[str, Tensor], *, classifier: bool = True
) -> tuple[ResNeXt | Backbone | None, str]:
    """The network of a config on the meta device, if it has exactly these tensors.

    Args:
        config: The architecture.
        state: Tensors by name.
        classifier: Whether the network has a last layer.

    Returns:
        The network and an empty text; or None and the first tensor that differs.
    """
    try:
        with torch.device("meta"), SkipInit():
            network = ResNeXt(config) if classifier else Backbone(config)
    except (RuntimeError, TypeError, ConfigError) as error:
        return None, f"no network can have these sizes ({str(error).partition(chr(10))[0]})"
    wanted = network.state_dict()
    for key in wanted | dict(state):
        a, b = _shape_of(wanted.get(key)), _shape_of(state.get(key))
        if a != b:
            return None, f"{key} should be {a} and is {b}"
    return network, ""


class SkipInit(TorchFunctionMode):
    """Skips random initialization, which takes as long as reading a large network's weights."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def _shape_of(tensor: Tensor | None) -> str:
    if tensor is None:
        return "absent"
    kind = "" if tensor.is_floating_point() else " of integers"
    return f"{tuple(tensor.shape)}{kind}"
