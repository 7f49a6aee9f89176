"""OpenMMLab's configs: each argument of a backbone is followed, refused, or changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from network_cases import images, same
from oracles import segmentation
from oracles.originals import randomize, torchvision
from torch import Tensor

from resnext import Backbone, ResNeXt, ResNeXtConfig, load, load_backbone, mmcls, predict
from resnext.dialects.dialect import Documents
from resnext.dialects.openmmlab import _UNUSED, model_config
from resnext.dialects.table import DIALECTS
from resnext.errors import CheckpointError

RESNEXT: dict[str, Any] = {
    "type": "ResNeXt",
    "depth": 50,
    "groups": 4,
    "base_width": 8,
    "base_channels": 16,
    "stem_channels": 64,
    "strides": (1, 2, 1, 1),
    "dilations": (1, 1, 2, 4),
    "norm_cfg": {"type": "SyncBN", "requires_grad": True},
}


def written(path: Path, backbone: Any, state: dict[str, Tensor], **model: Any) -> Path:
    """A file as mmcv writes it."""
    whole = {"type": "EncoderDecoder", "backbone": backbone, **model}
    prefixed = {f"backbone.{name}": x for name, x in state.items() if not name.startswith("fc.")}
    head = {f"head.{name}": x for name, x in state.items() if name.startswith("fc.")}
    content = {"state_dict": {**prefixed, **head}, "meta": {"config": f"model = {whole!r}\n"}}
    torch.save(content, path)
    return path


def of_torchvision(groups: int = 4, width: int = 32, planes: int = 16) -> Any:
    """torchvision's network with mmseg's widths: mmseg's own class gives its blocks these."""
    resnet: Any = torchvision.models.resnet
    network = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1])
    network.inplanes = 64
    network.groups, network.base_width = groups, width * 64 // planes // groups
    for i, blocks in enumerate((3, 4, 6, 3)):
        layer = network._make_layer(resnet.Bottleneck, planes * 2**i, blocks, stride=min(i + 1, 2))
        setattr(network, f"layer{i + 1}", layer)
    del network.fc
    randomize(network)
    return network.eval()


