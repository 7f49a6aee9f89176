"""Checks of single values: every boundary, every type, every message."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest

from resnext.checks import (
    at_least,
    between,
    boolean,
    brief,
    choice,
    is_finite,
    literals,
    number,
    one_of,
    positive,
    positives,
)
from resnext.errors import ConfigError, ConfigTypeError, DataError, InputError

HUGE = 10**400
"""An integer beyond every float: `float(HUGE)` and comparing it to one can overflow."""


def refusal(check: Callable[..., object], *args: Any, **options: Any) -> tuple[type, str]:
    """Type and message of the error."""
    with pytest.raises(ConfigError) as caught:
        check("size", *args, **options)
    assert "\n" not in str(caught.value)
    return type(caught.value), str(caught.value)


def error_of(check: Callable[..., object], *args: Any, **options: Any) -> Exception:
    """An error that need not be a `ConfigError`."""
    with pytest.raises(Exception, match=r"^size must be ") as caught:
        check("size", *args, **options)
    return caught.value


# -- is_finite --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        *(0, 1, -1, 0.0, -0.0, 1.5, -1.5, 5e-324, 10**300, -(10**300)),
        *(sys.float_info.max, -sys.float_info.max, int(sys.float_info.max)),
        *(-int(sys.float_info.max), np.float64(2.5)),
    ],
)
def test_finite(value: Any) -> None:
    """The largest float is a number, and NumPy's double is one of Python's floats."""
    assert is_finite(value)


@pytest.mark.parametrize(
    "value",
    [
        *(True, False, None, "1", b"1", (), [1], {}, 1j, object()),
        *(math.nan, math.inf, -math.inf, np.float64("nan"), np.float64("inf")),
        *(HUGE, -HUGE, int(sys.float_info.max) + 1, -int(sys.float_info.max) - 1),
        *(np.int64(1), np.float32(1), np.array(1.0), np.bool_(True)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_not_finite(value: Any) -> None:
    """NaN compares false with everything, a boolean is an integer to Python."""
    assert not is_finite(value)


# -- positive ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 2, HUGE])
def test_positive(value: int) -> None:
    """1 is the smallest."""
    positive("size", value)


@pytest.mark.parametrize("value", [0, -1, -HUGE])
def test_not_positive(value: int) -> None:
    """0 classes, stages or channels make no network."""
    wanted = f"size must be greater than 0, not {brief(value)}."
    assert refusal(positive, value) == (ConfigError, wanted)


@pytest.mark.parametrize(
    "value",
    [True, False, 1.0, 2.5, math.nan, "3", None, (1,), np.int64(3), np.float64(3)],
    ids=repr,
)
def test_not_an_integer(value: Any) -> None:
    """True is 1 to Python, and 1.0 would be written into files as another number."""
    wanted = f"size must be a positive integer, not {brief(value)}."
    assert refusal(positive, value) == (ConfigTypeError, wanted)


# -- positives --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [(1,), (1, 2, 3), (HUGE,) * 4])
def test_positives(value: tuple[int, ...]) -> None:
    """As many as there are stages."""
    positives("size", value, len(value))


@pytest.mark.parametrize("value", [(0, 1), (1, 0), (-1, 5), (5, -1)])
def test_positives_are_above_zero(value: tuple[int, ...]) -> None:
    """Each entry counts, and advice about the number of entries would mislead."""
    wanted = f"size must hold exactly 2 positive integers, not {brief(value)}."
    assert refusal(positives, value, 2, " Do something.") == (ConfigError, wanted)


@pytest.mark.parametrize("value", [(), (1,), (1, 2, 3), (0,)])
def test_positives_are_so_many(value: tuple[int, ...]) -> None:
    """One more or less, or none; then the advice is part of the message."""
    wanted = f"size must hold exactly 2 positive integers, not {brief(value)}."
    assert refusal(positives, value, 2) == (ConfigError, wanted)
    advised = f"{wanted} Do something."
    assert refusal(positives, value, 2, " Do something.") == (ConfigError, advised)


@pytest.mark.parametrize("value", [(), (1, 2), (0,)])
def test_one_positive_integer(value: tuple[int, ...]) -> None:
    """The message counts, too."""
    wanted = f"size must hold exactly 1 positive integer, not {brief(value)}."
    assert refusal(positives, value, 1) == (ConfigError, wanted)


@pytest.mark.parametrize("value", [[1, 2], 1, None, "12", {1, 2}, np.array([1, 2])], ids=repr)
def test_positives_are_a_tuple(value: Any) -> None:
    """A list could be changed after the check; it is converted before."""
    wanted = f"size must hold exactly 2 positive integers, as a tuple or list, not {brief(value)}."
    assert refusal(positives, value, 2, " Hint.") == (ConfigTypeError, wanted)


@pytest.mark.parametrize(
    "value",
    [(True, 1), (1, True), (1.0, 2), (1, 2.0), ("1", 2), (1, None), (np.int64(1), 2), (1, 2, "3")],
    ids=repr,
)
def test_positives_are_integers(value: Any) -> None:
    """Each entry counts, whatever the number of entries."""
    wanted = f"size must hold exactly 2 positive integers, not {brief(value)}."
    assert refusal(positives, value, 2, " Hint.") == (ConfigTypeError, wanted)


# -- boolean ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, False])
def test_boolean(value: bool) -> None:
    """Both."""
    boolean("size", value)


@pytest.mark.parametrize(
    "value", [0, 1, 1.0, None, "True", "", np.True_, np.bool_(False)], ids=repr
)
def test_not_boolean(value: Any) -> None:
    """The text "False" is true."""
    wanted = f"size must be True or False, not {brief(value)}."
    assert refusal(boolean, value) == (ConfigTypeError, wanted)


# -- choice and one_of ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "se", "eca"])
def test_choice(value: str | None) -> None:
    """None can be a choice."""
    choice("size", value, (None, "se", "eca"))


def test_literals() -> None:
    """Fields of a config are checked by their types: a new one needs no entry in a list."""
    assert literals(Literal["se", "eca"]) == ("se", "eca")
    assert literals(Literal["se", "eca"] | None) == (None, "se", "eca")
    for kind in (int, bool, float | None, tuple[int, ...] | None, dict[str, Any], None):
        assert literals(kind) == ()


@pytest.mark.parametrize("value", ["SE", "", "se ", "None"])
def test_not_a_choice(value: str) -> None:
    """Almost right is wrong: the message shows the spelling."""
    wanted = f"size must be None or 'se' or 'eca', not {brief(value)}."
    assert refusal(choice, value, (None, "se", "eca")) == (ConfigError, wanted)


def test_none_is_not_always_a_choice() -> None:
    """It has the right type, and the wrong value."""
    wanted = "size must be 'a' or 'b', not None."
    assert refusal(choice, None, ("a", "b")) == (ConfigError, wanted)
    assert refusal(choice, "c", ("a",)) == (ConfigError, "size must be 'a', not 'c'.")


@pytest.mark.parametrize("value", [True, 0, 1.5, b"a", ("a",), ["a"], {"a"}], ids=repr)
def test_a_choice_is_a_string(value: Any) -> None:
    """A list of one choice is another type, also where it cannot be hashed."""
    wanted = f"size must be 'a' or 'b', not {brief(value)}."
    assert refusal(choice, value, ("a", "b")) == (ConfigTypeError, wanted)


@pytest.mark.parametrize("choices", [("a", "b"), ["a", "b"], {"a": 1, "b": 2}, iter(("a", "b"))])
def test_one_of(choices: Any) -> None:
    """Any collection of names, also one that can be gone over only once."""
    one_of("size", "b", choices)


@pytest.mark.parametrize("value", ["c", "", "A", None, 1, ("a",), "a, b"], ids=repr)
def test_not_one_of(value: Any) -> None:
    """All names are listed, also those of an iterator."""
    for choices in (("a", "b"), ["a", "b"], iter(("a", "b"))):
        wanted = f"size must be one of a, b, not {brief(value)}."
        assert refusal(one_of, value, choices) == (ConfigError, wanted)


@pytest.mark.parametrize("kind", [InputError, DataError])
def test_one_of_raises_the_error_of_its_caller(kind: type[Exception]) -> None:
    """A wrong argument of `predict` is not an error of the config."""
    error = error_of(one_of, "c", ("a",), kind)
    assert (type(error), str(error)) == (kind, "size must be one of a, not 'c'.")


# -- number -----------------------------------------------------------------------------------


def below_one(value: float) -> bool:
    """From 0 to 1, 1 excluded."""
    return 0 <= value < 1


@pytest.mark.parametrize("value", [0, 0.0, 0.5, math.nextafter(1, 0), np.float64(0.5)])
def test_number(value: float) -> None:
    """Integers and floats."""
    number("size", value, below_one, "below 1")


@pytest.mark.parametrize("value", [1, 1.0, -0.1, -5e-324, 7])
def test_number_that_is_not_allowed(value: float) -> None:
    """What is allowed decides, on both sides."""
    assert refusal(number, value, below_one, "from 0 to below 1") == (
        ConfigError,
        f"size must be from 0 to below 1, not {brief(value)}.",
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, HUGE, -HUGE])
def test_number_is_finite(value: float) -> None:
    """`allowed` is not called with NaN, infinity and integers beyond floats."""
    assert refusal(number, value, lambda _: True, "anything") == (
        ConfigError,
        f"size must be anything, not {brief(value)}.",
    )
    with pytest.raises(ConfigError):
        number("size", value, lambda _: pytest.fail("asked"), "anything")


@pytest.mark.parametrize(
    "value", [True, False, None, "0.5", (0.5,), 0.5j, np.float32(0.5), np.int64(0)], ids=repr
)
def test_number_of_another_type(value: Any) -> None:
    """A text that looks like a number came from a command line or a file."""
    assert refusal(number, value, lambda _: True, "below 1") == (
        ConfigTypeError,
        f"size must be a number below 1, not {brief(value)}.",
    )


# -- between ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 0.0, -0.0, 0.5, 1, 1.0, 2, 2.0, np.float64(1)])
def test_between(value: float) -> None:
    """Both ends are included."""
    between("size", value, 0, 2)


@pytest.mark.parametrize("value", [0, 1, 2])
def test_between_with_integers(value: int) -> None:
    """Both ends are included."""
    between("size", value, 0, 2, whole=True)


@pytest.mark.parametrize(
    "value",
    [
        *(-5e-324, math.nextafter(2, 3), -1, 3, math.nan, math.inf, -math.inf, HUGE, -HUGE),
        *(True, False, None, "1", (1,), np.int64(1), np.float32(1)),
    ],
    ids=repr,
)
def test_not_between(value: Any) -> None:
    """True is not 1."""
    wanted = f"size must be a number from 0 to 2, not {brief(value)}."
    assert refusal(between, value, 0, 2) == (ConfigError, wanted)


@pytest.mark.parametrize(
    "value", [0.0, 1.0, 1.5, -1, 3, True, False, None, "1", np.int64(1)], ids=repr
)
def test_not_an_integer_between(value: Any) -> None:
    """1.0 is a number from 0 to 2, but not a whole one as a count is written."""
    wanted = f"size must be a whole number from 0 to 2, not {brief(value)}."
    assert refusal(between, value, 0, 2, whole=True) == (ConfigError, wanted)


def test_between_shows_short_limits() -> None:
    """Not 0.30000000000000004, and no needless zeros."""
    wanted = "size must be a number from 0.3 to 1e+06, not -1."
    assert refusal(between, -1, 0.1 + 0.2, 1_000_000.0) == (ConfigError, wanted)


# -- at_least ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [2, 3, 10**300])
def test_at_least(value: int) -> None:
    """The limit is included."""
    at_least("size", value, 2)
    at_least("size", value, 2, whole=False)


@pytest.mark.parametrize("value", [2.0, 2.5, np.float64(2)])
def test_at_least_as_a_number(value: float) -> None:
    """Floats only where they are allowed."""
    at_least("size", value, 2, whole=False)
    wanted = f"size must be at least 2, not {brief(value)}."
    assert refusal(at_least, value, 2) == (ConfigError, wanted)
    assert refusal(at_least, value, 2, whole=True) == (ConfigError, wanted)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "value",
    [
        *(1, 0, -1, math.nextafter(2, 0), math.nan, math.inf, -math.inf, HUGE),
        *(True, None, "3", (3,), np.int64(3), np.float32(3)),
    ],
    ids=repr,
)
def test_less(value: Any, whole: bool) -> None:
    """NaN and infinity are not at least anything."""
    wanted = f"size must be at least 2, not {brief(value)}."
    assert refusal(at_least, value, 2, whole=whole) == (ConfigError, wanted)


def test_booleans_are_not_at_least_zero() -> None:
    """True is at least 0 and 1 to Python."""
    for low in (0, 1):
        wanted = f"size must be at least {low}, not True."
        assert refusal(at_least, True, low, whole=False) == (ConfigError, wanted)


@pytest.mark.parametrize("kind", [InputError, DataError])
def test_at_least_raises_the_error_of_its_caller(kind: type[Exception]) -> None:
    """A wrong argument of `predict` is not an error of the config."""
    error = error_of(at_least, 0, 1, error=kind)
    assert (type(error), str(error)) == (kind, "size must be at least 1, not 0.")


def test_a_value_in_a_message_is_short() -> None:
    """A network's repr has hundreds of lines, a list of labels a thousand names."""
    assert brief("resnext5") == "'resnext5'"
    assert brief(np.zeros((30, 30))) == "an object of type ndarray"
    assert brief(object()) == "an object of type object"
    shown = brief(["label"] * 1000)
    assert shown.startswith("['label', 'label'")
    assert shown.endswith("…")
    assert len(shown) == 81
