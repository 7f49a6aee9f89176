"""Cards: what they refuse, and that they survive being written down."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict, fields, replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext.card import Card, Colour, Preprocessing
from resnext.errors import ConfigError, ConfigTypeError

NAN, INF = float("nan"), float("inf")

numbers = st.integers(-(10**6), 10**6) | st.floats(allow_nan=False, allow_infinity=False)
positive = st.integers(1, 10**6) | st.floats(1e-30, 1e30)
text = st.text(max_size=8)
plain = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def preprocessings(draw: st.DrawFn) -> Preprocessing:
    """Any that are valid."""
    colour = draw(st.sampled_from(["RGB", "BGR", "L"]))
    channels = 1 if colour == "L" else 3
    return Preprocessing(
        size=draw(st.integers(1, 10_000)),
        resize=draw(st.integers(1, 10_000)),
        interpolation=draw(st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"])),
        mean=draw(st.tuples(*[numbers] * channels)),
        std=draw(st.tuples(*[positive] * channels)),
        colour=cast(Colour, colour),
        value_range=draw(st.none() | st.sampled_from([(0, 4095), (-1024, 3071)])),
    )


cards = st.builds(
    Card,
    labels=st.lists(text, max_size=5).map(tuple),
    preprocessing=preprocessings(),
    metrics=st.dictionaries(text, numbers, max_size=3),
    provenance=st.dictionaries(text, plain, max_size=3),
    licence=text,
    temperature=positive,
    threshold=st.none() | st.floats(0, 1),
    unknown_threshold=st.none() | st.floats(-100, 2),
    unknown_weight=st.floats(0, 10),
)


def test_defaults_are_imagenets() -> None:
    """Public weights were trained with these numbers (torchvision's presets)."""
    preprocessing = Preprocessing()
    assert (
        preprocessing.resize,
        preprocessing.size,
        preprocessing.interpolation,
        preprocessing.colour,
    ) == (256, 224, "bilinear", "RGB")
    assert (preprocessing.mean, preprocessing.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert Card() == Card((), Preprocessing(), {}, {}, "", 1.0, None)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("size", [0, -1, 2.0, 2.5, "224", None, True, (224, 224), NAN]),
        ("resize", [0, -1, 2.0, 2.5, "256", None, True, [256], INF]),
        ("interpolation", ["cubic", "BILINEAR", "", 2, None, True, ["nearest"], {}]),
        ("colour", ["rgb", "RGBA", "", "G", 3, None, ["RGB"], {}]),
        ("mean", [0.5, None, "abc", (), (0.5,), (0.5, 0.5), (0,) * 4, (0, 0, "0"), (0, 0, None)]),
        ("mean", [{0: 1}, (0, 0, True), (0, 0, NAN), (INF, 0, 0), (0, -INF, 0), {1, 2, 3}]),
        ("std", [0.5, None, "abc", (), (0.5,), (1, 1), (1,) * 4, (1, 1, "1"), (1, 1, None)]),
        ("std", [(1, 1, 0), (1, 1, 0.0), (-1, 1, 1), (1, True, 1), (1, 1, NAN), (1, INF, 1)]),
    ],
)
def test_preprocessing_refuses(field: str, values: list[Any]) -> None:
    """Each of these would fail, or divide by nothing, far from where it was written."""
    for value in values:
        with pytest.raises(ConfigError, match=f"^{field} must "):
            Preprocessing(**{field: value})


@pytest.mark.parametrize("field", ["mean", "std"])
def test_grey_has_one_channel(field: str) -> None:
    """Three numbers would turn a grey image into three channels without a word."""
    grey: dict[str, Any] = {"colour": "L", "mean": (0.5,), "std": (0.5,)}
    assert Preprocessing(**grey).mean == (0.5,)
    with pytest.raises(ConfigError, match=f"^{field} must hold 1 number"):
        Preprocessing(**{**grey, field: (0.5, 0.5, 0.5)})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("labels", ["cat", None, 3, (1, 2), ("a", None), {"a": 0}, {"a", "b"}, [b"a"], 1.5]),
        ("preprocessing", [None, {}, {"size": 224}, 224, Preprocessing]),
        ("metrics", [None, [], (("a", 1),), "accuracy", 0.9]),
        ("provenance", [None, [], "mine", 7]),
        ("licence", [None, 3, ["MIT"], b"MIT"]),
    ],
)
def test_card_refuses_types(field: str, values: list[Any]) -> None:
    """`labels="cat"` would give three classes, c, a and t."""
    for value in values:
        with pytest.raises(ConfigTypeError, match=f"^{field} must be ") as caught:
            Card(**{field: value})
        assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [0, 0.0, -1, NAN, INF, "1", None, True, (1,)]),
        ("threshold", [-0.1, 1.1, NAN, INF, 2, "0.5", True, (0.5,)]),
    ],
)
def test_card_refuses_numbers(field: str, values: list[Any]) -> None:
    """A threshold in per cent makes no answer sure; a temperature of zero makes all NaN."""
    for value in values:
        with pytest.raises(ConfigError, match=f"^{field} must be "):
            Card(**{field: value})


