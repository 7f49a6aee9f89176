"""`diagnose`: identifies a file of weights, lists its problems and suggests the next step."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from resnext.architectures import nearest_variant, variant, variants
from resnext.card import Card
from resnext.checks import brief
from resnext.config import ResNeXtConfig
from resnext.dialects.dialect import Documents
from resnext.errors import CheckpointError, MissingFileError, ResNeXtError
from resnext.foreign_names import answering_call
from resnext.network import ResNeXt
from resnext.weights.causes import causes_of
from resnext.weights.formats.reading import read
from resnext.weights.match import SkipInit
from resnext.weights.recognise import ChosenWeights, DetectedNetwork, choose_weights, recognise
from resnext.weights.resolve import ResolvedCheckpoint, in_folder, resolve_contents

_SHOWN = 4
_LONGEST = 800  # characters of a text


class Diagnosis(NamedTuple):
    """The result of examining a file."""

    path: Path
    bytes: int
    format: str = ""
    dialect: str = ""
    architecture: str = ""
    """A named variant, or the nearest one and the differences."""
    config: ResNeXtConfig | None = None
    classifier: bool = False
    card: Card | None = None
    tensors: int = 0
    parameters: int = 0
    dtypes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Notes on what was left out or assumed."""
    problems: tuple[str, ...] = ()
    """Why it cannot or should not be used; empty if nothing is wrong."""
    advice: tuple[str, ...] = ()
    """Commands or steps to take next."""

    def facts(self) -> list[tuple[str, str]]:
        """The facts about the file, as pairs of a name and a text."""
        facts = [("File", f"{self.path}, {self.bytes:,} bytes" if self.bytes else str(self.path))]
        if self.format:
            facts.append(("Format", self.format))
        if self.dialect:
            facts.append(("Written for", self.dialect))
        if self.tensors:
            types = ", ".join(self.dtypes)
            facts.append(("Tensors", f"{self.tensors:,} ({types}), {self.parameters:,} numbers"))
        if self.config is not None:
            facts += [("Architecture", self.architecture), ("Config", repr(self.config))]
            classes = f"{self.config.num_classes:,}" if self.classifier else "no classifier"
            labels = self.card.labels if self.card else ()
            shown = ": " + ", ".join(labels[:5]) + ("…" if len(labels) > 5 else "")
            facts.append(("Classes", classes + (shown if labels else "")))
        if self.card is not None and self.classifier:
            x = self.card.preprocessing
            sizes = f"shorter side {x.resize} {x.interpolation}, centre {x.size}"
            facts.append(("Preprocessing", f"{sizes}, {x.colour}"))
            facts.append(("Licence", self.card.licence or "not stated"))
        return facts


@answering_call
def diagnose(path: str | Path) -> Diagnosis:
    """Examine a file of weights, or a folder that contains one. No code in it is executed.

    Args:
        path: A file in any format, even a damaged one.

    Raises:
        MissingFileError: The file does not exist.
        CheckpointError: `path` is not a path.
    """
    if not isinstance(path, str | Path):
        raise CheckpointError(f"Give a file, not {brief(path)}. resnext.load takes networks.")
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"{path} does not exist. `doctor` examines files and folders.")
    try:
        file, documents = in_folder(path) if path.is_dir() else (path, Documents())
        contents = read(file)
        weights = choose_weights(contents)
    except CheckpointError as error:
        if path.is_dir():
            return _of_folder(path, error)
        damaged = any(word in str(error) for word in ("damaged", "cut off", "empty", "web page"))
        advice = _DAMAGED if damaged else _ELSEWHERE
        return Diagnosis(path, path.stat().st_size, problems=_short([error]), advice=advice)
    state = weights.state
    diagnosis = Diagnosis(
        path,
        file.stat().st_size,
        format=contents.format,
        tensors=len(state),
        parameters=sum(x.numel() for x in state.values() if x.is_floating_point()),
        dtypes=tuple(f"{n} × {kind}" for kind, n in Counter(map(_kind, state.values())).items()),
    )
    try:
        checkpoint = resolve_contents(contents, documents=documents)
    except ResNeXtError as error:
        if path.is_dir():
            return _of_folder(path, error)
        return _unresolved(diagnosis, weights, str(error))
    return _resolved(diagnosis, checkpoint)


_DAMAGED = ("Get the file again, from where it was published, and compare its SHA-256.",)
_ELSEWHERE = ("Load it with the library that wrote it, and save the state dict of its ResNeXt.",)


def _of_folder(path: Path, error: ResNeXtError) -> Diagnosis:
    return Diagnosis(path, 0, problems=_short([error]), advice=("Examine a file in it.",))


