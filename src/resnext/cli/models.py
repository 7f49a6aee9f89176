"""From a name or a file to the config and card of a model, without building it if possible."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from resnext.card import Card
from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError


class Description(NamedTuple):
    """What a name or a file stands for."""

    title: str
    config: ResNeXtConfig
    card: Card | None
    """None for a variant, which has no weights."""
    classifier: bool = True
    """Whether the checkpoint has a classifier; a detector's has only the backbone."""


def describe(source: str) -> Description:
    """The config and card behind a variant's name, a catalog name or a model file.

    Raises:
        CheckpointError: The file does not exist, or holds no usable model.
        UnknownNameError: No variant or checkpoint has that name.
    """
    from resnext.architectures import variant
    from resnext.weights.catalog import exact, is_path
    from resnext.weights.header import read_header

    if checkpoint := exact(source):
        return Description(checkpoint.name, checkpoint.config, checkpoint.card)
    if not is_path(source) and not Path(source).exists():
        return Description(source, variant(source), None)
    try:
        return Description(source, *read_header(source))  # our own files need no torch
    except CheckpointError:
        from resnext.weights.resolve import resolve

        resolved = resolve(source, progress=True)
        return Description(source, resolved.config, resolved.card, resolved.classifier)
