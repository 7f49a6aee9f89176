"""Torch as an engine: eager or compiled, on a processor or a GPU."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from resnext.card import Card, Preprocessing, card_of
from resnext.config import ResNeXtConfig
from resnext.data.transforms import normalized
from resnext.inference.fold import LogitsAndEmbedding
from resnext.inference.runner import Outputs, engine_package
from resnext.network import ResNeXt


class TorchSession:
    """A network in evaluation mode as an engine.

    Args:
        network: The network; it is used as it is, on the device it is on.
        dtype: What to compute in; the network's type must be the same.
        how: What pixels are normalised with; None for images that are normalised already.
        piece: Images that it computes at once; None for all.
        compile: "compile" for torch's own compiler, "tensorrt" for NVIDIA's, for pieces of exactly
            this size; on a GPU replayed as CUDA graphs.
        channels_last: Whether each pixel's channels lie side by side in memory.
    """

    def __init__(
        self,
        network: ResNeXt,
        dtype: torch.dtype,
        how: Preprocessing | None = None,
        *,
        piece: int | None = None,
        compile: str | None = None,
        channels_last: bool = True,
    ) -> None:
        self._device, self._dtype = network.fc.weight.device, dtype
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._how, self._piece = how, piece
        module: nn.Module = LogitsAndEmbedding(network)
        self._exact = compile is not None
        self._guard: Any = threading.Lock() if compile else nullcontext()
        if compile == "tensorrt":
            engine_package("torch_tensorrt")  # makes itself known to torch
            module = torch.compile(module, backend="tensorrt", dynamic=False)  # pyright: ignore
        elif compile:
            options: dict[str, Any] = {"freezing": True}
            if self._device.type == "cuda":
                options["triton.cudagraphs"] = True
            module = torch.compile(module, dynamic=False, options=options)  # pyright: ignore
        self._module = module

    def __call__(self, x: Shaped[np.ndarray, "n _ _ _"]) -> Outputs:
        """Answers for any number of images."""
        logits, embeddings = self.tensors(torch.from_numpy(np.require(x, requirements=["C", "W"])))
        return logits.cpu().numpy(), embeddings.cpu().numpy()

    def tensors(self, x: Shaped[Tensor, "n _ _ _"]) -> tuple[Float[Tensor, "n k"], ...]:
        """The same, on the device."""
        piece = self._piece or max(len(x), 1)
        found = [self._answer(x[i : i + piece], piece) for i in range(0, max(len(x), 1), piece)]
        return tuple(torch.cat(some) for some in zip(*found, strict=True))

    def _answer(self, x: Tensor, piece: int) -> tuple[Tensor, ...]:
        with torch.inference_mode() if not self._exact else torch.no_grad(), self._guard:
            x = x.to(self._device, non_blocking=True)
            if self._how is not None:
                x = normalized(x, self._how)
            count = len(x)
            if self._exact and count < piece:
                x = torch.cat([x, x.new_zeros(piece - count, *x.shape[1:])])
            x = x.to(self._dtype).contiguous(memory_format=self._format)
            return tuple(y[:count].float().clone() for y in self._module(x))


def weights_digest(network: ResNeXt) -> str:
    """SHA-256 of config, preprocessing and weights."""
    how = None if network.card is None else network.card.preprocessing
    found = hashlib.sha256(repr((network.config, how)).encode())
    for name, tensor in network.state_dict().items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())  # bf16 too
    return found.hexdigest()


class TorchRunner:
    """A network as it is, as what prediction needs."""

    batch = 64

    def __init__(self, network: ResNeXt) -> None:
        """Take a network in evaluation mode, on the device it shall run on."""
        self.card: Card = card_of(network)
        self.config: ResNeXtConfig = network.config
        dtype = network.fc.weight.dtype
        self._network = network
        self._session = TorchSession(network, dtype, self.card.preprocessing, channels_last=False)

    @property
    def fingerprint(self) -> str:
        """Tells apart what may answer differently."""
        return weights_digest(self._network)

    def pixels(self, x: Shaped[np.ndarray, "n h w c"]) -> Outputs:
        """Answers for pixels as `pictures.pixels` makes them."""
        return self._session(x)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
