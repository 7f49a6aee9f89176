"""Adapts a checkpoint to another number of input channels or classes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from resnext.card import Card
from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError

Fitted = tuple[ResNeXtConfig, dict[str, Tensor], Card]


def fit_input(
    config: ResNeXtConfig, state: dict[str, Tensor], card: Card, in_channels: int, notes: list[str]
) -> Fitted:
    """Config, state and card with another number of input channels.

    The filters of the first convolution are repeated cyclically and divided by the number of
    repetitions: an image whose new channels repeat the old ones gives the same activations. For one
    channel the filters are summed: a grey image gives the same as three equal channels. Image files
    also pass through the card's preprocessing, whose mean and deviation for grey are averages over
    the colours, so predictions are close to those in colour, but not equal.

    Raises:
        ConfigError: `in_channels` is not positive.
        CheckpointError: Convolutions standardize their weights, so filters cannot keep their scale.
    """
    changed = config.replace(in_channels=in_channels)
    if config.conv in ("weight_standardized", "affine_weight_standardized"):
        raise CheckpointError(
            "in_channels cannot be changed: the convolutions standardize their weights, so that "
            "filters cannot keep their scale. Train with the channels that you need."
        )
    name = "conv1.weight" if "conv1.weight" in state else "conv1.0.weight"
    weight, old = state[name], config.in_channels
    sources = [i % old for i in range(in_channels)]
    if in_channels == 1:
        weight, change = weight.sum(1, keepdim=True), "summed"
    elif in_channels < old:
        weight, change = weight[:, sources] * (old / in_channels), "partly kept and scaled"
    else:
        counts = torch.tensor([sources.count(i) for i in sources], dtype=weight.dtype)
        weight, change = weight[:, sources] / counts.view(1, -1, 1, 1), "repeated and divided"
    notes.append(f"first convolution for {in_channels} channels: its {old} filters {change}")
    preprocessing = card.preprocessing
    if in_channels in (1, 3) and old in (1, 3):
        mean, std = (
            (sum(x) / len(x),) * in_channels for x in (preprocessing.mean, preprocessing.std)
        )
        colour = "L" if in_channels == 1 else "RGB"
        notes.append("preprocessing: mean and deviation averaged over the colours")
        preprocessing = replace(preprocessing, mean=mean, std=std, colour=colour)
    elif in_channels not in (1, 3):
        notes.append(f"preprocessing does not say how to normalize {in_channels} channels")
    state = {**state, name: weight.contiguous()}
    return changed, state, replace(card, preprocessing=preprocessing)


def fit_classifier(
    config: ResNeXtConfig, state: dict[str, Tensor], card: Card, num_classes: int, notes: list[str]
) -> Fitted:
    """Config, state and card with an untrained classifier, initialized as a linear layer of torch.

    Raises:
        ConfigError: `num_classes` is not positive.
    """
    changed = config.replace(num_classes=num_classes)
    dtype = next(value.dtype for value in state.values() if value.is_floating_point())
    fresh = nn.Linear(config.stages[-1].out_channels, num_classes, dtype=dtype)
    notes.append(
        f"everything kept but the classifier, which is new and untrained: {num_classes} classes"
    )
    kept = {name: value for name, value in state.items() if not name.startswith("fc.")}
    new = {f"fc.{name}": value.detach() for name, value in fresh.named_parameters()}
    return changed, {**kept, **new}, card.without_classes()
