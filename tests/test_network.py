"""The network: the paper's equation, what it returns, and every way torch can run it."""

from __future__ import annotations

import copy
import itertools
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.originals import has_operators, randomize, torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from resnext import Backbone, Card, ResNeXt, ResNeXtConfig, create
from resnext.errors import ConfigError, ConfigTypeError, InputError, ResNeXtError
from resnext.layers import DropPath
from resnext.network import Bottleneck

TINY: dict[str, Any] = {
    "layers": (1, 2),
    "cardinality": 2,
    "base_width": 64,
    "num_classes": 5,
    "channels": (8, 16),
    "num_stages": 2,
    "stem_channels": 8,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep stem": {"stem_type": "deep", "stem_channels": (4, 8, 8)},
    "avg_down": {"avg_down": True},
    "small stem": {"small_stem": True},
    "se": {"attention": "se"},
    "se of Lucid": {"block_args": {"se": True, "se_args": {"reduction": 4}}},
    "eca": {"attention": "eca"},
    "avg": {"anti_alias": "avg"},
    "blur": {"anti_alias": "blur"},
    "group norm": {"norm": "group", "norm_groups": 4},
    "layer norm": {"norm": "layer"},
    "instance norm": {"norm": "instance"},
    "untracked norm": {"norm_track": False},
    "standardised": {"conv": "weight_standardized"},
    "affine standardised": {"conv": "affine_weight_standardized"},
    "same padding": {"conv": "same_padding"},
    "reflecting": {"padding_mode": "reflect"},
    "caffe": {"style": "caffe"},
    "dilated": {"strides": (1, 1), "dilations": (1, 2)},
    "dropping": {"drop_path_rate": 0.5, "dropout": 0.5},
    "resnext-d of timm": {
        "stem_type": "deep",
        "stem_channels": (4, 8, 8),
        "avg_down": True,
        "attention": "se",
        "anti_alias": "avg",
    },
}

FAST = {"plain", "resnext-d of timm", "blur", "instance norm"}
WARN_IN_TORCH = {"group norm", "instance norm", "untracked norm", "same padding"}  # when traced
COMPILED = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS]


def tiny(**changes: Any) -> ResNeXtConfig:
    """Two stages, for tests that run many networks."""
    return ResNeXtConfig(**{**TINY, **changes})


def four(**changes: Any) -> ResNeXtConfig:
    """Four narrow stages."""
    fields = {"layers": (1, 2, 1, 1), "channels": (8, 16, 24, 32), "num_stages": 4}
    return tiny(**{**fields, **changes})


