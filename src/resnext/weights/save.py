"""`save`: writes our own files, safetensors with config and card in the header."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from resnext.card import Card
from resnext.errors import CheckpointError
from resnext.foreign_names import answering_call
from resnext.network import ResNeXt
from resnext.system.atomic import write_atomically
from resnext.weights.header import header
from resnext.weights.in_memory import own_parts, unwrapped
from resnext.weights.match import match_network


@answering_call
def save(model: ResNeXt, path: str | Path) -> None:
    """Write a network with its config and card to a file, completely or not at all.

    DataParallel, DistributedDataParallel and compiled networks are saved without their wrapper. If
    `model.fc` was replaced by a linear layer of another size, its labels and metrics are left out.

    Args:
        model: The network; its `card` holds labels and preprocessing.
        path: File to write. An existing file is replaced once the new one is complete.

    Raises:
        CheckpointError: Labels or weights do not fit the config, weights are sharded over several
            processes, or the file cannot be written.
    """
    path = Path(path)
    inner = unwrapped(model) if isinstance(model, nn.Module) else model
    if not isinstance(inner, ResNeXt):
        raise CheckpointError(f"Only a ResNeXt can be saved, not a {type(inner).__name__}.")
    config, state = own_parts(inner)
    card = inner.card or Card()
    if len(card.labels) == inner.config.num_classes != config.num_classes:
        card = card.without_classes()  # those of the classifier that was replaced
    if card.labels and len(card.labels) != config.num_classes:
        raise CheckpointError(
            f"The card has {len(card.labels)} labels, the network {config.num_classes} "
            f"classes. Give model.card one label for each."
        )
    state = {key: value.cpu().contiguous() for key, value in state.items()}
    network, problem = match_network(config, state)
    if network is None:
        raise CheckpointError(
            f"The network is not what its config says: {problem}. For other classes, use "
            f"model.reset_classifier, or a linear layer as model.fc."
        )
    try:
        metadata = header(config, card)
    except TypeError as error:
        raise CheckpointError(f"The card cannot be written as JSON: {error}.") from error
    write_atomically(path, lambda temporary: save_file(state, temporary, metadata=metadata))
