"""The numbers of a benchmark: rows, ratios and the table."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

OURS = "resnext"
"""The name of this library's rows."""


@dataclass(frozen=True)
class BenchmarkRow:
    """One contender with one precision and batch size.

    Args:
        who: "resnext" or the name of another library.
        precision: Compute precision.
        batch: Batch size.
        images_per_second: Mean of the fastest round; 0 if the contender could not run.
        p50: Median latency of a batch, milliseconds.
        p99: 99th percentile of the latency, milliseconds.
        fraction: Arithmetic per second, as a fraction of the precision's peak.
        memory: Peak memory of a process that runs nothing else, MiB.
        difference: Largest difference from the network's logits, relative to the largest logit.
        how: The fastest settings.
        note: Why the row does not count; empty if it does.
    """

    who: str
    precision: str
    batch: int
    images_per_second: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    fraction: float | None = None
    memory: float | None = None
    difference: float | None = None
    how: str = ""
    note: str = ""


class SpeedRatio(NamedTuple):
    """Speed of resnext as a multiple of the best peer's, for one batch size and precision."""

    batch: int
    precision: str
    peer: str
    times: float


@dataclass(frozen=True)
class Benchmark:
    """Everything that `bench` measured.

    Args:
        machine: Name of the CPU.
        threads: Threads that every contender computes with.
        versions: Versions of the libraries.
        name: The network or file.
        size: Image size, pixels.
        peaks: GFLOP/s of a product of large matrices, by precision.
        rows: The contenders.
    """

    machine: str
    threads: int
    versions: dict[str, str]
    name: str
    size: int
    peaks: dict[str, float]
    rows: tuple[BenchmarkRow, ...]

    def fastest(
        self, batch: int, precision: str | None = None, who: str = ""
    ) -> BenchmarkRow | None:
        """The fastest row that counts; None without one.

        Args:
            batch: The batch size.
            precision: The precision; None for any.
            who: The contender; empty for all peers.
        """
        rows = [
            row
            for row in self.rows
            if not row.note
            and row.batch == batch
            and precision in (None, row.precision)
            and (row.who == who if who else row.who != OURS)
        ]
        return max(rows, key=lambda row: row.images_per_second, default=None)

    def ratios(self) -> tuple[SpeedRatio, ...]:
        """Speed of resnext relative to the best peer, by batch size and precision of both."""
        ratios: list[SpeedRatio] = []
        for row in self.rows:
            peer = self.fastest(row.batch, row.precision)
            if row.who == OURS and not row.note and peer is not None:
                times = row.images_per_second / peer.images_per_second
                ratios.append(SpeedRatio(row.batch, row.precision, peer.who, times))
        return tuple(ratios)

    def to_dict(self) -> dict[str, Any]:
        """Everything, including ratios, as JSON values."""
        return {**asdict(self), "ratios": [ratio._asdict() for ratio in self.ratios()]}

    def table(self) -> str:
        """The rows as text, fastest first, as wide as the terminal."""
        from rich.console import Console
        from rich.table import Column, Table

        from resnext.system.terminal import columns

        names = ("Batch", "Images/s", "Ours is", "p50 ms", "p99 ms", "Of peak", "MiB")
        numbers = [Column(name, justify="right", no_wrap=True) for name in names]
        texts = [Column(name, no_wrap=True) for name in ("Who", "Precision")]
        table = Table(*texts, *numbers, Column("", overflow="fold"), box=None, pad_edge=False)
        for row in sorted(self.rows, key=lambda row: (row.batch, -row.images_per_second)):
            table.add_row(
                row.who, row.precision, str(row.batch), *self._numbers(row), _remarks(row)
            )
        text = io.StringIO()
        console = Console(file=text, width=columns(), no_color=True, highlight=False, markup=False)
        peaks = ", ".join(f"{kind} {peak:,.0f} GFLOP/s" for kind, peak in self.peaks.items())
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        console.print(f"{self.name}, {self.size}×{self.size} pixels")
        console.print(f"{self.machine}, {self.threads} threads; matrix product: {peaks}")
        console.print(f"{versions}\n")
        console.print(table)
        console.print()
        for batch, precision, peer, times in self.ratios():
            console.print(f"Batch {batch}, {precision}: {times:.2f}× the best peer, {peer}")
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def _numbers(self, row: BenchmarkRow) -> tuple[str, ...]:
        """The cells from images per second to memory."""
        if not row.images_per_second:
            return ("–",) * 6
        ours = self.fastest(row.batch, row.precision, OURS)
        times = ours.images_per_second / row.images_per_second if ours and ours != row else None
        return (
            f"{row.images_per_second:,.1f}",
            "" if times is None else f"{times:.2f}×",
            f"{row.p50:,.2f}",
            f"{row.p99:,.2f}",
            "" if row.fraction is None else f"{row.fraction:.0%}",
            "" if row.memory is None else f"{row.memory:,.0f}",
        )


def _remarks(row: BenchmarkRow) -> str:
    """Settings and note, as far as they are set."""
    return "; ".join(text for text in (row.how, row.note) if text)
