"""When a loss counts as diverged, and the message about it."""

from __future__ import annotations

import math
from collections import deque

from torch import Tensor, nn

from resnext.training.run_state import TrainState

_WINDOW = 20  # steps whose mean loss is compared with that of the first steps
_LIMIT = 1000  # no single step's loss may reach this multiple of the loss of uniform guessing


class Diverged(Exception):
    """The loss is NaN or infinite, or far above where it began."""


class LossMonitor:
    """Collects the loss of each step and detects divergence.

    Args:
        num_classes: Sets the loss of uniform guessing, which the limits are multiples of.
    """

    def __init__(self, num_classes: int) -> None:
        self.baseline = max(math.log(num_classes), 1.0)  # about the loss of uniform guessing
        self.recent: deque[float] = deque(maxlen=_WINDOW)
        self.pending: list[Tensor] = []  # still on the device

    def check(self, state: TrainState) -> float | None:
        """Add the pending losses to `state`; the loss that is too high, None if all are fine."""
        values = [float(x) for x in self.pending]
        self.pending.clear()
        for value in values:
            state.total += value
            self.recent.append(value)
            if not value < _LIMIT * self.baseline:  # true for NaN as well
                return value
        if len(self.recent) == _WINDOW:
            mean = sum(self.recent) / _WINDOW
            if state.first is None:
                state.first = mean
            if mean > 10 * max(state.first, self.baseline) + 10:
                return mean
        return None

    def describe(self, value: float, state: TrainState, rate: float, network: nn.Module) -> str:
        """Where the loss diverged, the learning rate, the last losses, and the first bad weight."""
        before = ", ".join(f"{x:.3g}" for x in list(self.recent)[-4:-1])
        text = (
            f"The loss became {value:.4g} in epoch {state.epoch}, step {state.step}, "
            f"at rate {rate:.3g}"
        )
        text += f", after {before}" if before else ""
        bad = (n for n, p in network.named_parameters() if not p.isfinite().all())
        if name := next(bad, ""):
            text += f"; {name} contains NaN or infinity"
        return f"{text}."

    def reset(self) -> None:
        """Forget all losses, as after going back to a checkpoint."""
        self.pending.clear()
        self.recent.clear()
