"""What users of mmcls build on: own depths, stages, blocks and registered classes."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from resnext import mmcls
from resnext.errors import ResNeXtError
from resnext.mmcls.blocks import get_expansion
from resnext.mmcls.registry import Registry

TWO: dict[str, Any] = {"num_stages": 2, "strides": (1, 2), "dilations": (1, 1)}
TWO["out_indices"] = (0, 1)


def shapes(network: nn.Module) -> list[tuple[int, ...]]:
    maps = network.eval()(torch.rand(1, 3, 64, 64))
    return [tuple(m.shape[1:]) for m in (maps if isinstance(maps, tuple) else (maps,))]


@pytest.fixture
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(mmcls.BACKBONES.module_dict)
    monkeypatch.setattr(mmcls.BACKBONES, "module_dict", known)


# -- depths, stages and blocks ----------------------------------------------------------------


class Shallow(mmcls.ResNeXt):
    """Depths that mmcls does not have."""

    arch_settings: ClassVar = {
        26: (mmcls.Bottleneck, (2, 2, 2, 2)),
        14: (mmcls.Bottleneck, (1, 1, 1, 1)),
    }


@pytest.mark.parametrize(("depth", "blocks"), [(26, 2), (14, 1)])
def test_own_depths(depth: int, blocks: int) -> None:
    """A subclass names its depths in `arch_settings`; the config says them, too."""
    network = Shallow(depth, width_per_group=2)
    assert [len(getattr(network, name)) for name in network.res_layers] == [blocks] * 4
    assert network.stage_blocks == network.config.layers == (blocks,) * 4
    assert shapes(network) == [(2048, 2, 2)]


@pytest.mark.parametrize("depth", [14, 18, 26, 50.0, True, None, [50], "50"])
@pytest.mark.parametrize("kind", [mmcls.ResNeXt, mmcls.SEResNeXt])
def test_other_depths_are_refused(kind: Any, depth: Any) -> None:
    """They are timm's depths, or no depths; mmcls raises a KeyError."""
    with pytest.raises(KeyError, match=r"invalid depth .*: it has 50, 101, 152\.") as caught:
        kind(depth)
    assert isinstance(caught.value, ResNeXtError)


def test_own_stages() -> None:
    """`make_res_layer` gets mmcls's arguments, and what it returns is the stage."""
    calls = []

    class Wider(mmcls.ResNeXt):
        def make_res_layer(self, **kwargs: Any) -> nn.Sequential:
            """One block in each stage."""
            calls.append(kwargs)
            return super().make_res_layer(**{**kwargs, "num_blocks": 1})

    network: Any = Wider(50, **TWO, style="caffe", with_cp=True, drop_path_rate=0.1)
    assert [len(network.layer1), len(network.layer2)] == [1, 1]
    assert shapes(network) == [(256, 16, 16), (512, 8, 8)]
    assert calls[1] == {
        "block": mmcls.Bottleneck,
        "num_blocks": 4,
        "in_channels": 256,
        "out_channels": 512,
        "expansion": 4,
        "stride": 2,
        "dilation": 1,
        "style": "caffe",
        "avg_down": False,
        "with_cp": True,
        "conv_cfg": None,
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "drop_path_rate": 0.1,
    }


def test_own_blocks() -> None:
    """A class of block in `arch_settings` is built with mmcls's arguments."""

    class Quiet(mmcls.Bottleneck):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Nothing of the block."""
            return super().forward(x) * 0

    class Network(mmcls.ResNeXt):
        arch_settings: ClassVar = {50: (Quiet, (1, 1, 1, 1))}

    network = Network(50, **TWO)
    assert network.block is Quiet
    assert not network.eval()(torch.rand(1, 3, 64, 64))[1].any()


class Plain(nn.Module):
    """A block that shares nothing with ours."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One convolution and the shortcut."""
        return self.conv(x) + (x if self.downsample is None else self.downsample(x))


