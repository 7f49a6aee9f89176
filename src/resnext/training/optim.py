"""Optimizers, the course of the rate, the average of the weights, and the loss."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resnext.errors import ConfigError
from resnext.network import ResNeXt
from resnext.training.recipe import Recipe


def parameter_groups(
    network: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Parameters for an optimizer: those of norms and biases without weight decay.

    Each group has a `scale` for its rate: 1 for the classifier, `layer_decay` for the last stage,
    its square for the one before, and so on down to the stem. With a `layer_decay` of 1 there are
    two groups.
    """
    stages = sorted({name.split(".")[0] for name, _ in network.named_children()} & _STAGES)
    depth = {stage: len(stages) - i for i, stage in enumerate(stages)} | {"fc": 0}
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        below = depth.get(name.split(".")[0], len(stages) + 1)  # the stem has no number
        scale, decayed = layer_decay**below, parameter.ndim > 1
        group = groups.setdefault(
            (scale, decayed),
            {"params": [], "weight_decay": weight_decay if decayed else 0.0, "scale": scale},
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups, key=lambda k: (-k[0], not k[1]))]


_STAGES = {f"layer{i}" for i in range(1, 10)}


def optimizer(network: ResNeXt, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer, in its fused form where torch has one.

    Raises:
        ConfigError: It needs a library that is not installed.
    """
    groups = parameter_groups(network, recipe.weight_decay, recipe.layer_decay)
    fused = not recipe.head_epochs  # fused steps want all parameters of a group to begin together
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
            fused=fused,
        )
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=fused)
    try:
        from pytorch_optimizer import Lamb
    except ImportError as error:
        raise ConfigError(
            "The optimizer lamb comes with pytorch_optimizer, which is not installed: "
            'pip install "resnext[train]".'
        ) from error
    return Lamb(groups, lr=recipe.learning_rate)


def lr_schedule(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate of a step over its highest: a linear rise, then the schedule."""
    rise = round(steps * recipe.warmup)
    if step < rise:
        return (step + 1) / rise
    if recipe.schedule == "step":
        return 0.1 ** sum(step >= round(part * steps) for part in recipe.milestones)
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(steps - rise, 1))


class EMA:
    """A moving average of a network's weights and statistics.

    Its decay starts small, as `(1 + step) / (10 + step)`, so that short runs forget how the
    weights began.
    """

    def __init__(self, network: ResNeXt, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, network: ResNeXt, step: int) -> None:
        """Move towards the network as it is after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = self.network.state_dict(), network.state_dict()
        moving = [name for name, x in mine.items() if x.is_floating_point()]
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            [mine[name] for name in moving], [theirs[name] for name in moving], 1 - decay
        )
        for name in mine.keys() - set(moving):  # numbers of batches
            mine[name].copy_(theirs[name])


def loss(
    recipe: Recipe,
    logits: Float[Tensor, "n k"],
    targets: Float[Tensor, "n k"],
    weights: Float[Tensor, " k"] | None,
) -> Float[Tensor, ""]:
    """Mean loss of a batch for soft targets; `weights` weigh the classes."""
    if recipe.loss == "binary":
        return nn.functional.binary_cross_entropy_with_logits(
            logits, targets, weight=weights, reduction="sum"
        ) / len(logits)
    each = -targets * logits.log_softmax(1)
    return (each if weights is None else each * weights).sum(1).mean()


def freeze_norms(network: nn.Module) -> None:
    """Let batch norms keep their statistics and weights."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            for parameter in module.parameters():
                parameter.requires_grad_(False)
