"""Finds a checkpoint, reads it, recognises its dialect and rebuilds its config."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from resnext.backbone import Backbone
from resnext.card import Card
from resnext.checks import brief
from resnext.config import ResNeXtConfig
from resnext.dialects.dialect import CheckpointMetadata, Dialect, Documents
from resnext.dialects.table import DIALECTS
from resnext.dilation import USUAL_DILATION, DilationConvention, with_output_stride
from resnext.errors import AmbiguityWarning, CheckpointError, MissingFileError
from resnext.layers import check_config
from resnext.network import ResNeXt
from resnext.system.digest import file_sha256
from resnext.system.download import fetch, hub
from resnext.weights import in_memory
from resnext.weights.catalog import (
    CatalogEntry,
    find,
    from_file_name,
    from_repository,
    is_address,
    is_path,
)
from resnext.weights.formats.reading import Contents, contents_of, read
from resnext.weights.header import is_own, parse_header
from resnext.weights.lookalikes import is_about_dilation
from resnext.weights.match import detect_network, match_network
from resnext.weights.normalizer import with_normalizer
from resnext.weights.recognise import ChosenWeights, DetectedNetwork, choose_weights
from resnext.weights.structure import AFFINE_EPS

_PART = re.compile(r"-\d+-of-\d+\.")

Source = str | Path | Mapping[str, Any] | nn.Module | Enum


class ResolvedCheckpoint(NamedTuple):
    """A checkpoint that can be loaded."""

    path: Path
    dialect: Dialect | None
    """None for our own files."""
    state: dict[str, Tensor]
    card: Card
    """Its provenance lists what was left out, chosen or assumed."""
    network: ResNeXt | Backbone
    """On the meta device; a `Backbone` if the checkpoint has no classifier."""
    ambiguity: str = ""
    """Another network that the tensors fit as well, and what decides; empty if there is none."""

    @property
    def config(self) -> ResNeXtConfig:
        """The architecture."""
        return self.network.config

    @property
    def classifier(self) -> bool:
        """Whether there is a last layer."""
        return isinstance(self.network, ResNeXt)


def resolve(
    source: Source,
    *,
    config: ResNeXtConfig | None = None,
    output_stride: int | None = None,
    dilation_convention: DilationConvention = USUAL_DILATION,
    progress: bool = False,
) -> ResolvedCheckpoint:
    """Find a checkpoint, read it, recognise it and rebuild its config.

    Args:
        source: A catalog name, an address, a file or a folder; or a state dict or a network.
        config: The architecture it must have; by default the checkpoint decides.
        output_stride: 8, 16 or 32: later strides become dilation; None changes nothing.
        dilation_convention: Whose dilation: "timm", "torchvision", "mmseg" or "smp"; see
            `resnext.dilation.with_output_stride`.
        progress: Whether to show downloads on standard error.

    Raises:
        MissingFileError: The file does not exist.
        UnknownNameError: No checkpoint has that name.
        CheckpointError: The checkpoint is not a ResNeXt, is damaged, may hold code, or
            contradicts itself.
        ConfigError: The network cannot have this output stride.

    Warns:
        AmbiguityWarning: Another known network fits the tensors as well, and nothing decides.
    """
    checkpoint = _resolve(source, config, progress)
    if output_stride is not None:
        checkpoint = _dilated(checkpoint, output_stride, dilation_convention)
    if checkpoint.ambiguity:
        warnings.warn(checkpoint.ambiguity, AmbiguityWarning, stacklevel=1)  # once for a text
    return checkpoint


def _dilated(
    checkpoint: ResolvedCheckpoint, output_stride: int, convention: DilationConvention
) -> ResolvedCheckpoint:
    """The same weights in a network of another output stride."""
    config = with_output_stride(checkpoint.config, output_stride, convention)
    network, problem = match_network(config, checkpoint.state, classifier=checkpoint.classifier)
    assert network is not None, problem
    note = f"output stride {output_stride}, dilated as by {convention}"
    card = with_notes(checkpoint.card, notes=[note])
    ambiguity = "" if is_about_dilation(checkpoint.ambiguity) else checkpoint.ambiguity
    return checkpoint._replace(network=network, card=card, ambiguity=ambiguity)


def _resolve(source: Source, config: ResNeXtConfig | None, progress: bool) -> ResolvedCheckpoint:
    if config is not None:
        check_config(config)
    if isinstance(source, Mapping | nn.Module):
        return _resolve_in_memory(source, config)
    if isinstance(source, Enum):  # a member of torchvision's ResNeXt50_32X4D_Weights
        source = f"{type(source).__name__}.{source.name}"
    if not isinstance(source, str | Path) or not str(source).strip():
        raise CheckpointError(
            f"A checkpoint is a name, an address, a file, a state dict or a network, not "
            f"{brief(source)}."
        )
    text = str(source)
    path = Path(source).expanduser()
    if isinstance(source, Path) or _exists(path):
        file, documents = in_folder(path) if path.is_dir() else (path, Documents())
        return resolve_contents(read(file), config, documents=documents)
    if text.startswith("hf://"):
        return _resolve_hub(text, config, None, progress)
    if is_address(text):
        return resolve_contents(read(fetch(text, check=read, progress=progress)), config)
    if is_path(text):
        raise MissingFileError(f"{text} does not exist.")
    entry = find(text)
    if entry.location.startswith("hf://"):
        return _resolve_hub(entry.location, config, entry, progress)
    path = fetch(entry.location, sha256=entry.sha256, check=read, progress=progress)
    return resolve_contents(read(path), config, entry)


def _resolve_in_memory(
    source: Mapping[str, Any] | nn.Module, config: ResNeXtConfig | None
) -> ResolvedCheckpoint:
    """A state dict, or a network whose answers must be those of the one that is built here."""
    path = in_memory.place(source)
    if isinstance(source, Mapping):
        checkpoint = resolve_contents(contents_of(in_memory.FORMAT, path, dict(source)), config)
        return checkpoint._replace(state=_copied(checkpoint.state))
    source = in_memory.unwrapped(source)
    if isinstance(source, ResNeXt) or type(source) is Backbone:
        own, state = in_memory.own_parts(source)
        network, problem = match_network(own, state, classifier="fc.weight" in state)
        if network is None:
            raise CheckpointError(f"The network is not what its config says: {problem}.")
        return ResolvedCheckpoint(path, None, _copied(state), source.card or Card(), network)
    state = in_memory.gathered(source.state_dict())
    checkpoint = resolve_contents(contents_of(in_memory.FORMAT, path, state), config)
    checkpoint = checkpoint._replace(state=_copied(checkpoint.state))
    network = checkpoint.network
    network.load_state_dict(checkpoint.state, assign=True)
    in_memory.check_answers(source, network)
    return checkpoint


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in memory of their own, so that training one network does not change another."""
    return {name: x.detach().to("cpu", copy=True).contiguous() for name, x in state.items()}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for one
        return False


