"""Reads the architecture of a network from a config file or from a dictionary. Loads no torch.

A config file is JSON as `ResNeXtConfig.to_json` writes it, OpenMMLab's `.py` or `.json`, or a model
file of ours, whose weights are not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError, ConfigError, MissingFileError
from resnext.weights.header import read_header


def is_config_file(text: str) -> bool:
    """Whether a text names a config file rather than a variant, a checkpoint or a model file."""
    return "://" not in text and text.lower().endswith((".json", ".py"))


def read_architecture(path: str | Path) -> ResNeXtConfig:
    """The config of the network that a file describes.

    Args:
        path: JSON with the fields of a `ResNeXtConfig`; OpenMMLab's config of a ResNeXt or
            SEResNeXt, `.py` or `.json`, which is not executed; or a model file of ours.

    Raises:
        MissingFileError: The file does not exist.
        CheckpointError: It is a model file that was not written by `resnext.save`.
        ConfigError: It describes no network, or not a valid one.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise MissingFileError(f"{path} does not exist. Give a config file.")
    if not path.is_file():
        raise ConfigError(f"{path} is a folder. Give a config file.")
    if path.suffix.lower() == ".safetensors":
        return read_header(path)[0]
    values = None if path.suffix == ".py" else _json(path)
    if values is None or _is_openmmlab(values):
        from resnext.mmcls.config_file import read_config

        values = read_config(path)
    try:
        return architecture_of(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def architecture_of(values: Any) -> ResNeXtConfig:
    """The config in a dictionary: of our own fields, or as OpenMMLab's config files have it.

    Raises:
        ConfigError: The dictionary does not describe a valid ResNeXt.
    """
    if not _is_openmmlab(values):
        return ResNeXtConfig.from_dict(values)
    from resnext.dialects.openmmlab import head_problem, model_config

    model = values.get("model", values)
    try:
        config = model_config(model) if isinstance(model, Mapping) else None
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    if isinstance(model, Mapping) and (problem := head_problem(model.get("head"))):
        raise ConfigError(f"A classifier needs one linear layer, but {problem}.")
    if config is None:
        raise ConfigError("The backbone is not a ResNeXt or SEResNeXt of OpenMMLab.")
    assert isinstance(model, Mapping)
    return config.replace(drop_path_rate=model["backbone"].get("drop_path_rate", 0.0))


def _is_openmmlab(values: Any) -> bool:
    """Whether a dictionary is one of OpenMMLab's: a file with bases, a model, or one part of it."""
    return isinstance(values, Mapping) and not {"model", "backbone", "_base_"}.isdisjoint(values)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}.") from error
