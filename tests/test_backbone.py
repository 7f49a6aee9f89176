"""The backbone: maps, frozen stages, checkpointing, and what other libraries build on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from network_cases import filled, four, gradients, images, loss, same, tiny
from oracles.originals import has_operators, torchvision
from torch import Tensor, nn

from resnext import Backbone, ResNeXt, create
from resnext.errors import ResNeXtError

# -- wrong inputs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"out_indices": ()}, ValueError, r"from 0 to 1, at least one, not \(\)"),
        ({"out_indices": (-1,)}, ValueError, r"from 0 to 1.* not \(-1,\)"),
        ({"out_indices": (0, 2)}, ValueError, r"from 0 to 1.* not \(0, 2\)"),
        ({"out_indices": 1}, TypeError, "tuple or list of integers, not 1"),
        ({"out_indices": "01"}, TypeError, "tuple or list of integers, not '01'"),
        ({"out_indices": (1.0,)}, TypeError, r"integers, not \(1\.0,\)"),
        ({"out_indices": (True,)}, TypeError, r"integers, not \(True,\)"),
        ({"frozen_stages": 3}, ValueError, r"frozen_stages must be from -1 \(none\) to 2, not 3"),
        ({"frozen_stages": 1.0}, TypeError, "frozen_stages must be an integer, not 1.0"),
        ({"frozen_stages": True}, TypeError, "frozen_stages must be an integer, not True"),
        ({"frozen_stages": None}, TypeError, "frozen_stages must be an integer, not None"),
    ],
)
def test_wrong_arguments_of_backbone(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """mmcls took -1 and returned nothing; a frozen stage that does not exist froze others."""
    with pytest.raises(error, match=message) as caught:
        Backbone(tiny(), **arguments)
    assert isinstance(caught.value, ResNeXtError)


# -- backbone ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "returned"),
    [
        (None, (0, 1, 2, 3)),
        ((0,), (0,)),
        ((3,), (3,)),
        ([1, 3], (1, 3)),
        ((2, 0), (0, 2)),
        ((1, 1, 2), (1, 2)),
    ],
)
@pytest.mark.parametrize(
    "changes", [{}, {"small_stem": True}, {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)}]
)
def test_maps_of_backbone(wanted: Any, returned: tuple[int, ...], changes: dict[str, Any]) -> None:
    """Heads are built from `feature_info`; it must describe the maps that really come."""
    config = four(**changes)
    model = filled(ResNeXt(config)).eval()
    backbone = Backbone(config, out_indices=wanted).double().eval()
    loaded = backbone.load_state_dict(model.state_dict(), strict=False)
    assert loaded.missing_keys == []
    built = returned[-1] + 1
    unneeded = tuple(f"layer{i + 1}." for i in range(built, 4))
    assert all(key.startswith(("fc.", *unneeded)) for key in loaded.unexpected_keys)
    x = images(2, 3, 64, 96)
    with torch.no_grad():
        maps, everything = backbone(x), model.features(x)
    assert isinstance(maps, tuple)
    same(maps, tuple(everything[i] for i in returned), 0)
    info = backbone.feature_info
    assert [f.name for f in info] == [f"layer{i + 1}" for i in returned]
    assert [f.channels for f in info] == [m.shape[1] for m in maps]
    assert [(64 // f.stride, 96 // f.stride) for f in info] == [tuple(m.shape[2:]) for m in maps]
    children = dict(backbone.named_children())
    assert [name for name in children if name.startswith("layer")] == [
        f"layer{i + 1}" for i in range(built)
    ]
    assert backbone.num_features == 4 * config.channels[built - 1]


@pytest.mark.parametrize("frozen", [-1, 0, 1, 2, 3, 4])
@pytest.mark.parametrize("deep", [False, True])
def test_frozen_stages(frozen: int, deep: bool) -> None:
    """Every epoch begins with `train()`; what is frozen must stay so, and nothing else must."""
    changes = {"stem_type": "deep", "stem_channels": (4, 8, 8)} if deep else {}
    backbone = Backbone(four(**changes), frozen_stages=frozen)
    parts = ["conv1.", "bn1."] * (frozen >= 0) + [f"layer{i + 1}." for i in range(frozen)]
    backbone.eval()
    assert backbone.train() is backbone
    backbone.train(False).train(True)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, weight_decay=0.1)
    x = images(2, 3, 64, 64, dtype=torch.float32).requires_grad_()
    loss(backbone(x)).backward()
    optimizer.step()
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith(tuple(parts)), key
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad == (not name.startswith(tuple(parts))), name
    for name, module in backbone.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == (not name.startswith(tuple(p[:-1] for p in parts))), name


def test_more_stages_frozen_than_built() -> None:
    """With only the first stages built, freezing all of them must freeze what there is."""
    backbone = Backbone(four(), out_indices=(1,), frozen_stages=4)
    assert not any(p.requires_grad for p in backbone.parameters())


def test_norm_eval() -> None:
    """Detectors train with few images: their statistics must stay, their weights must learn."""
    backbone = filled(Backbone(tiny(), norm_eval=True))
    assert backbone.train() is backbone
    assert backbone.layer1.training
    before = {k: v.clone() for k, v in backbone.named_buffers()}
    x = images(2, 3, 32, 32)
    outputs = backbone(x)
    same(dict(backbone.named_buffers()), before, 0)
    torch.stack([m.sum() for m in outputs]).sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())
    with torch.no_grad():
        same(outputs, backbone.eval()(x), 0)
        backbone.train()
        assert not any(m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))


def test_norm_eval_leaves_other_norms_alone() -> None:
    """Group norm has no statistics; switching modes would only confuse who inspects it."""
    backbone = Backbone(tiny(norm="group", norm_groups=4), norm_eval=True)
    assert all(m.training for m in backbone.modules())


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({}, {}),
        ({"drop_path_rate": 0.5, "attention": "se"}, {}),
        ({"norm_momentum": None}, {}),
        ({"norm_track": False}, {}),
        ({"norm": "group", "norm_groups": 4}, {}),
        ({"conv": "weight_standardized"}, {}),
        ({}, {"norm_eval": True}),
        ({}, {"frozen_stages": 1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_checkpointing_changes_only_memory(
    changes: dict[str, Any], arguments: dict[str, Any], training: bool
) -> None:
    """Computing a block twice must not count its batch twice, nor draw other random numbers."""
    plain = filled(Backbone(tiny(**changes), **arguments)).train(training)
    saving = Backbone(tiny(**changes), **arguments, checkpointing=True).double().train(training)
    saving.load_state_dict(plain.state_dict())
    outputs, x = [], images(4, 3, 32, 32)
    for step in range(2):
        for model in (plain, saving):
            model.zero_grad()
            torch.manual_seed(step)
            outputs.append(model(x))
            loss(outputs[-1]).backward()
        same(outputs[-1], outputs[-2], 0)
        same(gradients(saving), gradients(plain), 0)
        same(saving.state_dict(), plain.state_dict(), 0)
    for key, count in saving.state_dict().items():
        if key.endswith("num_batches_tracked"):
            frozen = arguments.get("frozen_stages") and not key.startswith("layer2")
            stays = not training or frozen or arguments.get("norm_eval")
            assert count == (0 if stays else 2), key
    for module in saving.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.momentum == changes.get("norm_momentum", 0.1)
            assert module.training == plain.get_submodule(name_of(saving, module)).training


def name_of(model: nn.Module, module: nn.Module) -> str:
    """A module's name in a model."""
    return next(name for name, m in model.named_modules() if m is module)


