"""Grouped convolutions computed as fewer, wider ones.

A convolution with 32 groups of 4 channels equals one with 8 groups of 16 channels whose weights
between the original groups are zero. Wider groups use wide vector units better. The fastest width
is measured once per machine and kept in the cache folder.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from resnext.errors import CheckpointError
from resnext.system.atomic import write_bytes_atomically
from resnext.system.cache import cache_folder
from resnext.system.device import hardware
from resnext.system.digest import short_digest

_WIDTHS = (8, 16, 32, 64)


class MergedConv2d(nn.Conv2d):
    """A grouped convolution computed with `merged` neighbouring groups as one.

    Weights, gradients and state dict are those of the original convolution.
    """

    merged = 1

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h2 w2"]:
        """The output of the original `nn.Conv2d`."""
        weight = spread(self.weight, self.groups, self.merged)
        return F.conv2d(
            input,
            weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups // self.merged,
        )


def spread(weight: Float[Tensor, "k c h w"], groups: int, merged: int) -> Float[Tensor, "k c2 h w"]:
    """Weights of the equivalent convolution with `merged` times fewer groups.

    Args:
        weight: Weights of the original convolution.
        groups: Its number of groups, a multiple of `merged`.
        merged: Number of groups to compute as one.
    """
    k, c, h, w = weight.shape
    narrow = weight.view(groups // merged, merged, k // groups, 1, c, h, w)
    diagonal = torch.eye(merged, dtype=weight.dtype, device=weight.device)
    wide = narrow * diagonal.view(1, merged, 1, merged, 1, 1, 1)
    return wide.reshape(k, c * merged, h, w)


def merge_groups(network: nn.Module, choice: Mapping[str, int]) -> None:
    """Change some convolutions of a network, in place, to compute several groups as one.

    Args:
        network: The network.
        choice: Number of groups to compute as one, by the name of the convolution.
    """
    for name, merged in choice.items():
        module = network.get_submodule(name)
        assert type(module) in (nn.Conv2d, MergedConv2d)
        module.__class__ = MergedConv2d
        setattr(module, "merged", merged)  # noqa: B010 (the type checker knows Module only)


def fastest_groups(
    network: nn.Module,
    size: tuple[int, int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    log: Callable[[str], object] = lambda _: None,
) -> dict[str, int]:
    """Number of groups to compute as one, by name of each convolution that is faster with it.

    Each kind of convolution is timed once per machine, forward and backward, at every width. The
    results are kept in the cache folder.

    Args:
        network: A network with grouped convolutions.
        size: Shape of the network's input in training.
        device: Device of the training.
        dtype: Compute precision of the training.
        log: Takes a line before anything is timed.
    """
    if device.type == "cpu":  # more than eight images do not change the ratios
        size = (min(size[0], 8), *size[1:])
    timings = _Timings(device)
    choice: dict[str, int] = {}
    timed = False
    for name, conv, shape in grouped_convolutions(network, size):
        geometry = f"{conv.kernel_size} {conv.stride} {conv.padding} {conv.dilation}"
        key = f"{shape} {conv.out_channels} {conv.groups} {geometry} {dtype}"
        merged = timings.fastest.get(key, 0)
        if merged < 1 or conv.groups % merged:
            if not timed:
                log("Timing forms of the grouped convolutions, once for this machine …")
            timed = True
            merged = timings.fastest[key] = _fastest(conv, shape, device, dtype)
        if merged > 1:
            choice[name] = merged
    timings.save()
    return choice


def grouped_convolutions(
    network: nn.Module, size: tuple[int, int, int, int]
) -> Iterator[tuple[str, nn.Conv2d, tuple[int, ...]]]:
    """Name, module and input shape of each ordinary grouped convolution with zero padding."""
    shapes: dict[str, tuple[int, ...]] = {}
    on_meta = copy.deepcopy(network).to("meta").eval()
    names = {module: name for name, module in on_meta.named_modules()}

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[names[module]] = tuple(inputs[0].shape)

    for module in names:
        module.register_forward_pre_hook(record)
    on_meta(torch.empty(size, device="meta"))
    for name, module in network.named_modules():
        if type(module) is nn.Conv2d and module.groups > 1 and module.padding_mode == "zeros":
            yield name, module, shapes[name]


def _fastest(
    conv: nn.Conv2d, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> int:
    """Fastest number of groups as one; 1 unless another is at least 10 % faster."""
    width = conv.in_channels // conv.groups
    candidates = {1} | {
        w // width for w in _WIDTHS if w > width and conv.groups % (w // width) == 0
    }
    candidates = {m for m in candidates if conv.groups % m == 0}
    if len(candidates) == 1:
        return 1
    x = torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    x.requires_grad_()
    times = {m: _seconds(conv, x, m) for m in sorted(candidates)}
    best = min(times, key=lambda m: times[m])
    return best if times[best] < 0.9 * times[1] else 1


def _seconds(conv: nn.Conv2d, x: Tensor, merged: int) -> float:
    """Shortest of several times of a forward and backward pass, seconds."""
    weight = conv.weight.detach().clone().requires_grad_()
    best = float("inf")
    for _ in range(4):  # the first one warms up
        _synchronize(x.device)
        began = time.perf_counter()
        wide = spread(weight, conv.groups, merged) if merged > 1 else weight
        y = F.conv2d(
            x,
            wide.to(x.dtype),
            None,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups // merged,
        )
        y.sum().backward()
        _synchronize(x.device)
        best = min(best, time.perf_counter() - began)
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Timings:
    """The fastest number of groups as one, by kind of convolution, kept for this machine."""

    def __init__(self, device: torch.device) -> None:
        machine = f"{hardware(device)} {torch.get_num_threads()} torch {torch.__version__}"
        self.path = cache_folder() / "forms" / f"{short_digest(machine)}.json"
        try:
            saved = json.loads(self.path.read_text())
            self.fastest = {str(key): int(merged) for key, merged in saved.items()}
        except (OSError, ValueError, AttributeError, TypeError, OverflowError):
            self.fastest = {}
        self._saved = dict(self.fastest)

    def save(self) -> None:
        """Write new results; if the folder cannot be written, they are measured again later."""
        if self.fastest == self._saved:
            return
        with suppress(OSError, CheckpointError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomically(self.path, json.dumps(self.fastest, indent=1).encode())