def maps_of(network: Any, x: Tensor) -> list[Tensor]:
    """Maps of the stages."""
    x, maps = network.maxpool(network.relu(network.bn1(network.conv1(x)))), list[Tensor]()
    for i in range(1, 5):
        x = getattr(network, f"layer{i}")(x)
        maps.append(x)
    return maps


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"contract_dilation": True},
        {"contract_dilation": True, "dilations": (1, 3, 2, 5)},
        {"contract_dilation": True, "strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2)},
        {"multi_grid": (1, 2, 4)},
        {"multi_grid": (4, 8, 16, 32), "contract_dilation": True},
        {"multi_grid": None, "contract_dilation": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["ResNeXt", "ResNet"])
def test_dilation_of_mmseg(tmp_path: Path, kind: str, arguments: dict[str, Any]) -> None:
    """Both arguments were dropped, and a ResNet's dilations too; maps differed by up to 14 %."""
    plain = kind == "ResNet"
    theirs = of_torchvision(1, 16) if plain else of_torchvision()
    backbone = {**RESNEXT, **arguments, "type": kind}
    if plain:
        del backbone["groups"], backbone["base_width"]
    file = written(tmp_path / "a.pth", backbone, theirs.state_dict())
    ours, theirs = load_backbone(file).double(), theirs.double()
    blocks = {"contract_dilation": False, "multi_grid": None, **arguments}
    strides, dilations = blocks.pop("strides", (1, 2, 1, 1)), blocks.pop("dilations", (1, 1, 2, 4))
    segmentation.dilate_as_mmseg(theirs, strides, dilations, **blocks)
    x = images(1, 3, 65, 49)
    with torch.no_grad():
        same(list(ours(x)), maps_of(theirs, x))


@pytest.mark.parametrize("convention", ["smp", "mmseg"])
def test_mmcls_takes_mmsegs_arguments(convention: Any) -> None:
    """The class that a config of mmseg is built with, as a drop-in."""
    contract = convention == "mmseg"
    network = mmcls.ResNeXt(
        50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=contract
    )
    assert network.config.dilations == (
        (1, 1, (1, 2, 2, 2, 2, 2), (2, 4, 4)) if contract else (1, 1, 2, 4)
    )
    block: Any = network.get_submodule("layer4.0")
    assert block.dilation == block.conv2.dilation[0] == (2 if contract else 4)
    with pytest.raises(
        ValueError, match="multi_grid must hold a dilation for each of the 3 blocks"
    ):
        mmcls.ResNeXt(50, multi_grid=(1, 2))
    with pytest.raises(TypeError, match="contract_dilation must be True or False, not 'no'"):
        mmcls.ResNeXt(50, contract_dilation="no")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("backbone", "fields"),
    [
        ({"type": "ResNetV1c"}, {"stem_type": "deep", "avg_down": False}),
        ({"type": "ResNetV1d"}, {"stem_type": "deep", "avg_down": True}),
        ({"type": "mmseg.ResNetV1c"}, {"stem_type": "deep", "avg_down": False}),
        ({"type": "ResNet", "style": "caffe"}, {"stem_type": None, "style": "caffe"}),
        ({"type": "ResNet_CIFAR"}, {"small_stem": True}),
        ({"type": "SEResNet"}, {"attention": "se"}),
        ({"type": "ResNet", "depth": 101}, {"layers": (3, 4, 23, 3)}),
    ],
    ids=str,
)
def test_resnets_are_read(backbone: dict[str, Any], fields: dict[str, Any]) -> None:
    """Their configs were passed over, so strides, dilations and styles were lost."""
    settings = {"depth": 50, "strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4), **backbone}
    config = model_config({"type": "EncoderDecoder", "backbone": settings})
    assert config is not None
    assert {name: getattr(config, name) for name in fields} == fields
    assert [stage.groups for stage in config.stages] == [1] * 4
    assert (config.strides, config.dilations) == ((1, 2, 1, 1), (1, 1, 2, 4))
    assert [stage.width for stage in config.stages] == [64, 128, 256, 512]


@pytest.mark.parametrize("kind", ["ResNetV1c", "ResNetV1d"])
def test_deep_stems_of_mmseg(tmp_path: Path, kind: str) -> None:
    """The usual backbone of its configs, with names as mmseg writes them."""
    fields: dict[str, Any] = {"stem_type": "deep", "stem_channels": (8, 8, 16)}
    config = ResNeXtConfig(
        (3, 4, 6, 3),
        1,
        64,
        channels=(8, 16, 32, 64),
        strides=(1, 2, 1, 1),
        dilations=(1, 1, (1, 2, 2, 2, 2, 2), (2, 4, 4)),
        avg_down=kind == "ResNetV1d",
        **fields,
    )
    model = ResNeXt(config).eval()
    randomize(model)
    plain = config.replace(dilations=None)
    state = DIALECTS["mmdet"].write(model.state_dict(), plain)
    backbone = {
        "type": kind,
        "depth": 50,
        "base_channels": 8,
        "stem_channels": 16,
        "strides": (1, 2, 1, 1),
        "dilations": (1, 1, 2, 4),
        "contract_dilation": True,
    }
    loaded = load_backbone(written(tmp_path / "a.pth", backbone, state))
    assert loaded.config.dilations == config.dilations
    x = images(1, 3, 64, 64, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(loaded(x)[-1], model.features(x)[-1])


UNUSED: dict[str, Any] = {
    "pretrained": "open-mmlab://resnext50_32x4d",
    "init_cfg": {"type": "Pretrained", "checkpoint": "nowhere.pth"},
    "with_cp": True,
    "norm_eval": True,
    "frozen_stages": 4,
    "out_indices": (1, 3),
    "drop_path_rate": 0.5,
    "stage_with_dcn": (False, True, True, True),
    "zero_init_residual": False,
    "dcn": None,
    "plugins": None,
}


@pytest.mark.parametrize("name", UNUSED)
def test_what_is_passed_over_changes_no_output(tmp_path: Path, name: str) -> None:
    """Every ignored argument is here, with a value that is not its default."""
    assert set(_UNUSED) <= set(UNUSED)
    state = of_torchvision().state_dict()
    x = images(1, 3, 64, 64, dtype=torch.float32)
    maps = list[list[Tensor]]()
    for i, arguments in enumerate(({}, {name: UNUSED[name]})):
        backbone = load(written(tmp_path / f"{i}.pth", {**RESNEXT, **arguments}, state))
        with torch.no_grad():
            maps.append(list(backbone(x)))
    assert all(map(torch.equal, *maps))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dcn": {"type": "DCN"}}, "has dcn=.* not supported"),
        ({"plugins": [{"cfg": {}}]}, "has plugins=.* not supported"),
        ({"multi_grid": (1, 2)}, "multi_grid must hold a dilation for each of the 3 blocks"),
        ({"multi_grid": 2}, "multi_grid must be a list or None, not 2"),
        ({"multi_grid": (1, 2, "4")}, "does not describe a valid network"),
        ({"contract_dilation": 1}, "contract_dilation must be True or False, not 1"),
        ({"radix": 2}, "'radix'"),
        ({"sac": {"type": "SAC"}}, "'sac'"),
        ({"norm_cfg": {"type": "FrozenBN"}}, "FrozenBN"),
        ({"type": "TridentResNet"}, "nor a ResNet, but 'TridentResNet' in its config.*config="),
        ({"type": "DetectoRS_ResNeXt"}, "but 'DetectoRS_ResNeXt'"),
        ({"type": "mmpretrain.TIMMBackbone", "model_name": "resnet50"}, "but 'TIMMBackbone'"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_refused(arguments: dict[str, Any], message: str) -> None:
    """In one line, and never dropped."""
    with pytest.raises(CheckpointError, match=message) as caught:
        model_config({"type": "EncoderDecoder", "backbone": {**RESNEXT, **arguments}})
    assert "\n" not in str(caught.value)


def test_the_users_config_wins_over_a_strange_one(tmp_path: Path) -> None:
    """A backbone of another name may be a ResNeXt all the same; only its user knows."""
    theirs = of_torchvision()
    file = written(tmp_path / "a.pth", {**RESNEXT, "type": "MyResNeXt"}, theirs.state_dict())
    with pytest.raises(CheckpointError, match="'MyResNeXt'"):
        load(file)
    config = model_config({"type": "EncoderDecoder", "backbone": RESNEXT})
    loaded = load(file, config=config)
    assert loaded.config == config
    assert loaded.card is not None
    assert any("MyResNeXt" in note for note in loaded.card.provenance["notes"])


# -- heads and necks ----------------------------------------------------------------------------

CLASSIFIER = ResNeXtConfig(
    (3, 4, 6, 3), 4, 8, num_classes=3, channels=(16, 32, 64, 128), widths=(32, 64, 128, 256)
)


def classifier_file(path: Path, head: Any, **model: Any) -> Path:
    """A classifier of mmcls with a head of any type."""
    network = ResNeXt(CLASSIFIER)
    randomize(network)
    backbone = {**RESNEXT, "strides": (1, 2, 2, 2), "dilations": (1,) * 4, "width_per_group": 8}
    del backbone["base_width"]
    neck = {"type": "GlobalAveragePooling"}
    model = {"type": "ImageClassifier", "neck": neck, "head": head, **model}
    return written(path, backbone, network.state_dict(), **model)


LINEAR: dict[str, Any] = {"type": "LinearClsHead", "num_classes": 3, "in_channels": 512}


@pytest.mark.parametrize(
    "head",
    [
        LINEAR,
        {**LINEAR, "topk": (1, 5), "cal_acc": True, "loss": {"type": "LabelSmoothLoss"}},
        {**LINEAR, "type": "mmpretrain.LinearClsHead", "init_cfg": None},
    ],
)
def test_linear_heads(tmp_path: Path, head: Any) -> None:
    """Losses and the like change no logits."""
    model = load(classifier_file(tmp_path / "a.pth", head))
    assert isinstance(model, ResNeXt)
    assert model.config.num_classes == 3


@pytest.mark.parametrize(
    ("head", "why"),
    [
        ({**LINEAR, "type": "MultiLabelLinearClsHead"}, "its head is MultiLabelLinearClsHead"),
        ({**LINEAR, "type": "mmpretrain.ArcFaceClsHead"}, "its head is ArcFaceClsHead"),
        ({**LINEAR, "type": "CSRAClsHead", "num_heads": 1}, "its head is CSRAClsHead"),
        ({**LINEAR, "scale": 30}, "its head has 'scale', which is not known here"),
    ],
)
def test_other_heads_are_left_out(tmp_path: Path, head: Any, why: str) -> None:
    """Their last layer has the same names, but softmax over it answers another question."""
    file = classifier_file(tmp_path / "a.pth", head)
    model = load(file)
    assert isinstance(model, Backbone)
    assert model.card is not None
    assert any(f"last layer was left out: {why}" in note for note in model.card.provenance["notes"])
    with pytest.raises(CheckpointError, match=f"has no classifier, only a backbone .*{why}"):
        predict(file, torch.rand(1, 3, 64, 64).numpy())


@pytest.mark.parametrize(
    ("neck", "message"),
    [
        ({"type": "GeneralizedMeanPooling"}, "neck is GeneralizedMeanPooling"),
        ([{"type": "GlobalAveragePooling"}, {"type": "LinearNeck"}], "neck is LinearNeck"),
        ({"type": "GlobalAveragePooling", "dim": 1}, "neck pools 1 dimensions, not 2"),
    ],
)
def test_other_necks(tmp_path: Path, neck: Any, message: str) -> None:
    """A list of necks was not looked at."""
    with pytest.raises(CheckpointError, match=message):
        load(classifier_file(tmp_path / "a.pth", LINEAR, neck=neck))


def test_multi_label_models_of_transformers() -> None:
    """`problem_type` says what the last layer answers."""
    for kind in ("multi_label_classification", "regression"):
        stated = DIALECTS["transformers"].metadata(Documents(config={"problem_type": kind}))
        assert kind in stated.head
    usual = Documents(config={"problem_type": "single_label_classification"})
    assert DIALECTS["transformers"].metadata(usual).head == ""


# -- images -------------------------------------------------------------------------------------

STEPS: list[dict[str, Any]] = [
    {"type": "LoadImageFromFile"},
    {"type": "Resize", "size": (80, -1), "backend": "pillow"},
    {"type": "CenterCrop", "crop_size": 64},
    {"type": "Normalize", "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "to_rgb": True},
    {"type": "ImageToTensor", "keys": ["img"]},
    {"type": "Collect", "keys": ["img"]},
]


def stated(steps: list[dict[str, Any]], **settings: Any) -> Any:
    """What is read in the config of a file with such a test pipeline."""
    text = f"test_pipeline = {steps!r}\n" + "".join(f"{k} = {v!r}\n" for k, v in settings.items())
    return DIALECTS["mmcls"].metadata(Documents(file={"meta": {"config": text}}))


def test_the_usual_pipeline_is_used() -> None:
    """With nothing to note."""
    found = stated(STEPS)
    assert (found.preprocessing.size, found.preprocessing.resize) == (64, 80)
    assert found.notes == ()


@pytest.mark.parametrize(
    ("index", "change", "said"),
    [
        (0, {"color_type": "grayscale"}, "color_type='grayscale' of LoadImageFromFile"),
        (1, {"adaptive_side": "long"}, "adaptive_side='long' of Resize"),
        (1, {"scale_factor": 2.0}, "scale_factor=2.0 of Resize"),
        (2, {"efficientnet_style": True}, "efficientnet_style=True of CenterCrop"),
        (2, {"crop_size": (64, 32)}, "of another kind"),
        (3, {"type": "Lighting"}, "Lighting"),
        (4, {"type": "Pad", "size_divisor": 32}, "Pad"),
        (4, {"type": "mmcls.ColorTransform"}, "ColorTransform"),
        (4, STEPS[1], "Resize twice"),
    ],
    ids=str,
)
def test_other_pipelines_are_noted(index: int, change: dict[str, Any], said: str) -> None:
    """A step or argument that is not known here must not be dropped in silence."""
    steps = [dict(step) for step in STEPS]
    steps[index] |= change
    found = stated(steps)
    assert found.preprocessing is None
    assert any("is of another kind" in note and said in note for note in found.notes)


@pytest.mark.parametrize(
    ("changes", "colour"),
    [
        ({}, "BGR"),
        ({"to_rgb": True}, "RGB"),
        ({"bgr_to_rgb": True, "type": "SegDataPreProcessor"}, "RGB"),
        ({"pad_size_divisor": 32, "batch_augments": {"augments": []}}, "BGR"),
        ({"pad_size_divisor": 48}, None),
        ({"rgb_to_bgr": True}, None),
        ({"channel_order": "rgb"}, None),
    ],
    ids=str,
)
def test_preprocessors_of_mmengine(changes: dict[str, Any], colour: str | None) -> None:
    """Normalization in the model, with the arguments of all its libraries."""
    processor = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], **changes}
    found = stated([*STEPS[:3], {"type": "PackInputs"}], data_preprocessor=processor)
    assert (found.preprocessing.colour if found.preprocessing else None) == colour
    assert bool(found.notes) == (colour is None)
