"""The map of the images in the report of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from resnext.card import Preprocessing
from resnext.data.dataset import ImageSet
from resnext.data.loader import eval_loader
from resnext.inference.engines.torch import evaluating
from resnext.network import ResNeXt
from resnext.review.layout import arrange, installed
from resnext.review.map import Points, map_fragment, thumbnail
from resnext.training.report.examples import denormalize
from resnext.training.run_state import TrainState

_FEWEST, _MOST = 100, 5_000  # images on a map
_LANDMARKS = 1_000  # images that t-SNE arranges, in a few seconds
_SHORT = 60.0  # seconds of a run below which the map would take a large part of the time
ARRANGING = 20.0  # seconds to arrange points and thumbnails


def worthwhile(parts: Mapping[str, ImageSet], state: TrainState, indexing: float = 0.0) -> bool:
    """Whether the report has a map: for few enough images, if there is time for it.

    Args:
        parts: The images.
        state: How long the run took, and how long it may take.
        indexing: Seconds that the index took after it.
    """
    count, seconds = sum(map(len, parts.values())), sum(state.seconds.values())
    if not mappable(count) or seconds < _SHORT:
        return False
    if state.budget is None:
        return True
    passes = max(len(state.history), 1)
    look = state.seconds["validating"] / passes / max(len(parts["val"]), 1)  # at one image
    return max(state.budget - seconds, state.kept) - indexing > count * look + ARRANGING


def mappable(count: int) -> bool:
    """Whether so many images can have a map, if there is time for it."""
    return _FEWEST <= count <= _MOST and installed()


@torch.no_grad()
def image_map(
    network: ResNeXt,
    parts: Mapping[str, ImageSet],
    preprocessing: Preprocessing,
    temperature: float,
) -> str:
    """The map as a part of a page.

    Args:
        network: The classifier; its training mode is restored.
        parts: The images by split.
        preprocessing: How images become input.
        temperature: Divisor of the logits.
    """
    weight = network.fc.weight
    embeddings: list[torch.Tensor] = []
    thumbnails, names, labels, split = [], [], [], []
    with evaluating(network):
        for number, images in enumerate(parts.values()):
            loader = eval_loader(images, preprocessing, batch_size=64, workers=0)
            for x, targets in loader:
                embeddings.append(network.embed(x.to(weight.device, weight.dtype)))
                thumbnails += [thumbnail(denormalize(one, preprocessing)) for one in x]
                labels += targets.tolist()
            names += [images.title(index) for index in loader.done]
            split += [number] * len(loader.done)
        whole = torch.cat(embeddings)
        logits = network.fc(whole).float()
    confidence, predicted = (logits / temperature).softmax(1).cpu().max(1)
    points = Points(
        places=arrange(whole.float().cpu().numpy(), landmarks=_LANDMARKS),
        names=names,
        classes=parts["train"].labels,
        labels=np.array(labels),
        predicted=predicted.numpy(),
        confidence=confidence.numpy(),
        splits=[*parts],
        split=np.array(split),
        thumbnails=thumbnails,
        files=isinstance(parts["train"].images[0], Path),
    )
    return map_fragment(points)
