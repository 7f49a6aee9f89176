"""Whether a new version of a model may take the place of the present one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from resnext.calibration import mcnemar
from resnext.data.dataset import ImageSet
from resnext.data.decoding import pixels, resize_and_crop
from resnext.data.open import open_for_evaluation
from resnext.errors import CheckpointError, DataError
from resnext.serving.model import Model

_SIGNIFICANT = 0.05  # as for `compare`


def check_replacement(old: Model, new: Model, gate: Path | None) -> None:
    """Refuse a model with other labels, or one that is worse.

    Args:
        old: The model in use.
        new: The model that would replace it.
        gate: Labelled images; None to compare the labels only. As for `compare`, the new model is
            worse if it loses accuracy and the loss is significant in McNemar's exact test.

    Raises:
        CheckpointError: It must not replace the old one.
        DataError: The images cannot be used.
    """
    if new.labels != old.labels:
        differ = sorted({*old.labels} ^ {*new.labels})
        what = f"they differ in {', '.join(differ[:5])}" if differ else "their order differs"
        raise CheckpointError(
            f"The new file has other labels: {what}. Clients rely on them: start a new server."
        )
    if gate is None:
        return
    data = open_gate(old, gate)
    before, after = (_right(model, data) for model in (old, new))
    lost, gained, p = mcnemar(before, after)
    if lost > gained and p < _SIGNIFICANT:
        loss = 100 * (lost - gained) / len(before)
        raise CheckpointError(
            f"The new file is worse: it loses {loss:.2f} points of accuracy on {len(before):,} "
            f"images of {gate} (p = {p:.2g})."
        )


def open_gate(model: Model, gate: Path) -> ImageSet:
    """The labelled images that a new version is compared on.

    Args:
        model: The model in use. Images that it was trained on are left out.
        gate: The images, as for `compare`.

    Raises:
        DataError: They cannot be used.
    """
    return open_for_evaluation(gate, model.labels, model.card.provenance)


def _right(model: Model, data: ImageSet) -> np.ndarray:
    """Whether the model is right about each image."""
    rule, found = model.card.preprocessing, list[np.ndarray]()

    def images() -> Iterator[np.ndarray]:
        for i in range(len(data)):
            try:
                image = data.open(i, rule.colour, rule.value_range)
            except DataError as error:
                raise DataError(f"--gate has an image that cannot be read: {error}") from error
            yield pixels(resize_and_crop(image, rule), rule)

    all_images = images()
    while batch := [*islice(all_images, model.batch)]:
        found.append(model.outputs(np.stack(batch))[0].argmax(1))
    return np.concatenate(found) == np.asarray(data.targets)
