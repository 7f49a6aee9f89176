"""`ResNeXtConfig`: its fields, their values, and what follows from them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
import pickle
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from typing import Any, cast, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.originals import timm, torchvision
from oracles.recorded import manifest

import resnext
from resnext import foreign_names
from resnext.config import (
    AntiAlias,
    Attention,
    Conv,
    DropPathDecay,
    Norm,
    PaddingMode,
    ResNeXtConfig,
    SERounding,
    Style,
)
from resnext.errors import ConfigError, ConfigTypeError, ResNeXtError

NEEDED = {"layers": (1, 1, 1, 1), "cardinality": 8, "base_width": 4}
LUCIDS_FIELDS = [  # name, default; the contract's table
    ("layers", MISSING),
    ("cardinality", MISSING),
    ("base_width", MISSING),
    ("num_classes", 1000),
    ("in_channels", 3),
    ("stem_width", 64),
    ("stem_type", None),
    ("avg_down", False),
    ("channels", (64, 128, 256, 512)),
    ("block_args", {}),
]


def build(**changes: Any) -> ResNeXtConfig:
    """A small config with `changes`."""
    return ResNeXtConfig(**{**NEEDED, **changes})


# -- the ten documented fields ----------------------------------------------------------------


def test_first_ten_fields_are_lucids() -> None:
    """A field inserted, renamed or moved breaks calls by position, silently where types agree."""
    first = fields(ResNeXtConfig)[:10]
    defaults = [
        f.default_factory() if f.default_factory is not MISSING else f.default for f in first
    ]
    assert list(zip([f.name for f in first], defaults, strict=True)) == LUCIDS_FIELDS
    assert not any(f.kw_only for f in first)
    assert all(f.kw_only for f in fields(ResNeXtConfig)[10:])


def test_all_ten_may_be_given_by_position() -> None:
    """Lucid's callers pass them so."""
    given = ((1, 2, 3, 4), 2, 8, 7, 1, 32, "deep", True, (32, 64, 128, 256), {"se": True})
    config = ResNeXtConfig(*given)
    assert tuple(getattr(config, name) for name, _ in LUCIDS_FIELDS) == given


def test_an_eleventh_positional_argument_is_refused() -> None:
    """Our own fields have no place that a caller could rely on."""
    with pytest.raises(TypeError, match="positional"):
        ResNeXtConfig((1, 1, 1, 1), 2, 8, 7, 1, 32, None, False, (1, 1, 1, 1), {}, 4)  # type: ignore


# -- validation -------------------------------------------------------------------------------


INTEGERS = [
    "cardinality",
    "base_width",
    "num_classes",
    "in_channels",
    "stem_width",
    "num_stages",
    "expansion",
    "norm_groups",
    "se_reduction",
]
TUPLES = ["layers", "channels", "strides", "dilations", "widths"]
BOOLEANS = ["avg_down", "small_stem", "norm_affine", "norm_track", "zero_init_residual"]
BOOLEANS += ["keep_pooling", "ceil_pooling"]
CHOICES: dict[str, tuple[Any, ...]] = {
    "stem_type": (None, "deep"),
    "style": get_args(Style),
    "norm": get_args(Norm),
    "conv": get_args(Conv),
    "padding_mode": get_args(PaddingMode),
    "attention": (None, *get_args(Attention)),
    "se_rounding": get_args(SERounding),
    "anti_alias": (None, *get_args(AntiAlias)),
    "drop_path_decay": get_args(DropPathDecay),
}
WRONG: list[tuple[str, Any, type[Exception], str]] = [  # field, value, error, what is allowed
    *((f, v, TypeError, "positive integer") for f in INTEGERS for v in (True, 8.0, "8", None)),
    *((f, v, ValueError, "greater than 0") for f in INTEGERS for v in (0, -1)),
    ("num_stages", 5, ValueError, "1, 2, 3 or 4"),
    *(
        (f, v, TypeError, "exactly 4 positive integers")
        for f in TUPLES
        for v in (4, "1111", {1: 1}, (1, 1, 1, True), (1, 1, 1, 1.0), (1, 1, 1, "1"))
    ),
    *((f, None, TypeError, "exactly 4 positive integers") for f in ("layers", "channels")),
    ("dilations", ((1,), 2), ValueError, "exactly 4 positive integers"),
    *(
        (f, v, ValueError, "exactly 4 positive integers")
        for f in TUPLES
        for v in ((), (64,) * 3, (64,) * 5, (64, 64, 64, 0), (64, 64, 64, -1))
    ),
    *((f, v, TypeError, "True or False") for f in BOOLEANS for v in (0, 1, "yes", None)),
    *(
        (f, v, TypeError, re.escape(" or ".join(map(repr, allowed))))
        for f, allowed in CHOICES.items()
        for v in (True, 3, ("deep",))
    ),
    *(
        (f, v, ValueError, re.escape(" or ".join(map(repr, allowed))))
        for f, allowed in CHOICES.items()
        for v in ("", "Deep")
    ),
    *((f, None, ValueError, "'") for f, allowed in CHOICES.items() if None not in allowed),
    *((f, v, TypeError, "number") for f in ("norm_eps", "conv_eps") for v in ("1", None, True)),
    *(
        (f, v, ValueError, "greater than 0")
        for f in ("norm_eps", "conv_eps")
        for v in (0, -1e-5, math.nan, math.inf, 10**400)
    ),
    *(("norm_momentum", v, TypeError, "from 0 to 1") for v in ("0.1", False, (0.1,))),
    *(("norm_momentum", v, ValueError, "from 0 to 1") for v in (-0.1, 1.1, math.nan)),
    *((f, v, TypeError, "number") for f in ("drop_path_rate", "dropout") for v in ("0", None)),
    *(
        (f, v, ValueError, "at least 0 and below 1")
        for f in ("drop_path_rate", "dropout")
        for v in (1, 1.0, -0.1, math.nan, 10**400)
    ),
    *(
        ("stem_channels", v, TypeError, "positive integer")
        for v in ("64", 64.0, True, (64,), (1, 2, 3))
    ),
    *(("stem_channels", v, ValueError, "greater than 0") for v in (0, -64)),
    *(("block_args", v, TypeError, "dictionary") for v in (None, [("se", True)], "se", ())),
]


