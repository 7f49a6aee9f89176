"""Metrics of each epoch: metrics.jsonl, TensorBoard events and a line on the terminal."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from resnext.errors import CheckpointError
from resnext.system.atomic import write_bytes_atomically
from resnext.system.text import clock_time, duration

_TAGS = {
    "loss": "train/loss",
    "rate": "train/rate",
    "images_per_second": "train/images_per_second",
    "val_accuracy": "val/accuracy",
    "val_nll": "val/nll",
    "ema_accuracy": "val/accuracy_of_average",
}


class MetricsLog:
    """Writes metrics into the folder of a run.

    Args:
        folder: Folder of the run.
        log: Called once if metrics cannot be written; training continues.
    """

    def __init__(self, folder: Path, log: Callable[[str], None]) -> None:
        self.folder, self._log = folder, log
        self._board: Any = None
        self._logged = False

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Replace metrics.jsonl by all rows, and add the last one to TensorBoard."""
        path = self.folder / "metrics.jsonl"
        try:
            write_bytes_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
            self._add_events(rows[-1])
        except (OSError, CheckpointError) as error:
            if not self._logged:
                self._log(f"Not saved: {error}")
            self._logged = True

    def _add_events(self, row: dict[str, Any]) -> None:
        """Add a row to TensorBoard, if it is installed."""
        if self._board is None:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # from TensorBoard's own imports
                    from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._board = False
            else:
                self._board = SummaryWriter(str(self.folder), purge_step=row["epoch"])
        if self._board:
            for name, tag in _TAGS.items():
                if row[name] is not None:
                    self._board.add_scalar(tag, row[name], row["epoch"])
            self._board.flush()

    def close(self) -> None:
        """Close the TensorBoard file. What a full disk did to it was logged."""
        if self._board:
            with suppress(OSError):
                self._board.close()


def epoch_line(
    metrics: dict[str, Any], took: dict[str, float], *, epochs: int, left: float, best: bool
) -> str:
    """The line that is shown after an epoch.

    Args:
        metrics: The epoch's row of metrics.jsonl.
        took: Seconds of the epoch, by activity; one that took more than 10 % is named.
        epochs: Epochs of the run.
        left: Estimated seconds until the end of the run.
        best: Whether the epoch is the best so far.
    """
    accuracy = f"val accuracy {metrics['val_accuracy']:.2%}"
    if metrics["ema_accuracy"] is not None:
        accuracy += f" (average {metrics['ema_accuracy']:.2%})"
    waits = ""
    for part, name in (("waiting for images", "images"), ("checkpoints", "checkpoints")):
        share = took[part] / max(metrics["seconds"], 1e-9)
        if share > 0.1:
            waits += f"  {share:.0%} waiting for {name}"
    remaining = f"{duration(max(left, 0.0))} left"  # a shorter last epoch counts as a whole one
    if left > 99:
        remaining += f", until {clock_time(left)}"
    return (
        f"epoch {metrics['epoch']:>3}/{epochs}  loss {metrics['loss']:.4f}  {accuracy}  "
        f"{metrics['images_per_second']:,.0f} images/s  {remaining}"
        f"{'  best' if best else ''}{waits}"
    )
