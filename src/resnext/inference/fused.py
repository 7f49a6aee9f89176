"""Convolutions that also add the shortcut and apply ReLU, while their output is in the cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resnext.grouped_conv import MergedConv2d
from resnext.inference.fold import fold
from resnext.network import Bottleneck, ResNeXt


def fused(network: ResNeXt, dtype: torch.dtype) -> ResNeXt | None:
    """A folded copy in another precision that reads and writes each feature map once.

    oneDNN computes its convolutions; no compiler is needed.

    Args:
        network: The network, on the CPU.
        dtype: Precision of the copy, and of the images it takes.

    Returns:
        The copy; None if oneDNN cannot compute in this precision on this processor.
    """
    if not _possible(dtype):
        return None
    network = fold(network).to(dtype)
    network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for module in network.modules():
        if isinstance(module, MergedConv2d):
            setattr(module, "__class__", nn.Conv2d)  # noqa: B010 (its weights are the original's)
    for module in network.modules():
        if isinstance(module, Bottleneck) and all(_plain(*pair) for pair in _pairs(module)):
            setattr(module, "__class__", FusedBottleneck)  # noqa: B010 (it has the same layers)
    if _plain(network.conv1, network.bn1):
        setattr(network.conv1, "__class__", ConvReLU2d)  # noqa: B010
        network.add_module("relu", nn.Identity())
    return network


def quick_classifier(
    network: ResNeXt, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """The network as a function that is fast on a device, in a precision.

    Args:
        network: The network, in evaluation mode. Later changes of it may have no effect.
        device: Its device.
        dtype: Compute precision.
    """
    quick = fused(network, dtype) if device.type == "cpu" else None

    def classify(x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if quick is not None:
            return quick(x.to(dtype)).float()
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            return network(x)

    return classify


class ConvReLU2d(nn.Conv2d):
    """A convolution followed by ReLU."""

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h2 w2"]:
        """ReLU of the convolution."""
        return _relu(self, input)


class FusedBottleneck(Bottleneck):
    """A block without norms whose convolutions add the shortcut and apply ReLU."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h2 w2"]:
        """What `Bottleneck.forward` returns in evaluation mode."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = _relu(self.conv2, _relu(self.conv1, x))
        if self.aa is not None:
            y = self.aa(y)
        if self.se is not None:
            return self.relu(self.se(self.conv3(y)) + shortcut)
        return _add_relu(self.conv3, y, shortcut)


def _pairs(block: Bottleneck) -> tuple[tuple[nn.Module, nn.Module], ...]:
    return ((block.conv1, block.bn1), (block.conv2, block.bn2), (block.conv3, block.bn3))


def _plain(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether a convolution is an ordinary one with its norm folded into it."""
    ordinary = type(conv) is nn.Conv2d and conv.padding_mode == "zeros"
    return ordinary and isinstance(norm, nn.Identity)


def _possible(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():  # pyright: ignore[reportAttributeAccessIssue]
        return False
    if dtype is torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype is torch.float32


def _relu(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(
        x, conv.weight, conv.bias, *_geometry(conv), "relu", [], ""
    )


def _add_relu(conv: nn.Conv2d, x: Tensor, shortcut: Tensor) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x, shortcut, conv.weight, conv.bias, *_geometry(conv), "add", 1.0, "relu", [], ""
    )


def _geometry(conv: nn.Conv2d) -> tuple[object, ...]:
    return conv.padding, conv.stride, conv.dilation, conv.groups
