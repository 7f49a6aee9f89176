"""Optimizers, learning rate schedule, weight average and loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resnext.errors import ConfigError
from resnext.network import ResNeXt
from resnext.training.recipe import Recipe


def parameter_groups(
    network: nn.Module,
    weight_decay: float,
    layer_decay: float = 1.0,
    frozen: Iterable[nn.Module] = (),
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, without weight decay on norms and biases.

    Each group has a `scale` for its learning rate: 1 for the classifier, `layer_decay` for the last
    stage, its square for the one before, and so on down to the stem. With a `layer_decay` of 1
    there are two groups. Parameters of `frozen` modules are left out.
    """
    stages = sorted({name.split(".")[0] for name, _ in network.named_children()} & _STAGES)
    depth = {stage: len(stages) - i for i, stage in enumerate(stages)} | {"fc": 0}
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    kept = {id(parameter) for module in frozen for parameter in module.parameters()}
    for name, parameter in network.named_parameters():
        if id(parameter) in kept:
            continue
        below = depth.get(name.split(".")[0], len(stages) + 1)  # the stem has no stage name
        scale, decayed = layer_decay**below, parameter.ndim > 1
        group = groups.setdefault(
            (scale, decayed),
            {"params": [], "weight_decay": weight_decay if decayed else 0.0, "scale": scale},
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups, key=lambda k: (-k[0], not k[1]))]


_STAGES = {f"layer{i}" for i in range(1, 10)}


def optimizer(network: ResNeXt, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer, fused where torch has a fused version.

    Raises:
        ConfigError: The optimizer needs a package that is not installed.
    """
    frozen = frozen_parts(network, recipe.frozen_stages)
    groups = parameter_groups(network, recipe.weight_decay, recipe.layer_decay, frozen)
    fused = not recipe.head_epochs  # fused optimizers need all parameters of a group to have state
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
            "The optimizer lamb needs pytorch_optimizer, which is not installed: "
            'pip install "resnext[train]".'
        ) from error
    return Lamb(groups, lr=recipe.learning_rate)


def lr_schedule(recipe: Recipe, step: float, steps: int) -> float:
    """Factor on the highest learning rate at a step: linear warm-up, then the schedule.

    Args:
        recipe: Warm-up, schedule and milestones.
        step: Number of the step, from 0; a fraction after the run was replanned.
        steps: Number of steps of the run.
    """
    warmup = round(steps * recipe.warmup)
    if step < warmup:
        return (step + 1) / warmup
    if recipe.schedule == "step":
        return 0.1 ** sum(step >= round(part * steps) for part in recipe.milestones)
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))


class EMA:
    """Exponential moving average of a network's weights and batch norm statistics.

    The decay is `min(decay, (1 + step) / (10 + step))`: it starts low, so that the average of a
    short run does not stay close to the initial weights.

    Args:
        network: Copied as the first average.
        decay: Factor on the old average at each step.
    """

    def __init__(self, network: ResNeXt, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, network: ResNeXt, step: int) -> None:
        """Update the average with the weights after step number `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        average, current = self.network.state_dict(), network.state_dict()
        moving = [name for name, x in average.items() if x.is_floating_point()]
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            [average[name] for name in moving], [current[name] for name in moving], 1 - decay
        )
        for name in average.keys() - set(moving):  # batch counters
            average[name].copy_(current[name])


def loss(
    recipe: Recipe,
    logits: Float[Tensor, "n k"],
    targets: Float[Tensor, "n k"],
    weights: Float[Tensor, " k"] | None,
) -> Float[Tensor, ""]:
    """Mean loss of a batch with soft targets.

    Args:
        recipe: Cross-entropy, or binary cross-entropy for each class.
        logits: Output of the network.
        targets: Probability of each class.
        weights: Weight of each class; None weighs all equally.
    """
    if recipe.loss == "binary":
        return nn.functional.binary_cross_entropy_with_logits(
            logits, targets, weight=weights, reduction="sum"
        ) / len(logits)
    each = -targets * logits.log_softmax(1)
    return (each if weights is None else each * weights).sum(1).mean()


def frozen_parts(network: ResNeXt, stages: int) -> list[nn.Module]:
    """The stem's modules and the first stages, those that `frozen_stages` of a recipe freezes."""
    if stages < 0:
        return []
    return [network.conv1, network.bn1, *network.stages[:stages]]


def freeze_norms(network: nn.Module) -> None:
    """Keep the statistics and weights of all batch norms fixed."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            for parameter in module.parameters():
                parameter.requires_grad_(False)
