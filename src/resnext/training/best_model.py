"""The model file of a run: written whenever an epoch is the best so far."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from resnext.card import Card
from resnext.evaluation.metrics import Evaluation
from resnext.network import ResNeXt
from resnext.training.checkpoint import CheckpointWriter, snapshot
from resnext.training.run_state import Clock, RunSettings, TrainState
from resnext.weights.save import save


class BestModel:
    """Writes the model file of a run, in the background.

    Args:
        settings: Preprocessing and provenance for the card, and the file.
        labels: Names of the classes.
        writer: Writes files; None in all processes but the first.
        clock: Measures the time that writing takes.
    """

    def __init__(
        self,
        settings: RunSettings,
        labels: Sequence[str],
        writer: CheckpointWriter | None,
        clock: Clock,
    ) -> None:
        self.settings, self.labels = settings, tuple(labels)
        self.writer, self.clock = writer, clock

    def offer(self, state: TrainState, candidates: Sequence[tuple[Evaluation, ResNeXt]]) -> bool:
        """Write the best candidate of an epoch if no earlier one was as good.

        Args:
            state: The run; the new best result is recorded in it.
            candidates: The network with its result and, if there is one, the average of its weights
                with its own, which is preferred if both are equally good.

        Returns:
            Whether it was written.
        """
        result, network = max(reversed(candidates), key=lambda candidate: _rank(candidate[0]))
        best = state.best
        if best is not None and _rank(result) <= (best["accuracy"], -best["nll"]):
            return False
        averaged = network is not candidates[0][1]
        self.record(state, state.epoch, result, network, averaged=averaged)
        return True

    def record(
        self,
        state: TrainState,
        epoch: int,
        result: Evaluation,
        network: ResNeXt,
        *,
        averaged: bool = False,
    ) -> None:
        """Write a network as the best one so far."""
        state.best = {
            "epoch": epoch,
            "accuracy": result.accuracy,
            "nll": result.nll,
            "averaged": averaged,
        }
        self.write(state, network, result.metrics("val"))

    def write(
        self, state: TrainState, network: ResNeXt, metrics: dict[str, float] | None = None
    ) -> None:
        """Write a network; without metrics, it is one that has not been validated."""
        if not self.writer:
            return
        with self.clock.measure("checkpoints"):
            with torch.device("meta"):
                copy = ResNeXt(network.config)
            copy.load_state_dict(snapshot(network.state_dict()), assign=True)
            best = state.best or {"epoch": state.epoch, "averaged": False}
            copy.card = Card(
                labels=self.labels,
                preprocessing=self.settings.preprocessing,
                metrics=metrics or {},
                provenance={
                    **self.settings.provenance,
                    "epoch": best["epoch"],
                    "averaged_weights": best["averaged"],
                    "complete_epoch": metrics is not None,
                    **({"minutes": state.choice} if state.choice else {}),
                },
            )
            self.writer.model(lambda: save(copy, self.settings.out))


def _rank(result: Evaluation) -> tuple[float, float]:
    """A higher accuracy is better; of equal ones, a lower negative log-likelihood."""
    return result.accuracy, -result.nll
