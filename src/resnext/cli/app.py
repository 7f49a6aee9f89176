"""The `resnext` command: all commands, error messages and exit codes.

Commands import what they need when they run, so that `resnext --help` loads no torch.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter

from resnext.cli.checkpoints import catalog, convert, doctor, push
from resnext.cli.classify import evaluate, predict
from resnext.cli.compare import compare
from resnext.cli.drift import drift
from resnext.cli.explain import explain
from resnext.cli.export import export
from resnext.cli.index import index
from resnext.cli.info import info
from resnext.cli.options import Flag, complete_optional, one_line, with_standard_input
from resnext.cli.review import review
from resnext.cli.serve import serve
from resnext.cli.speed import bench, optimize
from resnext.cli.train import distill, train
from resnext.errors import ResNeXtError, ResNeXtWarning, Terminated
from resnext.system.signals import ENDING

_CLOSED_PIPE = 141  # as a shell reports SIGPIPE
_OUT_OF_MEMORY = "Out of memory. Lower --batch-size or --size."

app = App(
    name="resnext",
    help="Train, evaluate, run and inspect ResNeXt networks.",
    version=version("resnext"),
    version_flags=["--version"],
    help_format="rich",  # the start page has no Markdown, whose parser takes a fifth of its time
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # Ctrl-C and SIGTERM have their own exit codes
)
app.meta.group_parameters = Group("All commands", sort_key=9)
app.meta.suppress_keyboard_interrupt = False
for _command in (
    info,
    train,
    distill,
    evaluate,
    compare,
    predict,
    drift,
    explain,
    index,
    review,
    serve,
    export,
    optimize,
    bench,
    catalog,
    convert,
    doctor,
    push,
):
    app.command(_command, help_format="markdown")


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Flag = False,
) -> None:
    """Run a command.

    Args:
        tokens: The command and its arguments.
        debug: Show the full traceback of an error.
    """
    del debug  # `main` looks for it, because help and version never come here
    if tokens[:1] == ("explain",):
        tokens = complete_optional(tokens, "--against")
    if tokens[:1] == ("predict",):
        tokens = with_standard_input(tokens)
    app(tokens, exit_on_error=False, print_error=False)


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn errors, also those of a full disk behind the output, into one line and an exit code."""
    try:
        try:
            yield
        except SystemExit:  # of `compare` and `drift`, after their tables
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except (ResNeXtError, OSError) as error:
        if isinstance(error, OSError) and _reader_left():
            sys.exit(_CLOSED_PIPE)
        _fail(str(error))
    except MemoryError:
        _fail(_OUT_OF_MEMORY)
    except RuntimeError as error:
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        _fail(_OUT_OF_MEMORY)
    except KeyboardInterrupt as error:
        sys.exit(exit_code(error))


def main() -> None:
    """Entry point of the `resnext` command."""
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names are no ASCII, or bytes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", ResNeXtWarning)
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            with nullcontext() if "--debug" in sys.argv else _one_line():
                app.meta(sys.argv[1:], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(f"{error} See resnext --help.")
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # Rich ends with 1, as `compare` does
            sys.exit(_CLOSED_PIPE)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_warning(
    show: Callable[..., None], message: Warning | str, kind: type[Warning], *where: Any, **more: Any
) -> None:
    """Print our own warnings as one line, without the place in the code."""
    if issubclass(kind, ResNeXtWarning):
        print(f"resnext: {message}", file=sys.stderr)
    else:
        show(message, kind, *where, **more)


def _terminate(number: int, _: object) -> NoReturn:
    """Unwind as Ctrl-C does, so that temporary files and worker processes go; only once."""
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    raise Terminated(number)


def _reader_left() -> bool:
    """Whether who read the output has enough, as `head` has. Output that cannot be written goes."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return isinstance(error, BrokenPipeError)
    return False


def exit_code(error: KeyboardInterrupt) -> int:
    """128 plus the signal, as a shell reports it: 143 for SIGTERM, 130 for Ctrl-C (SIGINT)."""
    return 128 + (error.number if isinstance(error, Terminated) else signal.SIGINT)


def _fail(message: str) -> NoReturn:
    """Print one line on standard error and exit with code 2."""
    with suppress(OSError):  # the disk behind it may be full, too
        print(f"resnext: {one_line(message)}", file=sys.stderr)
    sys.exit(2)
