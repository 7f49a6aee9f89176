"""The layers of a ResNeXt; `network.py` puts them together.

First the functions that build the layer a config asks for, then the layers that torch lacks, then
activation checkpointing and the checks of config and input. All can be traced with `torch.fx`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.fx
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from resnext.checks import brief
from resnext.config import ResNeXtConfig, eca_kernel_size
from resnext.errors import ConfigTypeError, InputError

Map = Float[Tensor, "n c h w"]
Convolved = Float[Tensor, "n k h2 w2"]
Pooled = Float[Tensor, "n c h2 w2"]

Leaf = Any  # a layer with `compute`
Method = TypeVar("Method", bound=Callable[..., Any])

NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def conv(
    config: ResNeXtConfig,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Conv2d:
    """A convolution of the config's kind, without bias, that keeps the size at stride 1."""
    layer = {
        "standard": nn.Conv2d,
        "weight_standardized": WSConv2d,
        "affine_weight_standardized": AffineWSConv2d,
        "same_padding": SamePaddingConv2d,
    }[config.conv](
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
        groups=groups,
        bias=False,
        padding_mode=config.padding_mode,
    )
    if isinstance(layer, WSConv2d):
        layer.eps = config.conv_eps
    return layer


def norm(config: ResNeXtConfig, channels: int) -> nn.Module:
    """A normalization layer of the config's kind for `channels` channels."""
    eps, affine = config.norm_eps, config.norm_affine
    if config.norm == "group":
        return nn.GroupNorm(config.norm_groups, channels, eps=eps, affine=affine)
    if config.norm == "layer":
        return LayerNorm2d(channels, eps=eps, elementwise_affine=affine)
    if config.norm == "instance":
        return nn.InstanceNorm2d(channels, eps=eps, affine=affine)
    kind = nn.SyncBatchNorm if config.norm == "sync" else nn.BatchNorm2d
    return kind(channels, eps, config.norm_momentum, affine, config.norm_track)


def attention(config: ResNeXtConfig, channels: int) -> nn.Module | None:
    """The config's channel attention for `channels` channels; None if it has none."""
    if config.gate == "se":
        return SqueezeExcitation(channels, config.squeezed(channels))
    return EfficientChannelAttention(channels) if config.gate == "eca" else None


def anti_alias(kind: str, stride: int) -> nn.Module:
    """The pooling that replaces the stride of a 3×3 convolution: "avg" or "blur"."""
    return nn.AvgPool2d(stride, ceil_mode=True) if kind == "avg" else BlurPool2d(stride)


def projection(
    config: ResNeXtConfig, in_channels: int, out_channels: int, stride: int, keeps_pooling: bool
) -> nn.Sequential | None:
    """The projection shortcut of a block; None if the block keeps size and channels."""
    if stride == 1 and in_channels == out_channels:
        return None
    if not config.avg_down:
        strided = conv(config, in_channels, out_channels, 1, stride=stride)
        return nn.Sequential(strided, norm(config, out_channels))
    pool: nn.Module = SameAvgPool2d(2, stride=1) if keeps_pooling else nn.Identity()
    if stride > 1:
        pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(
        pool,
        conv(config, in_channels, out_channels, 1),
        norm(config, out_channels),
    )


def stem_conv(config: ResNeXtConfig) -> nn.Module:
    """The first convolution: 7×7, three 3×3, or one 3×3 for small images."""
    outs = config.stem_out
    if config.small_stem:
        return conv(config, config.in_channels, outs[0], 3)
    if config.stem_type is None:
        return conv(config, config.in_channels, outs[0], 7, stride=2)
    return nn.Sequential(
        conv(config, config.in_channels, outs[0], 3, stride=2),
        norm(config, outs[0]),
        nn.ReLU(inplace=True),
        conv(config, outs[0], outs[1], 3),
        norm(config, outs[1]),
        nn.ReLU(inplace=True),
        conv(config, outs[1], outs[2], 3),
    )


def stem_pool(config: ResNeXtConfig) -> nn.Module:
    """The pooling between the stem's convolutions and the first stage."""
    if config.small_stem:
        return nn.Identity()
    if config.anti_alias == "avg":
        return nn.AvgPool2d(2)
    if config.anti_alias == "blur":
        return nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), BlurPool2d(2))
    if config.ceil_pooling:
        return nn.MaxPool2d(3, stride=2, ceil_mode=True)
    return nn.MaxPool2d(3, stride=2, padding=1)


