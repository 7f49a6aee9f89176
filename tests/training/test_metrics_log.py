"""The line of an epoch: what it shows, and from when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resnext.training import metrics_log
from resnext.training.metrics_log import MetricsLog, epoch_line

METRICS: dict[str, Any] = {
    "epoch": 3,
    "loss": 0.5,
    "val_accuracy": 0.75,
    "ema_accuracy": None,
    "images_per_second": 1234.5,
    "seconds": 100.0,
}
TOOK = {"waiting for images": 10.0, "checkpoints": 10.0}


def line(left: float = 50.0, best: bool = False, took: Any = TOOK, **changes: Any) -> str:
    """The line of one epoch of ten."""
    return epoch_line(METRICS | changes, took, epochs=10, left=left, best=best)


def test_a_plain_epoch() -> None:
    """Programs and people read this line, so it stays as it is."""
    wanted = "epoch   3/10  loss 0.5000  val accuracy 75.00%  1,234 images/s  50 s left"
    assert line() == wanted
    assert line(best=True) == f"{wanted}  best"
    averaged = line(ema_accuracy=0.8)
    assert averaged == wanted.replace("75.00%", "75.00% (average 80.00%)")


@pytest.mark.parametrize(
    ("left", "shown"),
    [
        (-0.4, "0 s left"),
        (0.0, "0 s left"),
        (99.0, "99 s left"),
        (120.0, "2 min left, until 14:20"),
    ],
)
def test_the_time_that_is_left(left: float, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 99 seconds are shown as seconds, more as minutes and with the time of the end."""
    monkeypatch.setattr(metrics_log, "clock_time", lambda _: "14:20")
    assert line(left=left).endswith(f"  {shown}")


def test_waiting_is_shown_above_a_tenth() -> None:
    """It tells users to raise --workers, so it must not show on every epoch."""
    assert "waiting" not in line()
    assert line(took=TOOK | {"waiting for images": 11.0}).endswith("  11% waiting for images")
    assert line(took=TOOK | {"checkpoints": 30.0}).endswith("  30% waiting for checkpoints")


def test_a_full_disk_ends_no_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard's file raised its error again when it was closed, behind the last epoch."""
    writer = pytest.importorskip("tensorboard.summary.writer.record_writer")
    lines: list[str] = []
    row = METRICS | {"val_nll": 1.0, "rate": 0.1}
    log = MetricsLog(tmp_path, lines.append)
    log.write([row])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.RecordWriter, "flush", full)
    for _ in range(2):
        log.write([row])
    log.close()
    assert lines == ["Not saved: [Errno 28] No space left on device"]
