"""What each epoch came to, for other programs: metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnext.errors import CheckpointError
from resnext.system.atomic import write_bytes_atomically

_TAGS = {
    "loss": "train/loss",
    "rate": "train/rate",
    "images_per_second": "train/images_per_second",
    "val_accuracy": "val/accuracy",
    "val_nll": "val/nll",
    "ema_accuracy": "val/accuracy_of_average",
}


class MetricsLog:
    """Writes rows into the folder of a run.

    Args:
        folder: Of the run.
        tell: Told once of what cannot be written; that is no reason to stop.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self.folder, self._tell = folder, tell
        self._board: Any = None
        self._told = False

    def write(self, rows: list[dict[str, Any]]) -> None:
        """All rows so far, the newest of which is new."""
        path = self.folder / "metrics.jsonl"
        try:
            write_bytes_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
            self._add_events(rows[-1])
        except (OSError, CheckpointError) as error:
            if not self._told:
                self._tell(f"Not saved: {error}")
            self._told = True

    def _add_events(self, row: dict[str, Any]) -> None:
        """To TensorBoard, if it is installed."""
        if self._board is None:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of what TensorBoard itself imports
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
        """Close the events."""
        if self._board:
            self._board.close()


def epoch_line(
    metrics: dict[str, Any], took: dict[str, float], *, epochs: int, left: float, best: bool
) -> str:
    """The line that is shown after an epoch.

    Args:
        metrics: The epoch's row of metrics.jsonl.
        took: Seconds of the epoch, by part; one that took more than 10 % is named.
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
    remaining = f"{left / 60:.0f} min left" if left > 99 else f"{left:.0f} s left"
    return (
        f"epoch {metrics['epoch']:>3}/{epochs}  loss {metrics['loss']:.4f}  {accuracy}  "
        f"{metrics['images_per_second']:,.0f} images/s  {remaining}"
        f"{'  best' if best else ''}{waits}"
    )