def filled(model: Any, seed: int = 0) -> Any:
    """`model` in float64 with weights and statistics that hide nothing."""
    model = model.double()
    randomize(model, seed)
    return model


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Images, the same each time."""
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def same(got: Any, wanted: Any, tolerance: float = 1e-10) -> None:
    """Equal up to rounding, whatever is nested."""
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    """Gradients by name."""
    return {name: p.grad for name, p in model.named_parameters()}


# -- the paper --------------------------------------------------------------------------------


def aggregated(block: Bottleneck, x: Tensor, cardinality: int) -> Tensor:
    """Σ T_i(x) over i = 1…C, each T_i a path of three convolutions of its own (figure 3a)."""

    def norm(y: Tensor, layer: Any, channels: slice) -> Tensor:
        scale = layer.weight[channels] / (layer.running_var[channels] + layer.eps).sqrt()
        shift = layer.bias[channels] - layer.running_mean[channels] * scale
        return y * scale[:, None, None] + shift[:, None, None]

    conv1, conv2, conv3 = block.conv1, block.conv2, block.conv3
    d = conv2.out_channels // cardinality
    total: Any = 0
    for i in range(cardinality):
        path = slice(i * d, (i + 1) * d)
        y = F.conv2d(x, conv1.weight[path], stride=conv1.stride)
        y = norm(y, block.bn1, path).clamp(min=0)
        y = F.conv2d(
            y,
            conv2.weight[path],
            stride=conv2.stride,
            padding=conv2.dilation,
            dilation=conv2.dilation,
        )
        y = norm(y, block.bn2, path).clamp(min=0)
        total = total + F.conv2d(y, conv3.weight[:, path])
    return norm(total, block.bn3, slice(None))


@pytest.mark.parametrize("cardinality", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "changes", [{}, {"dilations": (1, 2)}, {"style": "caffe"}, {"widths": (24, 40)}], ids=str
)
def test_a_block_aggregates_separate_paths(cardinality: int, changes: dict[str, Any]) -> None:
    """A grouped convolution stands for C paths only if each reads and feeds its own slice."""
    model = filled(ResNeXt(tiny(cardinality=cardinality, **changes))).eval()
    x = images(2, 32, 9, 7)
    with torch.no_grad():
        for block in (model.layer2[0], model.layer2[1]):
            wanted = aggregated(block, x, cardinality)
            same(block.residual(x), wanted)
            shortcut = x
            if block.downsample is not None:
                project, norm = block.downsample
                shortcut = norm(F.conv2d(x, project.weight, stride=2))
            x = block(x)
            same(x, (wanted + shortcut).clamp(min=0))


@pytest.mark.parametrize(("style", "strides"), [("pytorch", (1, 2, 1)), ("caffe", (2, 1, 1))])
def test_style_says_which_convolution_strides(style: Any, strides: tuple[int, ...]) -> None:
    """Weights trained in one style give noise in the other, with the same shapes everywhere."""
    for build in (ResNeXt, Backbone):
        block = build(tiny(style=style)).layer2[0]
        convolutions = (block.conv1, block.conv2, block.conv3)
        assert tuple(c.stride for c in convolutions) == tuple((s, s) for s in strides)


# -- classifier -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "strides"),
    [
        ({}, (4, 8, 16, 32)),
        ({"small_stem": True}, (1, 2, 4, 8)),
        ({"stem_type": "deep", "stem_channels": None, "stem_width": 8}, (4, 8, 16, 32)),
        ({"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)}, (4, 8, 8, 8)),
        ({"strides": (2, 1, 2, 1), "avg_down": True}, (8, 8, 16, 16)),
        ({"style": "caffe"}, (4, 8, 16, 32)),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(64, 64), (50, 71)])
def test_sizes_of_maps(
    changes: dict[str, Any], strides: tuple[int, ...], size: tuple[int, int]
) -> None:
    """A stage that strides once too often, or rounds an odd side down, loses the last column."""
    model = ResNeXt(four(**changes)).eval()
    with torch.no_grad():
        maps = model.features(images(1, 3, *size, dtype=torch.float32))
    wanted = [
        (1, 4 * width, *(math.ceil(side / stride) for side in size))
        for width, stride in zip((8, 16, 24, 32), strides, strict=True)
    ]
    assert [tuple(m.shape) for m in maps] == wanted


def test_meaning_of_features_embedding_and_logits() -> None:
    """The embedding must be the pooled last map, and the logits a linear function of it."""
    model = filled(ResNeXt(four(dropout=0.9))).eval()
    x = images(3, 3, 64, 40)
    with torch.no_grad():
        maps, embedding, logits = model.features(x), model.embed(x), model(x)
        y = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        for got, stage in zip(
            maps, (model.layer1, model.layer2, model.layer3, model.layer4), strict=True
        ):
            y = stage(y)
            same(got, y, 0)
    assert len(model.features(x, depth=2)) == 2
    same(model.features(x, depth=2), maps[:2], 0)
    same(embedding, maps[-1].mean((2, 3)))
    same(logits, embedding @ model.fc.weight.T + model.fc.bias)
    assert embedding.shape == (3, model.num_features) == (3, 128)
    assert logits.shape == (3, 5)
    assert logits.std(0).min() > 1e-3  # images are told apart


def test_dropout_is_before_the_classifier_and_in_training_only() -> None:
    """Dropout that stays on makes predictions random; a config field that does nothing lies."""
    model = filled(ResNeXt(tiny(dropout=0.5)))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 0.0
    x = images(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), model(x))
        model.train()
        embedding = model.embed(x)
        torch.manual_seed(0)
        logits = model(x)
        torch.manual_seed(0)
        same(logits, model.fc(F.dropout(embedding, 0.5)))
        assert not torch.equal(logits, model.fc(embedding))


def test_images_do_not_see_each_other() -> None:
    """In evaluation a prediction must not depend on the rest of the batch."""
    for fields in VARIANTS.values():
        if fields.get("norm_track") is False:
            continue
        model, x = filled(ResNeXt(tiny(**fields))).eval(), images(3, 3, 24, 32)
        with torch.no_grad():
            same(torch.cat([model(x[i : i + 1]) for i in range(3)]), model(x))


def test_reset_classifier() -> None:
    """A new classifier must fit the old trunk, its device and precision, and the config."""
    model = filled(ResNeXt(tiny())).eval()
    model.card = Card(labels=("a", "b", "c", "d", "e"))
    old_config, x = model.config, images(2, 3, 16, 16)
    before = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("fc.")}
    model.reset_classifier(11)
    with torch.no_grad():
        assert model(x).shape == (2, 11)
        assert model(x).dtype == torch.float64
    assert model.config == old_config.replace(num_classes=11)
    assert old_config.num_classes == 5
    assert model.card is None  # its five labels would name the wrong classes
    same({k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}, before, 0)
    ResNeXt(model.config).load_state_dict(model.state_dict())


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "3", None])
def test_reset_classifier_refuses_and_keeps_the_old_one(count: Any) -> None:
    """A refused change must leave a network that still works."""
    model = ResNeXt(tiny()).eval()
    with pytest.raises(ConfigError, match="num_classes must be"):
        model.reset_classifier(count)
    assert model.config.num_classes == model.fc.out_features == 5


# -- wrong inputs -----------------------------------------------------------------------------


@pytest.mark.parametrize("build", [ResNeXt, Backbone])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 32, 32), r"\(n, 3, h, w\), not \(3, 32, 32\)"),
        ((1, 1, 32, 32), r"\(n, 3, h, w\), not \(1, 1, 32, 32\)"),
        ((32, 32), r"\(n, 3, h, w\), not \(32, 32\)"),
        ((1, 32, 32, 3), r"\(n, 3, h, w\), not \(1, 32, 32, 3\)"),
        ((1, 3, 4, 32, 32), r"\(n, 3, h, w\), not"),
        ((1, 3, 0, 32), "at least 1 pixels on each side, not 0×32"),
    ],
)
def test_wrong_images(build: Any, shape: tuple[int, ...], message: str) -> None:
    """Without the shape wanted, a user has to read torch's convolution errors."""
    with pytest.raises(InputError, match=message) as caught:
        build(tiny())(torch.zeros(shape))
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"anti_alias": "avg"},
        {"anti_alias": "avg", "small_stem": True},
        {"anti_alias": "blur"},
        {"anti_alias": "blur", "small_stem": True},
        {"anti_alias": "blur", "strides": (2, 2)},
        {"anti_alias": "blur", "strides": (1, 1)},
        {"padding_mode": "reflect"},
        {"padding_mode": "reflect", "dilations": (1, 3)},
        {"padding_mode": "circular", "dilations": (2, 3)},
        {"padding_mode": "circular", "stem_type": "deep", "stem_channels": (4, 4, 8)},
        {"padding_mode": "replicate"},
        {"style": "caffe", "avg_down": True},
        {"conv": "same_padding"},
        {"norm": "group", "norm_groups": 4},
    ],
    ids=str,
)
def test_smallest_images(changes: dict[str, Any]) -> None:
    """The limit must be torch's own: one pixel less fails inside, and larger ones all work."""
    config = tiny(**changes)
    model = ResNeXt(config).eval()
    with torch.no_grad():
        for side in range(config.min_size, config.min_size + 12):
            for shape in ((side, config.min_size), (config.min_size, side)):
                assert model(torch.zeros(1, 3, *shape)).isfinite().all()
        for shape in ((config.min_size - 1, 64), (64, config.min_size - 1)):
            with pytest.raises(InputError, match=f"at least {config.min_size} pixels"):
                model(torch.zeros(1, 3, *shape))
            if min(shape) > 0:  # without our check torch would refuse it, too
                unchecked = nn.Sequential(
                    model.conv1, model.bn1, model.relu, model.maxpool, *model.stages
                )
                with pytest.raises(RuntimeError):
                    unchecked(torch.zeros(1, 3, *shape))