@pytest.mark.parametrize(("field", "value", "error", "allowed"), WRONG)
def test_wrong_values(field: str, value: Any, error: type[Exception], allowed: str) -> None:
    """Each is refused when the config is built, with the field, what is allowed and what came."""
    with pytest.raises(error, match=allowed) as caught:
        build(**{field: value})
    message = str(caught.value)
    assert message.startswith(field)
    assert repr(value)[:80] in message  # a long value is shortened
    assert "\n" not in message
    assert isinstance(caught.value, ResNeXtError)
    assert isinstance(caught.value, TypeError) == (error is TypeError)


def test_every_field_has_wrong_values_above() -> None:
    """A new field must not go in unchecked."""
    assert {case[0] for case in WRONG} == {f.name for f in fields(ResNeXtConfig)}


CONTRACT_DECIDES = [  # overrides → what part 1 says instead of Lucid
    ({"layers": [3, 4, 6, 3.0]}, TypeError),  # Lucid: ValueError
    ({"layers": [3, 4, 6, "3"]}, TypeError),
    ({"layers": [1, 1, 1, True]}, TypeError),  # Lucid: no error
    ({"layers": "[1 1 1 1]"}, TypeError),
    ({"cardinality": True}, TypeError),
    ({"base_width": 0.5}, TypeError),  # Lucid: ZeroDivisionError
    ({"stem_type": ["deep"]}, TypeError),
    ({"channels": [64, 128, 256, 512.0]}, TypeError),
    ({"block_args": {"se": True, "se_args": {"reduction": 1000000}}}, ValueError),
    ({"avg_down": "yes"}, TypeError),
    ({"avg_down": None}, TypeError),
]


@pytest.mark.parametrize("case", manifest("lucid")["errors"], ids=lambda case: str(case["cfg"]))
def test_lucids_errors(case: dict[str, Any]) -> None:
    """What Lucid refused, some of it only when the network was built, is refused at once."""
    decided = [error for cfg, error in CONTRACT_DECIDES if cfg == case["cfg"]]
    lucids = {"ValueError": ValueError, "TypeError": TypeError}
    error = decided[0] if decided else lucids[case["result"].split(": ")[1]]
    with pytest.raises(error) as caught:
        build(**{"num_classes": 10, **case["cfg"]})
    assert isinstance(caught.value, TypeError) == (error is TypeError)
    assert next(iter(case["cfg"])) in str(caught.value)


def test_the_contracts_decisions_are_all_about_recorded_cases() -> None:
    """A decision about a case that does not exist decides nothing."""
    recorded = [case["cfg"] for case in manifest("lucid")["errors"]]
    assert all(cfg in recorded for cfg, _ in CONTRACT_DECIDES)


