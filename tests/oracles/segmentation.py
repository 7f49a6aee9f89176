"""How segmentation libraries dilate a network, as they document it; they are not installed here.

segmentation_models_pytorch 0.5 (`output_stride` of an encoder): every convolution of a stage whose
stride is above the wanted one gets stride 1 and the dilation by which the stride is above.
mmseg 0.30 (`ResNet`): `contract_dilation` halves the dilation of the first block of each stage;
`multi_grid` gives the dilations of the blocks of the last stage.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def dilate_as_smp(network: nn.Module, output_stride: int) -> None:
    """Dilate the stages of a network with torchvision's names in place."""
    for i in range(1, 5):
        times = 2 ** (i + 1) // output_stride
        if times < 2:
            continue
        for layer in network.get_submodule(f"layer{i}").modules():
            if isinstance(layer, nn.Conv2d):
                _set(layer, times, stride=1)


def dilate_as_mmseg(
    network: nn.Module,
    strides: Sequence[int],
    dilations: Sequence[int],
    contract_dilation: bool = False,
    multi_grid: Sequence[int] | None = None,
) -> None:
    """Give the stages of a network with torchvision's names mmseg's strides and dilations."""
    for i, (stride, dilation) in enumerate(zip(strides, dilations, strict=True)):
        blocks = list(network.get_submodule(f"layer{i + 1}").children())
        for j, block in enumerate(blocks):
            own = dilation // 2 if contract_dilation and j == 0 and dilation > 1 else dilation
            if multi_grid is not None and i == len(strides) - 1:
                own = multi_grid[j]
            conv2 = block.get_submodule("conv2")
            assert isinstance(conv2, nn.Conv2d)
            _set(conv2, own, stride=stride if j == 0 else 1)
            for shortcut in block.children():
                first = next(shortcut.children(), None)
                if isinstance(shortcut, nn.Sequential) and isinstance(first, nn.Conv2d):
                    first.stride = (stride, stride)


def _set(layer: nn.Conv2d, dilation: int, stride: int) -> None:
    layer.stride, layer.dilation = (stride, stride), (dilation, dilation)
    layer.padding = (layer.kernel_size[0] // 2 * dilation, layer.kernel_size[1] // 2 * dilation)
