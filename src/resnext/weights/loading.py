"""`load`: from a name, an address or a file of any library to a network that can be used."""

from __future__ import annotations

import json
import os
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
from resnext.config import ResNeXtConfig
from resnext.device import pick_device
from resnext.dialects.architecture import architecture
from resnext.dialects.lucid import LUCID, LUCID3
from resnext.dialects.metadata import About, from_folder, from_openmmlab
from resnext.dialects.names import Dialect
from resnext.dialects.recognise import Recognised, recognise
from resnext.dialects.transformers import TRANSFORMERS
from resnext.errors import CheckpointError, ConfigError, MissingFileError
from resnext.header import is_own, parse_header
from resnext.network import ResNeXt
from resnext.weights.catalog import Checkpoint, find, from_file_name
from resnext.weights.fetch import fetch
from resnext.weights.fitting import fit_classifier, fit_input
from resnext.weights.reading import Contents, read


class Loaded(NamedTuple):
    """A checkpoint, understood."""

    path: Path
    format: str
    dialect: Dialect | None
    """None for our own files."""
    config: ResNeXtConfig
    state: dict[str, Tensor]
    card: Card
    """Its provenance tells what was left out, chosen or assumed."""
    network: ResNeXt | Backbone
    """Without values: a `Backbone` where there is no classifier."""

    @property
    def classifier(self) -> bool:
        """Whether there is a last layer."""
        return isinstance(self.network, ResNeXt)


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
        num_classes: Replaces the classifier by an untrained one if the checkpoint's has other
            classes, or none.
        in_channels: Adapts the first convolution by repeating or averaging its filters, so that
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
    found = understand(source, config=config, progress=progress)
    return network_of(fitted(found, num_classes, in_channels)).to(place).eval()


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


def network_of(found: Loaded) -> ResNeXt | Backbone:
    """The network of a checkpoint that was understood, filled with its weights."""
    found.network.load_state_dict(found.state, assign=True)
    if isinstance(found.network, ResNeXt):
        found.network.card = found.card
    return found.network


def load_backbone(
    source: str | Path,
    *,
    in_channels: int | None = None,
    config: ResNeXtConfig | None = None,
    device: str | torch.device = "cpu",
    progress: bool = False,
    **options: Any,
) -> Backbone:
    """The backbone of a checkpoint: of a classifier, a detector or a segmentor.

    Args:
        source: As for `load`.
        in_channels: As for `load`.
        config: As for `load`.
        device: Where to put the weights.
        progress: Whether to show downloads on standard error.
        options: As for `Backbone`: `out_indices`, `frozen_stages`, `norm_eval`, `checkpointing`.

    Raises:
        CheckpointError: As for `load`; a classifier is not needed.
        ConfigError: An option does not fit.
    """
    place = pick_device(str(device))
    found = understand(source, config=config, progress=progress)
    found = fitted(found, None, in_channels)
    with torch.device("meta"), _Empty():
        backbone = Backbone(found.config, **options)
    wanted = backbone.state_dict()
    backbone.load_state_dict({name: found.state[name] for name in wanted}, assign=True)
    return backbone.train().to(place)


def understand(
    source: str | Path, *, config: ResNeXtConfig | None = None, progress: bool = False
) -> Loaded:
    """Find a checkpoint, read it, recognise it and rebuild its config.

    Raises:
        CheckpointError: As for `load`.
    """
    text = str(source)
    if isinstance(source, Path) or Path(text).exists():
        path = Path(source)
        if path.is_dir():
            return _understand_folder(path, config)
        return _understand(path, read(path), config, from_file_name(path.name), None)
    if text.startswith("hf://"):
        return _understand_hub(text, config, None, progress)
    scheme = text.partition("://")[0] if "://" in text else ""
    if scheme not in ("", "open-mmlab", "mmcls"):
        path = fetch(text, check=read, progress=progress)
        return _understand(path, read(path), config, from_file_name(path.name), None)
    if _is_path(text):
        raise MissingFileError(f"{text} does not exist.")
    entry = find(text)
    if entry.location.startswith("hf://"):
        return _understand_hub(entry.location, config, entry, progress)
    path = fetch(entry.location, sha256=entry.sha256, check=read, progress=progress)
    return _understand(path, read(path), config, entry, None)


def _is_path(text: str) -> bool:
    """Whether a name that is no file was meant to be one."""
    if re.search(r"\.(safetensors|pth|pt|bin|lcd|npz|pkl|ckpt|tar)$", text):
        return True
    return "/" in text and "://" not in text and not text.startswith("lucid/")


def _understand_hub(
    uri: str, config: ResNeXtConfig | None, entry: Checkpoint | None, progress: bool
) -> Loaded:
    """`hf://owner/repo[/file]`: by default model.safetensors, with the config.json beside it."""
    owner, _, rest = uri.removeprefix("hf://").partition("/")
    repo, _, file = rest.partition("/")
    parts = [owner, repo, *(file.split("/") if file else [])]
    if not all(re.fullmatch(r"[\w.-]*\w[\w.-]*", part, re.ASCII) for part in parts):
        raise CheckpointError(f"{uri!r} must be hf://owner/repo or hf://owner/repo/file.")
    base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    base = f"{base}/{owner}/{repo}/resolve/main"
    path = fetch(
        f"{base}/{file or 'model.safetensors'}",
        sha256=entry.sha256 if entry else "",
        check=read,
        progress=progress,
    )
    contents = read(path)
    told = None
    if not (file or entry or is_own(contents.metadata)):
        about = _json(fetch(f"{base}/config.json", check=_json))
        told = from_folder(about, {})
    return _understand(path, contents, config, entry, told)


