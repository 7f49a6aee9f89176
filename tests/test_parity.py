"""Our networks beside torchvision's and timm's: the same weights give the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from oracles.originals import randomize, timm, torchvision
from torch import Tensor, nn

from resnext import Backbone, ResNeXt, ResNeXtConfig, create, variants
from resnext.dialects.timm import NAMES

TORCHVISION = ["resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"]
TIMM = [
    "ecaresnext26t_32x4d",
    "ecaresnext50t_32x4d",
    "resnext50_32x4d",
    "resnext50d_32x4d",
    "resnext101_32x4d",
    "resnext101_32x8d",
    "resnext101_32x16d",
    "resnext101_32x32d",
    "resnext101_64x4d",
    "seresnext26d_32x4d",
    "seresnext26t_32x4d",
    "seresnext50_32x4d",
    "seresnext101_32x4d",
    "seresnext101_32x8d",
    "seresnext101_64x4d",
    "seresnext101d_32x8d",
    "seresnextaa101d_32x8d",
    "seresnextaa201d_32x8d",
]
FAST = {"resnext50_32x4d", "seresnext26t_32x4d"}
TINY = {"layers": (1, 2, 1, 1), "cardinality": 2, "base_width": 16, "num_classes": 7}
CHANNELS = (16, 32, 64, 128)


def marked(names: list[str]) -> list[Any]:
    """`names` as parameters; those of large networks run with `make test-all`."""
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


def images(*shape: int) -> Tensor:
    """Images, the same each time."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def pair(original: Callable[[], nn.Module], ours: Callable[[], nn.Module]) -> tuple[Any, Any]:
    """A network of the original library and ours, in float64, sharing one set of weights."""
    with torch.device("meta"):  # large ones need gigabytes, and no initial weights
        theirs, mine = original(), ours()
    theirs = theirs.double().to_empty(device="cpu")
    randomize(theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    mine.load_state_dict(theirs.state_dict(), assign=True)
    return theirs.eval(), mine.eval()


def agree(got: Tensor, wanted: Tensor) -> None:
    """Outputs that differ between images and classes, and agree to 1e-9."""
    assert got.shape == wanted.shape
    assert wanted.std(0).max() > 1e-3 * wanted.abs().max() > 0
    assert ((got - wanted).abs().max() / wanted.abs().max()).item() <= 1e-9


@pytest.mark.parametrize("name", marked(TORCHVISION))
def test_torchvision(name: str) -> None:
    """A key renamed or moved, or a stride in another place, makes torchvision's weights useless."""
    theirs, ours = pair(getattr(torchvision.models, name), partial(create, name))
    with torch.no_grad():
        for side in (64, 75):
            x = images(2, 3, side, 64)
            agree(ours(x), theirs(x))


def test_torchvision_in_training() -> None:
    """Training must see what torchvision's does: outputs, statistics and gradients."""
    name = "resnext50_32x4d"
    theirs, ours = pair(getattr(torchvision.models, name), partial(create, name))
    ours.load_state_dict({k: v.clone() for k, v in theirs.state_dict().items()}, assign=True)
    x, losses = images(2, 3, 64, 64), []
    for model in (theirs, ours):
        model.train()
        losses.append(model(x))
        losses[-1].square().sum().backward()
    agree(losses[1], losses[0])
    wanted = theirs.state_dict()
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-9, atol=1e-12, msg=key)
    assert wanted["bn1.num_batches_tracked"] == 1
    gradients = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        assert parameter.grad is not None, key
        torch.testing.assert_close(parameter.grad, gradients[key].grad, rtol=1e-7, atol=1e-9)


def test_every_variant_of_timm_is_compared() -> None:
    """A variant added under a name of timm's must not escape the comparison."""
    assert sorted(set(timm.list_models()) & set(variants())) == sorted(TIMM)
    assert sorted(NAMES) == sorted(TIMM)


@pytest.mark.parametrize("name", marked(TIMM))
def test_timm(name: str) -> None:
    """Weights of timm must work under timm's names, gates, stems and pools included."""
    theirs, ours = pair(partial(timm.create_model, name), partial(create, name))
    with torch.no_grad():
        x = images(2, 3, 64, 64)
        agree(ours(x), theirs(x))
        if "aa" not in name:
            x = images(1, 3, 53, 75)
            agree(torch.cat([ours(x), ours(-x)]), torch.cat([theirs(x), theirs(-x)]))


def build_timm(changes: dict[str, Any]) -> Any:
    """A tiny network of timm's."""
    resnet: Any = timm.models.resnet
    return resnet.ResNet(resnet.Bottleneck, **{"channels": CHANNELS, **TINY, **changes})


