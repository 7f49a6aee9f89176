"""The network: the paper's equation, what it returns, and what it refuses."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from network_cases import VARIANTS, filled, four, gradients, images, same, tiny
from torch import Tensor, nn
from torch.nn import functional as F

from resnext import Backbone, Card, ResNeXt, ResNeXtConfig, create
from resnext.errors import ConfigError, ConfigTypeError, InputError
from resnext.layers import DropPath
from resnext.network import Bottleneck

# -- the paper --------------------------------------------------------------------------------


def aggregated(block: Bottleneck, x: Tensor, cardinality: int) -> Tensor:
    """Σ T_i(x) over i = 1…C; each T_i is a separate path of three convolutions (figure 3a)."""

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
    "changes",
    [
        {},
        {"dilations": (1, 2)},
        {"dilations": (1, (1, 2))},
        {"style": "caffe"},
        {"widths": (24, 40)},
    ],
    ids=str,
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
        block: Any = build(tiny(style=style)).get_submodule("layer2.0")
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
    assert logits.std(0).min() > 1e-3  # outputs differ between images


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
    assert model.card.labels == ()  # the five would name the wrong classes
    same({k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}, before, 0)
    ResNeXt(model.config).load_state_dict(model.state_dict())


@pytest.mark.parametrize("count", [-1, 2.0, True, "3", None])
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
        {"padding_mode": "reflect", "dilations": (1, (1, 4))},
        {"padding_mode": "circular", "dilations": (1, (3, 1)), "strides": (1, 1)},
        {"anti_alias": "blur", "strides": (1, 1), "avg_down": True, "keep_pooling": True},
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


# -- annotated shapes -------------------------------------------------------------------------


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [[0.0]], None])
def test_images_must_be_floating_point(images: Any) -> None:
    """Bytes straight from a decoder failed deep inside torch, on a convolution's bias."""
    model = create("resnext11_8x16d").eval()
    with pytest.raises(InputError, match="must be a floating-point tensor"):
        model(images)