def test_blocks_of_another_kind() -> None:
    """mmcls's ResNet-18 has them: their expansion is that of their class."""

    class Network(mmcls.ResNeXt):
        arch_settings: ClassVar = {18: (Plain, (2, 2, 2, 2))}

    network = Network(18, groups=1)
    network.init_weights()
    assert (network.expansion, network.feat_dim) == (1, 512)
    assert shapes(network) == [(512, 2, 2)]


def test_expansion() -> None:
    assert get_expansion(mmcls.Bottleneck) == get_expansion(mmcls.SEBottleneck) == 4
    assert get_expansion(mmcls.Bottleneck, 2) == 2
    assert get_expansion(Plain) == 1
    for wrong in ("0", 2.0):
        with pytest.raises(TypeError, match="expansion must be"):
            get_expansion(mmcls.Bottleneck, wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expansion of ReLU must be"):
        get_expansion(nn.ReLU)
    with pytest.raises(AssertionError, match="expansion must be"):
        get_expansion(mmcls.Bottleneck, 0)


# -- what code of users reads -----------------------------------------------------------------


@pytest.mark.parametrize("kind", [mmcls.ResNeXt, mmcls.SEResNeXt])
def test_the_network_has_its_arguments(kind: Any) -> None:
    """Hooks and heads read them."""
    given: dict[str, Any] = {
        **{"depth": 50, "groups": 4, "width_per_group": 16, "in_channels": 4, **TWO},
        **{"stem_channels": 32, "base_channels": 32, "expansion": 2, "dilations": (1, 2)},
        **{"style": "caffe", "deep_stem": False, "avg_down": True, "frozen_stages": 1},
        **{"conv_cfg": {"type": "ConvWS"}, "norm_cfg": {"type": "GN", "num_groups": 4}},
        **{"norm_eval": True, "with_cp": True, "zero_init_residual": False, "init_cfg": None},
        **{"drop_path_rate": 0.25, "contract_dilation": True, "multi_grid": None},
    }
    if kind is mmcls.SEResNeXt:
        given["se_ratio"] = 8
    assert set(inspect.signature(mmcls.ResNeXt).parameters) <= set(given)
    network = kind(**given)
    assert {name: getattr(network, name) for name in given} == given
    assert network.norm1_name == "gn1"
    assert network.norm1 is network.gn1
    assert network.res_layers == ["layer1", "layer2"]
    assert network.feat_dim == 128


@pytest.mark.parametrize(
    ("kind", "block_kind"),
    [(mmcls.ResNeXt, mmcls.Bottleneck), (mmcls.SEResNeXt, mmcls.SEBottleneck)],
)
def test_blocks_are_mmcls_own(kind: Any, block_kind: Any) -> None:
    """Code of users looks for blocks by their class, then reads their attributes."""
    network = kind(50, **TWO, groups=8, norm_cfg={"type": "GN", "num_groups": 4}, with_cp=True)
    stage = network.layer2
    assert isinstance(stage, mmcls.ResLayer)
    assert (stage.block, stage.expansion) == (block_kind, 4)
    assert [type(block) for block in stage] == [block_kind] * 4
    block = stage[0]
    wanted = {
        **{"in_channels": 256, "out_channels": 512, "mid_channels": 64, "expansion": 4},
        **{"groups": 8, "width_per_group": 4, "stride": 2, "dilation": 1, "style": "pytorch"},
        **{"with_cp": True, "conv1_stride": 1, "conv2_stride": 2, "norm1_name": "gn1"},
        **{"norm2_name": "gn2", "norm3_name": "gn3", "conv_cfg": None},
        **{"norm_cfg": {"type": "GN", "num_groups": 4}},
    }
    assert {name: getattr(block, name) for name in wanted} == wanted
    assert [block.norm1, block.norm2, block.norm3] == [block.gn1, block.gn2, block.gn3]
    block.with_cp = False  # pyright: ignore[reportArgumentType]
    assert not block.checkpointing
    network.set_grad_checkpointing(False)  # timm's way to say it
    assert not network.with_cp


@pytest.mark.parametrize("style", ["pytorch", "caffe"])
def test_stage_alone_is_the_stage_of_a_network(style: str) -> None:
    """`ResLayer` and `SEBottleneck` by themselves, as other backbones of mmcls use them."""
    network: Any = mmcls.SEResNeXt(50, **TWO, style=style, avg_down=True, se_ratio=8).eval()
    layer: Any = mmcls.ResLayer(
        mmcls.SEBottleneck, 4, 256, 512, stride=2, style=style, avg_down=True, se_ratio=8
    ).eval()
    layer.load_state_dict(network.layer2.state_dict())
    assert [type(m) for m in layer[0].downsample] == [nn.AvgPool2d, nn.Conv2d, nn.BatchNorm2d]
    x = torch.rand(1, 256, 9, 9)
    torch.testing.assert_close(layer(x), network.layer2(x), rtol=0, atol=0)


# -- registered classes -----------------------------------------------------------------------


@pytest.mark.usefixtures("_own_registry")
def test_registered_classes_are_built_by_name() -> None:
    """As a decorator with and without parentheses, under another name, and by the class."""

    @mmcls.BACKBONES.register_module()
    class First(Shallow):
        pass

    @mmcls.BACKBONES.register_module(name=["Second", "Third"])
    class Other(Shallow):
        pass

    @mmcls.BACKBONES.register_module
    class Fourth(Shallow):
        pass

    mmcls.BACKBONES.register_module("Fifth", module=Shallow)
    for kind, wanted in {
        "First": First,
        "Second": Other,
        "Third": Other,
        "Fourth": Fourth,
        "Fifth": Shallow,
        "mmcls.First": First,
        Other: Other,
        Shallow: Shallow,
        mmcls.SEResNeXt: mmcls.SEResNeXt,
    }.items():
        cfg = {"type": kind, "depth": 50 if kind is mmcls.SEResNeXt else 14}
        assert type(mmcls.build(cfg)) is wanted
        assert type(mmcls.BACKBONES.build(cfg)) is wanted
    assert "Other" not in mmcls.BACKBONES
    assert mmcls.BACKBONES.get("ResNeXt") is mmcls.ResNeXt


@pytest.mark.usefixtures("_own_registry")
def test_a_classifier_has_a_registered_backbone() -> None:
    """Also one that is no ResNeXt at all."""

    @mmcls.BACKBONES.register_module()
    class Tiny(nn.Sequential):
        def __init__(self, width: int) -> None:
            super().__init__(nn.Conv2d(3, width, 3), nn.ReLU())

    model: Any = mmcls.build(
        {
            "type": "ImageClassifier",
            "backbone": {"type": "Tiny", "width": 6},
            "neck": {"type": "GlobalAveragePooling"},
            "head": {"type": "LinearClsHead", "num_classes": 5, "in_channels": 6},
        }
    )
    model.init_weights()
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 5)


@pytest.mark.usefixtures("_own_registry")
def test_wrong_registrations() -> None:
    """A name is not replaced by accident; an unknown one says what to do."""
    with pytest.raises(KeyError, match="ResNeXt is already registered in BACKBONES"):
        mmcls.BACKBONES.register_module("ResNeXt", module=Shallow)
    mmcls.BACKBONES.register_module("ResNeXt", force=True, module=Shallow)
    assert type(mmcls.build({"type": "ResNeXt", "depth": 14})) is Shallow
    with pytest.raises(TypeError, match="Only classes can be registered"):
        Registry("own").register_module(module=Shallow(14))  # type: ignore[arg-type]
    with pytest.raises(KeyError, match=r"'Absent' are not built here.*register_module\(\)"):
        mmcls.build({"type": "Absent"})
