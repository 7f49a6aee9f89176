"""Checks of single values, for configs, cards, recipes and arguments.

Each check raises a one-line error with the allowed values and the given one. An integer is an `int`
but not a `bool`. NumPy's integers are refused here; configs make them Python's with `plain` first.
This module loads no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from resnext.errors import ConfigError, ConfigTypeError, InputError, ResNeXtError

_LONGEST = 80  # characters of a value in a message


def brief(value: Any) -> str:
    """A value for a message of one line: its repr, shortened, or its type.

    The repr of a network has hundreds of lines, and that of most objects says only their address.
    """
    text = repr(value)
    if "\n" in text or " at 0x" in text:
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def plain(value: Any) -> Any:
    """A value with NumPy's numbers as Python's and its arrays as lists, also inside containers."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(inner) for inner in value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    return value


def scalar(value: Any) -> Any:
    """NumPy's number, also an array without dimensions, as Python's; anything else as it is."""
    return plain(value) if getattr(value, "ndim", None) == 0 else value


def is_zero(value: Any) -> bool:
    """Whether a value is the integer 0, also NumPy's; it stands for no classes, as in timm."""
    value = plain(value)
    return type(value) is int and value == 0


def positive(name: str, value: Any) -> None:
    """Require an integer of at least 1.

    Raises:
        ConfigTypeError: The value is not an integer.
        ConfigError: The value is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigTypeError(f"{name} must be a positive integer, not {brief(value)}.")
    if value <= 0:
        raise ConfigError(f"{name} must be greater than 0, not {brief(value)}.")


def positives(name: str, value: Any, count: int, hint: str = "") -> None:
    """Require a tuple of exactly `count` positive integers.

    Args:
        name: Name of the value in messages.
        value: The value to check.
        count: Number of integers it must hold.
        hint: Added to the message if the length is wrong.

    Raises:
        ConfigTypeError: The value is not a tuple of integers.
        ConfigError: The value has another length, or an entry below 1.
    """
    wanted = f"{name} must hold exactly {count} positive integer{'s' * (count > 1)}"
    if not isinstance(value, tuple):
        raise ConfigTypeError(f"{wanted}, as a tuple or list, not {brief(value)}.")
    if any(isinstance(x, bool) or not isinstance(x, int) for x in value):
        raise ConfigTypeError(f"{wanted}, not {brief(value)}.")
    if len(value) != count or min(value) <= 0:
        raise ConfigError(f"{wanted}, not {brief(value)}.{hint if len(value) != count else ''}")


def positives_or_tuples(
    name: str, value: Any, counts: Sequence[int]
) -> tuple[int | tuple[int, ...], ...]:
    """Require a tuple of positive integers, any of which may be a tuple itself.

    Args:
        name: Name of the value in messages.
        value: The value to check.
        counts: Number of integers in each of the tuples inside.

    Returns:
        The value; tuples inside that hold one number only are that number.

    Raises:
        ConfigTypeError: An entry is not an integer.
        ConfigError: A tuple has another length, or an integer is below 1.
    """
    if not isinstance(value, tuple) or not any(isinstance(x, list | tuple) for x in value):
        positives(name, value, len(counts))
        return value
    if len(value) != len(counts):
        wanted = f"exactly {len(counts)} positive integers, or tuples of them"
        raise ConfigError(f"{name} must hold {wanted}, not {brief(value)}.")
    checked = list[int | tuple[int, ...]]()
    for i, (entry, count) in enumerate(zip(value, counts, strict=True)):
        inner = tuple(entry) if isinstance(entry, list | tuple) else (entry,)
        if isinstance(entry, list | tuple):
            positives(f"{name}[{i}]", inner, count)
        else:
            positive(f"{name}[{i}]", entry)
        checked.append(inner if len(set(inner)) > 1 else inner[0])
    return tuple(checked)


def boolean(name: str, value: Any) -> None:
    """Require True or False.

    Raises:
        ConfigTypeError: The value is anything else.
    """
    if not isinstance(value, bool):
        raise ConfigTypeError(f"{name} must be True or False, not {brief(value)}.")


def literals(kind: Any) -> tuple[Any, ...]:
    """What a type of literals allows, with None first if it is one; empty for any other type."""
    for part in (kind, *get_args(kind)):
        if get_origin(part) is Literal:
            return (None, *get_args(part)) if NoneType in get_args(kind) else get_args(part)
    return ()


def choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Require one of a few strings, or None if it is among the choices.

    Raises:
        ConfigTypeError: The value is neither a string nor None.
        ConfigError: The value is not one of the choices.
    """
    allowed = " or ".join(map(repr, choices))
    if not (value is None or isinstance(value, str)):
        raise ConfigTypeError(f"{name} must be {allowed}, not {brief(value)}.")
    if value not in choices:
        raise ConfigError(f"{name} must be {allowed}, not {brief(value)}.")


def one_of(
    name: str, value: Any, choices: Iterable[str], error: type[ResNeXtError] = ConfigError
) -> None:
    """Require one of some names.

    Raises:
        ResNeXtError: The value is not one of them; its type is `error`.
    """
    choices = tuple(choices)
    if value not in choices:
        raise error(f"{name} must be one of {', '.join(choices)}, not {brief(value)}.")


def number(name: str, value: Any, allowed: Callable[[float], bool], wanted: str) -> None:
    """Require a finite number that is allowed.

    Args:
        name: Name of the value in messages.
        value: The value to check.
        allowed: Whether a finite number is allowed.
        wanted: Describes the allowed numbers, to follow "must be".

    Raises:
        ConfigTypeError: The value is not a number.
        ConfigError: The value is not finite, or not allowed.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigTypeError(f"{name} must be a number {wanted}, not {brief(value)}.")
    if not (is_finite(value) and allowed(value)):
        raise ConfigError(f"{name} must be {wanted}, not {brief(value)}.")


def between(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> None:
    """Require a number from `low` to `high`, both included; with `whole`, an integer.

    Raises:
        ConfigError: The value is out of range, or not a number of this kind.
    """
    if not (is_finite(value) and low <= value <= high and (type(value) is int or not whole)):
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{name} must be {kind} from {low:g} to {high:g}, not {brief(value)}.")


def at_least(
    name: str,
    value: Any,
    low: int,
    *,
    whole: bool = True,
    error: type[ResNeXtError] = ConfigError,
) -> None:
    """Require a number of at least `low`; an integer unless `whole` is False.

    Raises:
        ResNeXtError: The value is smaller, or not a number of this kind; its type is `error`.
    """
    if not (is_finite(value) and value >= low and (type(value) is int or not whole)):
        raise error(f"{name} must be at least {low}, not {brief(value)}.")


def check_max_loss(value: Any) -> None:
    """Require a largest accepted loss of accuracy, in percentage points.

    Raises:
        InputError: It is not a number from 0 to less than 100.
    """
    if not (is_finite(value) and 0 <= value < 100):
        raise InputError(
            f"max_loss must be from 0 to less than 100 percentage points, not {brief(value)}."
        )


def is_finite(value: Any) -> bool:
    """Whether a value is an integer or a float, but not a boolean, NaN or infinite.

    Integers too large for a float are not finite either.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max