class WSConv2d(nn.Conv2d):
    """Convolution whose filters have mean 0 and standard deviation 1 (arXiv:1903.10520)."""

    eps = 1e-5

    def forward(self, input: Map) -> Convolved:
        """Convolve with the standardized filters."""
        return self._conv_forward(input, self.standardized(), self.bias)

    def standardized(self) -> Tensor:
        """The standardized filters `(k, c, h, w)`."""
        std, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return (self.weight - mean) / (std + self.eps)


class AffineWSConv2d(WSConv2d):
    """Weight standardization followed by a fixed scale and shift of every filter.

    mmcv's `ConvAWS`: a checkpoint trained without standardization computes the same with it.
    """

    weight_gamma: Tensor
    weight_beta: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        shape = (self.out_channels, 1, 1, 1)
        self.register_buffer("weight_gamma", torch.ones(shape))
        self.register_buffer("weight_beta", torch.zeros(shape))

    def statistics(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(k, 1, 1, 1)` of each filter of `weight`."""
        var, mean = torch.var_mean(weight, (1, 2, 3), keepdim=True)
        return mean, torch.sqrt(var + self.eps)

    def standardized(self) -> Tensor:
        """The standardized filters `(k, c, h, w)`."""
        mean, std = self.statistics(self.weight)
        return self.weight_gamma * ((self.weight - mean) / std) + self.weight_beta

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Use the loaded filters' own scale and shift if a checkpoint has none."""
        names = (f"{prefix}weight_beta", f"{prefix}weight_gamma")
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and not any(name in state_dict for name in names):
            state_dict = {**state_dict, **dict(zip(names, self.statistics(weight), strict=True))}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def traceable(forward: Method) -> Method:
    """Keep the annotations of `forward` out of the graphs of `torch.fx`.

    They are shapes as strings, which `pickle` and `torch.jit.script` refuse in a graph.
    """
    forward.__signature__ = inspect.signature(forward)  # pyright: ignore
    forward.__annotations__ = {}
    return forward


@torch.fx.wrap
def one_node(layer: Leaf, x: Tensor) -> Tensor:
    """`layer.compute(x)` as one node of a `torch.fx` graph, which keeps the layer itself.

    For layers whose Python reads sizes, or the mode, which a trace would fix.
    """
    return layer.compute(x)


class SamePaddingConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: size over stride, rounded up."""

    def forward(self, input: Map) -> Convolved:
        """Pad as the input's size requires, an odd pixel at right and bottom, then convolve."""
        return one_node(self, input)

    def compute(self, input: Tensor) -> Tensor:
        """What `forward` returns."""
        pads: list[int] = []
        for axis in (1, 0):  # F.pad starts with the last axis
            size, stride = input.shape[2 + axis], self.stride[axis]
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            out = (size + stride - 1) // stride
            need = max((out - 1) * stride + reach - size, 0)
            pads += [need // 2, need - need // 2]
        input = F.pad(input, pads)
        return F.conv2d(input, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class SameAvgPool2d(nn.AvgPool2d):
    """2×2 means at stride 1 that keep the size: zeros at right and bottom count (timm)."""

    def forward(self, input: Map) -> Map:
        """Pad one pixel, then average."""
        return super().forward(F.pad(input, (0, 1, 0, 1)))


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each pixel."""

    def forward(self, input: Map) -> Map:
        """Normalize each pixel over its channels."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from the means of all channels (arXiv:1709.01507)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Map) -> Map:
        """Multiply each channel by its gate."""
        means = x.mean((2, 3), keepdim=True)
        return x * self.fc2(F.relu(self.fc1(means))).sigmoid()


class EfficientChannelAttention(nn.Module):
    """Scales each channel by a gate computed from neighbouring means (arXiv:1910.03151)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = eca_kernel_size(channels)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Map) -> Map:
        """Multiply each channel by its gate."""
        means = x.mean((2, 3)).unsqueeze(1)
        return x * self.conv(means).sigmoid().transpose(1, 2).unsqueeze(3)


class BlurPool2d(nn.Module):
    """Strided binomial 3×3 blur with reflection padding (arXiv:1904.11486).

    It is two 2×2 means, because a kernel would be lost on the `meta` device.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Map) -> Pooled:
        """Blur, then keep every `stride`-th pixel."""
        means = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 2, 1)
        return F.avg_pool2d(means, 2, self.stride)


class DropPath(nn.Module):
    """Stochastic depth: in training, drops the branch of random images (arXiv:1603.09382).

    Kept branches are scaled up to preserve the expected value.

    Args:
        rate: Probability of dropping a branch.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Map) -> Map:
        """Drop each image's branch with probability `rate`."""
        return one_node(self, x)

    def compute(self, x: Tensor) -> Tensor:
        """What `forward` returns."""
        if not self.training:
            return x
        keep = 1 - self.rate
        kept = (keep + torch.rand((len(x), 1, 1, 1), dtype=x.dtype, device=x.device)).floor()
        return x / keep * kept

    def extra_repr(self) -> str:
        """The rate, shown when the network is printed."""
        return f"rate={self.rate:g}"


def checkpointed(run: Callable[[Tensor], Tensor], owner: nn.Module, x: Tensor) -> Tensor:
    """`run(x)` with its activations recomputed in the backward pass instead of kept.

    Args:
        run: The function to compute.
        owner: The module it belongs to. The running statistics of its batch norms are updated by
            the first pass only.
        x: The input.
    """
    if not torch.is_grad_enabled() or isinstance(x, torch.fx.Proxy):
        return run(x)
    if (
        torch.compiler.is_compiling()
    ):  # the compiler updates statistics once, and cannot trace contexts
        return checkpoint(run, x, use_reentrant=False)
    contexts = lambda: (nullcontext(), _untracked(owner))  # noqa: E731
    return checkpoint(run, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _untracked(owner: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms unchanged."""
    batch_norms = [m for m in owner.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [(m.momentum, m.num_batches_tracked) for m in batch_norms]
    try:
        for m in batch_norms:
            m.momentum, m.num_batches_tracked = 0.0, None
        yield
    finally:
        for m, (momentum, count) in zip(batch_norms, kept, strict=True):
            m.momentum, m.num_batches_tracked = momentum, count


def scriptable(network: nn.Module) -> nn.Module:
    """The graph of a network, which `torch.jit.script` compiles in place of its Python.

    Raises:
        InputError: The network has a layer, or a `train()`, that a script cannot hold.
    """
    unknown = (LayerNorm2d, SamePaddingConv2d, DropPath)
    held_back = [type(m).__name__ for m in network.modules() if isinstance(m, unknown)]
    if getattr(network, "frozen_stages", -1) >= 0 or getattr(network, "norm_eval", False):
        held_back.append("a train() that keeps layers frozen")
    if held_back:
        raise InputError(
            f"torch.jit.script cannot compile {held_back[0]}. Use torch.jit.trace(model, images), "
            f"torch.export.export or torch.compile."
        )
    return torch.fx.symbolic_trace(network)


def check_config(config: Any) -> ResNeXtConfig:
    """Return `config` if it is a `ResNeXtConfig`.

    Raises:
        ConfigTypeError: `config` is anything else, such as the name of a variant.
    """
    if not isinstance(config, ResNeXtConfig):
        raise ConfigTypeError(
            f"A network is built from a ResNeXtConfig, not {brief(config)}. "
            f"For a named variant use resnext.create(name) or resnext.variant(name)."
        )
    return config


def check_images(x: Tensor, config: ResNeXtConfig) -> None:
    """Check the shape and type of a batch of images.

    Raises:
        InputError: The images have the wrong type, number of dimensions or channels, or too few
            pixels.
    """
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return  # sizes are tensors in a trace, and comparing them warns
    if isinstance(x, torch.fx.Proxy):
        return  # a graph is being recorded, without images
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"Images must be a floating-point tensor, not {got}. Scale bytes by 255.")
    if x.ndim != 4 or x.shape[1] != config.in_channels:
        wanted = f"(n, {config.in_channels}, h, w)"
        raise InputError(f"Images must have shape {wanted}, not {tuple(x.shape)}.")
    if min(x.shape[2:]) < config.min_size:
        raise InputError(
            f"Images must have at least {config.min_size} pixels on each side, "
            f"not {x.shape[2]}×{x.shape[3]}."
        )
    if config.norm == "instance" and max(x.shape[2:]) <= config.stride:
        raise InputError(
            f"Instance norm needs more than {config.stride} pixels on one side of the image, "
            f"not {x.shape[2]}×{x.shape[3]}."
        )
