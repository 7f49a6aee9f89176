"""Which dialect a state dict is in, and where in it the ResNeXt is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from resnext.config import ResNeXtConfig
from resnext.dialects.detectron2 import DETECTRON2
from resnext.dialects.dialect import Dialect
from resnext.dialects.lucid import LUCID, LUCID3
from resnext.dialects.mmcls import MMCLS
from resnext.dialects.mmdet import MMDET
from resnext.dialects.timm import TIMM
from resnext.dialects.torchvision import TORCHVISION
from resnext.dialects.transformers import TRANSFORMERS
from resnext.errors import CheckpointError
from resnext.mmcls.backbone import LETTERS

DIALECTS = {
    dialect.name: dialect
    for dialect in (
        TORCHVISION,
        TIMM,
        MMCLS,
        MMDET,
        LUCID,
        LUCID3,
        DETECTRON2,
        TRANSFORMERS,
    )
}
_ANCHORS = (LUCID, DETECTRON2, TRANSFORMERS, TORCHVISION)  # the others share torchvision's
_WRAPPERS = {"module", "_orig_mod", "model", "network", "net", "backbone", "bottom_up", "resnet"}
_WRAPPERS |= {"timm_model", "encoder_q", "encoder", "state_dict"}
_AVERAGES = {"ema_model", "model_ema", "ema"}
_DETECTOR = re.compile(r"(neck|rpn_head|roi_head|bbox_head|mask_head|decode_head|auxiliary_head)\.")
_CLASSIFIER = re.compile(
    r"(?:head\.fc|head|classifier|fc|last_linear)(?:\.\d{1,3})?\.(weight|bias)"
)
_KINDS = {letters: kind for kind, letters in LETTERS.items() if letters != "bn"}


class DetectedNetwork(NamedTuple):
    """The ResNeXt in a state dict, under our names."""

    dialect: Dialect
    prefix: str
    """What stood before its names."""
    state: dict[str, Tensor]
    norm: str
    """The kind of norm, as far as the names tell."""
    heads: tuple[str, ...]
    """Weights of classifiers that were found but are not one linear layer."""
    left: tuple[str, ...]
    """Names of everything else: other parts of a detector, averages of weights."""
    passed_over: tuple[str, ...]
    """Prefixes of other networks that are in it."""


def is_candidate(names: Iterable[str]) -> bool:
    """Whether a ResNeXt, or a ResNet, may be among these names."""
    return any(_prefix(name, dialect) is not None for name in names for dialect in _ANCHORS)


def recognise(state: Mapping[str, Tensor]) -> DetectedNetwork:
    """Find the ResNeXt in a state dict.

    Raises:
        CheckpointError: There is none, or several.
    """
    dialect, prefix, others = _find(state)
    inner = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
    outer = [name for name in state if not name.startswith(prefix)]
    heads = _classifiers(state, prefix)
    if dialect is TORCHVISION:
        dialect = _told_apart(inner, outer, heads)
    if dialect is LUCID and "stem.3.weight" in inner:
        LUCID.check(ResNeXtConfig((1,), 1, 64, num_stages=1, channels=(64,), stem_type="deep"))
    trunk = {name: x for name, x in inner.items() if prefix + name not in heads}
    ours = dialect.read(trunk)
    weights = [name for name, part in heads.items() if part == "weight"]
    if heads and not weights:
        raise CheckpointError(f"{next(iter(heads))} is there, but not the weight beside it.")
    one = len(weights) == 1 and state[weights[0]].ndim == 2
    if one:
        ours |= {f"fc.{part}": state[name] for name, part in heads.items()}
    return DetectedNetwork(
        dialect=dialect,
        prefix=prefix,
        state=ours,
        norm=next((_KINDS[x] for x in _KINDS if f"layer1.0.{x}2.weight" in inner), "batch"),
        heads=() if one else tuple(weights),
        left=tuple(name for name in outer if name not in heads),
        passed_over=others,
    )


def _prefix(name: str, dialect: Dialect) -> str | None:
    """What stands before the dialect's anchor, if that is what the name ends with."""
    prefix = name.removesuffix(dialect.anchor)
    return prefix if prefix != name and (not prefix or prefix.endswith(".")) else None


def _find(state: Mapping[str, Tensor]) -> tuple[Dialect, str, tuple[str, ...]]:
    """The anchor's dialect, what stands before it, and before those of other networks.

    Of several, averaged weights are taken, then the one under the least unusual words.
    """
    found: list[tuple[int, str, Dialect]] = []
    for name in state:
        for dialect in _ANCHORS:
            if (prefix := _prefix(name, dialect)) is not None:
                words = [x for x in prefix.split(".") if x and x not in _WRAPPERS]
                strange = -1 if words and set(words) <= _AVERAGES else len(words)
                found.append((strange, prefix, dialect))
    if not found:
        first = next(iter(state), None)
        what = f"its first tensor is {first!r}" if state else "it holds no tensors"
        raise CheckpointError(
            f"No ResNeXt is in it: no tensor is called {TORCHVISION.anchor} or alike; {what}."
        )
    found.sort(key=lambda place: place[0])
    if len(found) > 1 and found[0][0] == found[1][0]:
        prefixes = " and ".join(repr(prefix) for _, prefix, _ in found)
        raise CheckpointError(f"Several networks are in it, under {prefixes}. Save one of them.")
    return found[0][2], found[0][1], tuple(prefix for _, prefix, _ in found[1:])


def _told_apart(inner: Mapping[str, Tensor], outer: list[str], heads: Mapping[str, str]) -> Dialect:
    """Which of the dialects with torchvision's names inside of blocks it is."""
    if any(re.match(r"stem\.\d\.conv\.", name) or ".se_layer." in name for name in inner):
        return MMCLS
    if "stem.3.weight" in inner or any(_DETECTOR.search(name) for name in outer):
        return MMDET
    if "stem.0.weight" in inner:
        return LUCID3
    if any(name.endswith("head.fc.weight") for name in heads):
        return MMCLS
    if any(name.startswith(tuple(f"layer1.0.{x}1." for x in _KINDS)) for name in inner):
        return MMCLS
    own = re.compile(r"conv1\.0\.|layer1\.0\.se\.|.*\.downsample\.2\.")
    return TIMM if any(own.match(name) for name in inner) else TORCHVISION


def _classifiers(state: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """Names that a last layer may have, beside the network or in it, and which part they are."""
    parts = prefix.split(".")[:-1]
    roots = ["".join(f"{part}." for part in parts[:i]) for i in range(len(parts) + 1)]
    heads: dict[str, str] = {}
    for name in state:
        for root in roots:
            found = (
                _CLASSIFIER.fullmatch(name.removeprefix(root)) if name.startswith(root) else None
            )
            if found:
                heads[name] = found[1]
    return heads