def test_instance_norm_needs_two_pixels() -> None:
    """Torch refuses the last map of such an image with a message about training."""
    model = ResNeXt(tiny(norm="instance")).eval()
    with torch.no_grad(), pytest.raises(InputError, match="more than 8 pixels on one side"):
        model(torch.zeros(1, 3, 8, 8))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 9, 1)).isfinite().all()


@pytest.mark.parametrize("config", ["resnext50_32x4d", {"layers": (1, 1)}, None, ResNeXtConfig])
@pytest.mark.parametrize("build", [ResNeXt, Backbone])
def test_only_configs_build_networks(build: Any, config: Any) -> None:
    """A name given where a config belongs should lead to `create`, not to an AttributeError."""
    with pytest.raises(ConfigTypeError, match=r"ResNeXtConfig, not .*resnext\.create") as caught:
        build(config)
    assert isinstance(caught.value, TypeError)


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
    sum(m.square().sum() for m in backbone(x)).backward()
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
    sum(m.sum() for m in outputs).backward()
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
            sum(m.square().sum() for m in outputs[-1]).backward()
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


# -- residual branches ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decay", "rates"), [("linear", [0, 0.2, 0.4, 0.6, 0.8]), ("constant", [0.8] * 5)]
)
def test_stochastic_depth_rates(decay: Any, rates: list[float]) -> None:
    """Rates rise over all blocks of the network, not within each stage."""
    model = ResNeXt(four(drop_path_rate=0.8, drop_path_decay=decay))
    blocks = [block for stage in model.stages for block in stage]
    got = [b.drop_path.rate if isinstance(b.drop_path, DropPath) else 0 for b in blocks]
    assert got == pytest.approx(rates)


