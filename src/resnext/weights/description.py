"""Config and card of a model; for names and our own files, without weights and torch."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from resnext.architectures import variant
from resnext.card import Card
from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError, MissingFileError
from resnext.summary import default_size
from resnext.weights.catalog import exact, is_address, is_path
from resnext.weights.config_source import is_config_file, read_architecture
from resnext.weights.header import read_header


class Description(NamedTuple):
    """A model's config and card."""

    title: str
    """The source as it was given."""
    config: ResNeXtConfig
    card: Card | None
    """None for a variant or a config file, which have no weights to load."""
    classifier: bool = True
    """Whether there is a last layer; without one, `config.num_classes` is meaningless."""

    @property
    def size(self) -> int:
        """Image size that the model expects, pixels."""
        return self.card.preprocessing.size if self.card else default_size(self.config)


def describe(source: str | Path, *, progress: bool = False) -> Description:
    """Config and card of a variant, config file, catalog name, address, file or folder.

    Our own files and names are described without reading weights; other files are read.

    Args:
        source: A variant, a config file, or a name, address, file or folder as for `load`.
        progress: Whether to show downloads on standard error.

    Raises:
        ConfigError: The config file does not describe a network.
        MissingFileError: The file does not exist.
        UnknownNameError: Neither a variant nor a checkpoint has that name.
        CheckpointError: The checkpoint is not a ResNeXt, is damaged, may hold code, or
            contradicts itself.
    """
    text = str(source)
    if is_config_file(text):
        return Description(text, read_architecture(text), None)
    if isinstance(source, Path) or _exists(text):
        return _of_file(source, progress)
    if is_address(text):
        return _resolved(source, progress)
    if is_path(text):
        raise MissingFileError(f"{text} does not exist.")
    if row := exact(text):
        return Description(text, row.config, row.card)
    return Description(text, variant(text), None)


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except OSError:  # a name that is too long for one
        return False


def _of_file(source: str | Path, progress: bool) -> Description:
    try:
        return Description(str(source), *read_header(Path(source).expanduser()))
    except MissingFileError:
        raise
    except CheckpointError:  # not one of ours
        return _resolved(source, progress)


def _resolved(source: str | Path, progress: bool) -> Description:
    from resnext.weights.resolve import resolve

    checkpoint = resolve(source, progress=progress)
    return Description(str(source), checkpoint.config, checkpoint.card, checkpoint.classifier)