@pytest.mark.parametrize("key", ["bogus", "groups", "stride", "in_channels", "downsample", "", 3])
def test_unknown_block_args_are_refused_with_those_that_exist(key: Any) -> None:
    """Lucid failed only when the network was built, and named no alternative."""
    with pytest.raises(TypeError) as caught:
        build(block_args={key: 1})
    assert repr(key) in str(caught.value)
    for known in ("cardinality", "base_width", "dilation", "se", "se_args"):
        assert re.search(rf"\b{known}\b", str(caught.value))


@pytest.mark.parametrize(
    ("block_args", "error", "message"),
    [
        ({"cardinality": 0}, ValueError, r"block_args\['cardinality'\].* greater than 0, not 0"),
        ({"cardinality": 8.0}, TypeError, r"block_args\['cardinality'\].*integer, not 8\.0"),
        ({"base_width": True}, TypeError, r"block_args\['base_width'\].*integer, not True"),
        ({"dilation": -1}, ValueError, r"block_args\['dilation'\].* greater than 0, not -1"),
        ({"dilation": (1, 2)}, TypeError, r"block_args\['dilation'\].*not \(1, 2\)"),
        ({"se": 1}, TypeError, r"block_args\['se'\] must be True or False, not 1"),
        ({"se_args": [16]}, TypeError, r"block_args\['se_args'\] must be a dict.* not \[16\]"),
        ({"se_args": {"ratio": 4}}, TypeError, r"only 'reduction', not 'ratio'"),
        ({"se_args": {"reduction": 0}}, ValueError, r"\['reduction'\] must.* 0, not 0"),
        ({"se_args": {"reduction": 2.0}}, TypeError, r"\['reduction'\] must.* not 2\.0"),
    ],
)
def test_wrong_block_args(block_args: dict[str, Any], error: type[Exception], message: str) -> None:
    """Values inside `block_args` are checked as fields are, even those that have no effect yet."""
    with pytest.raises(error, match=message) as caught:
        build(block_args=block_args)
    assert isinstance(caught.value, TypeError) == (error is TypeError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"small_stem": True, "stem_type": "deep"}, "exclude each other"),
        ({"conv": "weight_standardized", "padding_mode": "reflect"}, "padding_mode"),
        ({"anti_alias": "avg", "style": "caffe"}, "style='pytorch'"),
        ({"anti_alias": "blur", "ceil_pooling": True}, "anti_alias replaces: choose one"),
        ({"small_stem": True, "ceil_pooling": True}, "small_stem replaces: choose one"),
        ({"base_width": 1, "channels": (32, 64, 128, 256)}, "width 0, .* positive multiple"),
        ({"widths": (8, 8, 8, 12)}, "Stage 4 .* width 12, .* multiple of cardinality 8"),
        ({"block_args": {"cardinality": 3}, "widths": (3, 3, 3, 8)}, "multiple of cardinality 3"),
        ({"attention": "se", "se_rounding": "floor", "se_reduction": 257}, "at most 256"),
        ({"norm": "group", "norm_groups": 24}, "64 is not divisible by 24"),
        ({"norm": "group", "stem_channels": 48}, "48 is not divisible by 32"),
        ({"stem_type": "deep", "stem_channels": 64}, "exactly 3 positive integers"),
        ({"stem_type": "deep", "stem_channels": (8, 8)}, "exactly 3 positive integers"),
    ],
)
def test_values_that_contradict_each_other(changes: dict[str, Any], message: str) -> None:
    """Each is fine alone; together no network exists, or a field would be ignored silently."""
    with pytest.raises(ConfigError, match=message):
        build(**changes)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_stages_need_num_stages(count: int) -> None:
    """Three stages by mistake must not pass; three on purpose must, and the message says how."""
    short = {"layers": (1,) * count, "channels": (64,) * count}
    with pytest.raises(ValueError, match=f"layers must hold exactly 4.*num_stages={count}"):
        build(**short)
    with pytest.raises(ValueError, match=f"channels must hold exactly 4.*num_stages={count}"):
        build(channels=short["channels"])
    assert len(build(**short, num_stages=count).stages) == count
    with pytest.raises(ValueError, match="channels must hold exactly"):
        build(layers=short["layers"], num_stages=count)


# -- a config is a value ----------------------------------------------------------------------


def test_nothing_is_shared_with_the_caller() -> None:
    """A list or dictionary changed later must not change a network's description."""
    layers, channels, args = [1, 1, 1, 1], [64] * 4, {"se": True, "se_args": {"reduction": 8}}
    config = build(layers=layers, channels=channels, block_args=args)
    other = config.replace(num_classes=5)
    plain = config.to_dict()
    before = repr(config)
    layers[0], channels[0], args["cardinality"], args["se_args"]["reduction"] = 9, 9, 9, 9
    plain["layers"][0], plain["block_args"]["se_args"]["reduction"] = 9, 9
    other.block_args["se_args"]["reduction"] = 9
    ResNeXtConfig.from_dict(plain).block_args["se"] = False
    assert repr(config) == before
    assert config.layers == (1, 1, 1, 1)
    assert config.block_args == {"se": True, "se_args": {"reduction": 8}}


