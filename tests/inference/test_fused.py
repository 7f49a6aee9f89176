"""Fused convolutions compute the network's function, for every kind of block."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from network_cases import TINY, VARIANTS
from oracles.originals import randomize

from resnext import ResNeXt, ResNeXtConfig
from resnext.grouped_conv import merge_groups
from resnext.inference.fused import ConvReLU2d, FusedBottleneck, fused, quick_classifier
from resnext.network import Bottleneck

pytestmark = pytest.mark.usefixtures("one_thread")


def made(changes: dict[str, Any]) -> tuple[ResNeXt, torch.Tensor]:
    """A network whose weights and statistics hide nothing, and images."""
    torch.manual_seed(0)
    network = ResNeXt(ResNeXtConfig(**{**TINY, **changes}))
    randomize(network)
    return network.eval(), torch.randn(3, 3, 33, 35)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_a_fused_network_computes_what_the_network_computes(name: str) -> None:
    network, x = made(VARIANTS[name])
    before = copy.deepcopy(network.state_dict())
    quick = fused(network, torch.float32)
    assert quick is not None
    wanted = copy.deepcopy(network).double()(x.double())
    assert (quick(x) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


@torch.no_grad()
def test_plain_blocks_and_the_stem_are_fused_and_merged_groups_are_separate_again() -> None:
    network, x = made({})
    wanted = network(x)
    merge_groups(network, {"layer1.0.conv2": 2})
    quick = fused(network, torch.float32)
    assert quick is not None
    blocks = [m for m in quick.modules() if isinstance(m, Bottleneck)]
    assert all(type(block) is FusedBottleneck for block in blocks)
    assert type(quick.conv1) is ConvReLU2d
    assert all(type(block.conv2) is torch.nn.Conv2d for block in blocks)
    torch.testing.assert_close(quick(x), wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_precision_that_the_processor_lacks_is_not_fused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, _ = made({})
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert fused(network, torch.bfloat16) is None
    assert fused(network, torch.float64) is None


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="needs bf16 instructions"
)
@torch.no_grad()
def test_bf16_stays_as_near_to_the_network_as_autocast() -> None:
    network, x = made({})
    quick = fused(network, torch.bfloat16)
    assert quick is not None
    wanted = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        usual = (network(x).float() - wanted).abs().max()
    assert (
        quick(x.bfloat16()).float() - wanted
    ).abs().max() < 2 * usual + 1e-3 * wanted.abs().max()


@torch.no_grad()
def test_a_classifier_takes_any_number_of_images_and_has_no_norm_or_relu_left() -> None:
    network, _ = made({})
    x = torch.randn(19, 3, 33, 35)
    classify = quick_classifier(network, torch.device("cpu"), torch.float32)
    with torch.profiler.profile() as found:
        logits = classify(x)
    names = {event.name for event in found.events() or ()}
    assert "mkldnn::_convolution_pointwise" in names
    assert not [name for name in names if "norm" in name or "relu" in name or "clamp" in name]
    torch.testing.assert_close(logits, network(x), rtol=1e-4, atol=1e-5)
    assert logits.dtype is torch.float32
