"""PyTorch as an engine: eager, compiled, or through TensorRT; on a CPU or a GPU.

torch is imported only by functions that need it, so that other engines predict without it.
"""

from __future__ import annotations

import copy
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

from resnext.card import Card, Preprocessing, card_of
from resnext.config import ResNeXtConfig
from resnext.inference.engines.base import Engine, EngineConfig, InputKind
from resnext.inference.runner import Classifier, MapOutputs, MapSession, Outputs, Session
from resnext.system.forks import change_after_fork, one_thread_after_fork, refuse_after_fork

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from resnext.inference.engines.builder import EngineBuilder
    from resnext.network import ResNeXt


class Torch(Engine):
    """Eager PyTorch with channels last in memory."""

    name = "torch"
    title = "PyTorch"
    package = "torch"
    install_hint = "torch"

    def precisions(self, device: str) -> tuple[str, ...]:
        """Half precision (fp16) needs a GPU."""
        return ("fp32", "bf16") if device == "cpu" else ("fp32", "bf16", "fp16")

    def build(self, source: EngineBuilder, form: EngineConfig, kind: InputKind) -> Session:
        """A session of a copy of the folded network."""
        return self._session(source, form, kind, maps=False)

    def build_maps(self, source: EngineBuilder, form: EngineConfig, kind: InputKind) -> MapSession:
        """A session of a copy of the folded network that returns feature maps."""
        return self._session(source, form, kind, maps=True)

    def _session(
        self, source: EngineBuilder, form: EngineConfig, kind: InputKind, *, maps: bool
    ) -> TorchSession:
        import torch

        from resnext.system.device import DTYPES

        self.load()  # registers TensorRT with torch
        dtype = DTYPES[form.precision]
        network = copy.deepcopy(source.folded).to(source.device, dtype)
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        preprocessing = source.preprocessing if kind == "pixels" else None
        options = self.compiler_options(source.device.type)
        return TorchSession(
            network, dtype, preprocessing, piece=form.piece, compile=options, maps=maps
        )

    def compiler_options(self, device: str) -> dict[str, Any] | None:
        """Arguments of `torch.compile` on a type of device; None to run eagerly."""
        return None


class Compile(Torch):
    """`torch.compile` with frozen weights; on a GPU replayed as CUDA graphs."""

    name = "compile"
    title = "torch.compile"
    slow_to_build = ("cpu",)

    def compiler_options(self, device: str) -> dict[str, Any] | None:
        """Inductor, torch's own compiler."""
        if device == "cuda":
            return {"options": {"freezing": True, "triton.cudagraphs": True}}
        return {"options": {"freezing": True}}


class TensorRT(Torch):
    """NVIDIA's TensorRT through torch_tensorrt."""

    name = "tensorrt"
    title = "TensorRT"
    package = "torch_tensorrt"
    install_hint = "torch-tensorrt"

    def precisions(self, device: str) -> tuple[str, ...]:
        """None except on NVIDIA GPUs."""
        return super().precisions(device) if device == "cuda" else ()

    def compiler_options(self, device: str) -> dict[str, Any] | None:
        """The backend that torch_tensorrt registers."""
        return {"backend": "tensorrt"}


class TorchSession:
    """A network in evaluation mode as a session.

    Args:
        network: The network, on the device to run on; it is not copied.
        dtype: Compute precision; the network's parameters must have it.
        preprocessing: How to normalize pixels; None for images that are normalized already.
        piece: Images computed at once; None for all.
        compile: Arguments of `torch.compile`, to compile for pieces of exactly this size; None to
            run eagerly.
        channels_last: Whether the channels of a pixel are adjacent in memory.
        maps: Whether to return the last feature maps instead of embeddings.
    """

    def __init__(
        self,
        network: ResNeXt,
        dtype: torch.dtype,
        preprocessing: Preprocessing | None = None,
        *,
        piece: int | None = None,
        compile: dict[str, Any] | None = None,
        channels_last: bool = True,
        maps: bool = False,
    ) -> None:
        import torch

        from resnext.inference.fold import LogitsAndEmbedding, LogitsAndMap

        self._device, self._dtype = network.fc.weight.device, dtype
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._preprocessing, self._piece = preprocessing, piece
        self._exact = compile is not None
        self._process = os.getpid()
        self._guard: Any = threading.Lock() if self._exact else nullcontext()
        self._module: nn.Module = LogitsAndMap(network) if maps else LogitsAndEmbedding(network)
        if compile is not None:
            self._module = torch.compile(self._module, dynamic=False, **compile)  # pyright: ignore

    @property
    def survives_fork(self) -> bool:
        """Whether a forked process can go on using it: not if compiled, nor on a GPU."""
        return not self._exact and self._device.type == "cpu"

    def __call__(self, x: Shaped[np.ndarray, "n _ _ _"]) -> Outputs:
        """Logits, and embeddings or feature maps, of any number of images.

        Raises:
            ResourceError: The process was forked after the session was opened, and the network is
                compiled or on a GPU.
        """
        import torch

        if not self.survives_fork:
            refuse_after_fork(self._process, "A compiled network" if self._exact else "CUDA")
        one_thread_after_fork().begun = True

        images = torch.from_numpy(np.require(x, requirements=["C", "W"]))
        piece = self._piece or max(len(x), 1)
        starts = range(0, max(len(x), 1), piece)
        results = [self._compute(images[i : i + piece], piece) for i in starts]
        logits, others = (torch.cat(some).cpu().numpy() for some in zip(*results, strict=True))
        return logits, others

    def _compute(self, x: Tensor, piece: int) -> tuple[Tensor, ...]:
        import torch

        from resnext.data.transforms import normalized

        with torch.no_grad() if self._exact else torch.inference_mode(), self._guard:
            x = x.to(self._device, non_blocking=True)
            if self._preprocessing is not None:
                x = normalized(x, self._preprocessing)
            count = len(x)
            if self._exact and count < piece:
                x = torch.cat([x, x.new_zeros(piece - count, *x.shape[1:])])
            x = x.to(self._dtype).contiguous(memory_format=self._format)
            return tuple(y[:count].float().clone() for y in self._module(x))


