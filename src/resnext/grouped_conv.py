"""Grouped convolutions computed as fewer, wider ones.

A convolution of 32 groups of 4 channels is the same function as one of 8 groups of 16 channels
whose weights are zero where the groups do not meet. Wider groups use wide vector units better.
Which form is the fastest is measured, and remembered for the machine.
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

    Weights, gradients and state dict are those of the grouped one.
    """

    merged = 1

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h2 w2"]:
        """The same as `nn.Conv2d`."""
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
    """Weights of a convolution with `merged` times fewer groups that is the same function."""
    k, c, h, w = weight.shape
    parts = weight.view(groups // merged, merged, k // groups, 1, c, h, w)
    alone = torch.eye(merged, dtype=weight.dtype, device=weight.device)
    wide = parts * alone.view(1, merged, 1, merged, 1, 1, 1)
    return wide.reshape(k, c * merged, h, w)


def merge_groups(network: nn.Module, choice: Mapping[str, int]) -> None:
    """Compute the convolutions of these names with so many groups as one, in place."""
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
    tell: Callable[[str], object] = lambda _: None,
) -> dict[str, int]:
    """For each grouped convolution that gains from it, how many groups to compute as one.

    Each kind of convolution is timed once, forward and backward, in every form; what was found is
    kept in the cache folder for this machine. On a CPU eight images tell as much as more.

    Args:
        network: With grouped convolutions.
        size: Of its input, as it will be trained.
        device: Where it will run.
        dtype: What it will multiply in.
        tell: Told if anything has to be timed.
    """
    if device.type == "cpu":
        size = (min(size[0], 8), *size[1:])
    book = _Book(device)
    choice: dict[str, int] = {}
    timed = False
    for name, conv, shape in grouped_convolutions(network, size):
        how = f"{conv.kernel_size} {conv.stride} {conv.padding} {conv.dilation}"
        key = f"{shape} {conv.out_channels} {conv.groups} {how} {dtype}"
        known = book.known.get(key, 0)
        if known < 1 or conv.groups % known:
            if not timed:
                tell("Timing forms of the grouped convolutions, once for this machine …")
            timed = True
            book.known[key] = _fastest(conv, shape, device, dtype)
        if book.known[key] > 1:
            choice[name] = book.known[key]
    book.keep()
    return choice


def grouped_convolutions(
    network: nn.Module, size: tuple[int, int, int, int]
) -> Iterator[tuple[str, nn.Conv2d, tuple[int, ...]]]:
    """Name, module and input shape of each plain grouped convolution."""
    shapes: dict[str, tuple[int, ...]] = {}
    ghost = copy.deepcopy(network).to("meta").eval()
    names = {module: name for name, module in ghost.named_modules()}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[names[module]] = tuple(inputs[0].shape)

    for module in names:
        module.register_forward_pre_hook(note)
    ghost(torch.empty(size, device="meta"))
    for name, module in network.named_modules():
        if type(module) is nn.Conv2d and module.groups > 1 and module.padding_mode == "zeros":
            yield name, module, shapes[name]


def _fastest(
    conv: nn.Conv2d, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> int:
    """How many groups as one are fastest; 1 unless another form is at least 10 % faster."""
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
    """Least time of a forward and a backward pass."""
    weight = conv.weight.detach().clone().requires_grad_()
    best = float("inf")
    for _ in range(4):  # the first one prepares
        _wait(x.device)
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
        _wait(x.device)
        best = min(best, time.perf_counter() - began)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Book:
    """What was measured on this machine."""

    def __init__(self, device: torch.device) -> None:
        machine = f"{hardware(device)} {torch.get_num_threads()} torch {torch.__version__}"
        self.path = cache_folder() / "forms" / f"{short_digest(machine)}.json"
        try:
            found = json.loads(self.path.read_text())
            self.known = {str(k): int(v) for k, v in found.items()}
        except (OSError, ValueError, AttributeError, TypeError, OverflowError):
            self.known = {}
        self._before = dict(self.known)

    def keep(self) -> None:
        """Write it down; a folder that cannot be written is no reason to stop."""
        if self.known == self._before:
            return
        with suppress(OSError, CheckpointError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomically(self.path, json.dumps(self.known, indent=1).encode())