def test_stochastic_depth_drops_whole_branches_and_keeps_their_mean() -> None:
    """Kept images are scaled by 1/(1-rate), or a network in evaluation sees other magnitudes."""
    torch.manual_seed(0)
    count, rate = 20_000, 0.3
    with torch.no_grad():
        scales = DropPath(rate).train()(torch.ones(count, 2, 3, 3, dtype=torch.float64)).flatten(1)
    assert torch.equal(scales.amin(1), scales.amax(1))  # whole images
    assert scales.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
    noise = 5 * math.sqrt(rate / (1 - rate) / count)
    assert scales[:, 0].mean().item() == pytest.approx(1, abs=noise)


def test_stochastic_depth_leaves_evaluation_and_shortcuts_alone() -> None:
    """A dropped branch leaves its block's shortcut, and evaluation drops nothing."""
    plain = filled(ResNeXt(tiny())).eval()
    dropping = filled(ResNeXt(tiny(drop_path_rate=1 - 1e-9))).eval()
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        same(dropping(x), plain(x), 0)
        block, y = dropping.layer2[1].train(), images(2, 64, 5, 5)
        same(block(y), y.clamp(min=0), 0)  # always dropped: identity shortcut, ReLU


@pytest.mark.parametrize("norm", ["batch", "group", "instance"])
@pytest.mark.parametrize("build", [ResNeXt, Backbone])
def test_zero_init_makes_blocks_their_shortcuts(build: Any, norm: Any) -> None:
    """Zeroing another norm than the last of each branch stops its gradients for ever."""
    model = build(tiny(zero_init_residual=True, norm=norm, norm_groups=4)).double()
    y = images(2, 8, 9, 9).clamp(min=0)
    model.layer1[0](y).square().sum().backward()
    assert model.layer1[0].bn3.weight.grad.abs().min() > 0
    with torch.no_grad():
        for block in itertools.chain(*model.stages):
            assert block.residual(y).abs().max() == 0
            shortcut = y if block.downsample is None else block.downsample(y)
            y = block(y)
            same(y, shortcut.clamp(min=0), 0)
            assert y.abs().max() > 0
        plain = build(tiny(norm=norm, norm_groups=4)).double()
        assert plain.layer1[0].residual(images(2, 8, 9, 9)).abs().max() > 0


# -- modes, layouts and precisions ------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_layouts_and_modes(name: str) -> None:
    """`channels_last` must change speed only, in evaluation and in training."""
    model, x = filled(ResNeXt(tiny(**VARIANTS[name]))), images(4, 3, 24, 40)
    for training in (False, True):
        results = []
        for layout in (torch.contiguous_format, torch.channels_last):
            other = copy.deepcopy(model).train(training).to(memory_format=layout)
            torch.manual_seed(0)
            logits = other(x.to(memory_format=layout))
            logits.square().sum().backward()
            results.append((logits, gradients(other), other.state_dict()))
        same(results[1], results[0], 1e-7)
        counts = {k: v for k, v in results[0][2].items() if k.endswith("num_batches_tracked")}
        assert all(v == training for v in counts.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_precisions(name: str) -> None:
    """A constant of another type inside would promote the result or stop the network."""
    exact, x = filled(ResNeXt(tiny(**VARIANTS[name]))).eval(), images(2, 3, 24, 40)
    with torch.no_grad():
        wanted = exact(x)
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
            logits = copy.deepcopy(exact).to(dtype)(x.to(dtype))
            assert logits.dtype == dtype
            assert (logits - wanted).abs().max() < tolerance * wanted.abs().max()
        model = copy.deepcopy(exact).float()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x.float())
        assert (logits - wanted).abs().max() < 0.1 * wanted.abs().max()


