"""What a model file says about itself: config and card, as JSON in its safetensors header.

Reading it needs no torch and no weights.
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
    about = {"version": 1, "config": config.to_dict(), "card": card.to_dict()}
    return {_KEY: json.dumps(about, sort_keys=True)}


def read_header(path: str | Path) -> tuple[ResNeXtConfig, Card]:
    """Config and card of a model file.

    Raises:
        MissingFileError: There is no such file.
        CheckpointError: It is no model that `resnext.save` wrote.
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
        raise CheckpointError(f"{path} is no model file, or damaged: {error}.") from error
    if not is_own(metadata):
        raise CheckpointError(
            f"{path} carries no config. `resnext convert` makes it a file that does."
        )
    return parse_header(metadata, path)


def is_own(metadata: Mapping[str, Any]) -> bool:
    """Whether a file's metadata are those that `header` makes."""
    return isinstance(metadata.get(_KEY), str)


def parse_header(metadata: Mapping[str, Any], path: Path) -> tuple[ResNeXtConfig, Card]:
    """Config and card in a file's metadata.

    Raises:
        CheckpointError: They cannot be read.
    """
    try:
        about: dict[str, Any] = json.loads(metadata[_KEY])
        return ResNeXtConfig.from_dict(about["config"]), Card.from_dict(about["card"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error) if isinstance(error, ConfigError) else "Its header cannot be read."
        raise CheckpointError(f"{path}: {reason}") from error
