"""The type of a dialect: everything this package knows about one other library.

Our own parameter names are torchvision's, so the rows of a dialect list only what differs. They
are prefixes, read in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from resnext.card import Card, Preprocessing
from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError, ConfigError

Values = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray[Any, Any]]

_EMPTY: Values = MappingProxyType({})
_OURS = re.compile(r"layer(\d+)\.(\d+)\.")
_SQUEEZE = re.compile(r"\.se\.fc[12]\.weight$")
_SHORTCUT = re.compile(r"(layer\d+\.\d+\.)downsample\.(\d)\.(.*)")


class NameRule(NamedTuple):
    """Two prefixes of a parameter's name, inside a block or outside all blocks.

    `{n}` in `theirs` is a placeholder for the library's letters for the kind of norm.
    """

    ours: str
    theirs: str
    when: Callable[[ResNeXtConfig], bool] | None = None
    """Networks that the rule is used to write; None for all. Every rule is used to read."""


class ParameterNames(NamedTuple):
    """The names in a state dict, as a dialect's recogniser sees them."""

    network: Collection[str]
    """Names of the network, without their common prefix."""
    outside: Collection[str]
    """Names without that prefix: other parts of a detector, averages of weights."""
    classifier: Collection[str]
    """Full names that look like those of a classifier."""


class Documents(NamedTuple):
    """Documents that accompany weights."""

    file: Values = _EMPTY
    """Other entries of the checkpoint's dictionary; a safetensors file's metadata."""
    config: Values = _EMPTY
    """`config.json` in the same folder or repository."""
    preprocessor: Values = _EMPTY
    """`preprocessor_config.json` in the same folder."""


@dataclass(frozen=True)
class CheckpointMetadata:
    """Everything a checkpoint states in addition to its weights.

    Args:
        labels: Name of each class; empty if the checkpoint names none.
        preprocessing: How images become inputs, if stated.
        provenance: Where the weights come from.
        licence: SPDX identifier; empty if not stated.
        config: The architecture, if stated completely.
        num_classes: Number of classes, if stated.
        notes: Statements that could not be used.
        head: Why the last layer is not a linear one that gives each image one class; empty if it
            is.
    """

    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    provenance: Values = field(default_factory=dict)
    licence: str = ""
    config: ResNeXtConfig | None = None
    num_classes: int | None = None
    notes: tuple[str, ...] = ()
    head: str = ""

    @property
    def card(self) -> Card:
        """The card, with the usual preprocessing if none is stated."""
        return Card(
            self.labels,
            self.preprocessing or Preprocessing(),
            provenance=dict(self.provenance),
            licence=self.licence,
        )

    def merge(self, other: CheckpointMetadata) -> CheckpointMetadata:
        """Both combined; where both state something, this one wins."""
        count = other.num_classes if self.num_classes is None else self.num_classes
        return CheckpointMetadata(
            self.labels or other.labels,
            self.preprocessing or other.preprocessing,
            {**other.provenance, **self.provenance},
            self.licence or other.licence,
            self.config or other.config,
            count,
            (*self.notes, *other.notes),
            self.head or other.head,
        )


