"""The named variants: what each builds, and how its name is spelled."""

from __future__ import annotations

import re
from typing import Any

import pytest

from resnext import ResNeXtConfig
from resnext.architectures import title, variant, variants
from resnext.errors import ConfigTypeError, UnknownNameError
from resnext.summary import summarize

# -- variants ---------------------------------------------------------------------------------


COMPACT = ("nano", "tiny", "small", "medium")


@pytest.mark.parametrize("name", [name for name in variants() if not name.startswith("resnext_")])
def test_names_say_what_is_built(name: str) -> None:
    """A wrong row of the table would train and load nothing, without any error."""
    config = variant(name)
    parts = re.fullmatch(r"(se|eca)?resnext(aa)?(\d+)([dt]?)_(\d+)x(\d+)d", name)
    assert parts is not None
    gate, aa, depth, stem, cardinality, base_width = parts.groups()
    assert 3 * sum(config.layers) + 2 in range(int(depth), int(depth) + 3)  # timm's 201 is 203
    assert (config.cardinality, config.base_width) == (int(cardinality), int(base_width))
    assert config.attention == gate
    assert config.anti_alias == ("avg" if aa else None)
    assert (config.stem_type == "deep") == config.avg_down == (stem != "")
    assert (config.stem_channels == (24, 32, 64)) == (stem == "t")
    small = int(depth) in (11, 29)
    assert config.small_stem == small
    assert config.num_classes == (10 if small else 1000)
    assert config.num_stages == (3 if small else 4)


def test_small_networks_grow() -> None:
    """Each size costs more than the one before; all have groups, and the stem their name says."""
    for suffix, size, names in (("", 64, COMPACT), ("_32px", 32, COMPACT[:3])):
        configs = [variant(f"resnext_{name}{suffix}") for name in names]
        costs = [summarize(config, size) for config in configs]
        assert [c.macs for c in costs] == sorted({c.macs for c in costs})
        assert [c.parameters for c in costs] == sorted({c.parameters for c in costs})
        assert 3e6 < costs[0].macs < 12e6
        assert costs[-1].macs < 350e6
        assert all(config.cardinality >= 4 for config in configs)
        assert {config.small_stem for config in configs} == {suffix != ""}


SPELLINGS = {
    "resnext50_32x4d": [
        "resnext50_32x4d",  # torchvision
        "resnext50_32x4d.a1_in1k",  # timm
        "resnext50_32x4d.fb_swsl_ig1b_ft_in1k",
        "tv_resnext50_32x4d",
        "gluon_resnext50_32x4d",
        "swsl_resnext50_32x4d",
        "resnext_50_32x4d",  # Lucid
        "resnext50-32x4d_8xb32_in1k",  # mmcls
        "resnext50_32x4d_b32x8_imagenet",
        "resnext50-32x4d_8xb32_in1k_20210429-56066e27.pth",
        " ResNeXt50_32x4d ",
    ],
    "resnext101_32x8d": [
        "resnext101_32x8d.fb_wsl_ig1b_ft_in1k",
        "ig_resnext101_32x8d",
        "resnext101_32x8d_wsl",
        "resnext_101_32x8d",
        "resnext101-32x8d_b32x8_imagenet",
        "resnext101-32x8d_8xb32_in1k",
    ],
    "resnext101_64x4d": ["resnext_101_64x4d", "resnext101_64x4d.c1_in1k"],
    "resnext152_32x4d": ["resnext152-32x4d_8xb32_in1k"],
    "resnext50d_32x4d": ["resnext50d_32x4d.bt_in1k"],
    "seresnext50_32x4d": [
        "se_resnext_50_32x4d",
        "se_resnext50_32x4d",
        "seresnext50_32x4d.racm_in1k",
        "seresnext50-32x4d_8xb32_in1k",
        "gluon_seresnext50_32x4d",
    ],
    "seresnext101_32x4d": ["seresnext101-32x4d_8xb32_in1k", "se_resnext_101_32x4d"],
    "seresnext101_32x8d": ["se_resnext_101_32x8d", "seresnext101_32x8d.ah_in1k"],
    "seresnextaa101d_32x8d": ["seresnextaa101d_32x8d.sw_in12k_ft_in1k_288"],
    "ecaresnext26t_32x4d": ["eca_resnext26t_32x4d", "ecaresnext26t_32x4d.untrained"],
}


@pytest.mark.parametrize(
    ("name", "spelling"), [(name, s) for name, list_ in SPELLINGS.items() for s in list_]
)
def test_spellings_of_other_libraries(name: str, spelling: str) -> None:
    """A name copied from a paper's repository must mean the same network here."""
    assert variant(spelling) == variant(name)


@pytest.mark.parametrize("name", variants())
def test_a_variants_own_name_is_not_respelled(name: str) -> None:
    """The rules for other libraries' names must not turn one of ours into another's."""
    assert variant(name) == variant(name.upper()) == variant(name.replace("_", "-"))
    assert len({variant(other) for other in variants()}) == len(variants())


def test_overrides_of_a_variant() -> None:
    """Overrides must reach the config and leave the table alone."""
    before = variant("resnext50_32x4d")
    changed = variant("resnext50_32x4d", num_classes=7, block_args={"dilation": 2})
    assert changed == before.replace(num_classes=7, block_args={"dilation": 2})
    changed.block_args["se"] = variant("resnext50_32x4d").block_args["se"] = True
    assert variant("resnext50_32x4d") == before
    assert before.block_args == {}
    with pytest.raises(ConfigTypeError, match="Did you mean 'num_classes'"):
        variant("resnext50_32x4d", num_clases=7)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnext50_32x5d", "resnext50_32x4d"),
        ("resnext50", "resnext50"),
        ("resnext_101_64x4", "resnext101_64x4d"),
        ("seresnet50_32x4d", "seresnext50_32x4d"),
        ("legacy_seresnext50_32x4d", "seresnext50_32x4d"),
        ("resnext50_32x4d_something", "resnext50_32x4d"),
    ],
)
def test_unknown_names_suggest_the_nearest(name: str, nearest: str) -> None:
    """A network must not be guessed; the user should not have to search the table either."""
    with pytest.raises(UnknownNameError, match=f"{name!r}.*Did you mean .*{nearest}") as caught:
        variant(name)
    assert isinstance(caught.value, KeyError)
    assert not str(caught.value).startswith(("'", '"'))


@pytest.mark.parametrize("name", ["", "vgg", "Ω", None, 50])
def test_names_of_nothing_point_to_the_list(name: Any) -> None:
    """Where nothing is near, a suggestion would mislead."""
    with pytest.raises(UnknownNameError, match="No variant is called"):
        variant(name)


def test_titles_are_names_or_sizes() -> None:
    """A variant keeps its name whatever the data; another network shows how large it is."""
    for name in variants():
        assert title(variant(name, num_classes=7, in_channels=1, dropout=0.5)) == name
    small = ResNeXtConfig((1, 1, 2, 1), 8, 8, channels=(32, 64, 128, 256))
    assert title(small) == "ResNeXt(1, 1, 2, 1), 8×8d"
    assert title(small.replace(attention="se")) == "SE-ResNeXt(1, 1, 2, 1), 8×8d"
    assert title(small.replace(block_args={"base_width": 16})) == "ResNeXt(1, 1, 2, 1), 8×16d"
    assert title(small.replace(widths=(64, 64, 64, 64))) == "ResNeXt(1, 1, 2, 1), 8×8d"
    assert title(small.replace(widths=(32, 64, 64, 64))) == "ResNeXt(1, 1, 2, 1), 8×4d"
