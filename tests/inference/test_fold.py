"""Folding: fewer layers, the same function, and the original network unchanged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.originals import randomize
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnext import ResNeXt, ResNeXtConfig
from resnext.config import Norm
from resnext.errors import ConfigError
from resnext.inference.fold import LogitsAndEmbedding, fold
from resnext.layers import NORM_LAYERS, WSConv2d

pytestmark = pytest.mark.usefixtures("one_thread")

BASE = ResNeXtConfig(
    (2, 1), 4, 16, num_classes=5, channels=(16, 32), num_stages=2, stem_channels=16
)
FOLDED: dict[str, dict[str, Any]] = {  # every batch norm goes away
    "plain": {},
    "small stem": {"small_stem": True},
    "deep stem, avg_down": {"stem_type": "deep", "stem_channels": (8, 8, 16), "avg_down": True},
    "SE": {"attention": "se"},
    "ECA": {"attention": "eca"},
    "average anti-alias": {"anti_alias": "avg"},
    "blur anti-alias": {"anti_alias": "blur"},
    "caffe": {"style": "caffe"},
    "weight-standardized": {"conv": "weight_standardized", "conv_eps": 0.01},
    "affine weight-standardized": {"conv": "affine_weight_standardized", "conv_eps": 0.01},
    "same padding": {"conv": "same_padding"},
    "reflect": {"padding_mode": "reflect"},
    "circular": {"padding_mode": "circular"},
    "synchronized": {"norm": "sync"},
    "no affine": {"norm_affine": False},
    "large epsilon": {"norm_eps": 0.7},
    "dilated": {"dilations": (2, 3)},
    "grey": {"in_channels": 1},
    "no groups": {"cardinality": 1},
}
STAYING: dict[str, dict[str, Any]] = {  # they look at the images
    "group": {"norm": "group", "norm_groups": 4},
    "layer": {"norm": "layer"},
    "instance": {"norm": "instance"},
    "untracked": {"norm_track": False},
    "weight-standardized, group": {
        "norm": "group",
        "norm_groups": 4,
        "conv": "weight_standardized",
    },
    "affine weight-standardized, group": {
        "norm": "group",
        "norm_groups": 4,
        "conv": "affine_weight_standardized",
    },
}
BOTH = {**FOLDED, **STAYING}


def made(config: ResNeXtConfig, dtype: torch.dtype = torch.float64) -> ResNeXt:
    """A network whose weights and statistics all differ from their initial values."""
    torch.manual_seed(0)
    network = ResNeXt(config)
    randomize(network)
    for name, value in network.named_buffers():  # those that fix a scale and a shift of filters
        if name.endswith("weight_gamma"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("weight_beta"):
            value.normal_(0, 0.1)
    return network.to(dtype).eval()


def images(config: ResNeXtConfig, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Three images of an odd size."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, config.in_channels, 33, 30, generator=generator).to(dtype)


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the largest number."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str
)
@pytest.mark.parametrize("kind", BOTH)
@torch.no_grad()
def test_folded_networks_are_the_same_function(
    kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    """A forgotten statistic, epsilon, scale or bias may show only in the last digits."""
    config = BASE.replace(**BOTH[kind])
    if dtype == torch.float32 and config.conv.endswith("weight_standardized"):
        tolerance *= 3  # their activations grow, and torch standardizes in single precision
    network, x = made(config, dtype), images(config, dtype)
    wanted, quick = network(x), fold(network)
    got = quick(x)
    assert got.dtype == dtype
    assert (wanted[0] - wanted[1]).abs().max() > 1e-3 * wanted.abs().max()  # it looks at images
    assert apart(got, wanted) <= tolerance
    assert apart(quick.embed(x), network.embed(x)) <= tolerance


@pytest.mark.parametrize("kind", BOTH)
def test_batch_norms_go_and_others_stay(kind: str) -> None:
    """A norm that is not folded costs time; one that is folded wrongly changes the function."""
    network = made(BASE.replace(**BOTH[kind]))
    quick = fold(network)
    before = [name for name, m in network.named_modules() if isinstance(m, NORM_LAYERS)]
    after = [name for name, m in quick.named_modules() if isinstance(m, NORM_LAYERS)]
    assert len(before) >= 12
    assert after == (before if kind in STAYING else [])
    assert not any(isinstance(m, WSConv2d) for m in quick.modules())  # standardized once
    if kind in FOLDED:
        convs = [m for m in quick.modules() if isinstance(m, nn.Conv2d)]
        assert all(conv.bias is not None for conv in convs)


@pytest.mark.parametrize("kind", ["plain", "affine weight-standardized", "untracked"])
def test_the_network_is_left_as_it_was(kind: str) -> None:
    """A network may be optimized in the middle of its training."""
    network = made(BASE.replace(**BOTH[kind]), torch.float32).train()
    network.get_submodule("layer1").eval()
    network.fc.weight.requires_grad_(False)
    stem = network.get_parameter("conv1.weight")
    stem.grad = torch.ones_like(stem)
    twin = copy.deepcopy(network)
    quick = fold(network)
    for value in quick.state_dict().values():  # it must not be the network's own memory
        value.zero_()
    assert list(network.state_dict()) == list(twin.state_dict())
    for (name, a), b in zip(network.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for (name, a), b in zip(network.named_modules(), twin.modules(), strict=True):
        assert (type(a), a.training) == (type(b), b.training), name
    for (name, a), b in zip(network.named_parameters(), twin.parameters(), strict=True):
        assert a.requires_grad == b.requires_grad, name
        assert (a.grad is None) == (name != "conv1.weight"), name
    assert stem.grad.eq(1).all()
    modules = [m for m in quick.modules() if not isinstance(m, nn.Identity)]
    assert not any(m.training for m in modules)
    assert not any(p.requires_grad for p in quick.parameters())
    assert quick.config == network.config


@torch.no_grad()
def test_training_mode_makes_no_difference() -> None:
    """Batch statistics, dropout or dropped paths would change the outputs."""
    config = BASE.replace(dropout=0.5, drop_path_rate=0.5)
    network, x = made(config), images(config)
    wanted = network.eval()(x)
    assert apart(fold(network.train())(x), wanted) <= 1e-12


def test_folding_twice_is_folding_once() -> None:
    """The bias of the first folding must be kept by the second."""
    network = made(BASE)
    once = fold(network)
    twice = fold(once)
    for (name, a), b in zip(once.state_dict().items(), twice.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_convolutions_with_a_bias() -> None:
    """Our networks have none, but folded or converted ones may."""
    network = made(BASE)
    network.conv1.bias = nn.Parameter(torch.randn(16, dtype=torch.float64))
    x = images(BASE)
    with torch.no_grad():
        assert apart(fold(network)(x), network(x)) <= 1e-12


def test_norms_that_follow_no_convolution_stay() -> None:
    """Folding into another preceding module would change the function."""
    network = made(BASE)
    network.bn1 = nn.Sequential(nn.Identity(), network.bn1)
    quick, x = fold(network), images(BASE)
    assert sum(isinstance(m, _BatchNorm) for m in quick.modules()) == 1
    with torch.no_grad():
        assert apart(quick(x), network(x)) <= 1e-12


@settings(max_examples=30)
@given(data=st.data())
@torch.no_grad()
def test_any_network_can_be_folded(data: st.DataObject) -> None:
    """Options that work alone can fail together."""
    draw = data.draw
    stem = draw(st.sampled_from(["classic", "deep", "small"]))
    norms: list[Norm] = ["batch", "batch", "batch", "group", "layer"]
    norm = draw(st.sampled_from(norms))
    try:
        config = ResNeXtConfig(
            (draw(st.integers(1, 2)), 1),
            draw(st.sampled_from([1, 2, 4])),
            32,
            num_classes=3,
            num_stages=2,
            channels=(8, 16),
            stem_type="deep" if stem == "deep" else None,
            stem_channels=(4, 8, 8) if stem == "deep" else 8,
            small_stem=stem == "small",
            avg_down=draw(st.booleans()),
            strides=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
            style=draw(st.sampled_from(["pytorch", "caffe"])),
            norm=norm,
            norm_groups=4,
            norm_affine=draw(st.booleans()),
            conv=draw(
                st.sampled_from(
                    [
                        "standard",
                        "weight_standardized",
                        "affine_weight_standardized",
                        "same_padding",
                    ]
                )
            ),
            attention=draw(st.sampled_from([None, "se", "eca"])),
            anti_alias=draw(st.sampled_from([None, "avg", "blur"])),
        )
    except ConfigError:
        return
    network, x = made(config), images(config)
    quick = fold(network)
    assert apart(quick(x), network(x)) <= 1e-12
    assert norm != "batch" or not any(isinstance(m, _BatchNorm) for m in quick.modules())


@pytest.mark.parametrize("kind", ["plain", "SE", "group"])
@torch.no_grad()
def test_answering_gives_logits_and_embeddings(kind: str) -> None:
    """Engines compute both at once; the two must not be swapped."""
    config = BASE.replace(dropout=0.5, **BOTH[kind])
    network, x = made(config), images(config)
    logits, embedding = LogitsAndEmbedding(network)(x)
    assert torch.equal(logits, network(x))
    assert torch.equal(embedding, network.embed(x))
    assert (logits.shape, embedding.shape) == ((3, 5), (3, 128))