def _resolved(diagnosis: Diagnosis, checkpoint: ResolvedCheckpoint) -> Diagnosis:
    """The diagnosis of a checkpoint that can be loaded."""
    problems, path = _health(checkpoint.state), diagnosis.path
    name, own = _typed(str(path)), _typed(f"{path.resolve().stem}-own.safetensors")
    advice: list[str] = []
    if problems:
        advice.append("Get weights that were trained to the end, and saved before they diverged.")
    elif not checkpoint.classifier:
        advice.append(f"resnext.load_backbone({str(path)!r})")
    elif not checkpoint.card.labels:
        advice.append(f"resnext convert {name} {own} --labels classes.txt")
    else:
        advice += [f"resnext convert {name} {own}"] if checkpoint.dialect else []
        advice.append(f"resnext predict {name} photos/")
    notes = checkpoint.card.provenance.get("notes", ())
    return diagnosis._replace(
        dialect=checkpoint.dialect.title if checkpoint.dialect else "resnext",
        architecture=nearest(checkpoint.config)[0],
        config=checkpoint.config,
        classifier=checkpoint.classifier,
        card=checkpoint.card,
        notes=_short(notes) if isinstance(notes, list) else (),
        problems=_short(problems),
        advice=tuple(advice),
    )


def _short(texts: Iterable[object]) -> tuple[str, ...]:
    """Texts cut to a readable length, because names in a damaged file can be very long."""
    whole = map(str, texts)
    return tuple(x if len(x) <= _LONGEST else f"{x[:_LONGEST]}…" for x in whole)


def _typed(path: str) -> str:
    """A path quoted for a shell, and not mistaken for an option."""
    return shlex.quote(f"./{path}" if path.startswith("-") else path)


def _unresolved(diagnosis: Diagnosis, weights: ChosenWeights, reason: str) -> Diagnosis:
    """The diagnosis of weights that are not a usable network."""
    problems = [reason.removeprefix(f"{diagnosis.path}: ")]
    problems += [why for why in causes_of(weights.state) if why not in reason]
    try:
        detected = recognise(weights.state, weights.dialect)
    except CheckpointError:
        return diagnosis._replace(problems=_short(problems), advice=_ELSEWHERE)
    problems += _compared(detected)
    return diagnosis._replace(
        dialect=detected.dialect.title,
        problems=_short(problems),
        advice=("If you know its architecture: resnext.load(file, config=…).",),
    )


def _compared(detected: DetectedNetwork) -> list[str]:
    """How the weights differ from those of the variant with the most tensors in common."""
    shapes = {name: tuple(value.shape) for name, value in detected.state.items()}
    best, wanted = "", {}
    for name in variants():
        theirs = _shapes(name)
        if not best or _alike(shapes, theirs) > _alike(shapes, wanted):
            best, wanted = name, theirs
    missing = [name for name in wanted if name not in shapes]
    unexpected = [name for name in shapes if name not in wanted]
    other = [
        f"{name} {shapes[name]} for {wanted[name]}"
        for name in wanted
        if name in shapes and shapes[name] != wanted[name] and not name.startswith("fc.")
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", other))
    return [
        f"Compared with {best}, {len(names)} {kind}: {', '.join(names[:_SHOWN])}"
        + ("…" if len(names) > _SHOWN else "")
        for kind, names in kinds
        if names
    ]


def _alike(shapes: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]) -> int:
    same = sum(theirs.get(name) == shape for name, shape in shapes.items())
    return 2 * same - len(theirs) - len(shapes)


@cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a named variant."""
    with torch.device("meta"), SkipInit():
        return {name: tuple(x.shape) for name, x in ResNeXt(variant(name)).state_dict().items()}


def nearest(config: ResNeXtConfig) -> tuple[str, list[str]]:
    """The named variant that equals a config or is most similar to it, and the differences."""
    name, other = nearest_variant(config)
    if len(other) > 3:
        return "none of the named variants", other
    return (f"{name} with other {' and '.join(other)}" if other else name), other


def _health(state: Mapping[str, Tensor]) -> list[str]:
    """Problems of the values: NaN, dead channels, untrained norms."""
    bad = [name for name, x in state.items() if x.is_floating_point() and not x.isfinite().all()]
    problems = [f"{_several(bad)} not finite (NaN or infinite)."] if bad else []
    still = [name for name, x in state.items() if name.endswith("running_var") and (x <= 0).any()]
    if still:
        problems.append(f"{_several(still)} not positive: those channels never varied.")
    dead = 0
    for name, scale in state.items():
        if name.endswith(("bn1.weight", "bn2.weight")):
            shift = state.get(name.replace("weight", "bias"))
            if shift is not None and shift.shape == scale.shape:
                dead += int(((scale.abs() < 1e-6) & (shift <= 0)).sum())
    if dead:
        problems.append(f"{dead} channels are dead: a norm's scale is zero before a ReLU.")
    last = [x for name, x in state.items() if name.endswith("bn3.weight")]
    if last and not any(x.any() for x in last):
        problems.append("The last norm of every block is zero: the network was never trained.")
    return problems


def _several(names: list[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} is"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more} are"


def _kind(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
