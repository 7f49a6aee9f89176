"""Dilation in place of strides, beside the libraries that have it: equal weights, equal maps."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from network_cases import filled, four, images, same, tiny
from oracles import segmentation
from oracles.originals import randomize, timm, torchvision
from torch import Tensor, nn

from resnext import Backbone, ResNeXt, ResNeXtConfig, create, load, load_backbone, save, variant
from resnext.dialects.dialect import Documents
from resnext.dialects.table import DIALECTS
from resnext.dilation import block_dilations, with_output_stride
from resnext.errors import AmbiguityWarning, ConfigError, ResNeXtError

SMALL: dict[str, Any] = {"layers": (1, 2, 3, 2), "cardinality": 2, "base_width": 16}
CHANNELS = (16, 32, 64, 128)
TORCHVISION = {8: [False, True, True], 16: [False, False, True], 32: [False] * 3}


ODD, EVEN = (1, 3, 75, 97), (2, 3, 64, 64)


def agree(
    theirs: nn.Module,
    config: ResNeXtConfig,
    maps: Any,
    *,
    shapes: Any = (EVEN, ODD),
    **arguments: Any,
) -> None:
    """With one set of weights, `maps(theirs, x)` are those of our backbone, in float64."""
    theirs = theirs.double().eval()
    randomize(theirs)
    ours = Backbone(config, **arguments).double().eval()
    left = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not left.missing_keys
    assert all(key.startswith("fc.") for key in left.unexpected_keys)
    for shape in shapes:
        x = images(*shape)
        with torch.no_grad():
            got, wanted = ours(x), maps(theirs, x)
        assert [m.shape for m in got] == [m.shape for m in wanted]
        same(got, wanted)
        sides = [-(-shape[2] // feature.stride) for feature in ours.feature_info]
        assert [m.shape[2] for m in got] == sides


def stages_of(network: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Maps of the stages of a network with torchvision's names."""
    x, maps = network.maxpool(network.relu(network.bn1(network.conv1(x)))), list[Tensor]()
    for i in range(1, 5):
        x = getattr(network, f"layer{i}")(x)
        maps.append(x)
    return tuple(maps)


@pytest.mark.parametrize("stride", TORCHVISION)
@pytest.mark.parametrize("convention", ["torchvision", "timm", "mmseg"])
def test_torchvision(stride: Any, convention: Any) -> None:
    """The first block of a dilated stage keeps the dilation before; maps differed by 8 to 14 %."""
    resnet: Any = torchvision.models.resnet
    theirs = resnet.ResNet(
        resnet.Bottleneck,
        [1, 2, 3, 2],
        groups=2,
        width_per_group=16,
        replace_stride_with_dilation=TORCHVISION[stride],
    )
    config = ResNeXtConfig(**SMALL)
    agree(theirs, config, stages_of, output_stride=stride, dilation_convention=convention)


def test_deeplab_of_torchvision() -> None:
    """The backbone of its DeepLabV3, as `deeplabv3_resnet50` takes it, in a ResNeXt-50."""
    theirs = torchvision.models.resnext50_32x4d(replace_stride_with_dilation=TORCHVISION[8])
    body: Any = torchvision.models._utils.IntermediateLayerGetter(theirs, {"layer4": "out"})
    ours = create("resnext50_32x4d", output_stride=8).double().eval()
    randomize(theirs.double().eval())
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        same(ours.features(images(1, 3, 64, 64))[-1], body(images(1, 3, 64, 64))["out"])


TIMM: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "single blocks": ({"layers": (1, 1, 1, 1)}, {"layers": (1, 1, 1, 1)}),
    "avg_down": ({"avg_down": True}, {"avg_down": True}),
    "avg": ({"aa_layer": "avg", "avg_down": True}, {"anti_alias": "avg", "avg_down": True}),
    "blur": ({"aa_layer": "blur"}, {"anti_alias": "blur"}),
    "deep": (
        {"stem_type": "deep", "stem_width": 32, "avg_down": True},
        {"stem_type": "deep", "stem_width": 32, "avg_down": True},
    ),
}


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str, stride: Any) -> None:
    """timm's shortcuts and blurs still pool where a stride became dilation."""
    theirs, ours = TIMM[name]
    resnet: Any = timm.models.resnet
    layers: dict[str, Any] = {"avg": nn.AvgPool2d, "blur": timm.layers.BlurPool2d, "": None}
    given = {**SMALL, "channels": CHANNELS, **theirs}
    given["aa_layer"] = layers[given.get("aa_layer", "")]
    network = resnet.ResNet(resnet.Bottleneck, output_stride=stride, **given)

    def maps(network: Any, x: Tensor) -> tuple[Tensor, ...]:
        network.relu = network.act1
        return stages_of(network, x)

    config = ResNeXtConfig(**{**SMALL, "channels": CHANNELS, **ours})
    shapes = (EVEN,) if name == "avg" else (EVEN, ODD)  # timm cannot add its odd maps
    agree(network, config, maps, shapes=shapes, output_stride=stride)


