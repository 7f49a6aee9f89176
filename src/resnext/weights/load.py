"""`load`: from a name, an address or a file of any library to a network that can be used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from resnext.backbone import Backbone
from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError
from resnext.network import ResNeXt
from resnext.system.device import pick_device
from resnext.weights.adapt import fit_classifier, fit_input
from resnext.weights.resolve import ResolvedCheckpoint, SkipInit, match_network, resolve, with_notes


def load(
    source: str | Path,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    config: ResNeXtConfig | None = None,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> ResNeXt | Backbone:
    """A network from a checkpoint of any library, with its labels and preprocessing.

    Args:
        source: A name of the catalog, `open-mmlab://…`, `hf://owner/repo[/file]`, a URL, a file
            (safetensors; `.pth` of torchvision, timm, mmcls, mmdet or Detectron2; Lucid's `.lcd`;
            `.npz`), or a folder with `config.json` and `model.safetensors`.
        num_classes: Replaces the classifier by an untrained one, unless the checkpoint's has so
            many classes already.
        in_channels: Adapts the first convolution by repeating or summing its filters, so that
            activations keep their scale.
        config: The architecture, where the file does not tell it; checked against the file.
        device: Where to put the weights.
        progress: Whether to show downloads on standard error.

    Returns:
        The network in evaluation mode, with its card; what had to be assumed or was adapted is in
        `card.provenance["notes"]`. A checkpoint without a classifier, such as a detector's, gives
        a `Backbone` that returns all maps.

    Raises:
        MissingFileError: There is no such file.
        UnknownNameError: No checkpoint has that name.
        CheckpointError: It is no ResNeXt, is damaged, may hold code, or contradicts itself.
        InputError: There is no such device here.
    """
    place = pick_device(str(device))
    found = resolve(source, config=config, progress=progress)
    return network_of(adapted(found, num_classes, in_channels)).to(place).eval()


def load_classifier(
    source: str | Path, *, device: str | torch.device = "cpu", progress: bool = False
) -> ResNeXt:
    """`load` for what can only work with a classifier.

    Raises:
        CheckpointError: As for `load`; or there is no classifier.
    """
    model = load(source, device=device, progress=progress)
    if not isinstance(model, ResNeXt):
        raise CheckpointError(f"{source} has no classifier, only a backbone. Train one on it.")
    return model


def network_of(found: ResolvedCheckpoint) -> ResNeXt | Backbone:
    """The network of a checkpoint that was understood, filled with its weights."""
    found.network.load_state_dict(found.state, assign=True)
    found.network.card = found.card
    return found.network


def load_backbone(
    source: str | Path,
    *,
    out_indices: Sequence[int] | None = None,
    frozen_stages: int = -1,
    norm_eval: bool = False,
    checkpointing: bool = False,
    in_channels: int | None = None,
    config: ResNeXtConfig | None = None,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Backbone:
    """The backbone of a checkpoint: of a classifier, a detector or a segmentor.

    Args:
        source: As for `load`.
        out_indices: As for `Backbone`.
        frozen_stages: As for `Backbone`.
        norm_eval: As for `Backbone`.
        checkpointing: As for `Backbone`.
        in_channels: As for `load`.
        config: As for `load`.
        device: Where to put the weights.
        progress: Whether to show downloads on standard error.

    Returns:
        The backbone in evaluation mode, with the checkpoint's card.

    Raises:
        CheckpointError: As for `load`; a classifier is not needed.
        ConfigError: An option does not fit.
    """
    place = pick_device(str(device))
    found = adapted(resolve(source, config=config, progress=progress), None, in_channels)
    with torch.device("meta"), SkipInit():
        backbone = Backbone(
            found.config,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            checkpointing=checkpointing,
        )
    wanted = backbone.state_dict()
    backbone.load_state_dict({name: found.state[name] for name in wanted}, assign=True)
    backbone.card = found.card
    return backbone.to(place).eval()


def adapted(
    found: ResolvedCheckpoint, num_classes: int | None, in_channels: int | None
) -> ResolvedCheckpoint:
    """The checkpoint with another classifier and for other images; its card tells the changes."""
    config, state, card, notes = found.config, found.state, found.card, list[str]()
    if in_channels is not None and config.replace(in_channels=in_channels) != config:
        config, state, card = fit_input(config, state, card, in_channels, notes)
    if num_classes is not None:
        if found.classifier and config.replace(num_classes=num_classes) == config:
            notes.append(f"classifier kept, trained: it has {num_classes} classes")
        else:
            config, state, card = fit_classifier(config, state, card, num_classes, notes)
    if not notes:
        return found
    network, problem = match_network(config, state, classifier="fc.weight" in state)
    assert network is not None, problem
    card = with_notes(card, notes=notes)
    return found._replace(state=state, card=card, network=network)
