"""Scripts without `if __name__ == "__main__"`, which new processes would run again."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

from resnext.errors import InputError

STARTING = "RESNEXT_STARTING_WORKERS"
"""Set in the environment while worker processes of ours start."""
UNGUARDED = 78
"""Exit code of such a process that would have run the script again."""
GUARD = 'Put the call under if __name__ == "__main__".'


def refuse_without_script() -> None:
    """Refuse to start processes that could not import the script: it came from standard input.

    Raises:
        InputError: The script is not in a file, and processes are not forked.
    """
    main = sys.modules["__main__"]
    file: str | None = getattr(main, "__file__", None)
    if file is None or getattr(main, "__spec__", None) is not None:
        return
    if multiprocessing.get_start_method() != "fork" and not Path(file).exists():
        raise InputError(
            f"Worker processes import the script that starts them, and {file} is not a file. Put "
            f"the script into a file, or give workers=0."
        )


def refuse_in_new_process(call: str) -> None:
    """Refuse a call by a script that a new process runs only because it imports it.

    Where processes are not forked, each one imports the script it was started from.

    Args:
        call: What the script called.

    Raises:
        InputError: The script calls it without `if __name__ == "__main__"`. In a worker process of
            ours, `data.workers.loaded_batches` raises the error in the main process instead.
    """
    if not getattr(multiprocessing.current_process(), "_inheriting", False):
        return
    if STARTING in os.environ:
        os._exit(UNGUARDED)
    raise InputError(f"{call} was called by a process that only imports this script. {GUARD}")