@pytest.mark.parametrize("stride", [8, 16])
def test_timm_by_name(stride: Any) -> None:
    """What a user of `timm.create_model(name, output_stride=…)` calls here."""
    theirs = timm.create_model("resnext50_32x4d", output_stride=stride).double().eval()
    randomize(theirs)
    ours = create("resnext50_32x4d", output_stride=stride).double().eval()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        same(ours(images(1, 3, 64, 64)), theirs(images(1, 3, 64, 64)))


@pytest.mark.parametrize("stride", [8, 16])
def test_segmentation_models_pytorch(stride: Any) -> None:
    """It dilates the first block of a stage like the others."""
    resnet: Any = torchvision.models.resnet
    theirs = resnet.ResNet(resnet.Bottleneck, [1, 2, 3, 2], groups=2, width_per_group=16)
    segmentation.dilate_as_smp(theirs, stride)
    config = ResNeXtConfig(**SMALL)
    agree(theirs, config, stages_of, output_stride=stride, dilation_convention="smp")
    theirs = resnet.ResNet(resnet.Bottleneck, [1, 2, 3, 2], groups=2, width_per_group=16)
    segmentation.dilate_as_smp(theirs, stride)
    dilated = {8: ((1, 2, 1, 1), (1, 1, 2, 4)), 16: ((1, 2, 2, 1), (1, 1, 1, 2))}[stride]
    agree(theirs, config.replace(strides=dilated[0], dilations=dilated[1]), stages_of)


# -- what it gives ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("convention", "dilations"),
    [
        ("timm", (1, 1, (1, 2, 2, 2, 2, 2), (2, 4, 4))),
        ("torchvision", (1, 1, (1, 2, 2, 2, 2, 2), (2, 4, 4))),
        ("mmseg", (1, 1, (1, 2, 2, 2, 2, 2), (2, 4, 4))),
        ("smp", (1, 1, 2, 4)),
    ],
)
def test_strides_and_dilations(convention: Any, dilations: Any) -> None:
    """The four conventions on the paper's network."""
    config = with_output_stride(variant("resnext50_32x4d"), 8, convention)
    assert (config.strides, config.dilations) == ((1, 2, 1, 1), dilations)
    assert config == variant("resnext50_32x4d", strides=(1, 2, 1, 1), dilations=dilations)
    pooled = with_output_stride(variant("resnext50d_32x4d"), 8, convention)
    assert pooled.keep_pooling == (convention in ("timm", "torchvision"))


def test_stride_that_the_network_has_changes_nothing() -> None:
    """Plans and runs are found by the config's repr."""
    config = variant("resnext50_32x4d")
    assert with_output_stride(config, 32) is config
    assert with_output_stride(config, None) is config
    three = four(num_stages=3, layers=(1, 1, 1), channels=(8, 16, 24))
    assert with_output_stride(three, 16) is three


def test_a_dilated_network_gets_another_stride() -> None:
    """From 16 to 8 and back, if it was dilated by the same convention."""
    plain = variant("resnext50d_32x4d")
    for convention in ("timm", "mmseg", "smp"):
        by = {s: with_output_stride(plain, s, convention) for s in (8, 16, 32)}
        for before in by.values():
            for stride, after in by.items():
                assert with_output_stride(before, stride, convention) == after
    with pytest.raises(ConfigError, match="dilated already, and not as smp does"):
        with_output_stride(with_output_stride(plain, 8, "timm"), 8, "smp")
    with pytest.raises(ConfigError, match="dilated already, and not as timm does"):
        with_output_stride(plain.replace(dilations=(1, 1, 1, (1, 2, 4))), 16)


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (four(), (4,), "output_stride must be 8, 16 or 32, not 4"),
        (four(), (True,), "must be 8, 16 or 32, not True"),
        (four(), ("8",), "must be 8, 16 or 32, not '8'"),
        (four(), (8.0,), "must be 8, 16 or 32, not 8.0"),
        (four(), (8, "detectron2"), "dilation_convention must be 'timm' or .* not 'detectron2'"),
        (four(), (None, "tv"), "dilation_convention must be 'timm'"),
        (tiny(), (16,), "output_stride must be at most 8, the stride of this network, not 16"),
        (four(small_stem=True), (32,), "must be at most 8"),
        (four(strides=(1, 3, 2, 2)), (8,), r"cannot be had with the strides \(1, 3, 2, 2\).* 12"),
        (four(block_args={"dilation": 2}), (8,), "block_args"),
    ],
)
def test_what_cannot_be_had(config: Any, arguments: Any, message: str) -> None:
    """Each is one line that says what the network can have."""
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        with_output_stride(config, *arguments)
    assert isinstance(caught.value, ResNeXtError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("contract", "grid", "wanted"),
    [
        (False, None, (1, 3, 2, 4)),
        (True, None, (1, (1, 3), (1, 2, 2), (2, 4))),
        (False, (1, 2), (1, 3, 2, (1, 2))),
        (True, [4, 8, 16], (1, (1, 3), (1, 2, 2), (4, 8))),  # the grid wins; 16 is not used
    ],
)
def test_blocks_of_mmseg(contract: bool, grid: Any, wanted: Any) -> None:
    """`multi_grid` is for the last stage only, and wins over `contract_dilation` there."""
    assert block_dilations((1, 2, 3, 2), (1, 3, 2, 4), contract, grid) == wanted