def test_default_block_args_are_not_shared() -> None:
    """One dictionary as everybody's default would spread a change to every network."""
    build().block_args["se"] = True
    assert build().block_args == {}


def test_lists_become_tuples() -> None:
    """Otherwise equal configs would differ, and could not be hashed."""
    fields_ = {"strides": [1, 2, 2, 2], "dilations": [1] * 4, "widths": [32] * 4}
    deep = {"stem_type": "deep", "stem_channels": [8, 8, 16]}
    config = build(layers=[1, 1, 1, 1], channels=[64, 128, 256, 512], **fields_, **deep)
    for name in (*TUPLES, "stem_channels"):
        assert isinstance(getattr(config, name), tuple), name
    assert hash(config) == hash(config.replace())


def test_numbers_of_numpy_become_plain() -> None:
    """Rates come from `np.linspace`; NumPy's own repr of a number cannot be read back."""
    config = build(dropout=np.float64(0.25), norm_eps=np.float64(1e-3))
    assert eval(repr(config), {"ResNeXtConfig": ResNeXtConfig}) == config
    assert type(config.dropout) is type(config.norm_eps) is float


@pytest.mark.parametrize("field", [f.name for f in fields(ResNeXtConfig)])
def test_fields_cannot_be_assigned(field: str) -> None:
    """A network would no longer be what its config says."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(build(), field, 1)


def each(strategy: st.SearchStrategy[int], count: int) -> st.SearchStrategy[Any]:
    """Tuples or lists of `count` values."""
    lists = st.lists(strategy, min_size=count, max_size=count)
    return lists | lists.map(tuple)


@st.composite
def configs(draw: st.DrawFn) -> ResNeXtConfig:
    """Valid configs that use every field."""
    n = draw(st.integers(1, 4))
    layers = draw(each(st.integers(1, 9), n))
    dilations = [st.integers(1, 9) | each(st.integers(1, 3), blocks) for blocks in layers]
    eights = st.integers(1, 20).map(lambda k: 8 * k)  # so that groups and group norms divide them
    groups, widths = st.sampled_from([1, 2, 4, 8]), st.sampled_from([8, 64, 72, 128])
    deep, standard = draw(st.booleans()), draw(st.booleans())
    small = not deep and draw(st.booleans())
    pool, norm = (
        draw(st.sampled_from(CHOICES["anti_alias"])),
        draw(st.sampled_from(CHOICES["norm"])),
    )
    base = st.sampled_from([64, 128]) if norm == "group" else widths
    block_args = {
        "cardinality": groups,
        "base_width": base,
        "dilation": st.integers(1, 3),
        "se": st.booleans(),
        "se_args": st.fixed_dictionaries({}, optional={"reduction": st.integers(1, 8)}),
    }
    rate = st.floats(0, 1, exclude_max=True) | st.just(0)
    eps = st.floats(0, 1e3, exclude_min=True) | st.just(1)
    values: dict[str, Any] = {
        "layers": st.just(layers),
        "cardinality": groups,
        "base_width": base,
        "num_classes": st.integers(1, 10**6),
        "in_channels": st.integers(1, 99),
        "stem_width": eights,
        "stem_type": st.just("deep" if deep else None),
        "avg_down": st.booleans(),
        "channels": each(eights, n),
        "block_args": st.fixed_dictionaries({}, optional=block_args),
        "num_stages": st.just(n),
        "strides": st.none() | each(st.integers(1, 3), n),
        "dilations": st.none() | st.tuples(*dilations) | st.tuples(*dilations).map(list),
        "style": st.sampled_from(["pytorch"] if pool else ["pytorch", "caffe"]),
        "expansion": st.integers(2, 9),  # so that an SE block squeezes to one channel at least
        "widths": st.none() | each(eights, n),
        "stem_channels": st.none() | (each(eights, 3) if deep else eights),
        "small_stem": st.just(small),
        "norm": st.just(norm),
        "norm_groups": st.sampled_from([1, 2, 4, 8]),
        "norm_eps": eps,
        "norm_momentum": st.none() | st.floats(0, 1),
        "norm_affine": st.booleans(),
        "norm_track": st.booleans(),
        "conv": st.just("standard") if standard else st.sampled_from(CHOICES["conv"]),
        "conv_eps": eps,
        "padding_mode": st.sampled_from(CHOICES["padding_mode"]) if standard else st.just("zeros"),
        "attention": st.sampled_from(CHOICES["attention"]),
        "se_reduction": st.integers(1, 8),
        "se_rounding": st.sampled_from(CHOICES["se_rounding"]),
        "anti_alias": st.just(pool),
        "keep_pooling": st.booleans(),
        "ceil_pooling": st.just(False) if small or pool else st.booleans(),
        "drop_path_rate": rate,
        "drop_path_decay": st.sampled_from(CHOICES["drop_path_decay"]),
        "dropout": rate,
        "zero_init_residual": st.booleans(),
    }
    assert set(values) == {f.name for f in fields(ResNeXtConfig)}, "a new field: draw it"
    return ResNeXtConfig(**draw(st.fixed_dictionaries(values)))


@given(configs())
def test_round_trips(config: ResNeXtConfig) -> None:
    """A field forgotten or changed on the way would rebuild another network, silently."""
    copies = [
        ResNeXtConfig.from_json(config.to_json()),
        ResNeXtConfig.from_dict(config.to_dict()),
        ResNeXtConfig.from_dict(json.loads(json.dumps(config.to_dict()))),
        eval(repr(config), {"ResNeXtConfig": ResNeXtConfig}),
        pickle.loads(pickle.dumps(config)),
        copy.deepcopy(config),
        config.replace(),
    ]
    wanted = [getattr(config, f.name) for f in fields(config)]
    for other in copies:
        assert [getattr(other, f.name) for f in fields(other)] == wanted
        assert other == config
        assert hash(other) == hash(config)
        assert other.stages == config.stages
    assert {*config.to_dict(), "keep_pooling", "ceil_pooling"} == {f.name for f in fields(config)}
    assert "\n" not in config.to_json()


@given(configs(), st.data())
def test_replace_changes_one_field_only(config: ResNeXtConfig, data: st.DataObject) -> None:
    """A change must not reset others to their defaults, nor change the original."""
    field = data.draw(st.sampled_from(["num_classes", "in_channels", "avg_down", "dropout"]))
    new = {
        "num_classes": 10**7,
        "in_channels": 100,
        "avg_down": not config.avg_down,
        "dropout": 1 / 3,
    }
    before = repr(config)
    other = config.replace(**{field: new[field]})
    differing = [
        f.name for f in fields(config) if getattr(other, f.name) != getattr(config, f.name)
    ]
    assert differing == ([field] if getattr(config, field) != new[field] else [])
    assert repr(config) == before
    assert (other == config) == (not differing)


def test_replace_validates_and_suggests() -> None:
    """A typo must not be dropped, and a wrong value must not get in by this door."""
    with pytest.raises(TypeError, match=r"no field 'num_clases'.*Did you mean 'num_classes'\?"):
        build().replace(num_clases=3)
    with pytest.raises(ValueError, match="num_classes must be greater than 0, not 0"):
        build().replace(num_classes=0)
    with pytest.raises(TypeError, match=r"'zzz'.*layers, cardinality, base_width"):
        build().replace(zzz=3)


def test_equality_and_hash_see_every_field() -> None:
    """Two configs that build different networks must not be one key of a cache."""
    config = build()
    changes: list[dict[str, Any]] = [
        {"layers": (1, 1, 1, 2)},
        {"block_args": {"se": True}},
        {"block_args": {"dilation": 2}},
        {"stem_type": "deep"},
        {"anti_alias": "avg"},
        {"norm_momentum": None},
    ]
    others = [build(**change) for change in changes]
    assert len({config, *others}) == 1 + len(others)
    assert config == build()
    assert config != "ResNeXtConfig"


@pytest.mark.parametrize(
    ("stage", "error", "message"),
    [
        ((1, 2), ValueError, r"dilations\[2\] must hold exactly 3 .*\(1, 2\)"),
        ((2, 2), ValueError, "exactly 3 positive integers"),  # not 2 for every block
        ((), ValueError, "exactly 3 positive integers"),
        ([1, 2, 0], ValueError, "exactly 3 positive integers"),
        ((1, 2, (2,)), TypeError, "exactly 3 positive integers"),
        ("122", TypeError, r"dilations\[2\] must be a positive integer"),
        (True, TypeError, r"dilations\[2\] must be a positive integer"),
        (0, ValueError, r"dilations\[2\] must be greater than 0"),
    ],
)
def test_wrong_dilations_of_blocks(stage: Any, error: type[Exception], message: str) -> None:
    """A tuple of another length than the stage would leave blocks without a dilation."""
    with pytest.raises(error, match=message) as caught:
        build(layers=(1, 2, 3, 2), dilations=(1, (1, 2), stage, 1))
    assert isinstance(caught.value, ResNeXtError)


def test_dilations_of_blocks_have_one_spelling() -> None:
    """Equal networks must be equal configs with one repr, which plans are found by."""
    config = build(layers=(1, 2, 3, 2), dilations=[[1], [2, 2], (1, 2, 2), 4])
    assert config.dilations == (1, 2, (1, 2, 2), 4)
    assert [stage.dilations for stage in config.stages] == [(1,), (2, 2), (1, 2, 2), (4, 4)]
    assert [stage.dilation for stage in config.stages] == [1, 2, 2, 4]
    assert config == build(layers=(1, 2, 3, 2), dilations=((1,), 2, [1, 2, 2], (4, 4)))
    assert config.to_dict()["dilations"] == [1, 2, [1, 2, 2], 4]


def test_new_fields_leave_old_files_alone() -> None:
    """Fingerprints of runs, plans and files are made of repr and JSON."""
    for name in ("keep_pooling", "ceil_pooling"):
        assert name not in build().to_dict()
        assert build(**{name: True}).to_dict()[name] is True


def test_repr_shows_what_differs_from_defaults() -> None:
    """Thirty-five fields on one line hide the three that matter."""
    config = ResNeXtConfig([3, 4, 6, 3], 32, 4, block_args={"se": True}, dropout=0.5)
    assert repr(config) == (
        "ResNeXtConfig(layers=(3, 4, 6, 3), cardinality=32, base_width=4, "
        "block_args={'se': True}, dropout=0.5)"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("resnext50_32x4d", "must be a dictionary of fields, not 'resnext50_32x4d'"),
        ({"cardinality": 8, "base_width": 4}, "layers is missing"),
        ({"layers": [1] * 4, "base_width": 4}, "cardinality is missing"),
        ({**NEEDED, "groups": 3}, "no field 'groups'"),
        ({**NEEDED, "num_class": 3}, "Did you mean 'num_classes'"),
        ({**NEEDED, 3: 3}, "no field 3"),
        ({**NEEDED, "layers": {"0": 1}}, "layers must hold"),
    ],
)
def test_from_dict_refuses_what_is_no_config(values: Any, message: str) -> None:
    """A file that describes something else must not become a network with defaults."""
    with pytest.raises(ConfigTypeError, match=message):
        ResNeXtConfig.from_dict(values)


@pytest.mark.parametrize(
    "text",
    ["", "{", "NaN{", "[1, 2]", "3", '"x"', "null", None, b"\xff\xfe", "[" * 100_000],
    ids=lambda text: repr(text)[:9],
)
def test_from_json_refuses_what_is_no_config(text: Any) -> None:
    """A damaged header must give one of our errors, not the parser's."""
    with pytest.raises(ConfigError):
        ResNeXtConfig.from_json(text)


