"""Option types and output files that several commands share. Loaded by `resnext --help`."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, Token

if TYPE_CHECKING:
    from resnext.inference.exported import Exported

Flag = Annotated[bool, Parameter(negative="", show_default=False)]
"""A flag: an option without a value, off by default."""

STANDARD_INPUT = "/dev/stdin"
Several = Parameter(negative="", show_default=False)
"""An option that can be repeated; empty by default."""


def whole(_: type, tokens: Sequence[Token]) -> int:
    """The whole number that an option was given; cyclopts would round 3.5 to 4."""
    text = tokens[0].value
    if not re.fullmatch(r"[+-]?\d+", text):
        raise ValueError(f'"{text}" is not a whole number.')
    return int(text)


def wholes(kind: type, tokens: Sequence[Token]) -> tuple[int, ...]:
    """The whole numbers of an option that can be repeated."""
    return tuple(whole(kind, [token]) for token in tokens)


Whole = Annotated[int, Parameter(converter=whole)]
"""An option that is a whole number."""

OptionalWhole = Annotated[int | None, Parameter(converter=whole)]
"""An option that is a whole number, or is left out."""


def options_of(command: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a function that takes `**options` all options of another command, with their help.

    Args:
        command: The other command. Its help is kept where the function's docstring has none.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        taken = {p.name for p in own}
        shared = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [
            *own,
            *(p for p in shared if p.kind is p.KEYWORD_ONLY and p.name not in taken),
        ]
        text, own_help = _split_docstring(function)
        entries = _split_docstring(command)[1] | own_help
        lines = (entries[p.name] for p in parameters if p.name in entries)
        setattr(function, "__signature__", signature.replace(parameters=parameters))  # noqa: B010
        function.__annotations__ = {p.name: p.annotation for p in parameters}
        function.__doc__ = f"{text}Args:\n" + "\n".join(lines)
        return function

    return decorate


def _split_docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """A docstring's text before "Args:", and the help of each argument by name."""
    text, _, entries = inspect.cleandoc(function.__doc__ or "").partition("Args:\n")
    blocks = re.split(r"\n(?=    \w)", entries)
    return text, {block.partition(":")[0].strip(): block for block in blocks}


def complete_optional(tokens: Sequence[str], name: str) -> tuple[str, ...]:
    """Give an option whose value may be left out an empty value where it has none.

    Args:
        tokens: A command and its arguments.
        name: The option. It has no value at the end, and before another option.
    """
    return tuple(
        f"{name}=" if token == name and (*tokens[i + 1 :], "-")[0].startswith("-") else token
        for i, token in enumerate(tokens)
    )


def with_standard_input(tokens: Sequence[str]) -> tuple[str, ...]:
    """Tokens with a name for each `-` that stands for standard input, since it is not an option."""
    before = ("", *tokens)
    return tuple(
        STANDARD_INPUT if token == "-" and not before[i].startswith("-") else token
        for i, token in enumerate(tokens)
    )


def one_line(message: str) -> str:
    """A message as one line, without control characters."""
    return "".join(c if c.isprintable() else " " for c in " ".join(message.splitlines()))


def check_outputs(*paths: Path | None) -> None:
    """Refuse files that could not be written, before any work is done.

    Raises:
        CheckpointError: A file cannot be written.
    """
    from resnext.system.atomic import check_writable

    for path in paths:
        if path is not None:
            check_writable(path)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write values as JSON, completely or not at all; its folder is created.

    Raises:
        CheckpointError: The file cannot be written.
    """
    from resnext.system.atomic import make_folder, write_bytes_atomically

    make_folder(path)
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes_atomically(path, text.encode("utf-8", "backslashreplace"))  # names of files


def with_given(
    file: str,
    labels: str | None,
    size: int | None,
    mean: str | None,
    std: str | None,
    plan: bool = True,
) -> Exported | str:
    """A file, opened with what was given about it, if anything was.

    Args:
        file: The file.
        labels: A text file with one class name a line, or `imagenet-1k`.
        size: Image size, pixels.
        mean: Numbers, separated by commas.
        std: Numbers, separated by commas.
        plan: Whether to use the plan next to the file.

    Raises:
        InputError: A number is not one, or the file is not one of another runtime.
    """
    if all(value is None for value in (labels, size, mean, std)):
        return file
    from resnext.errors import InputError
    from resnext.inference.exported import is_exported
    from resnext.inference.foreign import Given
    from resnext.inference.opener import open_exported
    from resnext.weights.catalog import read_labels

    if not is_exported(file):
        raise InputError(
            f"{file}: --labels, --size, --mean and --std are for ONNX and OpenVINO files from "
            f"other programs. A model file has its own; resnext convert --labels changes the names."
        )
    numbers: list[tuple[float, ...]] = []
    for name, text in (("--mean", mean), ("--std", std)):
        try:
            numbers.append(tuple(float(x) for x in text.split(",")) if text else ())
        except ValueError:
            raise InputError(f"{name} must be numbers separated by commas, not {text}.") from None
    names = tuple(read_labels(labels)) if labels is not None else ()
    return open_exported(Path(file), Given(names, size, *numbers), plan=plan)
