"""What a checkpoint is: where it comes from, which dialect it is in, which network it is of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from resnext.backbone import Backbone
from resnext.card import Card
from resnext.config import ResNeXtConfig, check_config
from resnext.dialects.dialect import Dialect
from resnext.dialects.lucid import LUCID, LUCID3
from resnext.dialects.metadata import CheckpointMetadata, from_folder, from_openmmlab
from resnext.dialects.transformers import TRANSFORMERS
from resnext.errors import CheckpointError, ConfigError, MissingFileError
from resnext.network import ResNeXt
from resnext.system.digest import file_sha256
from resnext.system.download import fetch, hub
from resnext.weights.catalog import Checkpoint, exact, find, from_file_name, is_path
from resnext.weights.formats.reading import Contents, read
from resnext.weights.header import is_own, parse_header
from resnext.weights.infer_config import ASSUMED, infer_config
from resnext.weights.recognise import DetectedNetwork, recognise


class ResolvedCheckpoint(NamedTuple):
    """A checkpoint, understood."""

    path: Path
    dialect: Dialect | None
    """None for our own files."""
    state: dict[str, Tensor]
    card: Card
    """Its provenance tells what was left out, chosen or assumed."""
    network: ResNeXt | Backbone
    """Without values: a `Backbone` where there is no classifier."""

    @property
    def config(self) -> ResNeXtConfig:
        """The architecture."""
        return self.network.config

    @property
    def classifier(self) -> bool:
        """Whether there is a last layer."""
        return isinstance(self.network, ResNeXt)


def resolve(
    source: str | Path, *, config: ResNeXtConfig | None = None, progress: bool = False
) -> ResolvedCheckpoint:
    """Find a checkpoint, read it, recognise it and rebuild its config.

    Raises:
        CheckpointError: As for `load`.
    """
    if not isinstance(source, str | Path) or not str(source).strip():
        raise CheckpointError(f"A checkpoint is a name, an address or a file, not {source!r}.")
    if config is not None:
        check_config(config)
    text = str(source)
    path = Path(source).expanduser()
    if isinstance(source, Path) or _exists(path):
        file, told = in_folder(path) if path.is_dir() else (path, None)
        return resolve_contents(file, read(file), config, told=told)
    if text.startswith("hf://"):
        return _resolve_hub(text, config, None, progress)
    scheme = text.partition("://")[0] if "://" in text else ""
    if scheme not in ("", "open-mmlab", "mmcls"):
        path = fetch(text, check=read, progress=progress)
        return resolve_contents(path, read(path), config)
    if is_path(text):
        raise MissingFileError(f"{text} does not exist.")
    entry = find(text)
    if entry.location.startswith("hf://"):
        return _resolve_hub(entry.location, config, entry, progress)
    path = fetch(entry.location, sha256=entry.sha256, check=read, progress=progress)
    return resolve_contents(path, read(path), config, entry)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for one
        return False


def _resolve_hub(
    uri: str, config: ResNeXtConfig | None, entry: Checkpoint | None, progress: bool
) -> ResolvedCheckpoint:
    """`hf://owner/repo[/file]`: by default model.safetensors, with the config.json beside it."""
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
    contents = read(path)
    told = None
    if owner == "timm" and not file:
        entry = entry or exact(repo)
    if not (file or entry or is_own(contents.metadata)):
        about = _json(fetch(f"{base}/config.json", check=_json))
        told = from_folder(about, {})
    return resolve_contents(path, contents, config, entry, told)


def _json(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    return about if isinstance(about, dict) else {}


def in_folder(folder: Path) -> tuple[Path, CheckpointMetadata]:
    """The file of weights in a folder, and what is said beside it.

    Raises:
        CheckpointError: There is none, or what is said is of another network.
    """
    names = ("model.safetensors", "pytorch_model.bin", "model.bin")
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} is a folder without {names[0]}; name the file instead.")
    about = [folder / name for name in ("config.json", "preprocessor_config.json")]
    return path, from_folder(*(_json(file) if file.is_file() else {} for file in about))


def resolve_contents(
    path: Path,
    contents: Contents,
    config: ResNeXtConfig | None = None,
    entry: Checkpoint | None = None,
    told: CheckpointMetadata | None = None,
) -> ResolvedCheckpoint:
    """Recognise what was read, and rebuild its config.

    Args:
        path: Where it was read.
        contents: What was read.
        config: The architecture that it must have.
        entry: The catalog's, if it was loaded by name.
        told: What is said beside the file.

    Raises:
        CheckpointError: As for `load`.
    """
    if is_own(contents.metadata):
        return _own(path, contents, config)
    notes: list[str] = []
    if entry is None:
        entry = _entry_of_file(path, notes)
    try:
        found = recognise(contents.state)
        if told is None and isinstance(meta := contents.metadata.get("meta"), dict):
            told = from_openmmlab(meta)
        told = told or CheckpointMetadata()
        network = _network(found, config or (entry.config if entry else told.config), notes)
        if found.dialect in (LUCID, LUCID3):
            found.dialect.check(network.config)
        if found.dialect is TRANSFORMERS and network.config.cardinality == 1:
            raise CheckpointError("It is a plain ResNet of Transformers: its 3×3 has no groups.")
        card = entry.card if entry else told.card
        if isinstance(network, ResNeXt):
            _check_classes(network.config.num_classes, told.num_classes, len(card.labels))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    notes += _left_out(contents, found)
    notes += told.notes
    if not entry and not told.preprocessing:
        notes.append("preprocessing assumed: 256, 224, bilinear, ImageNet's mean and deviation")
    card = with_notes(card, notes=notes, dialect=found.dialect.name)
    state = _own_memory(found.state)
    return ResolvedCheckpoint(path, found.dialect, state, card, network)


def _entry_of_file(path: Path, notes: list[str]) -> Checkpoint | None:
    """The public checkpoint that a file is by name and by hash."""
    entry = from_file_name(path.name)
    if entry is None or file_sha256(path).startswith(entry.sha256):
        return entry
    notes.append(f"its name is that of {entry.name}, but its SHA-256 is not")
    return None


def _left_out(contents: Contents, found: DetectedNetwork) -> list[str]:
    """What was chosen, and what was not."""
    notes = [f"weights from the file's {contents.place!r}"] if contents.place else []
    notes += [f"names start with {found.prefix!r}"] if found.prefix else []
    if others := [*contents.passed_over, *found.passed_over]:
        notes.append(f"other networks in the file: {', '.join(map(repr, others))}")
    if found.left:
        notes.append(f"tensors left out: {len(found.left)}, the first is {found.left[0]}")
    if found.heads:
        heads = ", ".join(found.heads)
        notes.append(f"its classifier is not one linear layer and was left out: {heads}")
    return notes


def _check_classes(count: int, told: int | None, labels: int) -> None:
    """Refuse a classifier of another size than is said.

    Raises:
        CheckpointError: The file contradicts itself.
    """
    for number, what in ((told, "classes"), (labels or None, "labels")):
        if number not in (None, count):
            raise CheckpointError(
                f"{number} {what} are given, but the classifier has {count} classes. The file "
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


def _network(
    found: DetectedNetwork, known: ResNeXtConfig | None, notes: list[str]
) -> ResNeXt | Backbone:
    """The network that is known, if the weights fit it, else the one they tell of."""
    shapes = {name: tuple(value.shape) for name, value in found.state.items()}
    if known is None:
        config, _ = infer_config(shapes, found.norm)
        notes.append(f"not told by names and shapes, so as usual: {ASSUMED}")
    else:
        config = known
    network, problem = match_network(config, found.state, classifier="fc.weight" in shapes)
    if network is not None:
        return network
    if known is None:
        raise CheckpointError(f"{problem}. The file is incomplete, or no ResNeXt.")
    try:
        looks = f"its weights are those of {infer_config(shapes, found.norm).config!r}"
    except CheckpointError as error:
        looks = str(error)
    raise CheckpointError(f"it should be {config!r}, but {problem}; {looks}")


def _own(path: Path, contents: Contents, config: ResNeXtConfig | None) -> ResolvedCheckpoint:
    own, card = parse_header(contents.metadata, path)
    if card.labels and len(card.labels) != own.num_classes:
        raise CheckpointError(
            f"{path}: the card has {len(card.labels)} labels, the network {own.num_classes} "
            f"classes. The file was not written by resnext.save."
        )
    network, problem = match_network(own, contents.state)
    if network is None:
        raise CheckpointError(f"{path}: {problem}. The file does not belong to its own config.")
    if config is not None and config != own:
        raise CheckpointError(f"{path} is of {own!r}, not of the config that was passed.")
    return ResolvedCheckpoint(path, None, contents.state, card, network)


def with_notes(card: Card, *, notes: Iterable[str], **provenance: Any) -> Card:
    """The card with more provenance."""
    earlier = card.provenance.get("notes", [])
    if notes := list(notes):
        provenance |= {"notes": [*(earlier if isinstance(earlier, list) else []), *notes]}
    return replace(card, provenance={**card.provenance, **provenance}) if provenance else card


def match_network(
    config: ResNeXtConfig, state: Mapping[str, Tensor], *, classifier: bool = True
) -> tuple[ResNeXt | Backbone | None, str]:
    """The network of a config without values, if it has exactly these tensors.

    Returns:
        The network, or None and the first tensor that it does not have like this.
    """
    try:
        with torch.device("meta"), SkipInit():
            network = ResNeXt(config) if classifier else Backbone(config)
    except (RuntimeError, TypeError, ConfigError) as error:
        return None, f"no network has such sizes ({str(error).partition(chr(10))[0]})"
    wanted = network.state_dict()
    for key in wanted | dict(state):
        a, b = _about(wanted.get(key)), _about(state.get(key))
        if a != b:
            return None, f"{key} should be {a} and is {b}"
    return network, ""


class SkipInit(TorchFunctionMode):
    """Draws no numbers: initialising a large network without values takes as long as reading it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def _about(tensor: Tensor | None) -> str:
    if tensor is None:
        return "absent"
    kind = "" if tensor.is_floating_point() else " of integers"
    return f"{tuple(tensor.shape)}{kind}"
