"""Fold batch norms into convolutions: fewer layers that compute the same function."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnext.layers import WSConv2d
from resnext.network import ResNeXt, Trunk

T = TypeVar("T", bound=Trunk)


def fold(network: T) -> T:
    """A copy for inference whose batch norms are part of the convolutions before them.

    Weight-standardized convolutions become plain ones. Norms whose statistics come from the
    input, such as group norms, are kept. Folding computes in double precision.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for module in list(network.modules()):
        if isinstance(module, WSConv2d):
            module.weight = nn.Parameter(module.standardized(), requires_grad=False)
            setattr(module, "__class__", nn.Conv2d)  # noqa: B010 (it computes like one now)
    for module in list(network.modules()):
        for (_, conv), (name, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Sequential) and len(conv):
                conv = conv[-1]
            if isinstance(norm, _BatchNorm) and isinstance(conv, nn.Conv2d):
                if norm.running_mean is None or norm.running_var is None:
                    continue
                _fold(conv, norm, norm.running_mean.double(), norm.running_var.double())
                setattr(module, name, nn.Identity())
    return network


def _fold(conv: nn.Conv2d, norm: _BatchNorm, mean: Tensor, var: Tensor) -> None:
    """Apply the norm after a convolution to its weights and bias, in place."""
    scale = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    dtype = conv.weight.dtype
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(dtype), requires_grad=False)


class LogitsAndMap(nn.Module):
    """A classifier that also returns its last feature map: the module that engines explain with."""

    def __init__(self, network: ResNeXt) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, x: Float[Tensor, "n c h w"]
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n d h2 w2"]]:
        """Logits and last feature maps."""
        last = self.network.features(x)[-1]
        return self.network.fc(self.network.avgpool(last).flatten(1)), last


class LogitsAndEmbedding(nn.Module):
    """A classifier that also returns its embeddings: the module that engines compute."""

    def __init__(self, network: ResNeXt) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, x: Float[Tensor, "n c h w"]
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n d"]]:
        """Logits and embeddings."""
        embedding = self.network.embed(x)
        return self.network.fc(embedding), embedding
