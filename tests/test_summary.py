"""`resnext.summary` against the networks that `resnext.network` really builds."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resnext.architectures import variant, variants
from resnext.config import (
    Conv,
    Norm,
    PaddingMode,
    ResNeXtConfig,
    SERounding,
)
from resnext.errors import InputError
from resnext.network import ResNeXt
from resnext.summary import Summary, default_size, summarize

TINY = ResNeXtConfig((1, 2), 2, 64, 5, channels=(8, 16), num_stages=2, stem_channels=8)
FREE = {  # fields that change neither a size nor a cost
    "norm_eps",
    "norm_momentum",
    "conv_eps",
    "drop_path_rate",
    "drop_path_decay",
    "dropout",
    "zero_init_residual",
}


def each(strategy: st.SearchStrategy[int], count: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Tuples of `count` values."""
    return st.lists(strategy, min_size=count, max_size=count).map(tuple)


@st.composite
def configs(draw: st.DrawFn) -> ResNeXtConfig:
    """Small configs that use every field that costs something."""
    n = draw(st.integers(1, 4))
    layers = draw(each(st.integers(1, 2), n))
    dilations = [st.integers(1, 3) | each(st.integers(1, 3), blocks) for blocks in layers]
    eights = st.sampled_from([8, 16, 24, 32])  # so that groups and group norms divide them
    cardinalities, widths = st.sampled_from([1, 2, 4]), st.sampled_from([64, 128])
    stem_type = draw(st.sampled_from([None, "deep"]))
    small_stem = stem_type is None and draw(st.booleans())
    conv = draw(st.sampled_from(get_args(Conv)))
    anti_alias = draw(st.sampled_from([None, "avg", "blur"]))
    block_args = {
        "cardinality": cardinalities,
        "base_width": widths,
        "dilation": st.integers(1, 3),
        "se": st.booleans(),
        "se_args": st.sampled_from([{}, {"reduction": 3}, {"reduction": 8}]),
    }
    values = {
        "layers": st.just(layers),
        "cardinality": cardinalities,
        "base_width": widths,
        "num_classes": st.integers(1, 7),
        "in_channels": st.integers(1, 4),
        "stem_width": eights,
        "stem_type": st.just(stem_type),
        "avg_down": st.booleans(),
        "channels": each(eights, n),
        "block_args": st.fixed_dictionaries({}, optional=block_args),
        "num_stages": st.just(n),
        "strides": st.none() | each(st.integers(1, 2 if anti_alias == "blur" else 3), n),
        "dilations": st.none() | st.tuples(*dilations),
        "style": st.sampled_from(["pytorch"] if anti_alias else ["pytorch", "caffe"]),
        "expansion": st.integers(2, 4),
        "widths": st.none() | each(eights, n),
        "stem_channels": st.none() | (each(eights, 3) if stem_type else eights),
        "small_stem": st.just(small_stem),
        "norm": st.sampled_from(get_args(Norm)),
        "norm_groups": st.sampled_from([1, 2, 4, 8]),
        "norm_affine": st.booleans(),
        "norm_track": st.booleans(),
        "conv": st.just(conv),
        "padding_mode": st.sampled_from(get_args(PaddingMode) if conv == "standard" else ["zeros"]),
        "attention": st.sampled_from([None, "se", "eca"]),
        "se_reduction": st.sampled_from([1, 3, 5, 8]),
        "se_rounding": st.sampled_from(get_args(SERounding)),
        "anti_alias": st.just(anti_alias),
        "keep_pooling": st.booleans(),
        "ceil_pooling": st.just(False) if small_stem or anti_alias else st.booleans(),
    }
    assert {*values, *FREE} == {f.name for f in fields(ResNeXtConfig)}, "a new field: draw it"
    return ResNeXtConfig(**draw(st.fixed_dictionaries(values)))


@st.composite
def cases(draw: st.DrawFn) -> tuple[ResNeXtConfig, tuple[int, int]]:
    """A config and the height and width of an image, down to the smallest where torch can."""
    config = draw(configs())
    least = config.min_size
    one_map = (
        config.norm == "instance"
        or not config.norm_track
        or any(
            layer.num_groups == layer.num_channels
            for layer in ResNeXt(config).modules()
            if isinstance(layer, nn.GroupNorm)
        )
    )
    if config.padding_mode != "zeros" or one_map:
        # Reflections need a map larger than the padding, statistics of one map two pixels.
        reach = max(max(stage.dilations) for stage in config.stages)
        least = max(least, config.stride * reach + 3)
    side = st.integers(least, least + 40)
    return config, (draw(side), draw(side))