OPTIONS: dict[str, tuple[Callable[[Any], dict[str, Any]], dict[str, Any]]] = {
    "plain": (lambda _: {}, {}),
    "grey": (lambda _: {"in_chans": 1}, {"in_channels": 1}),
    "avg_down": (lambda _: {"avg_down": True}, {"avg_down": True}),
    "deep": (
        lambda _: {"stem_type": "deep", "stem_width": 16},
        {"stem_type": "deep", "stem_width": 16},
    ),
    "tiered": (
        lambda _: {"stem_type": "deep_tiered", "stem_width": 16},
        {"stem_type": "deep", "stem_channels": (12, 16, 32)},
    ),
    "aa avg": (lambda _: {"aa_layer": nn.AvgPool2d}, {"anti_alias": "avg"}),
    "aa blur": (lambda layers: {"aa_layer": layers.BlurPool2d}, {"anti_alias": "blur"}),
    "se": (lambda _: {"block_args": {"attn_layer": "se"}}, {"attention": "se"}),
    "se of ratio 1/4": (
        lambda layers: {"block_args": {"attn_layer": partial(layers.SEModule, rd_ratio=1 / 4)}},
        {"attention": "se", "se_reduction": 4},
    ),
    "eca": (lambda _: {"block_args": {"attn_layer": "eca"}}, {"attention": "eca"}),
    "group norm": (
        lambda layers: {"norm_layer": partial(layers.GroupNorm, num_groups=4)},
        {"norm": "group", "norm_groups": 4},
    ),
    "layer norm": (
        lambda layers: {"norm_layer": layers.LayerNorm2d},
        {"norm": "layer", "norm_eps": 1e-6},
    ),
    "odd width": (
        lambda _: {"base_width": 27, "cardinality": 3},
        {"base_width": 27, "cardinality": 3},
    ),
    "everything": (
        lambda layers: {
            "aa_layer": layers.BlurPool2d,
            "avg_down": True,
            "stem_type": "deep",
            "stem_width": 8,
            "block_args": {"attn_layer": "se"},
        },
        {
            "anti_alias": "blur",
            "avg_down": True,
            "stem_type": "deep",
            "stem_width": 8,
            "attention": "se",
        },
    ),
}
"""Arguments of timm, given its layers, and the same of ours."""


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_timm(option: str) -> None:
    """Options that no named variant uses must still be timm's, in training and in evaluation."""
    changes, fields = OPTIONS[option]
    theirs, ours = build_timm(changes(timm.layers)).double(), ResNeXt(config(**fields)).double()
    randomize(theirs)
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    size = (64, 96) if "anti_alias" in fields else (61, 90)  # timm's anti-aliasing needs even maps
    x = images(2, fields.get("in_channels", 3), *size)
    for mode in (False, True):
        with torch.no_grad():
            agree(ours.train(mode)(x), theirs.train(mode)(x))
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[key], rtol=1e-9, atol=1e-12, msg=key)


def config(**fields: Any) -> ResNeXtConfig:
    """Our counterpart of `build_timm`."""
    return ResNeXtConfig(**{"channels": CHANNELS, **TINY, **fields})


def test_maps_are_those_of_timm() -> None:
    """A detector that moves from timm's `features_only` must find the same maps and numbers."""
    theirs = build_timm({}).double().eval()
    randomize(theirs)
    ours = Backbone(config(), out_indices=(1, 3)).double().eval()
    assert not ours.load_state_dict(theirs.state_dict(), strict=False).missing_keys
    x = images(2, 3, 64, 96)
    with torch.no_grad():
        wanted = theirs.forward_intermediates(x, indices=(2, 4), intermediates_only=True)
        for got, want in zip(ours(x), wanted, strict=True):
            agree(got, want)
    about = [(f["module"], f["num_chs"], f["reduction"]) for f in theirs.feature_info]
    assert [tuple(f) for f in ours.feature_info] == [about[2], about[4]]


def test_stochastic_depth_is_timms() -> None:
    """The rates must rise to the last block as timm's do, or recipes give other results."""
    theirs, ours = build_timm({"drop_path_rate": 0.3}), ResNeXt(config(drop_path_rate=0.3))
    rates = []
    for model, attribute in ((theirs, "drop_prob"), (ours, "rate")):
        blocks = [block for i in range(4) for block in getattr(model, f"layer{i + 1}")]
        rates.append([getattr(block.drop_path, attribute, 0.0) for block in blocks])
    assert rates[1] == pytest.approx(rates[0], abs=1e-12)
    assert rates[1][0] == 0
    assert rates[1][-1] == pytest.approx(0.3)


def test_eca_kernels_are_timms() -> None:
    """A kernel one size off loads no checkpoint, and only for some numbers of channels."""
    for exponent in range(4, 13):
        for channels in (2**exponent - 8, 2**exponent, 3 * 2 ** (exponent - 1)):
            fields = {"layers": (1,), "channels": (channels,), "num_stages": 1, "widths": (2,)}
            with torch.device("meta"):
                ours = ResNeXt(config(**fields, expansion=1, attention="eca", norm="instance"))
                theirs = timm.layers.EcaModule(channels)
            conv: Any = ours.get_submodule("layer1.0.se.conv")
            assert conv.kernel_size == theirs.conv.kernel_size, channels


def test_squeezed_channels_are_timms() -> None:
    """Rounded otherwise, SE weights of timm have another shape."""
    for reduction in (4, 8, 16, 32):
        for channels in range(8, 2100, 52):
            ours = ResNeXtConfig(
                (1,), 1, 64, channels=(channels,), num_stages=1, se_reduction=reduction
            )
            with torch.device("meta"):
                theirs = timm.layers.SEModule(channels, rd_ratio=1 / reduction)
            assert ours.squeezed(channels) == theirs.fc1.out_channels, (channels, reduction)


def test_initial_weights_have_the_spread_of_torchvisions() -> None:
    """Fan-out of a grouped convolution counts the whole filter; per group it would be √C larger."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnext50_32x4d().state_dict()
    ours = create("resnext50_32x4d").state_dict()
    for key, value in ours.items():
        if value.ndim == 4:
            assert value.std().item() == pytest.approx(theirs[key].std().item(), rel=0.06), key
        elif key.startswith("fc"):
            assert value.abs().max().item() <= 1 / math.sqrt(2048)
        else:
            assert torch.equal(value, theirs[key]), key
