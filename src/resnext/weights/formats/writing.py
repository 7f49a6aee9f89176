"""Writes files for other libraries."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from resnext.card import Card
from resnext.config import ResNeXtConfig
from resnext.dialects.dialect import Dialect
from resnext.errors import CheckpointError
from resnext.system.atomic import write_atomically


def write(
    path: Path, dialect: Dialect, state: Mapping[str, Tensor], config: ResNeXtConfig, card: Card
) -> None:
    """Write a checkpoint for another library, completely or not at all.

    Args:
        path: File to write; its suffix chooses the format.
        dialect: The library.
        state: The weights, under our names.
        config: The architecture.
        card: Labels and preprocessing, for libraries that keep them in the file.

    Raises:
        CheckpointError: The library cannot express the network or lacks the format, or the file
            cannot be written.
    """
    if path.suffix not in dialect.suffixes:
        raise CheckpointError(
            f"{path.name} must end in {' or '.join(dialect.suffixes)} for {dialect.title}."
        )
    theirs = {
        name: x.detach().cpu().contiguous() for name, x in dialect.write(state, config).items()
    }
    if path.suffix in (".npz", ".lcd"):  # NumPy has no bfloat16
        theirs = {n: x.float() if x.dtype == torch.bfloat16 else x for n, x in theirs.items()}

    def save(temporary: str) -> None:
        if path.suffix == ".safetensors":
            save_file(theirs, temporary, metadata={"format": "pt"})
        elif path.suffix == ".npz":
            with Path(temporary).open("wb") as file:
                np.savez(file, **{name: x.numpy() for name, x in theirs.items()})  # pyright: ignore
        elif path.suffix == ".lcd":
            arrays = OrderedDict((name, x.numpy()) for name, x in theirs.items())
            file = {"type": "OrderedDict", "format_version": 1.1, "content": arrays}
            Path(temporary).write_bytes(pickle.dumps(file))
        else:
            torch.save(dialect.content(theirs, config, card), temporary)

    write_atomically(path, save)