def measured(config: ResNeXtConfig, size: tuple[int, int]) -> dict[str, list[Any]]:
    """Sizes, channels, parameters and MACs of the rows, counted on a real network that runs."""
    model = ResNeXt(config).eval()
    counts: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            weight = layer.get_parameter("weight")  # one output takes one filter's products
            counts[name] = counts.get(name, 0) + out.numel() * weight[0].numel()

        return hook

    stem = nn.Sequential(model.conv1, model.bn1)
    stages = dict(zip(model.stage_names, model.stages, strict=True))
    parts: dict[str, nn.Module] = {"stem": stem, **stages, "classifier": model.fc}
    for name, part in parts.items():
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d | nn.Conv1d | nn.Linear):
                layer.register_forward_hook(count(name))

    x = torch.zeros(1, config.in_channels, *size)
    with torch.no_grad():
        maps = [model.enter(x), *model.features(x)]
        counts.clear()
        logits = model(x)
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for part in parts.values() for p in part.parameters()
    )
    return {
        "sizes": [*(tuple(m.shape[2:]) for m in maps), (1, 1)],
        "channels": [*(m.shape[1] for m in maps), logits.shape[1]],
        "parameters": [sum(p.numel() for p in part.parameters()) for part in parts.values()],
        "macs": [counts[name] for name in parts],
    }


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@example((TINY.replace(anti_alias="avg"), (3, 3)))
@example((TINY.replace(anti_alias="avg", avg_down=True), (37, 50)))
@example((TINY.replace(anti_alias="blur"), (5, 6)))
@example((TINY.replace(norm_affine=False, style="caffe"), (1, 1)))
@example((TINY.replace(norm="group", norm_groups=2), (1, 1)))
@given(cases())
def test_rows_are_those_of_the_real_network(
    case: tuple[ResNeXtConfig, tuple[int, int]],
) -> None:
    """A row must not drift from the network: a forgotten norm, bias, rounding or pool.

    Odd sides matter: the stem's average pool drops the last column, every other pool keeps it.
    """
    config, size = case
    note(f"{config} at {size}")
    summary = summarize(config, size)
    rows = summary.rows
    real = measured(config, size)
    assert [row.size for row in rows] == real["sizes"]
    assert [row.channels for row in rows] == real["channels"]
    assert [row.parameters for row in rows] == real["parameters"]
    assert [row.macs for row in rows] == real["macs"]
    assert (summary.parameters, summary.macs) == (sum(real["parameters"]), sum(real["macs"]))
    assert summary.size == size
    assert (rows[-2].stride, rows[-2].receptive_field) == (config.stride, summary.receptive_field)


def test_rows_say_how_stages_are_built() -> None:
    """Width, groups and dilation must be those after `block_args`, not the fields they override."""
    config = TINY.replace(block_args={"cardinality": 4, "base_width": 128, "dilation": 3})
    stem, first, second, classifier = summarize(config).rows
    assert (stem.name, stem.blocks, stem.width, stem.groups, stem.stride) == ("stem", 0, 0, 1, 4)
    assert first[:7] == ("stage 1", (56, 56), 32, 1, 64, 4, 3)
    assert second[:7] == ("stage 2", (28, 28), 64, 2, 128, 4, 3)
    assert classifier[:7] == ("classifier", (1, 1), 5, 0, 0, 1, 1)
    assert (classifier.receptive_field, classifier.stride) == (0, 0)


@pytest.mark.parametrize("size", [None, 33])
def test_default_size_is_that_of_the_paper(size: int | None) -> None:
    """A CIFAR network must not be costed at 224 pixels, where its figures mean nothing."""
    assert default_size(TINY) == 224
    assert default_size(TINY.replace(small_stem=True)) == 32
    assert summarize(TINY, size).size == ((size or 224,) * 2)
    assert summarize(TINY.replace(small_stem=True), size).size == ((size or 32,) * 2)


