"""Logits and metrics of the validation images, computed by all processes together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from resnext.data.dataset import ImageSet
from resnext.data.loader import eval_loader
from resnext.errors import DataError
from resnext.evaluation.classification import collect_outputs, merge_outputs
from resnext.evaluation.label_doubts import Opinions
from resnext.evaluation.metrics import EvalOutputs, Evaluation, score
from resnext.inference.fused import quick_classifier
from resnext.network import ResNeXt
from resnext.system.progress import Reporter
from resnext.system.text import counted
from resnext.training.distributed import ProcessGroup
from resnext.training.run_state import RunSettings


class FirstResult(NamedTuple):
    """How a network does before its first step, if it starts with a classifier of its classes."""

    evaluation: Evaluation
    """Its result on the validation images: the best one until an epoch is better."""
    opinions: Opinions | None
    """What cross-validation says about labels; None if the classifier is that of the weights."""


@dataclass
class Validator:
    """Runs networks on the validation images of a run.

    Args:
        images: The validation images.
        settings: Preprocessing, batch size, precision and device.
        group: The processes, which share the images.
        progress: Shows the progress.
        check_stop: Called before each batch, by all processes together; raises to interrupt.
        reported: Number of unreadable images that was last reported.
    """

    images: ImageSet
    settings: RunSettings
    group: ProcessGroup
    progress: Reporter
    check_stop: Callable[[], None]
    reported: int = 0

    def evaluate(self, network: ResNeXt, title: str) -> Evaluation:
        """Metrics of a network, which is put in evaluation mode.

        Raises:
            DataError: More than 5 % of the images have become unreadable.
        """
        network.eval()
        result = score(self.outputs(network, title), self.images)
        lost = len(self.images) - result.count
        if lost > 0.05 * len(self.images):
            raise DataError(
                f"{lost} of {len(self.images)} validation images cannot be read any more, "
                f"such as {result.skipped[0]}; that is more than 5 %."
            )
        if lost > self.reported and self.group.first:
            self.reported = lost
            self.progress.line(
                f"{counted(lost, 'validation image')} cannot be read, such as {result.skipped[0]}."
            )
        return result

    def outputs(self, network: ResNeXt, title: str) -> EvalOutputs:
        """Logits of all images, each computed by exactly one process."""
        group, settings = self.group, self.settings
        if group.world > 1 and not settings.sync_norms:
            group.broadcast_tensors(list(network.buffers()))
        indices = range(group.rank, len(self.images), group.world)
        self.progress.start(title, len(indices))
        batch_size = 2 * settings.recipe.batch_size // (group.world * settings.recipe.accumulate)
        together = -(-(len(self.images) // group.world) // batch_size)  # batches of every process

        def check_stop(number: int) -> None:
            if number < together:
                self.check_stop()

        loader = eval_loader(
            self.images,
            settings.preprocessing,
            batch_size=batch_size,
            workers=settings.workers,
            indices=indices,
            check_stop=check_stop,
        )
        own = collect_outputs(
            quick_classifier(network, settings.device, getattr(torch, settings.execution.dtype)),
            loader,
            settings.device,
            self.progress.advance,
        )
        return merge_outputs(group.gather(own))
