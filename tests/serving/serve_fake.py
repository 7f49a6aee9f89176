"""A server of a fake model in a process of its own: its life is tested with real signals.

Arguments: a file whose text decides about the model, and settings as JSON. While a file `gate`
exists beside it, the engine waits.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from fakes import CARD, Fake

from resnext.errors import CheckpointError
from resnext.serving import run
from resnext.serving.service import Service
from resnext.serving.settings import Settings


class Waiting(Fake):
    """A model whose engine waits while a file exists."""

    def __init__(self, file: Path) -> None:
        text = file.read_text()
        if "damaged" in text:
            raise CheckpointError(f"{file} is damaged.")
        labels = (*CARD.labels[:-1], "new") if "relabelled" in text else CARD.labels
        super().__init__(replace(CARD, labels=labels))
        self._gate, self._worse = file.with_name("gate"), "worse" in text

    def pixels(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Fake`."""
        while self._gate.exists() and x.any():  # not while it is warmed
            time.sleep(0.01)
        logits, embeddings = super().pixels(x)
        return logits * (-1 if self._worse else 1), embeddings


def main() -> None:
    """Serve until a signal ends it."""
    file, settings = Path(sys.argv[1]), Settings(**json.loads(sys.argv[2]))
    if settings.gate is not None:
        settings = replace(settings, gate=Path(settings.gate))
    sockets = run.passed_sockets() or [run.listen("127.0.0.1", 0)]
    opens = mock.patch(
        "resnext.serving.model.open_runner", side_effect=lambda *_, **__: Waiting(file)
    )
    runner = asyncio.Runner(loop_factory=run.new_event_loop)
    with run.logging_to_stderr(), opens, mock.patch.object(run, "_POLL", 0.05), runner:
        runner.run(run.run(Service(file, settings), sockets))
    print("ended", "torch" in sys.modules, flush=True)


if __name__ == "__main__":
    main()
