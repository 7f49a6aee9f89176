"""Drift in the metrics of a server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_network

from resnext import Card, Preprocessing
from resnext.errors import InputError

pytest.importorskip("starlette")
from resnext.serving.service import Service
from resnext.serving.settings import Settings


def test_the_gauge_tells_drift_of_the_newest_answers(tmp_path: Path) -> None:
    """Nothing before there are a thousand; then a p-value, which a new mix of classes lowers."""
    spread = np.linspace(0.5, 1, 1000)
    lines = [f"{i}.jpg,{'ab'[i % 2]},{spread[i]:.4f}" for i in range(1000)]
    reference = tmp_path / "usual.csv"
    reference.write_text("path,label,probability\n" + "\n".join(lines) + "\n")
    network = tiny_network(card=Card(("a", "b"), Preprocessing(size=32, resize=32)))
    metrics = Service(network, Settings(reference=reference)).metrics

    def told() -> dict[str, float]:
        lines = [x for x in metrics.text().splitlines() if x.startswith("resnext_drift")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    for i in range(999):
        metrics.predicted("ab"[i % 2], spread[i])
    assert told() == {}
    metrics.predicted("b", 1.0)
    assert told()["resnext_drift_p"] == 1
    for i in range(1000):
        metrics.predicted("ab"[i % 4 == 0], spread[i])
    after = told()
    assert after["resnext_drift_p"] < 0.01
    assert after['resnext_drift_distance{of="classes"}'] == pytest.approx(0.25)
    assert after['resnext_drift_distance{of="probabilities"}'] == 0


def test_a_reference_that_cannot_be_read_is_said_at_once(tmp_path: Path) -> None:
    """Not after the first thousand answers."""
    network = tiny_network(card=Card(("a", "b"), Preprocessing(size=32, resize=32)))
    with pytest.raises(InputError, match=r"usual\.csv does not exist"):
        Service(network, Settings(reference=tmp_path / "usual.csv"))
