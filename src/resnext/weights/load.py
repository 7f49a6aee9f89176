"""`load`: a network from a name, an address or a file of any library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from resnext.backbone import Backbone
from resnext.checks import is_zero
from resnext.config import ResNeXtConfig
from resnext.dilation import USUAL_DILATION, DilationConvention
from resnext.errors import CheckpointError
from resnext.foreign_names import answering_call
from resnext.network import ResNeXt
from resnext.system.device import pick_device
from resnext.weights.adapt import fit_classifier, fit_input
from resnext.weights.match import SkipInit, match_network
from resnext.weights.resolve import ResolvedCheckpoint, Source, resolve, with_notes


@answering_call
def load(
    source: Source,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    config: ResNeXtConfig | None = None,
    output_stride: int | None = None,
    dilation_convention: DilationConvention = USUAL_DILATION,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> ResNeXt | Backbone:
    """A network from a checkpoint of any library, with its labels and preprocessing.

    Args:
        source: A catalog name, `open-mmlab://…`, `hf://owner/repo[/file]`, a URL, a file
            (safetensors; `.pth` of torchvision, timm, mmcls, mmdet or Detectron2; Lucid's `.lcd`;
            `.npz`), or a folder with `config.json` and `model.safetensors`; or a state dict, or a
            network of any library, which must compute what the loaded one computes. The weights
            are copied.
        num_classes: Replaces the classifier with an untrained one, unless it already has this
            many classes; 0 removes it, so that the network returns embeddings.
        in_channels: Adapts the first convolution by repeating or summing its filters, so that
            activations keep their scale.
        config: The architecture, if the file does not state it; checked against the file.
        output_stride: 8, 16 or 32: later strides become dilation; None changes nothing.
        dilation_convention: Whose dilation: "timm", "torchvision", "mmseg" or "smp"; see
            `resnext.dilation.with_output_stride`.
        device: Where to put the weights.
        progress: Whether to show downloads on standard error.

    Returns:
        The network in evaluation mode, with its card; `card.provenance["notes"]` lists what was
        assumed or adapted. For a checkpoint without a classifier, such as a detector's, a
        `Backbone` that returns all feature maps.

    Raises:
        MissingFileError: The file does not exist.
        UnknownNameError: No checkpoint has that name.
        CheckpointError: The checkpoint is not a ResNeXt, is damaged, may hold code, or
            contradicts itself.
        ConfigError: The network cannot have this output stride.
        InputError: The device is not available.
    """
    device = pick_device(str(device))
    checkpoint = resolve(
        source,
        config=config,
        output_stride=output_stride,
        dilation_convention=dilation_convention,
        progress=progress,
    )
    if embeds := is_zero(num_classes):
        num_classes = None if checkpoint.classifier else 1
    network = network_of(adapted(checkpoint, num_classes, in_channels))
    if embeds and isinstance(network, ResNeXt):
        network.reset_classifier(0)
    return network.to(device).eval()


def load_classifier(
    source: str | Path, *, device: str | torch.device = "cpu", progress: bool = False
) -> ResNeXt:
    """Load a network that must have a classifier.

    Args:
        source: A name, an address, a file or a folder, as for `load`.
        device: Where to put the weights.
        progress: Whether to show downloads on standard error.

    Raises:
        CheckpointError: The checkpoint cannot be loaded, or has no classifier.
    """
    model = load(source, device=device, progress=progress)
    if not isinstance(model, ResNeXt):
        notes = model.card.provenance.get("notes", []) if model.card else []
        why = next((f" ({note})" for note in notes if note.startswith("its last layer")), "")
        raise CheckpointError(
            f"{source} has no classifier, only a backbone{why}. Train a classifier on it."
        )
    return model


def network_of(checkpoint: ResolvedCheckpoint) -> ResNeXt | Backbone:
    """The network of a resolved checkpoint, filled with its weights and card."""
    checkpoint.network.load_state_dict(checkpoint.state, assign=True)
    checkpoint.network.card = checkpoint.card
    return checkpoint.network


@answering_call
def load_backbone(
    source: Source,
    *,
    out_indices: Sequence[int] | None = None,
    frozen_stages: int = -1,
    norm_eval: bool = False,
    checkpointing: bool = False,
    with_stem: bool = False,
    in_channels: int | None = None,
    config: ResNeXtConfig | None = None,
    output_stride: int | None = None,
    dilation_convention: DilationConvention = USUAL_DILATION,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Backbone:
    """The backbone from a checkpoint of a classifier, a detector or a segmentor.

    Args:
        source: A name, an address, a file or a folder, as for `load`.
        out_indices: Stages to return, counted from 0; None for all.
        frozen_stages: -1 for none, 0 for the stem, i for the stem and the first i stages. Frozen
            stages get no gradients and stay in evaluation mode, also after `train()`.
        norm_eval: Whether batch norms stay in evaluation mode during training.
        checkpointing: Whether to recompute the activations inside blocks in the backward pass,
            which saves memory.
        with_stem: Whether the stem's map, at half the size of the images, comes first.
        in_channels: Adapts the first convolution to another number of channels.
        config: The architecture, if the file does not state it; checked against the file.
        output_stride: 8, 16 or 32: later strides become dilation; None changes nothing.
        dilation_convention: Whose dilation: "timm", "torchvision", "mmseg" or "smp"; see
            `resnext.dilation.with_output_stride`.
        device: Where to put the weights.
        progress: Whether to show downloads on standard error.

    Returns:
        The backbone in evaluation mode, with the checkpoint's card.

    Raises:
        MissingFileError: The file does not exist.
        UnknownNameError: No checkpoint has that name.
        CheckpointError: The checkpoint is not a ResNeXt, is damaged, may hold code, or
            contradicts itself.
        ConfigError: An option is out of range.
        InputError: The device is not available.
    """
    device = pick_device(str(device))
    checkpoint = resolve(
        source,
        config=config,
        output_stride=output_stride,
        dilation_convention=dilation_convention,
        progress=progress,
    )
    checkpoint = adapted(checkpoint, None, in_channels)
    with torch.device("meta"), SkipInit():
        backbone = Backbone(
            checkpoint.config,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            checkpointing=checkpointing,
            with_stem=with_stem,
        )
    wanted = backbone.state_dict()
    backbone.load_state_dict({name: checkpoint.state[name] for name in wanted}, assign=True)
    backbone.card = checkpoint.card
    return backbone.to(device).eval()


def adapted(
    checkpoint: ResolvedCheckpoint, num_classes: int | None, in_channels: int | None
) -> ResolvedCheckpoint:
    """The checkpoint for another number of classes or channels; its card notes the changes."""
    config, state, card, notes = checkpoint.config, checkpoint.state, checkpoint.card, list[str]()
    if in_channels is not None and config.replace(in_channels=in_channels) != config:
        config, state, card = fit_input(config, state, card, in_channels, notes)
    if num_classes is not None:
        if checkpoint.classifier and config.replace(num_classes=num_classes) == config:
            notes.append(f"classifier kept, trained: it has {num_classes} classes")
        else:
            config, state, card = fit_classifier(config, state, card, num_classes, notes)
    if not notes:
        return checkpoint
    network, problem = match_network(config, state, classifier="fc.weight" in state)
    assert network is not None, problem
    card = with_notes(card, notes=notes)
    return checkpoint._replace(state=state, card=card, network=network)