# -- what follows from the fields -------------------------------------------------------------


@given(
    channels=st.lists(st.integers(1, 2048), min_size=4, max_size=4),
    base_width=st.integers(1, 256),
    cardinality=st.integers(1, 64),
)
def test_width_formula(channels: list[int], base_width: int, cardinality: int) -> None:
    """`floor(channels · base_width / 64) · cardinality`: floored before it is multiplied."""
    widths = [math.floor(c * (base_width / 64.0)) * cardinality for c in channels]
    make = {"cardinality": cardinality, "base_width": base_width, "channels": channels}
    if min(widths) == 0:
        with pytest.raises(ValueError, match="width 0"):
            build(**make)
    else:
        assert [stage.width for stage in build(**make).stages] == widths


def test_stages_of_the_papers_network() -> None:
    """Table 1 of the paper, row by row."""
    stages = ResNeXtConfig((3, 4, 6, 3), 32, 4).stages
    assert [len(stage.drop_path) for stage in stages] == [3, 4, 6, 3]
    assert [stage.width for stage in stages] == [128, 256, 512, 1024]
    assert [stage.out_channels for stage in stages] == [256, 512, 1024, 2048]
    assert [stage.in_channels for stage in stages] == [64, 256, 512, 1024]
    assert [stage.stride for stage in stages] == [1, 2, 2, 2]
    assert {stage.groups for stage in stages} == {32}
    assert {stage.dilation for stage in stages} == {1}


