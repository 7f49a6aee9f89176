"""Our own file: safetensors, with config and card in its header."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from resnext.card import Card
from resnext.config import ResNeXtConfig
from resnext.device import pick_device
from resnext.errors import CheckpointError
from resnext.header import header, read_header
from resnext.network import ResNeXt


def save(model: ResNeXt, path: str | Path) -> None:
    """Write a model with its config and card, completely or not at all.

    Args:
        model: The network; `model.card` says how to use it.
        path: File to write. A file that exists is replaced at the very end.

    Raises:
        CheckpointError: Labels or weights do not fit the config, or the file cannot be written.
    """
    path = Path(path)
    if not isinstance(model, ResNeXt):
        raise CheckpointError(f"Only a ResNeXt can be saved, not a {type(model).__name__}.")
    card = model.card or Card()
    if card.labels and len(card.labels) != model.config.num_classes:
        raise CheckpointError(
            f"The card has {len(card.labels)} labels, the network {model.config.num_classes} "
            f"classes. Give model.card one label for each."
        )
    state = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    if problem := _misfit(model.config, state):
        raise CheckpointError(
            f"The network is not what its config says: {problem}. For other classes, use "
            f"model.reset_classifier; a compiled network is saved as it was before compiling."
        )
    try:
        metadata = header(model.config, card)
    except TypeError as error:
        raise CheckpointError(f"The card cannot be written as JSON: {error}.") from error
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            save_file(state, temporary, metadata=metadata)
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
        InputError: There is no such device here.
    """
    config, card = read_header(path)
    if card.labels and len(card.labels) != config.num_classes:
        raise CheckpointError(
            f"{path}: the card has {len(card.labels)} labels, the network {config.num_classes} "
            f"classes. The file was not written by resnext.save."
        )
    place = pick_device(str(device))
    try:
        with safe_open(path, framework="pt") as file:
            # Cloned, because the file's tensors are unaligned, which changes last bits.
            state = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error
    if problem := _misfit(config, state):
        raise CheckpointError(f"{path}: {problem}. The file does not belong to its own config.")
    with torch.device("meta"):
        model = ResNeXt(config)
    model.load_state_dict(state, assign=True)
    model.card = card
    return model.to(place).eval()


def _misfit(config: ResNeXtConfig, state: dict[str, Tensor]) -> str:
    """The first tensor that a network of `config` does not have like this; empty if none."""
    try:
        with torch.device("meta"):
            wanted = ResNeXt(config).state_dict()
    except (RuntimeError, TypeError) as error:
        return f"no network has such sizes ({str(error).partition(chr(10))[0]})"
    for key in wanted | state:
        a, b = _about(wanted.get(key)), _about(state.get(key))
        if a != b:
            return f"{key} should be {a} and is {b}"
    return ""


def _about(tensor: Tensor | None) -> str:
    if tensor is None:
        return "absent"
    kind = "" if tensor.is_floating_point() else " of integers"
    return f"{tuple(tensor.shape)}{kind}"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
