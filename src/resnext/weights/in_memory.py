"""Networks and state dicts that are in memory already: what `load` and `save` need from them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnext.backbone import Backbone
from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError
from resnext.network import ResNeXt
from resnext.weights.formats import wrappers
from resnext.weights.formats.reading import to_tensors

FORMAT = "state dict"
"""What stands for the format of a file."""
_TOLERANCE = 1e-3  # of the largest answer, for two networks computed in float32


def unwrapped(model: nn.Module) -> nn.Module:
    """The network in wrappers such as DataParallel, DistributedDataParallel or a compiled model."""
    children = dict(model.named_children())
    if not isinstance(model, ResNeXt | Backbone) and len(children) == 1:
        name, child = next(iter(children.items()))
        if name in wrappers.WRAPPERS:
            return unwrapped(child)
    return model


def gathered(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict with ordinary tensors for sharded ones that one process holds completely.

    Raises:
        CheckpointError: Weights are sharded over several processes.
    """
    return {name: _whole(value) for name, value in state.items()}


def _whole(value: Any) -> Any:
    if not hasattr(value, "full_tensor"):  # torch.distributed's DTensor
        return value
    if value.device_mesh.size() > 1:  # gathering would wait for processes that do not call this
        raise CheckpointError(
            f"The weights are sharded over {value.device_mesh.size()} processes. On each of them "
            f"call torch.distributed.checkpoint.state_dict.get_model_state_dict(model, options="
            f"StateDictOptions(full_state_dict=True)); resnext.load takes its result."
        )
    return value.full_tensor()


def own_parts(model: ResNeXt | Backbone) -> tuple[ResNeXtConfig, dict[str, Tensor]]:
    """Config and weights of a network of ours, whose `fc` may have been replaced.

    Raises:
        CheckpointError: Weights are sharded over several processes.
    """
    config = model.config
    state = to_tensors(place(model), wrappers.plain(gathered(model.state_dict())))
    fc = getattr(model, "fc", None)
    if isinstance(fc, nn.Linear):  # `model.fc = nn.Linear(…)` leaves the config as it was
        config = config.replace(num_classes=fc.out_features)
    return config, state


def check_answers(module: nn.Module, network: ResNeXt | Backbone) -> None:
    """Require that a module computes what the network read from its weights computes.

    Names and shapes of weights do not show strides, dilations or pooling, but answers do.

    Raises:
        CheckpointError: The module answers otherwise, or not with tensors of the same shape.
    """
    name = type(module).__name__
    size = max(network.config.min_size, 2 * network.config.stride)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((2, network.config.in_channels, size, size), generator=generator)
    try:
        with torch.no_grad():
            theirs = _last(deepcopy(module).cpu().float().eval()(images))
            ours = _last(network.eval()(images))
        same = theirs.shape == ours.shape
    except Exception as error:  # a foreign module can raise anything
        raise CheckpointError(
            f"The {name} cannot be run on images to compare its answers ({type(error).__name__}). "
            f"Pass its state_dict() to read the weights alone."
        ) from error
    if not same or (theirs - ours).abs().max() > _TOLERANCE * ours.abs().max():
        raise CheckpointError(
            f"The {name} has the weights of a ResNeXt, but computes something else, such as other "
            f"strides, dilations or pooling. Pass its architecture as config=, or its state_dict() "
            f"to read the weights alone."
        )


def _last(answer: Any) -> Tensor:
    """The answer, or the last of several."""
    if isinstance(answer, Mapping):
        answer = tuple(answer.values())
    return answer[-1] if isinstance(answer, list | tuple) else answer


def place(source: object) -> Path:
    """What stands for the path of a file in messages about something in memory."""
    return Path(FORMAT if isinstance(source, Mapping) else type(source).__name__)
