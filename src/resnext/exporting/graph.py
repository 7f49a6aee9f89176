"""What an exported file computes: normalization, network, probabilities."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from resnext.card import Card
from resnext.inference.engines.base import InputKind
from resnext.inference.fold import fold
from resnext.network import ResNeXt

OutputKind = Literal["logits", "probabilities"]


class ExportedModule(nn.Module):
    """A folded classifier with what stands before and after it.

    Args:
        network: The network; left unchanged.
        card: Normalization and temperature.
        inputs: "images", normalized `(n, c, h, w)`, or "pixels", `(n, h, w, c)` of 8 bits.
        output: "logits", or "probabilities": the softmax of logits over temperature.
        extras: Names of the outputs after the first: "embedding", and "map" or "maps", one per
            class, whose means over their places are the logits without bias.
        half: Whether weights are stored in half precision. All is computed in single precision.

    Attributes:
        index: What a page shows beside the answer; see `page_index`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: ResNeXt,
        card: Card,
        inputs: InputKind,
        output: OutputKind,
        extras: tuple[str, ...] = ("embedding", "map"),
        *,
        half: bool,
    ) -> None:
        super().__init__()
        self.network = fold(network).cpu().float()
        self.card = card
        self.inputs: InputKind = inputs
        self.extras = extras
        self.halved = half
        self.index = b""
        self.temperature = card.temperature if output == "probabilities" else None
        for name in ("mean", "std"):
            values = 255 * torch.tensor(getattr(card.preprocessing, name), dtype=torch.float32)
            self.register_buffer(name, values.view(-1, 1, 1))
        if half:
            _store_in_half(self.network)

    def forward(self, x: Shaped[Tensor, "n _ _ _"]) -> tuple[Tensor, ...]:
        """Logits or probabilities, and the extras."""
        if self.inputs == "pixels":
            x = (x.permute(0, 3, 1, 2).float() - self.mean) / self.std
        last = self.network.features(x)[-1]
        embedding = self.network.avgpool(last).flatten(1)
        if "maps" in self.extras:
            maps = class_maps(self.network, last)
            return maps.mean((2, 3)) + self.network.fc.bias, embedding, maps
        logits = self.network.fc(embedding)
        if self.temperature is not None:
            logits = (logits / self.temperature).softmax(1)
        return logits, embedding, last


def class_maps(network: ResNeXt, last: Float[Tensor, "n d h w"]) -> Float[Tensor, "n k h w"]:
    """What each place of the last feature map says for and against each class."""
    return nn.functional.conv2d(last, network.fc.weight[:, :, None, None])


class _Single(nn.Module):
    """Half precision to single precision."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.float()


def _store_in_half(network: nn.Module) -> None:
    """Keep weights of convolutions and linear layers in half the space, in place."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data = module.weight.data.half()
            register_parametrization(module, "weight", _Single(), unsafe=True)