def test_own_fields_override_what_is_derived() -> None:
    """A field that is read but not used would build another network than the one described."""
    config = build(
        strides=(2, 1, 3, 1), dilations=(1, 2, 3, 4), expansion=2, widths=(8, 16, 24, 32)
    )
    assert [stage.stride for stage in config.stages] == [2, 1, 3, 1]
    assert [stage.dilation for stage in config.stages] == [1, 2, 3, 4]
    assert [stage.out_channels for stage in config.stages] == [128, 256, 512, 1024]
    assert [stage.width for stage in config.stages] == [8, 16, 24, 32]
    assert (config.stem_stride, config.stride) == (4, 24)
    assert (build(small_stem=True).stem_stride, build(small_stem=True).stride) == (1, 8)


@pytest.mark.parametrize(
    ("changes", "outs"),
    [
        ({}, (64,)),
        ({"stem_width": 32}, (64,)),  # the classic stem ignores it, as in Lucid
        ({"stem_channels": 24}, (24,)),
        ({"stem_type": "deep"}, (64, 64, 128)),
        ({"stem_type": "deep", "stem_width": 32}, (32, 32, 64)),
        ({"stem_type": "deep", "stem_channels": (24, 32, 64)}, (24, 32, 64)),
    ],
)
def test_stem_outputs(changes: dict[str, Any], outs: tuple[int, ...]) -> None:
    """The deep stem ends at twice its width; the first stage must start there."""
    config = build(**changes)
    assert config.stem_out == outs
    assert config.stages[0].in_channels == outs[-1]


