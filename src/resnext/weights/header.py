"""Config and card as JSON in the safetensors header of a model file.

Reading them needs neither torch nor the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from resnext.card import Card
from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError, ConfigError, MissingFileError

_KEY = "resnext"  # a single key, because safetensors does not order its metadata


def header(config: ResNeXtConfig, card: Card) -> dict[str, str]:
    """The metadata of a model file."""
    content = {"version": 1, "config": config.to_dict(), "card": card.to_dict()}
    return {_KEY: json.dumps(content, sort_keys=True)}


def read_header(path: str | Path) -> tuple[ResNeXtConfig, Card]:
    """Config and card of a model file.

    Raises:
        MissingFileError: The file does not exist.
        CheckpointError: The file was not written by `resnext.save`, or is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"{path} does not exist.")
    if not path.is_file():
        raise CheckpointError(f"{path} is a folder, not a model file.")
    try:
        with safe_open(path, framework="np") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a model file, or is damaged: {error}.") from error
    if not is_own(metadata):
        raise CheckpointError(f"{path} has no config. `resnext convert` writes a file with one.")
    return parse_header(metadata, path)


def is_own(metadata: Mapping[str, Any]) -> bool:
    """Whether a file's metadata were made by `header`."""
    return isinstance(metadata.get(_KEY), str)


def parse_header(metadata: Mapping[str, Any], path: Path) -> tuple[ResNeXtConfig, Card]:
    """Config and card in a file's metadata.

    Raises:
        CheckpointError: The metadata cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads(metadata[_KEY])
        return ResNeXtConfig.from_dict(content["config"]), Card.from_dict(content["card"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error) if isinstance(error, ConfigError) else "Its header cannot be read."
        raise CheckpointError(f"{path}: {reason}") from error
