"""Counters, gauges and histograms in Prometheus's text format, for one process."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

from resnext.prediction.drift import Drift, DriftMonitor

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)

COUNTERS = {
    "resnext_requests_total": "Requests by route and status code.",
    "resnext_images_total": "Images by outcome: answered, damaged, failed or dropped.",
    "resnext_dropped_total": "Images that were not computed, by reason: left or deadline.",
    "resnext_predictions_total": "Answers by most likely class; rare classes are counted as other.",
    "resnext_unsure_total": "Answers below the model's threshold.",
    "resnext_unknown_total": "Images that are like none of the classes.",
    "resnext_reloads_total": "Attempts to replace the model, by outcome: done or refused.",
}
HISTOGRAMS = {
    "resnext_stage_seconds": ("Time by stage: read, decode, queue, engine, whole.", SECONDS),
    "resnext_batch_images": ("Images in a batch.", SIZES),
}
_LABELS = 100  # classes that are counted apart
_OTHER = "other"

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """All numbers of a server. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[Labels, float]] = {name: {} for name in COUNTERS}
        self._buckets: dict[str, dict[Labels, list[float]]] = {name: {} for name in HISTOGRAMS}
        self._gauges: dict[str, tuple[str, Callable[[], dict[Labels, float]]]] = {}
        self._monitor: DriftMonitor | None = None
        self.gauge("process_resident_memory_bytes", "Memory in use.", _memory)
        self.gauge("process_cpu_seconds_total", "Time of all cores together.", time.process_time)
        self.gauge("process_open_fds", "Open files and sockets.", _descriptors)

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        key = tuple(labels.items())
        with self._lock:
            counts = self._counts[name]
            counts[key] = counts.get(key, 0) + amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram."""
        key, bounds = tuple(labels.items()), HISTOGRAMS[name][1]
        with self._lock:
            buckets = self._buckets[name].get(key)
            if buckets is None:  # one more for larger values, and one for their sum
                buckets = self._buckets[name][key] = [0.0] * (len(bounds) + 2)
            buckets[bisect_left(bounds, value)] += 1
            buckets[-1] += value

    def predicted(self, label: str, probability: float) -> None:
        """Count an answer by its class."""
        if self._monitor is not None:
            self._monitor.add(label, probability)
        with self._lock:
            counts = self._counts["resnext_predictions_total"]
            key = (("label", label),)
            if key not in counts and len(counts) >= _LABELS:
                key = (("label", _OTHER),)
            counts[key] = counts.get(key, 0) + 1

    def gauge(self, name: str, help: str, value: Callable[[], float | dict[Labels, float]]) -> None:
        """Add a number that is asked for whenever the metrics are read.

        Args:
            name: Its name.
            help: What it is.
            value: Returns the number, or numbers by labels.
        """

        def values() -> dict[Labels, float]:
            found = value()
            return found if isinstance(found, dict) else {(): found}

        self._gauges[name] = help, values

    def watch_drift(self, monitor: DriftMonitor) -> None:
        """Compare the newest answers with those of a reference."""
        self._monitor = monitor

        def measured(values: Callable[[Drift], dict[Labels, float]]) -> dict[Labels, float]:
            drift = monitor.drift()
            return {} if drift is None else values(drift)

        self.gauge(
            "resnext_drift_p",
            "Probability of answers this unlike the reference without drift.",
            lambda: measured(lambda drift: {(): drift.p}),
        )
        self.gauge(
            "resnext_drift_distance",
            "How far the newest answers are from the reference, from 0 to 1.",
            lambda: measured(
                lambda drift: {
                    (("of", "classes"),): drift.label_distance,
                    (("of", "probabilities"),): drift.probability_distance,
                }
            ),
        )

    def text(self) -> str:
        """All metrics, as Prometheus reads them."""
        lines: list[str] = []
        for name, (text, values) in self._gauges.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += _head(name, text, kind)
            lines += [_line(name, labels, value) for labels, value in values().items()]
        with self._lock:
            for name, text in COUNTERS.items():
                lines += _head(name, text, "counter")
                lines += [_line(name, *one) for one in self._counts[name].items()]
            for name, (text, bounds) in HISTOGRAMS.items():
                lines += _head(name, text, "histogram")
                for labels, buckets in self._buckets[name].items():
                    lines += _histogram(name, labels, bounds, buckets)
        return "\n".join(lines) + "\n"


def _head(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _histogram(
    name: str, labels: Labels, bounds: tuple[float, ...], buckets: list[float]
) -> list[str]:
    lines, total = [], 0.0
    for bound, count in zip((*map(str, bounds), "+Inf"), buckets[:-1], strict=True):
        total += count
        lines.append(_line(f"{name}_bucket", (*labels, ("le", bound)), total))
    return [
        *lines,
        _line(f"{name}_sum", labels, buckets[-1]),
        _line(f"{name}_count", labels, total),
    ]


def _line(name: str, labels: Labels, value: float) -> str:
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"{name}{{{pairs}}} {value:.15g}" if pairs else f"{name} {value:.15g}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _memory() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def _descriptors() -> float:
    try:
        return float(len(os.listdir("/proc/self/fd")))  # noqa: PTH208 - faster, and only counted
    except OSError:
        return 0.0
