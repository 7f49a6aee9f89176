"""The `model` argument of `train`: a name, a config, a config file or a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resnext.card import Card
from resnext.checks import brief
from resnext.config import ResNeXtConfig
from resnext.errors import ConfigError, ConfigTypeError
from resnext.network import ResNeXt
from resnext.weights.catalog import is_path
from resnext.weights.config_source import architecture_of, is_config_file, read_architecture
from resnext.weights.load import adapted, network_of
from resnext.weights.match import match_network
from resnext.weights.resolve import ResolvedCheckpoint


def read_model(model: Any) -> str | ResNeXtConfig | ResNeXt | None:
    """The `model` argument, with config files and dictionaries of fields read.

    Raises:
        ConfigTypeError: It is of a type from which no ResNeXt can be trained.
        ConfigError: It is a model file, or does not describe a valid network.
        MissingFileError: The config file does not exist.
    """
    if model is None or isinstance(model, ResNeXtConfig) or type(model) is ResNeXt:
        return model
    if isinstance(model, Mapping):
        return architecture_of(model)
    if isinstance(model, str | Path):
        name = str(model)
        if is_config_file(name):
            return read_architecture(name)
        if isinstance(model, Path) or is_path(name):
            raise ConfigError(
                f"{name} is not a config file, whose name ends in .json or .py. Give a file of "
                f"weights as weights (--weights)."
            )
        return name
    hint = ""
    if isinstance(model, nn.Module):
        hint = " Save its state_dict with torch.save, and give that file as weights."
    raise ConfigTypeError(
        f"A model must be a variant's name, a ResNeXtConfig, a config file or a ResNeXt, not "
        f"{brief(model)}.{hint}"
    )


def network_copy(network: ResNeXt, num_classes: int, in_channels: int) -> ResNeXt:
    """A copy to train: in single precision, on the CPU, for these classes and channels.

    The classifier is replaced if it has another number of classes, and the first convolution is
    adapted to other channels, as by `load`.

    Args:
        network: The network that the caller passed; it is not changed.
        num_classes: Number of classes.
        in_channels: Channels of the images.

    Raises:
        ConfigError: A parameter is frozen or has no values, or the network is not what its config
            says, because its layers were replaced.
        CheckpointError: The network's channels cannot be changed.
    """
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            raise ConfigError(
                f"{name} has requires_grad=False, but a recipe trains all layers. Call "
                f"requires_grad_(True); head_epochs=… trains only the classifier at first."
            )
        if parameter.is_meta:
            raise ConfigError(f"{name} is on the meta device, without values. Load weights first.")
    state = {
        name: value.detach()
        .to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        .contiguous()
        for name, value in network.state_dict().items()
    }
    config = network.config
    if "fc.weight" in state:  # `network.fc = nn.Linear(…)` leaves the config as it was
        config = config.replace(num_classes=len(state["fc.weight"]))
    same, problem = match_network(config, state)
    problem = problem or _replaced_layer(network, same)
    if problem:
        raise ConfigError(
            f"The network is not what its config says: {problem}. Train an unmodified ResNeXt, "
            f"built from the config that you want."
        )
    assert isinstance(same, ResNeXt)
    checkpoint = ResolvedCheckpoint(Path(), None, state, network.card or Card(), same)
    copy = network_of(adapted(checkpoint, num_classes, in_channels))
    assert isinstance(copy, ResNeXt)
    if network.card is None:
        copy.card = None
    return copy


def _replaced_layer(network: nn.Module, wanted: nn.Module | None) -> str:
    """The first layer that differs from the config's in type or settings; empty if none does."""
    assert wanted is not None, "the tensors fit"
    layers, own = (
        {name: f"{type(m).__name__}({m.extra_repr()})" for name, m in net.named_modules()}
        for net in (network, wanted)
    )
    for name in own | layers:
        if layers.get(name) != own.get(name):
            return f"{name} is {layers.get(name, 'absent')}, not {own.get(name, 'absent')}"
    return ""