def test_checkpointing_keeps_fewer_activations() -> None:
    """A switch that saves nothing would go unnoticed, as results are the same."""
    kept = {}
    for checkpointing in (False, True):
        backbone, sizes = Backbone(tiny(), checkpointing=checkpointing), []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            backbone(images(1, 3, 64, 64, dtype=torch.float32))
        kept[checkpointing] = sum(sizes)
    assert kept[True] < 0.6 * kept[False]


# -- inside other libraries -------------------------------------------------------------------


def test_intermediate_layer_getter() -> None:
    """It runs children in the order they were defined; another order computes another network."""
    model, x = filled(ResNeXt(four())).eval(), images(1, 3, 64, 64)
    getter = torchvision.models._utils.IntermediateLayerGetter(
        model, {"layer1": "a", "layer4": "b"}
    )
    with torch.no_grad():
        maps, wanted = getter(x), model.features(x)
    same(dict(maps), {"a": wanted[0], "b": wanted[3]}, 0)


def test_feature_pyramid_of_torchvision() -> None:
    """Detectors read `inplanes` and freeze by name; widths must be those of the maps."""
    utils = torchvision.models.detection.backbone_utils
    model = create("resnext26_32x4d")
    pyramid = utils._resnet_fpn_extractor(model, trainable_layers=3).eval()
    learning = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert learning == {"layer2", "layer3", "layer4"}
    with torch.no_grad():
        maps = pyramid(images(1, 3, 64, 64, dtype=torch.float32))
    assert {k: tuple(m.shape) for k, m in maps.items()} == {
        **{str(i): (1, 256, 16 >> i, 16 >> i) for i in range(4)},
        "pool": (1, 256, 1, 1),
    }