def test_wrong_grids() -> None:
    """One dilation for each block, or more."""
    with pytest.raises(ConfigError, match=r"each of the 2 blocks of the last stage, not \(1,\)"):
        block_dilations((1, 2), (1, 1), multi_grid=(1,))
    with pytest.raises(ConfigError, match="multi_grid must be a list or None, not 2"):
        block_dilations((1, 2), (1, 1), multi_grid=2)  # pyright: ignore[reportArgumentType]


def test_deeplab_files_are_not_taken_for_undilated_ones(tmp_path: Path) -> None:
    """Dilation has no weights; the head beside the backbone gives it away."""
    resnet: Any = torchvision.models.resnet
    deeplab: Any = torchvision.models.segmentation.deeplabv3
    getter: Any = torchvision.models._utils.IntermediateLayerGetter
    body = resnet.ResNet(
        resnet.Bottleneck, [1, 2, 3, 2], replace_stride_with_dilation=TORCHVISION[8]
    )
    network = deeplab.DeepLabV3(
        getter(body, {"layer4": "out"}), deeplab.DeepLabHead(2048, 2)
    ).eval()
    randomize(network)
    torch.save(network.state_dict(), tmp_path / "a.pth")
    with pytest.warns(AmbiguityWarning, match=r"classifier\.0\.convs.*output_stride=8 or 16"):
        load(tmp_path / "a.pth")
    x = images(1, 3, 64, 64, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is open if the stride is given
        load(tmp_path / "a.pth", output_stride=32)
        ours = load_backbone(tmp_path / "a.pth", output_stride=8, out_indices=(3,))
    with torch.no_grad():
        same(ours(x)[0], network.backbone(x)["out"], 1e-5)


@pytest.mark.parametrize("name", ["resnext26_32x4d", "seresnextaa101d_32x8d"])
def test_config_json_of_timm_has_the_stride(name: str) -> None:
    """`model_args` of a dilated network in timm."""
    about = {"architecture": name, "model_args": {"output_stride": 16}}
    stated = DIALECTS["timm"].metadata(Documents(config=about))
    assert stated.config == with_output_stride(variant(name), 16)


# -- files --------------------------------------------------------------------------------------


def test_load_gives_the_stride_that_is_asked_for(tmp_path: Any) -> None:
    """The same weights with dilation, saved and loaded again."""
    model = filled(ResNeXt(ResNeXtConfig(**SMALL))).float().eval()
    x = images(1, 3, 64, 64, dtype=torch.float32)
    save(model, tmp_path / "a.safetensors")
    dilated = load(tmp_path / "a.safetensors", output_stride=8, dilation_convention="smp")
    assert dilated.config == with_output_stride(model.config, 8, "smp")
    backbone = load_backbone(
        tmp_path / "a.safetensors", output_stride=8, dilation_convention="smp", out_indices=(3,)
    )
    with torch.no_grad():
        assert backbone(x)[0].shape[2:] == (8, 8)
        assert torch.equal(backbone(x)[0], dilated.features(x)[-1])
    assert dilated.card is not None
    assert "output stride 8, dilated as by smp" in dilated.card.provenance["notes"]
    assert isinstance(dilated, ResNeXt)
    save(dilated, tmp_path / "b.safetensors")
    assert load(tmp_path / "b.safetensors").config == dilated.config
    with pytest.raises(ConfigError, match="must be 8, 16 or 32"):
        load(tmp_path / "a.safetensors", output_stride=4)
