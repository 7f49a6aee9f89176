"""Option types, and writing JSON, shared by several commands. Loaded by `resnext --help`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from resnext.errors import ResNeXtError

Flag = Annotated[bool, Parameter(negative="", show_default=False)]
"""A flag: an option without a value, off by default."""

Several = Parameter(negative="", show_default=False)
"""An option that can be repeated; empty by default."""


def check_json_path(path: Path | None) -> None:
    """Refuse a file that could not be written, before any work is done.

    Raises:
        ResNeXtError: The path is a folder, or its folder does not exist.
    """
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise ResNeXtError(f"{path} cannot be written: give a file in a folder that exists.")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write values as JSON, completely or not at all.

    Raises:
        CheckpointError: The file cannot be written.
    """
    from resnext.system.atomic import write_bytes_atomically

    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes_atomically(path, text.encode())