def _resolve_hub(
    uri: str, config: ResNeXtConfig | None, entry: CatalogEntry | None, progress: bool
) -> ResolvedCheckpoint:
    """`hf://owner/repo[/file]`: by default model.safetensors, with the config.json next to it."""
    owner, _, rest = uri.removeprefix("hf://").partition("/")
    repo, _, file = rest.partition("/")
    parts = [owner, repo, *(file.split("/") if file else [])]
    if not all(re.fullmatch(r"[\w.-]*\w[\w.-]*", part, re.ASCII) for part in parts):
        raise CheckpointError(f"{uri!r} must be hf://owner/repo or hf://owner/repo/file.")
    base = f"{hub()}/{owner}/{repo}/resolve/main"
    path = fetch(
        f"{base}/{file or 'model.safetensors'}",
        sha256=entry.sha256 if entry else "",
        check=read,
        progress=progress,
    )
    found, documents = read(path), Documents()
    if not file:
        entry = entry or from_repository(owner, repo)
    if not (file or entry or is_own(found.metadata)):
        documents = Documents(config=_json(fetch(f"{base}/config.json", check=_json)))
    return resolve_contents(found, config, entry, documents)


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    return values if isinstance(values, dict) else {}


def in_folder(folder: Path) -> tuple[Path, Documents]:
    """The file of weights in a folder, and the documents next to it.

    Raises:
        CheckpointError: The folder holds no file of weights, or a document is not JSON.
    """
    names = ("model.safetensors", "pytorch_model.bin", "model.bin")
    names += ("model.safetensors.index.json", "pytorch_model.bin.index.json")
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} is a folder without {names[0]}; name the file instead.")
    documents = [folder / name for name in ("config.json", "preprocessor_config.json")]
    config, preprocessor = (_json(file) if file.is_file() else {} for file in documents)
    return path, Documents({}, config, preprocessor)


