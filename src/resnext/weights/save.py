"""`save`: writes our own files, safetensors with config and card in the header."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from resnext.card import Card
from resnext.errors import CheckpointError
from resnext.network import ResNeXt
from resnext.system.atomic import write_atomically
from resnext.weights.header import header
from resnext.weights.resolve import match_network


def save(model: ResNeXt, path: str | Path) -> None:
    """Write a network with its config and card to a file, completely or not at all.

    Args:
        model: The network; its `card` holds labels and preprocessing.
        path: File to write. An existing file is replaced once the new one is complete.

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
    network, problem = match_network(model.config, state)
    if network is None:
        raise CheckpointError(
            f"The network is not what its config says: {problem}. For other classes, use "
            f"model.reset_classifier; a compiled network is saved as it was before compiling."
        )
    try:
        metadata = header(model.config, card)
    except TypeError as error:
        raise CheckpointError(f"The card cannot be written as JSON: {error}.") from error
    write_atomically(path, lambda temporary: save_file(state, temporary, metadata=metadata))
