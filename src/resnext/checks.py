"""Checks of single values, for the config, cards, recipes and everything else with arguments.

Each refuses with one line: what was wanted, and what came. Nothing here needs torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from resnext.errors import ConfigError, ConfigTypeError, ResNeXtError


def positive(name: str, value: Any) -> None:
    """Require an integer of at least 1.

    Raises:
        ConfigTypeError: It is not an integer.
        ConfigError: It is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigTypeError(f"{name} must be a positive integer, not {value!r}.")
    if value <= 0:
        raise ConfigError(f"{name} must be greater than 0, not {value!r}.")


def positives(name: str, value: Any, count: int, hint: str = "") -> None:
    """Require a tuple of exactly `count` positive integers.

    Args:
        name: What to call the value.
        value: Any object.
        count: How many integers it must hold.
        hint: A sentence to end the message with where only the number of entries is wrong.

    Raises:
        ConfigTypeError: It is not a tuple of integers.
        ConfigError: It has another length, or an entry below 1.
    """
    wanted = f"{name} must hold exactly {count} positive integer{'s' * (count > 1)}"
    if not isinstance(value, tuple):
        raise ConfigTypeError(f"{wanted}, as a tuple or list, not {value!r}.")
    if any(isinstance(x, bool) or not isinstance(x, int) for x in value):
        raise ConfigTypeError(f"{wanted}, not {value!r}.")
    if len(value) != count or min(value) <= 0:
        raise ConfigError(f"{wanted}, not {value!r}.{hint}")


def boolean(name: str, value: Any) -> None:
    """Require True or False.

    Raises:
        ConfigTypeError: It is anything else.
    """
    if not isinstance(value, bool):
        raise ConfigTypeError(f"{name} must be True or False, not {value!r}.")


def choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Require one of a few strings, or None where that is one of them.

    Raises:
        ConfigTypeError: It is not a string.
        ConfigError: It is another string.
    """
    allowed = " or ".join(repr(choice) for choice in choices)
    if not (value is None or isinstance(value, str)):
        raise ConfigTypeError(f"{name} must be {allowed}, not {value!r}.")
    if value not in choices:
        raise ConfigError(f"{name} must be {allowed}, not {value!r}.")


def one_of(
    name: str, value: Any, choices: Iterable[str], error: type[ResNeXtError] = ConfigError
) -> None:
    """Require one of a list of names.

    Raises:
        ResNeXtError: It is not in the list; of the type `error`.
    """
    choices = tuple(choices)
    if value not in choices:
        raise error(f"{name} must be one of {', '.join(choices)}, not {value!r}.")


def number(name: str, value: Any, allowed: Callable[[float], bool], wanted: str) -> None:
    """Require a finite number that `allowed` accepts; `wanted` describes it.

    Raises:
        ConfigTypeError: It is not a number.
        ConfigError: It is not finite, or not allowed.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigTypeError(f"{name} must be a number {wanted}, not {value!r}.")
    if not (is_finite(value) and allowed(value)):
        raise ConfigError(f"{name} must be {wanted}, not {value!r}.")


def between(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> None:
    """Require a number from `low` to `high`, both included; with `whole`, an integer.

    Raises:
        ConfigError: It is another number, or not one.
    """
    if not (is_finite(value) and low <= value <= high and (type(value) is int or not whole)):
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{name} must be {kind} from {low:g} to {high:g}, not {value!r}.")


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
        ResNeXtError: It is smaller, or not such a number; of the type `error`.
    """
    if not (is_finite(value) and value >= low and (type(value) is int or not whole)):
        raise error(f"{name} must be at least {low}, not {value!r}.")


def is_finite(value: Any) -> bool:
    """Whether it is an integer or a float, neither NaN nor infinite; booleans are not."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max