def seen_columns(config: ResNeXtConfig, width: int) -> tuple[list[int], ...]:
    """Columns of the image that the centre column of each map depends on, stem first.

    Image i of the batch is dark but for column i; with positive filters and untrained norms an
    output is dark exactly if it does not depend on that column.
    """
    model = ResNeXt(config).eval().double()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
    impulses = torch.eye(width, dtype=torch.float64)[:, None, None]
    x = impulses.expand(width, config.in_channels, config.min_size, width)
    with torch.no_grad():
        maps = (model.enter(x), *model.features(x))
    lit = [m[:, 0, 0, m.shape[3] // 2] > 0 for m in maps]
    return tuple(torch.nonzero(column)[:, 0].tolist() for column in lit)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"small_stem": True},
        {"stem_type": "deep", "stem_channels": (4, 8, 8), "avg_down": True},
        {"style": "caffe"},
        {"ceil_pooling": True},
        {"dilations": (1, 2, 1)},
        {"dilations": (1, (1, 3), 2)},
        {"dilations": (1, [3, 1], 1), "strides": (1, 1, 1)},
        {"anti_alias": "blur", "avg_down": True, "strides": (1, 1, 2), "keep_pooling": True},
        {"strides": (2, 1, 3)},
        {"conv": "same_padding", "strides": (1, 2, 1)},
        {"anti_alias": "avg", "avg_down": True},
        {"anti_alias": "blur"},
        {"anti_alias": "blur", "small_stem": True, "block_args": {"dilation": 2}},
    ],
    ids=str,
)
def test_receptive_field_is_what_an_impulse_reaches(changes: dict[str, Any]) -> None:
    """A pool left out, or a stride counted before its own layer, gives a field a little off."""
    config = ResNeXtConfig((1, 2, 1), 2, 64, 1, channels=(4, 4, 4), num_stages=3, stem_channels=8)
    config = config.replace(**changes)
    summary = summarize(config)
    width = 2 * summary.receptive_field + 7
    columns = seen_columns(config, width)
    assert [row.receptive_field for row in summary.rows[:-1]] == [
        seen[-1] - seen[0] + 1 for seen in columns
    ]
    assert columns[-1][0] > 0  # the border cut nothing off
    assert columns[-1][-1] < width - 1


@pytest.mark.parametrize(
    ("name", "parameters", "gmacs"),
    [
        ("resnext50_32x4d", 25_028_904, 4.23),
        ("resnext101_32x8d", 88_791_336, 16.41),
        ("resnext101_64x4d", 83_455_272, 15.46),
        ("resnext101_32x16d", 194_026_792, None),
        ("resnext101_32x32d", 468_530_472, None),
    ],
)
def test_imagenet_figures_are_torchvisions(name: str, parameters: int, gmacs: float | None) -> None:
    """Figures must compare with published ones, so a MAC must not be counted as two FLOPs."""
    summary = summarize(variant(name))
    assert summary.parameters == parameters
    if gmacs is not None:
        assert round(summary.macs / 1e9, 2) == gmacs


@pytest.mark.parametrize(
    ("name", "millions", "gmacs"),
    [("resnext29_8x64d", 34.4, 5.39), ("resnext29_16x64d", 68.2, 10.69)],
)
def test_cifar_figures_are_the_known_ones(name: str, millions: float, gmacs: float) -> None:
    """The paper's networks for 32×32 images must not be costed with an ImageNet stem."""
    summary = summarize(variant(name))
    assert round(summary.parameters / 1e6, 1) == millions
    assert round(summary.macs / 1e9, 2) == gmacs


def test_receptive_field_of_a_known_network() -> None:
    """ResNet-50's 427 pixels are in the literature; ResNeXt-50 has the same windows."""
    rows = summarize(variant("resnext50_32x4d")).rows
    assert [row.receptive_field for row in rows] == [11, 35, 91, 267, 427, 0]


@pytest.mark.parametrize("name", variants())
def test_variants_have_as_many_parameters_as_their_networks(name: str) -> None:
    """The small configs above must not miss what only a full-sized one has."""
    config = variant(name)
    with torch.device("meta"):
        model = ResNeXt(config)
    assert summarize(config).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, 0),
        ({}, -224),
        ({}, (224, 0)),
        ({"anti_alias": "avg"}, 2),
        ({"anti_alias": "blur"}, (4, 224)),
        ({}, True),
        ({}, 224.0),
        ({}, "224"),
        ({}, (224,)),
        ({}, (3, 224, 224)),
        ({}, (True, 224)),
        ({}, ("2", "3")),
    ],
)
def test_no_size_is_refused_in_one_line(changes: dict[str, Any], size: Any) -> None:
    """A wrong size must not give a table of zeros, negative costs or a traceback from inside."""
    with pytest.raises(InputError) as caught:
        summarize(TINY.replace(**changes), size)
    assert "\n" not in str(caught.value)
    assert "pixels" in str(caught.value)


def test_smallest_size_is_the_networks() -> None:
    """The limit must be the network's own, so that what can run can be costed."""
    for config in (TINY, TINY.replace(anti_alias="avg"), TINY.replace(anti_alias="blur")):
        assert isinstance(summarize(config, config.min_size), Summary)
        with pytest.raises(InputError):
            summarize(config, config.min_size - 1)


def test_it_needs_no_torch() -> None:
    """`resnext info` must answer at once, which importing torch would forbid."""
    code = "import sys, resnext.summary; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
