"""Known networks whose names and shapes are equal: which of them a state dict belongs to.

Anti-aliasing, strides, dilations and the like leave no trace in a state dict. What accompanies the
weights decides: metadata, file name, folders, the published hash. Where nothing does, the choice is
named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from resnext.architectures import differences, variant, variants
from resnext.config import ResNeXtConfig
from resnext.system.digest import file_sha256
from resnext.weights.catalog import catalog

_INVISIBLE = {"strides", "dilations", "style", "anti_alias", "keep_pooling", "padding_mode"}
_FOLDERS = 4  # a cache of the Hugging Face Hub has the name three folders above the file
_LONGEST = 200  # characters of a text that may be a name
_DILATION = "output_stride="
_CAFFE = re.compile(r"(?<![a-z])caffe(?![a-z0-9])")
_CAFFE_STYLE = "style='caffe' and images in BGR that are not divided by 255"
_HINTS = (  # words in the name of a file for what no variant has
    (_CAFFE, _CAFFE_STYLE),
    (re.compile(r"(?<![a-z0-9])(?:d8|os8|dilated8?)(?![a-z0-9])"), _DILATION + "8"),
    (re.compile(r"(?<![a-z0-9])(?:d16|os16)(?![a-z0-9])"), _DILATION + "16"),
    (re.compile(r"(?<![a-z])(?:deeplab|pspnet)"), _DILATION + "8 or 16"),
    (re.compile(r"(?<=next)aa(?=\d)"), "anti_alias='avg'"),
    (re.compile(r"(?<![a-z])(?:anti_?alias|blur_?pool|lpf\d)"), "anti_alias='blur'"),
)
_DILATED_HEAD = re.compile(
    r"(?:^|\.)(?:aspp|aspp_modules|psp|psp_modules|ppm|classifier\.0\.convs)\."  # pyramids
    r"|(?:^|\.)classifier\.4\.weight$"  # torchvision's FCN
)


class Choice(NamedTuple):
    """The network that was chosen among those with equal names and shapes."""

    config: ResNeXtConfig
    reason: str = ""
    """What decided; empty if there was nothing to decide."""
    open: str = ""
    """The other network and what decides, if nothing did; else empty."""


def choose_lookalike(
    inferred: ResNeXtConfig,
    path: Path,
    metadata: Mapping[str, Any],
    convolutions: Iterable[str] = (),
    *,
    in_memory: bool = False,
) -> Choice:
    """Choose among the known networks that have a state dict's names and shapes.

    Args:
        inferred: The config that names and shapes show, with usual values for everything else.
        path: The file of the weights.
        metadata: What else is in the file.
        convolutions: Names of weights of convolutions outside the network.
        in_memory: Whether there is no file, so that its name, folders and hash say nothing.
    """
    known = _lookalikes(inferred)
    if len(known) > 1 or any(differences(inferred, config) for config in known.values()):
        return _decide(inferred, known, path, metadata, in_memory)
    stated = [metadata, *_inner(metadata)]
    if "caffe" in (values.get("style") for values in stated):
        return Choice(inferred.replace(style="caffe"), "the file's 'style' says caffe")
    name = _words(path.name)
    words = ((pattern.search(name), meaning) for pattern, meaning in _HINTS)
    hints = [(f"{word[0]!r} in its name", meaning) for word, meaning in words if word]
    folders = () if in_memory else path.absolute().parents[:_FOLDERS]
    if any(_CAFFE.search(folder.name.lower()) for folder in folders):
        hints.append(("'caffe' in its folder", _CAFFE_STYLE))
    for values in stated:
        if values.get("output_stride") in (8, 16):
            hints.append(("its 'output_stride'", f"{_DILATION}{values['output_stride']}"))
    heads = (other for other in convolutions if _DILATED_HEAD.search(other))
    hints += [(f"its head {head!r}", _DILATION + "8 or 16") for head in heads]
    if not hints:
        return Choice(inferred)
    found, meaning = hints[0]
    decide = "output_stride= or config=" if meaning.startswith(_DILATION) else "config="
    decide += ", and change the card's preprocessing" if meaning == _CAFFE_STYLE else ""
    return Choice(
        inferred,
        open=f"{path.name}: {found} may mean {meaning}, which names and shapes of tensors do not "
        f"show; a network without was taken. To decide, pass {decide}.",
    )


def is_about_dilation(ambiguity: str) -> bool:
    """Whether `output_stride` decides what `Choice.open` says."""
    return f" may mean {_DILATION}" in ambiguity


def _lookalikes(inferred: ResNeXtConfig) -> dict[str, ResNeXtConfig]:
    """The variants that differ from a config in nothing that names and shapes show."""
    sizes = {"num_classes": inferred.num_classes, "in_channels": inferred.in_channels}
    configs = {name: variant(name, **sizes) for name in variants()}
    return {
        name: config
        for name, config in configs.items()
        if _INVISIBLE.issuperset(differences(inferred, config))
    }


def _decide(
    inferred: ResNeXtConfig,
    known: Mapping[str, ResNeXtConfig],
    path: Path,
    metadata: Mapping[str, Any],
    in_memory: bool,
) -> Choice:
    """The network that something names, else the plainest, with the others."""
    said: dict[str, str] = {}  # who says it first, by name
    for source, text in _stated(metadata) if in_memory else _texts(path, metadata):
        if name := _named(text, known):
            said.setdefault(name, source)
    if said:
        (taken, source), *others = said.items()
        contrary = "".join(
            f"{path.name}: {source} says {taken}, which was taken, but {x} says {name}, whose "
            f"tensors have the same names and shapes. To decide, pass config=."
            for name, x in others[:1]
        )
        return Choice(known[taken], f"{source} says {taken}", contrary)
    digest = "" if in_memory else file_sha256(path)
    rows = (row for row in catalog() if row.variant in known and row.sha256)
    if row := next((row for row in rows if digest.startswith(row.sha256)), None):
        return Choice(known[row.variant], f"its SHA-256 is that of {row.name}")
    plain, *others = sorted(known, key=lambda name: len(differences(inferred, known[name])))
    fields = differences(known[plain], known[others[0]] if others else inferred)
    other, arguments = others[0] if others else plain, [f"num_classes={inferred.num_classes}"]
    if not others:
        arguments += [f"{name}={getattr(inferred, name)!r}" for name in fields]
    second = other if others else f"the same without its {' and '.join(fields)}"
    return Choice(
        known[plain],
        open=f"{path.name}: {plain} and {second} have the same names and shapes of tensors, but "
        f"differ in {' and '.join(fields)}; {plain} was taken. To decide, pass "
        f"config=resnext.variant({other!r}, {', '.join(arguments)}), or put the network's name "
        f"into the file's.",
    )


def _texts(path: Path, metadata: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Where a name may stand and the text there, the most reliable first."""
    yield from _stated(metadata)
    yield "its name", path.name
    for folder in path.absolute().parents[:_FOLDERS]:
        yield "its folder", folder.name


def _stated(metadata: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The texts among the metadata, and in the dictionaries there."""
    for values in (metadata, *_inner(metadata)):
        for key, value in values.items():
            if isinstance(value, str) and len(value) <= _LONGEST:
                yield f"the file's {str(key)!r}", value


def _inner(metadata: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The dictionaries among the metadata."""
    return [value for value in metadata.values() if isinstance(value, Mapping)]


def _named(text: str, known: Iterable[str]) -> str | None:
    """The one network that a text names, with or without cardinality and width."""
    words, found = _words(text), list[str]()
    for name in known:
        family = re.sub(r"_\d+x\d+d$", "", name)
        if re.search(rf"(?<![a-z0-9]){family}(?:_\d+x\d+d?)?(?![a-z0-9])", words):
            found.append(name)
    best = [x for x in found if not any(y != x and y.startswith(x) for y in found)]
    return best[0] if len(best) == 1 else None


def _words(text: str) -> str:
    """A text in the spelling of our variants."""
    return re.sub(r"(se|eca)_resnext", r"\1resnext", text.lower().replace("-", "_"))