def _json(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    return about if isinstance(about, dict) else {}


def _understand_folder(folder: Path, config: ResNeXtConfig | None) -> Loaded:
    names = ("model.safetensors", "pytorch_model.bin", "model.bin")
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} is a folder without {names[0]}; name the file instead.")
    about = [folder / name for name in ("config.json", "preprocessor_config.json")]
    told = from_folder(*(_json(file) if file.is_file() else {} for file in about))
    return _understand(path, read(path), config, None, told)


def _understand(
    path: Path,
    contents: Contents,
    config: ResNeXtConfig | None,
    entry: Checkpoint | None,
    told: About | None,
) -> Loaded:
    if is_own(contents.metadata):
        return _own(path, contents, config)
    try:
        found = recognise(contents.state)
        if contents.metadata.get("meta") and told is None:
            told = from_openmmlab(contents.metadata["meta"])
        told = told or About()
        notes = [f"weights from the file's {contents.place!r}"] if contents.place else []
        notes += [f"names start with {found.prefix!r}"] if found.prefix else []
        notes += [f"{len(found.left)} other tensors left out"] if found.left else []
        network = _network(found, config or (entry.config if entry else told.config), notes)
        if found.dialect in (LUCID, LUCID3):
            found.dialect.check(network.config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if found.dialect is TRANSFORMERS and network.config.cardinality == 1:
        raise CheckpointError(f"{path} is a plain ResNet of Transformers: its 3×3 has no groups.")
    state = {
        name: x.float() if x.is_floating_point() and x.dtype != torch.float32 else x
        for name, x in found.state.items()
    }
    if found.heads:
        notes.append(f"its classifier has several layers and was left out: {found.heads[0]}, …")
    card = entry.card if entry else told.card
    if not entry and not told.preprocessing:
        notes.append("preprocessing assumed: 256, 224, bilinear, ImageNet's mean and deviation")
    count = network.config.num_classes
    if card.labels and len(card.labels) != count and isinstance(network, ResNeXt):
        raise CheckpointError(
            f"{path}: {len(card.labels)} labels are given, but the classifier has {count} "
            f"classes. The file contradicts itself."
        )
    card = _with(card, notes=notes, dialect=found.dialect.name)
    return Loaded(path, contents.format, found.dialect, network.config, state, card, network)


def _network(
    found: Recognised, known: ResNeXtConfig | None, notes: list[str]
) -> ResNeXt | Backbone:
    """The network that is known, if the weights fit it, else the one they tell of."""
    shapes = {name: tuple(value.shape) for name, value in found.state.items()}
    if known is None:
        config, _, assumed = architecture(shapes, found.norm)
        notes.append("not told by names and shapes, so as usual: " + ", ".join(assumed))
    else:
        config = known
    network, problem = fitting(config, found.state, classifier="fc.weight" in shapes)
    if network is not None:
        return network
    if known is None:
        raise CheckpointError(f"{problem}. The file is incomplete, or no ResNeXt.")
    try:
        looks = f"its weights are those of {architecture(shapes, found.norm).config!r}"
    except CheckpointError as error:
        looks = str(error)
    raise CheckpointError(f"it should be {config!r}, but {problem}; {looks}")


def _own(path: Path, contents: Contents, config: ResNeXtConfig | None) -> Loaded:
    own, card = parse_header(contents.metadata, path)
    if card.labels and len(card.labels) != own.num_classes:
        raise CheckpointError(
            f"{path}: the card has {len(card.labels)} labels, the network {own.num_classes} "
            f"classes. The file was not written by resnext.save."
        )
    network, problem = fitting(own, contents.state)
    if network is None:
        raise CheckpointError(f"{path}: {problem}. The file does not belong to its own config.")
    if config is not None and config != own:
        raise CheckpointError(f"{path} is of {own!r}, not of the config that was passed.")
    return Loaded(path, contents.format, None, own, contents.state, card, network)


def fitted(found: Loaded, num_classes: int | None, in_channels: int | None) -> Loaded:
    """The checkpoint with another classifier and for other images; its card tells the changes."""
    config, state, card, notes = found.config, found.state, found.card, list[str]()
    if in_channels not in (None, config.in_channels):
        config, state, card = fit_input(config, state, card, in_channels, notes)
    if num_classes is not None and not (found.classifier and num_classes == config.num_classes):
        config, state, card = fit_classifier(config, state, card, num_classes, notes)
    if not notes:
        return found
    network, problem = fitting(config, state, classifier="fc.weight" in state)
    assert network is not None, problem
    card = _with(card, notes=notes)
    return found._replace(config=config, state=state, card=card, network=network)


def _with(card: Card, *, notes: Iterable[str], **provenance: Any) -> Card:
    """The card with more provenance."""
    earlier = card.provenance.get("notes", [])
    if notes := list(notes):
        provenance |= {"notes": [*(earlier if isinstance(earlier, list) else []), *notes]}
    return replace(card, provenance={**card.provenance, **provenance}) if provenance else card


def fitting(
    config: ResNeXtConfig, state: Mapping[str, Tensor], *, classifier: bool = True
) -> tuple[ResNeXt | Backbone | None, str]:
    """The network of a config without values, if it has exactly these tensors.

    Returns:
        The network, or None and the first tensor that it does not have like this.
    """
    try:
        with torch.device("meta"), _Empty():
            network = ResNeXt(config) if classifier else Backbone(config)
    except (RuntimeError, TypeError, ConfigError) as error:
        return None, f"no network has such sizes ({str(error).partition(chr(10))[0]})"
    wanted = network.state_dict()
    for key in wanted | dict(state):
        a, b = _about(wanted.get(key)), _about(state.get(key))
        if a != b:
            return None, f"{key} should be {a} and is {b}"
    return network, ""


class _Empty(TorchFunctionMode):
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
