"""What an exported file computes: normalization, network, probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from resnext.backbone import Backbone
from resnext.card import Card
from resnext.checks import brief
from resnext.errors import InputError
from resnext.inference.fold import fold
from resnext.network import ResNeXt

if TYPE_CHECKING:
    from resnext.exporting.eight_bits import EightBits

Network = ResNeXt | Backbone
FileInput = Literal["images", "pixels", "picture"]
"""Normalized images `(n, c, h, w)`; pixels `(n, h, w, c)` of 8 bits, resized and cropped; or such
pixels of any size."""


def possible_outputs(network: Network) -> tuple[str, ...]:
    """Names of what a network can return, those that a file has by default first."""
    maps = tuple(f"c{i + 2}" for i in range(len(network.stages)))
    whole = ("embedding", "map") if len(maps) == network.config.num_stages else ()
    if isinstance(network, Backbone):
        wanted = tuple(f"c{i + 2}" for i in network.out_indices)
        first = ("c1", *wanted) if network.with_stem else wanted
    else:
        first = ("logits", "embedding") if isinstance(network.fc, nn.Linear) else ("embedding",)
    logits = ("logits", "probabilities") if "logits" in first else ()
    return tuple(dict.fromkeys((*first, *logits, *whole, "c1", *maps)))


def check_outputs(network: Network, outputs: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names of a file's outputs; None for the usual ones.

    Raises:
        InputError: The network has no such output, or a name comes twice.
    """
    known = possible_outputs(network)
    if outputs is None:
        if isinstance(network, Backbone):
            return known[: len(network.out_indices) + network.with_stem]
        return known[: 2 if "logits" in known else 1]
    names = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise InputError(
            f"outputs must be some of {', '.join(known)}, each once, not {brief(outputs)}."
        )
    return names


def named_outputs(
    network: Network, x: Float[Tensor, "n c h w"], temperature: float, names: Sequence[str]
) -> list[Tensor]:
    """What a network returns for normalized images.

    Args:
        network: The network; of stages after the last one that is named, none is computed.
        x: The images.
        temperature: Divisor of the logits before softmax.
        names: Names of the outputs, as `possible_outputs` returns them, or "maps": one for each
            class, whose means over their places are the logits without bias.
    """
    depths = [int(name[1:]) - 1 for name in names if name[0] == "c"]
    depth = max(depths) if len(depths) == len(names) else None
    stem = network.stem_map(x)
    stages = network.staged(network.maxpool(stem), depth)
    found = {"c1": stem} | {f"c{i + 2}": each for i, each in enumerate(stages)}
    if depth is None:
        found["map"] = last = stages[-1]
        found["embedding"] = embedding = last.mean((2, 3))
        if isinstance(network, ResNeXt) and isinstance(network.fc, nn.Linear):
            if "maps" in names:  # the weights of `fc` are stored once
                found["maps"] = maps = class_maps(network, last)
                logits = maps.mean((2, 3)) + network.fc.bias
            else:
                logits = network.fc(embedding)
            found |= {"logits": logits, "probabilities": (logits / temperature).softmax(1)}
    return [found[name] for name in names]


class ExportedModule(nn.Module):
    """A folded network with what stands before and after it.

    Args:
        network: The network; left unchanged.
        card: Normalization and temperature.
        inputs: "images", normalized `(n, c, h, w)`; otherwise `(n, h, w, c)` of 8 bits. A "picture"
            is resized before this module.
        outputs: Names of the outputs, as for `named_outputs`.
        half: Whether weights are stored in half precision. All is computed in single precision.

    Attributes:
        index: What a page shows beside the answer; see `page_index`.
        max_batch: The largest batch, for formats that need a bound.
        eight_bits: The plan that a file in 8 bits computes as, in place of the network.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: Network,
        card: Card,
        inputs: FileInput,
        outputs: tuple[str, ...],
        *,
        half: bool,
    ) -> None:
        super().__init__()
        self.network = fold(network).cpu().float()
        self.card = card
        self.inputs: FileInput = inputs
        self.outputs = outputs
        self.halved = half
        self.index = b""
        self.eight_bits: EightBits | None = None
        self.max_batch = 0
        for name in ("mean", "std"):
            values = 255 * torch.tensor(getattr(card.preprocessing, name), dtype=torch.float32)
            self.register_buffer(name, values.view(-1, 1, 1))
        if half:
            _store_in_half(self.network)

    def forward(self, x: Shaped[Tensor, "n _ _ _"]) -> tuple[Tensor, ...]:
        """The outputs, in their order."""
        if self.inputs != "images":
            x = (x.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return tuple(named_outputs(self.network, x, self.card.temperature, self.outputs))


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
