"""How a dialect names parameters: one table for each library, read in both directions.

Our own names are torchvision's, so a table lists only what differs. The rows are prefixes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError, ConfigError

_OURS = re.compile(r"layer(\d+)\.(\d+)\.")
_SQUEEZE = re.compile(r"\.se\.fc[12]\.weight$")
_SHORTCUT = re.compile(r"(layer\d+\.\d+\.)downsample\.(\d)\.(.*)")


class NameRule(NamedTuple):
    """One difference: prefixes of names, inside a block or outside of all blocks."""

    ours: str
    theirs: str
    when: Callable[[ResNeXtConfig], bool] | None = None
    """Networks that the row is written for; None for all. All rows are read."""


@dataclass(frozen=True)
class Dialect:
    """What one library calls the parameters of a ResNeXt.

    Args:
        name: As it is asked for: `resnext convert --to NAME`.
        title: The library, for people.
        network: Names outside of blocks.
        block: Names inside a block.
        place: Where blocks are, with `{stage}` and `{block}`.
        first_stage: Number of the first stage.
        trunk: What the names of a whole classifier start with, except for its last layer.
        counters: Whether batch norms count batches.
        linear_squeeze: Whether SE blocks squeeze with linear layers, not 1×1 convolutions.
        empty_pool: Whether an `avg_down` shortcut that does not stride counts its missing pooling.
        problem: What the library cannot express or computes otherwise; empty if nothing.
    """

    name: str
    title: str
    network: tuple[NameRule, ...] = ()
    block: tuple[NameRule, ...] = ()
    place: str = "layer{stage}.{block}."
    first_stage: int = 1
    trunk: str = ""
    counters: bool = True
    linear_squeeze: bool = False
    empty_pool: bool = True
    problem: Callable[[ResNeXtConfig], str] = field(default=lambda config: "")

    @cached_property
    def anchor(self) -> str:
        """A name that every file of this dialect has, whatever stands before it."""
        return self._rename("layer1.0.conv2.weight", self._written(self.block, None))

    def to_ours(self, name: str) -> str:
        """Our name of a parameter; a name that is in no row stays."""
        found = self._blocks.match(name)
        if found is None:
            return _replaced(name, self._read[0])
        stage = int(found[1]) - self.first_stage + 1
        return f"layer{stage}.{found[2]}." + _replaced(name[found.end() :], self._read[1])

    def write(self, state: Mapping[str, Tensor], config: ResNeXtConfig) -> dict[str, Tensor]:
        """Our state dict under the library's names and in its shapes, in the same order.

        Raises:
            CheckpointError: The library has no such network, or computes it otherwise.
        """
        self.check(config)
        network, block = (self._written(rows, config) for rows in (self.network, self.block))
        theirs: dict[str, Tensor] = {}
        for name, value in state.items():
            if name.endswith("num_batches_tracked") and not self.counters:
                continue
            flat = self.linear_squeeze and _SQUEEZE.search(name)
            name = name if self.empty_pool else _without_empty_pool(name, config)
            name = self._rename(name, block if _OURS.match(name) else network)
            name = name if not self.trunk or _is_head(name) else self.trunk + name
            theirs[name] = value.flatten(1) if flat else value
        return theirs

    def read(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the library, without `trunk`, under our names and in our shapes."""
        ours = {self.to_ours(name): value for name, value in state.items()}
        return standardized(ours)

    def check(self, config: ResNeXtConfig) -> None:
        """Refuse a network that the library cannot have.

        Raises:
            CheckpointError: With the reason.
        """
        try:
            problem = self.problem(config)
        except ConfigError as error:  # the nearest that it has is no network
            problem = f"has no such network: {error}"
        if problem:
            raise CheckpointError(f"{self.title} {problem}")

    @cached_property
    def _blocks(self) -> re.Pattern[str]:
        pattern = re.escape(self.place)
        for part in ("stage", "block"):
            pattern = pattern.replace(re.escape(f"{{{part}}}"), r"(\d{1,4})")
        return re.compile(pattern)

    @cached_property
    def _read(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Rows as they are read, outside of blocks and inside: the longest name fits first."""
        network, block = (
            sorted(((row.theirs, row.ours) for row in rows), key=lambda row: -len(row[0]))
            for rows in (self.network, self.block)
        )
        return network, block

    def _written(
        self, rows: Iterable[NameRule], config: ResNeXtConfig | None
    ) -> list[tuple[str, str]]:
        chosen = [r for r in rows if r.when is None or (config is not None and r.when(config))]
        return sorted(((r.ours, r.theirs) for r in chosen), key=lambda row: -len(row[0]))

    def _rename(self, name: str, rows: list[tuple[str, str]]) -> str:
        place = _OURS.match(name)
        if place is None:
            return _replaced(name, rows)
        stage = int(place[1]) - 1 + self.first_stage
        there = self.place.format(stage=stage, block=place[2])
        return there + _replaced(name[place.end() :], rows)


def standardized(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under our names, brought into our shapes.

    Squeezing layers become 1×1 convolutions, shortcuts with pooling count it in every stage, and
    batch norms that count no batches get counters at zero.
    """
    pooled = any(
        (place := _SHORTCUT.fullmatch(name)) and place[2] == "1" and value.ndim == 4
        for name, value in state.items()
    )
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        place = _SHORTCUT.fullmatch(name)
        first = state.get(f"{place[1]}downsample.0.weight") if place else None
        if pooled and place and first is not None and first.ndim == 4:
            name = f"{place[1]}downsample.{int(place[2]) + 1}.{place[3]}"
        if _SQUEEZE.search(name) and value.ndim == 2:
            value = value[:, :, None, None]
        ours[name] = value
        norm = name.removesuffix("running_var")
        if norm != name and f"{norm}num_batches_tracked" not in state:
            ours[f"{norm}num_batches_tracked"] = torch.tensor(0)
    return ours


def norm_rows(rows: Iterable[NameRule], letters: Mapping[str, str]) -> tuple[NameRule, ...]:
    """Rows whose `{n}` stands for the letters that the kind of norm is called by."""

    def written_for(row: NameRule, kinds: list[str]) -> Callable[[ResNeXtConfig], bool]:
        return lambda config: config.norm in kinds and (row.when is None or row.when(config))

    expanded: list[NameRule] = []
    for row in rows:
        if "{n}" not in row.theirs:
            expanded.append(row)
            continue
        for short in dict.fromkeys(letters.values()):
            kinds = [kind for kind, name in letters.items() if name == short]
            expanded.append(
                NameRule(row.ours, row.theirs.replace("{n}", short), written_for(row, kinds))
            )
    return tuple(expanded)


def _replaced(name: str, rows: Iterable[tuple[str, str]]) -> str:
    for old, new in rows:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _is_head(name: str) -> bool:
    return name.startswith(("head.", "fc.", "classifier."))


def _without_empty_pool(name: str, config: ResNeXtConfig) -> str:
    place = _SHORTCUT.fullmatch(name)
    if place is None or not config.avg_down:
        return name
    stage = int(re.findall(r"\d+", place[1])[0])
    if config.stages[stage - 1].stride > 1:
        return name
    return f"{place[1]}downsample.{int(place[2]) - 1}.{place[3]}"