def weights_digest(network: ResNeXt) -> str:
    """SHA-256 of config, preprocessing and weights."""
    import torch

    preprocessing = None if network.card is None else network.card.preprocessing
    digest = hashlib.sha256(repr((network.config, preprocessing)).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())  # bf16 too
    return digest.hexdigest()


class TorchRunner:
    """An unmodified network as a runner, in the fastest layout and batch size of its device.

    Args:
        network: A network in evaluation mode, on the device to run on.

    Attributes:
        network: The network.
    """

    def __init__(self, network: ResNeXt) -> None:
        from resnext.system.device import inference_batch

        self.card: Card = card_of(network)
        device = network.fc.weight.device
        self.batch = inference_batch(device)
        self.config: ResNeXtConfig = network.config
        dtype, preprocessing = network.fc.weight.dtype, self.card.preprocessing
        self.network = network
        self._session, self._maps = (
            TorchSession(
                network, dtype, preprocessing, channels_last=device.type == "cpu", maps=maps
            )
            for maps in (False, True)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """What a copy or another process opens again."""
        return type(self), (self.network,)

    @property
    def fingerprint(self) -> str:
        """Differs between models that may predict differently."""
        return weights_digest(self.network)

    def pixels(self, x: Shaped[np.ndarray, "n h w c"]) -> Outputs:
        """Logits and embeddings of pixels as `data.decoding.pixels` returns them."""
        with evaluating(self.network):  # it may be training again by now
            return self._session(x)

    @property
    def classifier(self) -> Classifier:
        """The last layer of the network."""
        return classifier_of(self.network)

    def maps(self, x: Shaped[np.ndarray, "n h w c"]) -> MapOutputs:
        """Logits and last feature maps of pixels as `data.decoding.pixels` returns them."""
        with evaluating(self.network):
            return self._maps(x)


def classifier_of(network: ResNeXt) -> Classifier:
    """The last layer of a network, in single precision on the CPU."""
    weight, bias = (p.detach().float().cpu().numpy() for p in (network.fc.weight, network.fc.bias))
    return Classifier(weight, bias)


class _Modes:
    """How many contexts hold a module in evaluation mode, and the mode it had before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[int, tuple[int, bool]] = {}  # by id of a module
        change_after_fork(self)

    def after_fork(self) -> None:
        """Replace the lock, which another thread may have held."""
        self._lock = threading.Lock()

    def hold(self, network: nn.Module, modules: Sequence[nn.Module]) -> bool:
        """Put a network in evaluation mode until `release` is called.

        Returns:
            Whether it is held: not if it was in that mode, and no other context will change it.
        """
        with self._lock:
            if not any(module.training or id(module) in self._held for module in modules):
                return False
            for module in modules:
                count, training = self._held.get(id(module), (0, module.training))
                self._held[id(module)] = count + 1, training
            network.eval()
            return True

    def release(self, modules: Sequence[nn.Module]) -> None:
        """Restore the modes of modules that no other context holds."""
        with self._lock:
            for module in modules:
                count, training = self._held.pop(id(module))
                if count > 1:
                    self._held[id(module)] = count - 1, training
                else:
                    module.training = training


_MODES = _Modes()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context; afterwards each module is in its previous mode.

    Contexts may be nested, overlap in several threads, and share modules: the last one that ends
    restores a module's mode.
    """
    modules = [*network.modules()]  # also keeps their ids from being used again
    held = _MODES.hold(network, modules)
    try:
        yield
    finally:
        if held:
            _MODES.release(modules)