def test_lists_become_tuples() -> None:
    """A card read from JSON must equal the card that was written."""
    preprocessing = Preprocessing(mean=[0, 0, 0], std=[1, 1, 1])  # pyright: ignore
    assert preprocessing == Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))
    assert Card(labels=["a", "b"]) == Card(labels=("a", "b"))  # pyright: ignore
    assert hash(preprocessing) == hash(Preprocessing(mean=(0, 0, 0), std=(1, 1, 1)))


def test_nothing_changes_behind_ones_back() -> None:
    """Two models may share a card."""
    for thing, field in ((Card(), "labels"), (Preprocessing(), "size")):
        with pytest.raises(FrozenInstanceError):
            setattr(thing, field, 1)
    assert Card().metrics is not Card().metrics
    with pytest.raises(ConfigError):
        replace(Preprocessing(), size=0)


@settings(deadline=None)
@given(cards)
def test_dictionary_round_trip(card: Card) -> None:
    """A field that `from_dict` forgets comes back as its default."""
    values = card.to_dict()
    own = {f.name for f in fields(Card)}
    if card.unknown_threshold is None:  # older versions do not know these fields
        own.remove("unknown_threshold")
    if not card.unknown_weight:
        own.remove("unknown_weight")
    assert set(values) == own
    names = {f.name for f in fields(Preprocessing)}
    if card.preprocessing.value_range is None:  # older versions do not know the field
        names.remove("value_range")
    assert set(values["preprocessing"]) == names
    assert Card.from_dict(values) == card
    assert values == card.to_dict()  # from_dict took nothing out


@settings(deadline=None)
@given(cards)
def test_json_round_trip(card: Card) -> None:
    """Model files hold the card as JSON: floats to the last bit, any script, tuples again."""
    written = json.dumps(card.to_dict(), sort_keys=True)
    read = Card.from_dict(json.loads(written))
    assert read == card
    assert all(type(x) is str for x in read.labels)
    assert isinstance(read.labels, tuple)
    assert isinstance(read.preprocessing.mean, tuple)
    assert json.dumps(read.to_dict(), sort_keys=True) == written


def test_the_dictionary_is_a_copy() -> None:
    """Changing what `to_dict` gave must not change the model's card."""
    card = Card(metrics={"a": 1.0}, provenance={"recipe": {"epochs": 3}})
    values = card.to_dict()
    values["metrics"]["a"] = 2.0
    values["provenance"]["recipe"]["epochs"] = 4
    values["preprocessing"]["size"] = 1
    assert card == Card(metrics={"a": 1.0}, provenance={"recipe": {"epochs": 3}})


@pytest.mark.parametrize("missing", [f.name for f in fields(Card)])
def test_what_is_missing_takes_its_default(missing: str) -> None:
    """Files of earlier versions lack fields that were added later."""
    values = Card(
        ("a",), Preprocessing(7, 7), {"x": 1.0}, {"y": 2}, "MIT", 2.0, 0.5, 1.5, 0.1
    ).to_dict()
    del values[missing]
    assert getattr(Card.from_dict(values), missing) == getattr(Card(), missing)
    rest = Card.from_dict(values).to_dict()
    assert {name: rest[name] for name in values} == values


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"label": ["a"]}, "Card must have fields among"),
        ({"labels": ["a"], "author": "me"}, "author"),
        ({1: 2}, "Card must have fields among"),
        ({"preprocessing": {"side": 224}}, "Preprocessing must have fields among.*side"),
        ({"preprocessing": {"size": 0}}, "size must be"),
        ({"preprocessing": None}, "Preprocessing must"),
        ({"preprocessing": [224]}, "Preprocessing must"),
        ({"preprocessing": "resize"}, "Preprocessing must"),
        ({"labels": "abc"}, "labels must"),
        ({"metrics": None}, "metrics must"),
        (None, "A card must be a dictionary"),
        ([], "A card must be a dictionary"),
        ("card", "A card must be a dictionary"),
    ],
)
def test_unknown_fields_and_wrong_types(values: Any, problem: str) -> None:
    """A misspelt field would be lost silently, and the default used in its place."""
    with pytest.raises(ConfigError, match=problem):
        Card.from_dict(values)


def test_from_dict_leaves_its_argument_alone() -> None:
    """Popping from the caller's dictionary would make the second call differ from the first."""
    values = asdict(Card(("a", "b"), Preprocessing(5, 5)))
    before = json.dumps(values)
    assert Card.from_dict(values) == Card.from_dict(values)
    assert json.dumps(values) == before


def test_numpys_integers() -> None:
    """Sizes often come from arrays; in a file they must be JSON's."""
    got = Preprocessing(size=np.int64(32), resize=np.int32(36))  # pyright: ignore[reportArgumentType]
    assert got == Preprocessing(size=32, resize=36)
    assert repr(got) == repr(Preprocessing(size=32, resize=36))