@pytest.mark.parametrize("name", VARIANTS)
def test_copies_and_pickles(name: str) -> None:
    """EMA copies networks and data loaders pickle them: both must compute the same."""
    model, x = filled(ResNeXt(tiny(**VARIANTS[name]))).eval(), images(2, 3, 24, 40)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.config == model.config
        assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}
        with torch.no_grad():
            same(other(x), model(x), 0)


# -- compiled, exported, traced ---------------------------------------------------------------


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def agrees_when_compiled(model: Any, backend: str, tolerance: float) -> None:
    """Outputs, gradients and statistics are those of the plain network."""
    x = images(2, 3, 24, 40)
    for training in (False, True):
        plain, other = (copy.deepcopy(model).train(training) for _ in range(2))
        compiled = torch.compile(other, fullgraph=True, backend=backend)
        outputs = []
        for run in (plain, compiled):
            torch.manual_seed(0)
            outputs.append(run(x))
            maps = outputs[-1] if isinstance(outputs[-1], tuple) else (outputs[-1],)
            sum(m.square().sum() for m in maps).backward()
        same(outputs[1], outputs[0], tolerance)
        same(gradients(other), gradients(plain), tolerance)
        same(other.state_dict(), plain.state_dict(), tolerance)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", COMPILED)
def test_compiles_whole(name: str) -> None:
    """Python that the compiler cannot follow would break the graph, or stop `fullgraph=True`."""
    agrees_when_compiled(filled(ResNeXt(tiny(**VARIANTS[name]))), "aot_eager", 1e-10)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    "arguments", [{"out_indices": (0, 1)}, {"frozen_stages": 1}, {"checkpointing": True}], ids=str
)
def test_backbone_compiles_whole(arguments: dict[str, Any]) -> None:
    """Detection trains compiled backbones, with frozen stages and checkpoints."""
    agrees_when_compiled(filled(Backbone(tiny(), **arguments)), "aot_eager", 1e-10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script.*` is deprecated:DeprecationWarning")
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", ["plain", "resnext-d of timm"])
def test_compiles_to_machine_code(name: str) -> None:
    """The default backend must agree, too: it fuses and reorders."""
    agrees_when_compiled(filled(ResNeXt(tiny(**VARIANTS[name]))), "inductor", 1e-8)


@pytest.mark.parametrize("name", COMPILED)
def test_exports_for_every_size(name: str) -> None:
    """A size that is baked in fails only at the first image of another size."""
    model, dynamic = filled(ResNeXt(tiny(**VARIANTS[name]))).eval(), torch.export.Dim.AUTO
    shapes = {"x": {0: dynamic, 2: dynamic, 3: dynamic}}
    exported = torch.export.export(model, (images(2, 3, 24, 40),), dynamic_shapes=shapes).module()
    for shape in ((2, 3, 24, 40), (1, 3, 33, 65), (3, 3, 70, 18)):
        x = images(*shape)
        with torch.no_grad():
            same(exported(x), model(x))


@pytest.mark.parametrize("build", [ResNeXt, Backbone])
def test_exports_with_named_sizes(build: Any) -> None:
    """Named ranges are a promise: an export that narrows them silently must not happen."""
    height, width = (torch.export.Dim(name, min=16, max=2048) for name in ("height", "width"))
    shapes = {"x": {0: torch.export.Dim("batch"), 2: height, 3: width}}
    model = filled(build(tiny())).eval()
    exported = torch.export.export(model, (images(2, 3, 24, 40),), dynamic_shapes=shapes).module()
    for shape in ((1, 3, 16, 16), (5, 3, 33, 129)):
        x = images(*shape)
        with torch.no_grad():
            same(exported(x), model(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", [n for n in VARIANTS if n not in WARN_IN_TORCH])
def test_traces(name: str) -> None:
    """Deployments still trace; a trace must warn of nothing and hold for other sizes."""
    model = filled(ResNeXt(tiny(**VARIANTS[name]))).eval()
    traced = torch.jit.trace(model, images(2, 3, 24, 40))
    for shape in ((1, 3, 33, 65), (3, 3, 70, 18)):
        x = images(*shape)
        with torch.no_grad():
            same(traced(x), model(x))


# -- several processes ------------------------------------------------------------------------


@pytest.fixture
def _one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (ResNeXt, {}),
        (Backbone, {}),
        (Backbone, {"out_indices": (0,)}),
        (Backbone, {"checkpointing": True}),
        (Backbone, {"frozen_stages": 1}),
    ],
    ids=str,
)
def test_distributed_wrapper(build: Any, arguments: dict[str, Any]) -> None:
    """A parameter without a gradient, such as one of an unused stage, stops the second step."""
    model = filled(build(tiny(), **arguments))
    plain, x = copy.deepcopy(model), images(2, 3, 32, 32)
    wrapped = DistributedDataParallel(model)
    for _ in range(3):
        for run in (plain, wrapped):
            outputs = run(x)
            maps = outputs if isinstance(outputs, tuple) else (outputs,)
            sum(m.square().sum() for m in maps).backward()
    same(gradients(model), gradients(plain))
    same(model.state_dict(), plain.state_dict())


def train_one_of_two(rank: int, folder: str) -> None:
    """What each process of the next test does: its half of the batch, then its gradients."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    model = filled(ResNeXt(tiny()), seed=rank)  # process 0 tells the other its weights
    wrapped = DistributedDataParallel(model.eval())
    wrapped(images(4, 3, 32, 32)[2 * rank : 2 * rank + 2]).square().sum(1).mean().backward()
    torch.save(gradients(model), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_average_their_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two halves of a batch on two processes must learn what the whole batch teaches one."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    monkeypatch.setenv("PYTHONPATH", path)  # the children import this module by its name
    torch.multiprocessing.spawn(train_one_of_two, (str(tmp_path),), nprocs=2)
    model = filled(ResNeXt(tiny())).eval()
    model(images(4, 3, 32, 32)).square().sum(1).mean().backward()
    for rank in range(2):
        same(torch.load(tmp_path / f"{rank}.pt"), gradients(model))


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
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == name.startswith("layer2."), name
    with torch.no_grad():
        (found,) = model.eval()(x)
    assert found["boxes"].shape[1] == 4
    assert len(found["boxes"]) == len(found["scores"]) == len(found["labels"]) <= 5


# -- annotated shapes -------------------------------------------------------------------------

CHECK_SHAPES = """
import jaxtyping
with jaxtyping.install_import_hook("resnext", "beartype.beartype"):
    from resnext.backbone import Backbone
    from resnext.config import ResNeXtConfig
    from resnext.network import ResNeXt

import torch
torch.set_num_threads(1)

for fields in {variants!r}:
    config = ResNeXtConfig(**{{**{tiny!r}, **fields}})
    model, x = ResNeXt(config), torch.rand(2, 3, 24, 40)
    model(x), model.eval()(x), model.embed(x), model.features(x), model.features(x, depth=1)
    model.bfloat16()(x.bfloat16())
    Backbone(config, out_indices=(1,), checkpointing=True)(x)[0].sum().backward()

model, wrong = model.float(), 0
for call, x in (
    (model, torch.rand(3, 24, 40)),
    (model, torch.ones(2, 3, 24, 40, dtype=torch.int64)),
    (model.embed, torch.rand(2, 3, 24)),
    (model.features, torch.rand(24, 40)),
    (model.layer1[0], torch.rand(2, 8, 9, 9, 9)),
    (model.layer1[0].residual, torch.rand(8, 9, 9)),
):
    try:
        call(x)
    except jaxtyping.TypeCheckError:
        wrong += 1
assert wrong == 6, wrong
"""


def test_annotated_shapes_are_true() -> None:
    """A shape in a signature that is wrong misleads every reader; here it stops the test."""
    code = CHECK_SHAPES.format(variants=list(VARIANTS.values()), tiny=TINY)
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [[0.0]], None])
def test_images_must_be_floating_point(images: Any) -> None:
    """Bytes straight from a decoder failed deep inside torch, on a convolution's bias."""
    model = create("resnext11_8x16d").eval()
    with pytest.raises(InputError, match="must be a floating-point tensor"):
        model(images)