@dataclass(frozen=True, eq=False)
class Dialect:
    """How one library names the parameters of a ResNeXt, and the format of its files.

    Args:
        name: Its name in code: `resnext convert --to NAME`. With `original`, the package's name.
        title: Its name in messages.
        network: Parameter names outside blocks.
        block: Parameter names inside a block.
        block_prefix: Prefix of the names in a block, with `{stage}` and `{block}`.
        first_stage: Number of the first stage.
        trunk: Prefix of all names of a classifier except those of its last layer.
        norms: Letters for each kind of norm, if the library names norms by kind. Of kinds with
            equal letters, the first is read.
        counters: Whether batch norms count batches.
        linear_squeeze: Whether SE blocks squeeze with linear layers instead of 1×1 convolutions.
        empty_pool: Whether an `avg_down` shortcut without stride keeps the index of its pooling.
        suffixes: Endings of the files that `convert` writes; without any, files are only read.
            `.safetensors`, `.npz` and `.lcd` are those formats, others are torch's.
        backbones: Whether a file may hold a backbone without a classifier.
        holds_config: Whether `content` includes the architecture.
        content: Makes what a torch file contains from the library's state dict, our config and
            card. By default the state dict itself.
        hub_config: Makes the library's entries of a repository's `config.json`; empty if the
            library cannot load the architecture by name.
        metadata: Reads the documents that accompany weights. Every dialect reads those of every
            checkpoint, because parameter names do not show who wrote `config.json`; the first row
            of the table that states something wins. May raise `CheckpointError`.
        unpack: Makes arrays under our names from an object that is not a dictionary of arrays;
            None if it is another kind of object. May raise `CheckpointError`.
        recognises: Whether a state dict that contains `anchor` was written by the library. Of
            several dialects with the same anchor, the last row of the table that says so is taken.
            May raise `CheckpointError` if the file cannot be used.
        problem: Why a network cannot be written: what the library lacks, or computes differently.
            The end of a sentence that starts with `title`; empty if the network can be written.
        arguments: Arguments of the library's constructor for a network that can be written.
        unreadable: Why a network in a file from the library cannot be used; empty if it can.
        unseen: Fields that its networks have and that names and shapes do not show.
        original: Builds the library's own network with its Python package.
    """

    name: str
    title: str
    network: tuple[NameRule, ...] = ()
    block: tuple[NameRule, ...] = ()
    block_prefix: str = "layer{stage}.{block}."
    first_stage: int = 1
    trunk: str = ""
    norms: Mapping[str, str] = field(default_factory=dict)
    counters: bool = True
    linear_squeeze: bool = False
    empty_pool: bool = True
    suffixes: tuple[str, ...] = ()
    backbones: bool = False
    holds_config: bool = False
    content: Callable[[dict[str, Tensor], ResNeXtConfig, Card], dict[str, Any]] = field(
        default=lambda state, config, card: state
    )
    hub_config: Callable[[ResNeXtConfig, Card], dict[str, Any]] = field(
        default=lambda config, card: {}
    )
    metadata: Callable[[Documents], CheckpointMetadata] = field(
        default=lambda documents: CheckpointMetadata()
    )
    unpack: Callable[[object], Arrays | None] = field(default=lambda root: None)
    recognises: Callable[[ParameterNames], bool] = field(default=lambda names: True)
    problem: Callable[[ResNeXtConfig], str] = field(default=lambda config: "")
    arguments: Callable[[ResNeXtConfig], dict[str, Any]] = field(default=lambda config: {})
    unreadable: Callable[[ResNeXtConfig], str] = field(default=lambda config: "")
    unseen: Callable[[ResNeXtConfig], dict[str, Any]] = field(default=lambda config: {})
    original: Callable[[ResNeXtConfig], nn.Module] | None = None

    @cached_property
    def anchor(self) -> str:
        """The end of a name that every file of this dialect contains."""
        rules = [(rule.ours, rule.theirs) for rule in self.block]
        return self._rename("layer1.0.conv2.weight", _longest_first(rules))

    def norm_kind(self, names: Collection[str]) -> str:
        """The kind of norm that the names of a network state; "batch" if they do not."""
        first = self.block_prefix.format(stage=self.first_stage, block=0)
        stated = (k for k, letters in self.norms.items() if f"{first}{letters}2.weight" in names)
        return next(stated, "batch")

    def to_ours(self, name: str) -> str:
        """Our name of a parameter; a name that no rule matches stays."""
        block = self._blocks.match(name)
        if block is None:
            return _replaced(name, self._read[0])
        stage = int(block[1]) - self.first_stage + 1
        return f"layer{stage}.{block[2]}." + _replaced(name[block.end() :], self._read[1])

    def write(self, state: Mapping[str, Tensor], config: ResNeXtConfig) -> dict[str, Tensor]:
        """Our state dict under the library's names and in its shapes, in the same order.

        Raises:
            CheckpointError: The library cannot express the network, or computes it differently.
        """
        self.check(config)
        network, block = (self._written(rules, config) for rules in (self.network, self.block))
        theirs: dict[str, Tensor] = {}
        for name, value in state.items():
            if name.endswith("num_batches_tracked") and not self.counters:
                continue
            flat = self.linear_squeeze and _SQUEEZE.search(name)
            trunk = "" if name.startswith("fc.") else self.trunk
            name = name if self.empty_pool else _without_empty_pool(name, config)
            name = self._rename(name, block if _OURS.match(name) else network)
            theirs[trunk + name] = value.flatten(1) if flat else value
        return theirs

    def read(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the library, without `trunk`, under our names and in our shapes."""
        return _in_our_shapes({self.to_ours(name): value for name, value in state.items()})

    def check(self, config: ResNeXtConfig) -> None:
        """Refuse a network that the library cannot express.

        Raises:
            CheckpointError: With the reason.
        """
        self._check(self.problem, config)

    def check_readable(self, config: ResNeXtConfig) -> None:
        """Refuse a network whose file of this library cannot be used.

        Raises:
            CheckpointError: With the reason.
        """
        self._check(self.unreadable, config)

    def _check(self, reason: Callable[[ResNeXtConfig], str], config: ResNeXtConfig) -> None:
        try:
            problem = reason(config)
        except ConfigError as error:  # the nearest network that it could have is not valid
            problem = f"does not have this network: {error}"
        if problem:
            raise CheckpointError(f"{self.title} {problem}")

    @cached_property
    def _blocks(self) -> re.Pattern[str]:
        pattern = re.escape(self.block_prefix)
        for part in ("stage", "block"):
            pattern = pattern.replace(re.escape(f"{{{part}}}"), r"(\d{1,4})")
        return re.compile(pattern)

    @cached_property
    def _read(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Rules for reading, outside and inside blocks."""
        network, block = (
            _longest_first(
                (rule.theirs.replace("{n}", letters), rule.ours)
                for rule in rules
                for letters in dict.fromkeys(self.norms.values() if "{n}" in rule.theirs else [""])
            )
            for rules in (self.network, self.block)
        )
        return network, block

    def _written(self, rules: Iterable[NameRule], config: ResNeXtConfig) -> list[tuple[str, str]]:
        """Rules for writing a network."""
        letters = self.norms.get(config.norm, "")
        return _longest_first(
            (rule.ours, rule.theirs.replace("{n}", letters))
            for rule in rules
            if rule.when is None or rule.when(config)
        )

    def _rename(self, name: str, rules: list[tuple[str, str]]) -> str:
        block = _OURS.match(name)
        if block is None:
            return _replaced(name, rules)
        stage = int(block[1]) - 1 + self.first_stage
        prefix = self.block_prefix.format(stage=stage, block=block[2])
        return prefix + _replaced(name[block.end() :], rules)


def label_names(names: object) -> tuple[str, ...]:
    """Names of classes; empty if the value is not a list of names."""
    if not isinstance(names, list | tuple) or not all(isinstance(x, str | int) for x in names):
        return ()
    return tuple(str(name) for name in names)


def _in_our_shapes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under our names, in our shapes.

    Squeezing layers become 1×1 convolutions, shortcuts with pooling count it in every stage, and
    batch norms without counters of batches get counters at zero.
    """
    pooled = any(
        (shortcut := _SHORTCUT.fullmatch(name)) and shortcut[2] == "1" and value.ndim == 4
        for name, value in state.items()
    )
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        shortcut = _SHORTCUT.fullmatch(name)
        first = state.get(f"{shortcut[1]}downsample.0.weight") if shortcut else None
        if pooled and shortcut and first is not None and first.ndim == 4:
            name = f"{shortcut[1]}downsample.{int(shortcut[2]) + 1}.{shortcut[3]}"
        if _SQUEEZE.search(name) and value.ndim == 2:
            value = value[:, :, None, None]
        ours[name] = value
        norm = name.removesuffix("running_var")
        if norm != name and f"{norm}num_batches_tracked" not in state:
            ours[f"{norm}num_batches_tracked"] = torch.tensor(0)
    return ours


def _longest_first(rules: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Rules in the order in which they are tried."""
    return sorted(rules, key=lambda rule: -len(rule[0]))


def _replaced(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for old, new in rules:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _without_empty_pool(name: str, config: ResNeXtConfig) -> str:
    shortcut = _SHORTCUT.fullmatch(name)
    if shortcut is None or not config.avg_down:
        return name
    stage = int(re.findall(r"\d+", shortcut[1])[0])
    if config.stages[stage - 1].stride > 1:
        return name
    return f"{shortcut[1]}downsample.{int(shortcut[2]) - 1}.{shortcut[3]}"
