"""The table of a plan's measurements."""

from __future__ import annotations

import pytest

from resnext.inference.engines.base import EngineConfig
from resnext.inference.plan import Measurement, Plan
from resnext.inference.plan_table import plan_table


def table(*rows: Measurement) -> Plan:
    """A plan with these rows and that of the unmodified network."""
    return Plan(
        model="0" * 64,
        form=EngineConfig("torch"),
        batch=4,
        size=12,
        device="cpu",
        request="",
        machine="[bold]Abacus[/] 3000, 2 threads",
        version="1",
        rows=(*rows, Measurement(None, 2.0)),
    )


def test_rows_without_a_speed() -> None:
    """Division by zero broke the whole table."""
    text = plan_table(
        table(Measurement(EngineConfig("openvino", "bf16"), 0.0, "failed: no kernel"))
    )
    assert "OpenVINO" in text
    assert "–" in text
    assert "failed: no kernel" in text


def test_messages_of_engines_are_not_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets in an engine's message are printed, and there are no escape codes."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = plan_table(
        table(
            Measurement(EngineConfig("openvino"), 8.0, "failed: [cpu] in [/core]"),
            Measurement(EngineConfig("torch", piece=4), 4.0, "chosen", 1e-7, 1.0),
        )
    )
    assert "failed: [cpu] in [/core]" in text
    assert "[bold]Abacus[/] 3000" in text
    assert "\x1b" not in text


def test_numbers_of_the_table() -> None:
    """Images per second, the ratio to the unmodified network, milliseconds per batch."""
    text = plan_table(
        table(Measurement(EngineConfig("onnxruntime", "fp32", 2, 8, 16), 1234.5, "", 2.5e-7, 1.0))
    )
    (line,) = [line for line in text.splitlines() if "ONNX" in line]
    wanted = "ONNX Runtime fp32 8 × 2 images, groups of 16 1,234.5 617.25 3.2 ±2.5e-07"
    assert " ".join(line.split()) == wanted
