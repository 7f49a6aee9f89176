"""The index that a run writes next to its model at the end, if that is cheap."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from resnext.data.dataset import ImageSet, Splits
from resnext.errors import ResNeXtError
from resnext.inference.engines.torch import TorchRunner
from resnext.neighbours.build import build_index, decoded
from resnext.neighbours.index import Index, open_index
from resnext.neighbours.model_files import index_path, model_digest
from resnext.network import ResNeXt
from resnext.system.progress import Reporter
from resnext.system.text import counted
from resnext.training.run_state import TrainState
from resnext.weights.save import save

_MOST_IMAGES = 100_000
_FREE = 20.0  # seconds that an index may take after any run
_SHARE = 0.05  # of the run's time that it may take after a long one


def index_run(
    network: ResNeXt, out: Path, splits: Splits, state: TrainState, progress: Reporter
) -> Index | None:
    """Index the training images, and write the threshold of unknown images into the card.

    A run is not failed by its index: whatever prevents it is reported.

    Args:
        network: The model, as it was saved.
        out: The model file.
        splits: The images.
        state: How long the run took, and how long it may take.
        progress: Shows the progress.

    Returns:
        The index; None if there is none.
    """
    runner, train, val = TorchRunner(network), splits.train, splits.val
    hint = f"resnext index {train.name} --model {out} writes it."
    try:
        seconds = _seconds(runner, val, len(train) + len(val))
        if len(train) > _MOST_IMAGES or seconds > _limit(state):
            progress.line(f"{counted(len(train), 'image')} were not indexed, to save time. {hint}")
            return None
        digest = model_digest(out)
        score = build_index(
            runner, train, index_path(out), model=digest, progress=progress, val=val
        )
        assert network.card is not None  # every run gives its model one
        limit = (None, 0.0) if score is None else (score.threshold, score.weight)
        network.card = replace(network.card, unknown_threshold=limit[0], unknown_weight=limit[1])
        save(network, out)
        return open_index(out, runner=runner)
    except ResNeXtError as error:
        progress.line(f"There is no index of the training images: {error} {hint}")
        return None


def _limit(state: TrainState) -> float:
    """Seconds that the index may take: a small share of the run, and of what is left of it."""
    spent = sum(state.seconds.values())
    limit = max(_FREE, _SHARE * spent)
    return limit if state.budget is None else min(limit, max(state.budget - spent, state.kept))


def _seconds(runner: TorchRunner, images: ImageSet, count: int) -> float:
    """Estimated seconds for a number of images, from the second of two batches."""
    assert runner.card is not None
    some = images.select(range(min(2 * runner.batch, len(images))), images.name)
    durations: Sequence[float] = []
    batches = decoded(some, runner.card.preprocessing, 0, runner.batch)
    began = time.perf_counter()
    for batch in batches:
        x = [one[0] for one in batch if one is not None]
        if x:
            runner.pixels(np.stack(x))
            durations = [*durations, (time.perf_counter() - began) / len(x)]
        began = time.perf_counter()
    return count * min(durations, default=0.0)
