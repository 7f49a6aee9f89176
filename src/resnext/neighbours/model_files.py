"""What an index belongs to: config, preprocessing and weights of a model file. Loads no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from resnext.errors import CheckpointError
from resnext.inference.exported import is_exported
from resnext.system.digest import file_sha256
from resnext.weights.header import read_header


def model_digest(file: Path) -> str:
    """SHA-256 of everything that embeddings depend on.

    Labels, metrics and the rest of the card may change. Of files of other libraries, it is that of
    the whole file.

    Args:
        file: The model file.

    Raises:
        MissingFileError: The file does not exist.
    """
    try:
        config, card = read_header(file)
    except CheckpointError:
        if not file.is_file():
            raise
        return file_sha256(file)
    digest = hashlib.sha256(repr((config, card.preprocessing)).encode())
    with file.open("rb") as weights:
        weights.seek(8 + int.from_bytes(weights.read(8), "little"))
        while block := weights.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def index_path(file: Path) -> Path:
    """The index of a model file, next to it; an exported file does not share that of the model."""
    return file.with_name(f"{file.name}.index") if is_exported(file) else file.with_suffix(".index")
