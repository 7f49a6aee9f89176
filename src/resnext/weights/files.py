"""Our own file: safetensors, with config and card in its header."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from resnext.card import Card
from resnext.errors import CheckpointError
from resnext.header import header, read_header
from resnext.network import ResNeXt


def save(model: ResNeXt, path: str | Path) -> None:
    """Write a model with its config and card, completely or not at all.

    Args:
        model: The network; `model.card` says how to use it.
        path: File to write. A file that exists is replaced at the very end.

    Raises:
        CheckpointError: The labels do not fit, or the file cannot be written.
    """
    path = Path(path)
    card = model.card or Card()
    if card.labels and len(card.labels) != model.config.num_classes:
        raise CheckpointError(
            f"The card has {len(card.labels)} labels, the network {model.config.num_classes} "
            f"classes. Give model.card one label for each."
        )
    state = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            save_file(state, temporary, metadata=header(model.config, card))
            Path(temporary).chmod(0o666 & ~_umask())
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}.") from error


def load(path: str | Path, *, device: str | torch.device = "cpu") -> ResNeXt:
    """Read a model that `save` or training wrote.

    Args:
        path: The file.
        device: Where to put the weights.

    Returns:
        The network in evaluation mode, with its card.

    Raises:
        MissingFileError: There is no such file.
        CheckpointError: It is no such model, or damaged.
    """
    config, card = read_header(path)
    with torch.device("meta"):
        model = ResNeXt(config)
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            # Cloned, because the file's tensors are unaligned, which changes last bits.
            state = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        wanted = {key: value.shape for key, value in model.state_dict().items()}
        got = {key: value.shape for key, value in state.items()}
        for key in wanted | got:
            if wanted.get(key) != got.get(key):
                raise CheckpointError(
                    f"{path}: {key} should be {_shape(wanted.get(key))} and is "
                    f"{_shape(got.get(key))}. The file does not belong to its own config."
                )
        model.load_state_dict(state, assign=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error
    model.card = card
    return model.to(device).eval()


def _shape(shape: torch.Size | None) -> str:
    return "absent" if shape is None else str(tuple(shape))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