def test_feature_pyramid_of_a_backbone() -> None:
    """The same with our backbone, its own widths and fewer stages."""
    backbone = Backbone(four(), out_indices=(0, 2))
    info = backbone.feature_info
    pyramid = torchvision.models.detection.backbone_utils.BackboneWithFPN(
        backbone,
        {f.name: f.name for f in info},
        [f.channels for f in info],
        out_channels=16,
    ).eval()
    with torch.no_grad():
        maps = pyramid(images(1, 3, 64, 64, dtype=torch.float32))
    assert [tuple(m.shape) for m in maps.values()] == [
        (1, 16, 16, 16),
        (1, 16, 4, 4),
        (1, 16, 2, 2),
    ]


def test_segmentation_of_torchvision() -> None:
    """DeepLab wants 2048 channels at stride 8, and the third stage for its second head."""
    config = tiny(
        layers=(1, 1, 1, 1),
        channels=(64, 128, 256, 512),
        widths=(8, 8, 8, 8),
        num_stages=4,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
    )
    build = torchvision.models.segmentation.deeplabv3._deeplabv3_resnet
    model = build(ResNeXt(config), num_classes=4, aux=True).eval()
    with torch.no_grad():
        out = model(images(1, 3, 40, 48, dtype=torch.float32))
    assert {k: tuple(v.shape) for k, v in out.items()} == {
        "out": (1, 4, 40, 48),
        "aux": (1, 4, 40, 48),
    }


def keep_best(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression, box by box."""
    overlap = torchvision.ops.box_iou(boxes, boxes)
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if all(overlap[i, j] <= threshold for j in kept):
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def test_detector_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole detector must train its backbone's unfrozen stages and then find boxes."""
    detection = torchvision.models.detection
    if not has_operators():
        monkeypatch.setattr(torchvision.ops.boxes, "nms", keep_best)
    torch.manual_seed(0)
    backbone = Backbone(tiny(), frozen_stages=1)
    pyramid = detection.backbone_utils.BackboneWithFPN(
        backbone, {"layer1": "0", "layer2": "1"}, [32, 64], out_channels=8
    )
    anchors = detection.anchor_utils.AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3)
    model = detection.RetinaNet(
        pyramid, 3, anchor_generator=anchors, min_size=64, max_size=64, detections_per_img=5
    )
    x = [images(3, 64, 48, dtype=torch.float32).sigmoid()]
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    losses = model(x, [{"boxes": boxes, "labels": torch.tensor([1])}])
    torch.stack([*losses.values()]).sum().backward()
    assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == name.startswith("layer2."), name
    with torch.no_grad():
        (found,) = model.eval()(x)
    assert found["boxes"].shape[1] == 4
    assert len(found["boxes"]) == len(found["scores"]) == len(found["labels"]) <= 5
