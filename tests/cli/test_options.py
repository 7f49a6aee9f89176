"""Options that commands share."""

from __future__ import annotations

import inspect
import typing
from typing import Any

from cyclopts import App

from resnext.cli.app import app
from resnext.cli.options import complete_optional, options_of, whole, wholes


def first(data: str, /, *, size: int = 8, out: str = "x", seed: int = 0) -> None:
    """One command.

    Args:
        data: Not shared.
        size: Pixels
            of an image.
        out: A file.
        seed: A number.
    """


def test_options_come_with_their_types_and_help() -> None:
    """A command without the options that were added to the other one later is half a command."""
    got: dict[str, Any] = {}

    @options_of(first)
    def second(model: str, /, *, out: str = "y", **options: Any) -> None:
        """Another command.

        Args:
            model: Its own.
            out: Where to.
            size: Another help.
            options: Those of the first.
        """
        got.update(options, model=model, out=out)

    app = App()
    app.command(second)
    app(["second", "m", "--size", "9"], result_action="return_value")
    assert got == {"model": "m", "out": "y", "size": 9}
    assert list(inspect.signature(second).parameters) == ["model", "out", "size", "seed"]
    _, _, entries = (inspect.getdoc(second) or "").partition("Args:\n")
    assert entries.splitlines() == [
        "    model: Its own.",
        "    out: Where to.",
        "    size: Another help.",
        "    seed: A number.",
    ]


def test_an_option_whose_value_may_be_left_out() -> None:
    """At the end and before another option it has none; a class after it is its value."""
    for given, wanted in (
        ("explain f a --against", "explain f a --against="),
        ("explain f --against --fine a", "explain f --against= --fine a"),
        ("explain f --against dog a", "explain f --against dog a"),
        ("explain f --against=dog", "explain f --against=dog"),
        ("explain", "explain"),
    ):
        assert complete_optional(given.split(), "--against") == tuple(wanted.split())
    assert complete_optional([], "--against") == ()


def test_no_command_rounds_whole_numbers() -> None:
    """cyclopts makes 4 of 3.5; an option of `export`, of `optimize` and of `bench` did so."""
    found = 0
    for name in (name for name in app if not name.startswith("-")):
        for option in app[name].assemble_argument_collection():
            if int in {option.hint, *typing.get_args(option.hint)}:
                found += 1
                assert option.parameter.converter in (whole, wholes), f"{name} {option.name}"
    assert found > 30
