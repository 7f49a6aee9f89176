"""LayerCAM and integrated gradients. No hooks: the stages are called one by one."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from resnext.card import Preprocessing
from resnext.data.transforms import normalized
from resnext.explanation.classes import Target
from resnext.network import ResNeXt

_STEPS = 48  # points of the integral, by Gauss and Legendre
_BATCH = 8


def layercam(
    network: ResNeXt,
    x: UInt8[np.ndarray, "h w c"],
    preprocessing: Preprocessing,
    target: Target,
    stage: int,
) -> Float32[np.ndarray, "h2 w2"]:
    """Features times positive gradients, summed over channels (Jiang et al., LayerCAM, TIP 2021).

    Args:
        network: A network in evaluation mode.
        x: Pixels.
        preprocessing: How to normalize them.
        target: The explained number.
        stage: The stage, counted from 1.
    """
    images = _input(network, x, preprocessing)
    with torch.no_grad():
        features = network.features(images, depth=stage)[-1]
    features = features.detach().requires_grad_()
    with torch.enable_grad():
        y = features
        for module in network.stages[stage:]:
            y = module(y)
        logits = network.fc(network.avgpool(y).flatten(1))
        (gradient,) = torch.autograd.grad(_score(logits, target).sum(), features)
    values = (gradient.float().relu() * features.detach().float()).sum(1).relu()
    return values[0].cpu().numpy()


def integrated_gradients(
    network: ResNeXt, x: UInt8[np.ndarray, "h w c"], preprocessing: Preprocessing, target: Target
) -> tuple[Float32[np.ndarray, "h w"], float]:
    """Each pixel's share of the change from an image of the mean colour (arXiv:1703.01365).

    Args:
        network: A network in evaluation mode.
        x: Pixels.
        preprocessing: How to normalize them.
        target: The explained number.

    Returns:
        The shares, and the explained number of the image of the mean colour.
    """
    image = _input(network, x, preprocessing)
    points, weights = np.polynomial.legendre.leggauss(_STEPS)
    steps, weights = torch.tensor((points + 1) / 2), torch.tensor(weights / 2)
    total = torch.zeros(image.shape[1:], dtype=torch.float64, device=image.device)
    for some, weight in zip(steps.split(_BATCH), weights.split(_BATCH), strict=True):
        inputs = (some.to(image).view(-1, 1, 1, 1) * image).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(_score(network(inputs), target).sum(), inputs)
        total += (weight.to(total).view(-1, 1, 1, 1) * gradient.double()).sum(0)
    shares = (total * image[0].double()).sum(0)
    with torch.no_grad():
        start = float(_score(network(torch.zeros_like(image)), target)[0])
    return shares.float().cpu().numpy(), start


def _input(
    network: ResNeXt, x: UInt8[np.ndarray, "h w c"], preprocessing: Preprocessing
) -> Float[Tensor, "1 c h w"]:
    weight = network.fc.weight
    return normalized(torch.from_numpy(x[None].copy()).to(weight.device), preprocessing).to(
        weight.dtype
    )


def _score(logits: Float[Tensor, "n k"], target: Target) -> Float[Tensor, " n"]:
    """The explained number of each image."""
    weights = torch.from_numpy(target.weights(logits.shape[1])).to(logits.device)
    return logits.double() @ weights