def resolve_contents(
    contents: Contents,
    config: ResNeXtConfig | None = None,
    entry: CatalogEntry | None = None,
    documents: Documents | None = None,
) -> ResolvedCheckpoint:
    """Recognise the contents of a file, and rebuild the config.

    Args:
        contents: The contents of the file.
        config: The architecture it must have; by default the checkpoint decides.
        entry: The row of the catalog, if it was loaded by name.
        documents: Documents that accompany the file.

    Raises:
        CheckpointError: The checkpoint is not a ResNeXt, or contradicts itself.
    """
    path, weights = contents.path, choose_weights(contents)
    if is_own(contents.metadata):
        return _own(path, weights.state, contents.metadata, config)
    notes: list[str] = []
    if entry is None:
        entry = _entry_of_file(path, notes)
    try:
        documents = (documents or Documents())._replace(file=contents.metadata)
        metadata = _metadata(documents, config is not None)
        known = config or (entry.config if entry else metadata.config)
        detected, network, ambiguity = detect_network(
            weights, known, metadata.head, contents, notes
        )
        detected.dialect.check_readable(network.config)
        card = entry.card if entry else metadata.card
        if isinstance(network, ResNeXt):
            _check_classes(network.config.num_classes, metadata.num_classes, len(card.labels))
    except CheckpointError as error:
        part = " It is one of several parts: load their folder." if _PART.search(path.name) else ""
        raise CheckpointError(f"{path}: {error}{part}") from error
    notes += _left_out(weights, detected)
    notes += metadata.notes
    if not entry and metadata.preprocessing is None:
        assumed = "256, 224, bilinear, ImageNet's mean and deviation"
        if detected.fields.get("norm_eps") == AFFINE_EPS:  # Caffe2 reads images as OpenCV does
            usual = card.preprocessing
            bgr = replace(usual, mean=usual.mean[::-1], std=usual.std[::-1], colour="BGR")
            card = replace(card, preprocessing=bgr)
            assumed += ", BGR as Caffe2 reads images"
        notes.append(f"preprocessing assumed: {assumed}")
    card = with_normalizer(card, weights.state, detected.left, notes)
    card = with_notes(card, notes=notes, dialect=detected.dialect.name)
    state = _own_memory(detected.state)
    return ResolvedCheckpoint(path, detected.dialect, state, card, network, ambiguity)


def _metadata(documents: Documents, known: bool) -> CheckpointMetadata:
    """The metadata that all dialects read in the documents; earlier rows of the table win.

    Where the caller knows the network, a document that describes another one is only noted.
    """
    metadata = CheckpointMetadata()
    for dialect in DIALECTS.values():
        try:
            stated = dialect.metadata(documents)
        except CheckpointError as error:
            if not known:
                raise
            stated = CheckpointMetadata(notes=(f"what accompanies it is not used: {error}",))
        metadata = metadata.merge(stated)
    return metadata


def _entry_of_file(path: Path, notes: list[str]) -> CatalogEntry | None:
    """The public checkpoint that a file is by name and by hash."""
    entry = from_file_name(path.name)
    if entry is None or file_sha256(path).startswith(entry.sha256):
        return entry
    notes.append(f"its name is that of {entry.name}, but its SHA-256 is not")
    return None


def _left_out(weights: ChosenWeights, detected: DetectedNetwork) -> list[str]:
    """Notes on what was chosen, and what was left out."""
    notes = [f"weights from the file's {weights.key!r}"] if weights.key else []
    notes += [f"names start with {detected.prefix!r}"] if detected.prefix else []
    if others := [*weights.passed_over, *detected.passed_over]:
        notes.append(f"other networks in the file: {', '.join(map(repr, others))}")
    if detected.left:
        notes.append(f"tensors left out: {len(detected.left)}, the first is {detected.left[0]}")
    notes += detected.notes
    if detected.heads:
        heads = ", ".join(detected.heads)
        notes.append(
            f"its last layer is not one linear layer on pooled features, or a projection of "
            f"self-supervised training, and was left out: {heads}"
        )
    return notes


def _check_classes(count: int, stated: int | None, labels: int) -> None:
    """Refuse a classifier whose number of classes differs from the stated one.

    Raises:
        CheckpointError: The file contradicts itself.
    """
    for number, unit in ((stated, "classes"), (labels or None, "labels")):
        if number not in (None, count):
            raise CheckpointError(
                f"{number} {unit} are given, but the classifier has {count} classes. The file "
                f"contradicts itself."
            )


def _own_memory(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as float32, none of which shares its values with another."""
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, value in state.items():
        value = value.float() if value.is_floating_point() else value
        if value.numel() and value.data_ptr() in seen:
            value = value.clone()
        seen.add(value.data_ptr())
        own[name] = value
    return own


def _own(
    path: Path,
    state: dict[str, Tensor],
    metadata: Mapping[str, Any],
    config: ResNeXtConfig | None,
) -> ResolvedCheckpoint:
    """A file that `resnext.save` wrote."""
    own, card = parse_header(metadata, path)
    if card.labels and len(card.labels) != own.num_classes:
        raise CheckpointError(
            f"{path}: the card has {len(card.labels)} labels, the network {own.num_classes} "
            f"classes. The file was not written by resnext.save."
        )
    network, problem = match_network(own, state)
    if network is None:
        raise CheckpointError(f"{path}: {problem}. The file does not belong to its own config.")
    if config is not None and config != own:
        differing = [f.name for f in fields(own) if getattr(own, f.name) != getattr(config, f.name)]
        raise CheckpointError(
            f"{path} is not of the config that was passed: {', '.join(differing)} differ. Leave "
            f"config out: the file has its own."
        )
    return ResolvedCheckpoint(path, None, state, card, network)


def with_notes(card: Card, *, notes: Iterable[str], **provenance: Any) -> Card:
    """The card with added provenance, and with notes appended to its notes."""
    earlier = card.provenance.get("notes", [])
    if notes := list(notes):
        provenance |= {"notes": [*(earlier if isinstance(earlier, list) else []), *notes]}
    return replace(card, provenance={**card.provenance, **provenance}) if provenance else card
