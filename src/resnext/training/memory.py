"""Memory of a training step, and the parts of a batch that fit into a container's limit."""

from __future__ import annotations

import torch
from torch import Tensor

from resnext.config import ResNeXtConfig
from resnext.data.workers import processes_here
from resnext.network import ResNeXt
from resnext.system.limits import total_memory
from resnext.training.distributed import ProcessGroup
from resnext.training.recipe import Recipe

_PROCESS = 600 * 2**20
"""Python, torch, and scratch memory of convolutions."""
_BESIDE = 1.3
"""All memory for an image as a multiple of the activations that are kept for its gradients; 1.1 to
1.25 was measured for four networks from 32 to 224 pixels."""
_SHARE = 0.8
"""Part of the memory that the steps of all processes may take; workers and files need some too."""


def activation_bytes(config: ResNeXtConfig, size: int) -> int:
    """Bytes that a forward pass keeps for the gradients of one image; nothing is computed."""
    with torch.device("meta"):
        network = ResNeXt(config).train()
        images = torch.zeros(2, config.in_channels, size, size)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage._cdata] = storage
        return x

    own = {x.untyped_storage()._cdata for x in network.state_dict().values()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        network(images)
    return sum(x.nbytes() for key, x in kept.items() if key not in own) // len(images)


def step_bytes(network: ResNeXt, recipe: Recipe, size: int, images: int) -> int:
    """Bytes of memory that a process needs to train on so many images at once, roughly."""
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    copies = 2 + (1 if recipe.optimizer == "sgd" else 2) + bool(recipe.ema)  # with gradients
    kept = activation_bytes(network.config, recipe.train_size or size)
    return _PROCESS + copies * weights + int(_BESIDE * images * kept)


def parts_that_fit(network: ResNeXt, recipe: Recipe, size: int, group: ProcessGroup) -> int:
    """In how many parts a batch fits into memory: the fewest, or the most if it never fits.

    The memory is all that cgroups allow, not what is free now, so that equal runs on a machine are
    equal.
    """
    memory = total_memory()
    if memory is None:
        return 1
    room, images = _SHARE * memory / processes_here(), recipe.batch_size // group.world
    least, one = (step_bytes(network, recipe, size, count) for count in (0, 1))
    able = [n for n in range(1, images // 2 + 1) if images % n == 0]
    fits = (n for n in able if least + images // n * (one - least) <= room)
    return next(fits, able[-1])