def test_block_args_override_the_fields() -> None:
    """As in Lucid: what is given for blocks wins over the preset, and the preset stays visible."""
    config = build(
        block_args={"cardinality": 2, "base_width": 128, "dilation": 2}, dilations=(1, 1, 3, 3)
    )
    assert [stage.groups for stage in config.stages] == [2] * 4
    assert [stage.width for stage in config.stages] == [256, 512, 1024, 2048]
    assert [stage.dilation for stage in config.stages] == [2] * 4
    assert (config.cardinality, config.base_width) == (8, 4)


@pytest.mark.parametrize(
    ("block_args", "attention", "gate", "squeezed"),
    [
        ({"se": True}, None, "se", 100 // 16),
        ({"se": True, "se_args": {"reduction": 3}}, None, "se", 33),
        ({"se": True, "se_args": {}}, "eca", "se", 6),
        ({"se_args": {"reduction": 3}}, None, None, None),
        ({"se": False}, "se", "se", 8),
        ({"se": False}, "eca", "eca", None),
        ({}, None, None, None),
    ],
)
def test_attention_of_block_args(
    block_args: dict[str, Any], attention: Any, gate: str | None, squeezed: int | None
) -> None:
    """Lucid's own SE block divides without rounding; `se_args` alone switches nothing on."""
    config = build(block_args=block_args, attention=attention)
    assert config.gate == gate
    if squeezed is not None:
        assert config.squeezed(100) == squeezed


@given(channels=st.integers(1, 4096), power=st.integers(0, 6))
def test_se_roundings(channels: int, power: int) -> None:
    """Three libraries round squeezed channels in three ways; weights fit only their own."""
    divisible, reduction = timm.layers.helpers.make_divisible, 2**power
    wanted = {
        "timm": divisible(channels * (1 / reduction), 8, round_limit=0.0),
        "mmcls": divisible(channels // reduction, 8, round_limit=0.9),
    }
    for rounding, squeezed in wanted.items():
        config = build(se_reduction=reduction, se_rounding=rounding)
        assert config.squeezed(channels) == squeezed, rounding
    floor = build(se_reduction=reduction, se_rounding="floor")
    assert floor.squeezed(channels) == int(channels / reduction)


def test_stochastic_depth_rises_linearly() -> None:
    """Equation 4 of the paper in its timm form: 0 in the first block, the full rate in the last."""
    linear = build(layers=(1, 2, 1, 1), drop_path_rate=0.4)
    rates = [rate for stage in linear.stages for rate in stage.drop_path]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    constant = linear.replace(drop_path_decay="constant")
    assert [s.drop_path for s in constant.stages] == [(0.4,), (0.4,) * 2, (0.4,), (0.4,)]
    assert {r for s in build().stages for r in s.drop_path} == {0}


# -- cost of importing ------------------------------------------------------------------------


def test_names_and_configs_need_no_torch() -> None:
    """Listing and checking configs takes milliseconds only while nothing here imports torch."""
    code = (
        "import sys, resnext.errors, resnext.config, resnext.card, resnext.summary\n"
        "for name in resnext.variants():\n"
        "    config = resnext.variant(name)\n"
        "    resnext.summary.summarize(config)\n"
        "    type(config).from_json(config.to_json())\n"
        "resnext.card.Card.from_dict(resnext.card.Card().to_dict())\n"
        "heavy = {'torch', 'numpy', 'PIL', 'jaxtyping', 'rich', 'cyclopts', 'safetensors'}\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_a_billion_blocks_are_refused() -> None:
    """A crafted file would keep the machine busy before anything is built."""
    with pytest.raises(ConfigError, match="layers must hold at most 1000 blocks"):
        ResNeXtConfig((10**9, 1, 1, 1), 32, 4)


# -- other libraries' arguments, Trainers, NumPy --------------------------------------------------

THEIRS = {
    "groups": "'cardinality'",
    "width_per_group": "'base_width'",
    "drop_rate": "'dropout'",
    "in_chans": "'in_channels'",
    "zero_init_last": "'zero_init_residual'",
    "weights": "resnext.load",
    "pretrained": "resnext.load",
    "pretrained_cfg": "resnext.load",
    "progress": "resnext.load",
    "norm_layer": "Give norm",
    "aa_layer": "Give anti_alias",
    "act_layer": "always ReLU",
    "replace_stride_with_dilation": "dilations=",
    "output_stride": "dilations=",
    "out_indices": "resnext.Backbone",
    "features_only": "resnext.Backbone",
    "global_pool": "always averaged",
    "drop_block_rate": "without it",
    "down_kernel_size": "without it",
}


@pytest.mark.parametrize(("name", "said"), THEIRS.items())
def test_other_libraries_arguments(name: str, said: str) -> None:
    """`drop_rate` was answered with drop_path_rate, `groups` with norm_groups: both train."""
    given: Any = {name: 1}
    builds: list[Any] = [
        lambda: ResNeXtConfig((3, 4, 6, 3), 32, 4, **given),
        lambda: ResNeXtConfig((3, 4, 6, 3), 32, 4).replace(**given),
    ]
    if name != "output_stride":  # `create` has it
        builds.append(lambda: resnext.create("resnext50_32x4d", **given))
    for build in builds:
        with pytest.raises(ConfigTypeError, match=re.escape(said)) as error:
            build()
        assert f"no field {name!r}" in str(error.value)
        assert "\n" not in str(error.value)


def test_every_argument_of_both_builders_is_answered() -> None:
    """An argument that a new version adds must be given an answer here."""
    resnet, factory = timm.models.resnet.ResNet, timm.models.create_model
    builders = (torchvision.models.resnet.ResNet, torchvision.models.resnext50_32x4d, resnet)
    names = {x for builder in (*builders, factory) for x in inspect.signature(builder).parameters}
    fields = {f.name for f in dataclasses.fields(ResNeXtConfig)}
    own = {"self", "kwargs", "model_name"}
    assert names - own - fields <= foreign_names._FIELDS.keys() | foreign_names._ADVICE.keys()
    assert set(foreign_names._FIELDS.values()) <= fields
    assert not fields & (foreign_names._FIELDS.keys() | foreign_names._ADVICE.keys())


def test_trainers_may_leave_a_note() -> None:
    """transformers' Trainer writes use_cache; fields stay frozen."""
    config = ResNeXtConfig((3, 4, 6, 3), 32, 4)
    text, number = config.to_json(), hash(config)
    config.use_cache = False  # pyright: ignore[reportAttributeAccessIssue]
    assert (config.to_json(), hash(config), config) == (text, number, config.replace())
    for name in ("cardinality", "cardinalty"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, 3)


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
def test_numpys_integers(integer: Any) -> None:
    """Numbers from arrays and data frames; they become Python's, as JSON and hashes need."""
    got = ResNeXtConfig(
        np.array([3, 4, 6, 3]),  # pyright: ignore[reportArgumentType]
        integer(32),
        integer(4),
        num_classes=integer(7),
        channels=[integer(x) for x in (64, 128, 128, 128)],
        block_args={"se": np.bool_(True), "se_args": {"reduction": integer(8)}},
        dropout=cast(Any, np.float32(0.5)),
    )
    wanted = ResNeXtConfig(
        (3, 4, 6, 3),
        32,
        4,
        7,
        channels=(64, 128, 128, 128),
        block_args={"se": True, "se_args": {"reduction": 8}},
        dropout=0.5,
    )
    assert got == wanted
    assert repr(got) == repr(wanted)
    assert got.to_json() == wanted.to_json()
    with pytest.raises(ConfigError, match="cardinality must be greater than 0"):
        wanted.replace(cardinality=integer(0))
