"""Maps of the frozen stages, which do not change: computed once for a few views of each image.

With `cached_views=V`, epoch `e` shows each image in its view number `(e - 1) % V`. The maps of the
first V epochs are kept in memory; later epochs take them from there, and compute those of images
that were not drawn then. Every map is computed in the batch of its epoch, also again after a
resume, so that a resumed run sees the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from resnext.network import ResNeXt
from resnext.system.limits import total_memory

_SHARE = 0.5
"""Part of the memory that maps may take."""


@torch.no_grad()
def frozen_maps(
    network: ResNeXt, stages: int, x: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n _ _ _"]:
    """The maps that the first stage that learns sees.

    Args:
        network: The network.
        stages: How many stages are frozen.
        x: Images.
    """
    x = network.enter(x)
    for stage in network.stages[:stages]:
        x = stage(x)
    return x


class LearningPart(nn.Module):
    """What comes after the frozen part: maps to logits.

    Args:
        network: The network; its modules are shared.
        stages: How many stages are frozen.
    """

    def __init__(self, network: ResNeXt, stages: int) -> None:
        super().__init__()
        self.network, self.stages = network, stages

    def forward(self, x: Float[Tensor, "n _ _ _"]) -> Float[Tensor, "n k"]:
        """Logits of each class."""
        network = self.network
        for stage in network.stages[self.stages :]:
            x = stage(x)
        return network.fc(network.dropout(network.avgpool(x).flatten(1)))


class FrozenMaps:
    """The maps that are kept, in the processor's memory.

    Args:
        views: Views per image.
        images: Number of training images.
    """

    def __init__(self, views: int, images: int) -> None:
        self.views, self.images = views, images
        self.known = np.zeros((views, images), bool)
        self._maps: Tensor | None = None
        self._targets = torch.zeros((views, images), dtype=torch.int64)

    def store(
        self,
        view: int,
        indices: Int[np.ndarray, " n"],
        maps: Tensor,
        targets: Tensor,
        bad: Sequence[int] = (),
    ) -> None:
        """Keep the maps of some images, as far as memory allows.

        Args:
            view: Number of the view.
            indices: The images.
            maps: Their maps `(n, c, h, w)`.
            targets: Their classes.
            bad: Those that could not be read; the maps are of others, and are not kept.
        """
        if self._maps is None:
            each = maps[0].numel() * maps.element_size() * self.views
            fits = min(int(_SHARE * (total_memory() or 0) / each), self.images)
            self._maps = torch.empty((self.views, fits, *maps.shape[1:]), dtype=maps.dtype)
        kept = (indices < self._maps.shape[1]) & ~np.isin(indices, bad)
        rows, at = torch.from_numpy(np.flatnonzero(kept)), torch.from_numpy(indices[kept])
        self._maps[view, at] = maps.cpu()[rows]
        self._targets[view, at] = targets.cpu()[rows]
        self.known[view, indices[kept]] = True

    def join(
        self, view: int, indices: Int[np.ndarray, " n"], maps: Tensor | None, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Maps and classes of a batch: those that are kept, and computed ones for the others.

        Args:
            view: Number of the view.
            indices: The images.
            maps: Maps of the images that are not kept; None if all are.
            targets: Classes of all images; those of kept ones are not used.
        """
        assert self._maps is not None, "the first epochs stored some"
        known = torch.from_numpy(self.known[view, indices])
        at = torch.from_numpy(indices)[known]
        joined = self._maps.new_empty((len(indices), *self._maps.shape[2:]))
        joined = joined.contiguous(memory_format=torch.channels_last)
        joined[known] = self._maps[view, at]
        if maps is not None:
            joined[~known] = maps.cpu()
        targets = targets.clone()
        targets[known] = self._targets[view, at]
        return joined, targets
