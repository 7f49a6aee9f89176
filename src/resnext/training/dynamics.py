"""What a run says about the label of each training image while it learns: training dynamics.

A network learns what its images have in common before it memorizes single ones. So an image whose
label is wrong is given its true class for some epochs (arXiv:2001.10528). This is recorded from the
logits of the training steps, without another pass: a few numbers per image, however many classes.
Fine-tuning that starts from a fitted classifier also has the probabilities of its cross-validation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from resnext.evaluation.label_doubts import Opinions
from resnext.training.distributed import ProcessGroup

_NONE = -1.0  # in place of a probability
_CLEAR = 0.75  # least share of an image's own label in its target; below, it is mixed with another


class StepOutputs(NamedTuple):
    """Results of a training step that are not gradients.

    Args:
        loss: The mean loss.
        logits: Logits of the views, in single precision.
        targets: Probability of each class, as trained on.
    """

    loss: Tensor
    logits: Tensor
    targets: Tensor


class Dynamics:
    """Sums over the epochs of what the network predicted for each training image.

    Args:
        targets: Class of each training image.
        device: Device of the network.
    """

    def __init__(self, targets: Int[np.ndarray, " n"], device: torch.device) -> None:
        self.targets = torch.tensor(targets, dtype=torch.int64, device=device)
        n = len(targets)
        self.tensors = {
            "count": torch.zeros(n, dtype=torch.int32, device=device),
            "given": torch.zeros(n, device=device),  # probability of the label
            "other": torch.zeros(n, device=device),  # largest probability of another class
            "rival": torch.zeros(n, dtype=torch.int32, device=device),  # leader of the votes for it
            "votes": torch.zeros(n, device=device),  # its lead
            "unseen_given": torch.full((n,), _NONE, device=device),  # by cross-validation
            "unseen_other": torch.full((n,), _NONE, device=device),
            "unseen_rival": torch.zeros(n, dtype=torch.int32, device=device),
        }
        self._order = np.zeros(0, np.int64)
        self._counted = np.zeros(0, bool)

    def hold_out(self, opinions: Opinions) -> None:
        """Keep what cross-validation says; NaN for images that were never held out."""
        for name in ("given", "other", "rival"):
            values = np.nan_to_num(getattr(opinions, name), nan=_NONE)
            held = self.tensors[f"unseen_{name}"]
            held.copy_(torch.from_numpy(values))

    def start_epoch(self, order: Int[np.ndarray, " n"]) -> None:
        """Take over the order of an epoch; only the first view of each image counts.

        So each image is recorded by one process, and the order of processes changes nothing.
        """
        first = np.zeros(len(order), bool)
        first[np.unique(order, return_index=True)[1]] = True
        self._order, self._counted = order, first & (order < len(self.targets))

    @torch.no_grad()
    def record(self, places: range, bad: Iterable[int], outputs: StepOutputs) -> None:
        """Add what a part of a batch says about its images.

        Args:
            places: Positions of the images in the epoch.
            bad: Images that could not be read; the view of another one is in their place.
            outputs: Result of the step.
        """
        part = slice(places.start, places.stop, places.step)
        images = self._order[part]
        rows = np.flatnonzero(self._counted[part] & ~np.isin(images, [*bad]))
        device, held = outputs.logits.device, self.tensors
        chosen = torch.from_numpy(rows).to(device)
        at = torch.from_numpy(images[rows]).to(device)
        label = self.targets[at][:, None]
        p = outputs.logits.detach()[chosen].softmax(1)
        given = p.gather(1, label)[:, 0]
        other, rival = p.scatter(1, label, -1.0).max(1)
        clear = outputs.targets[chosen].gather(1, label)[:, 0] > _CLEAR
        clear &= given.isfinite() & other.isfinite()
        given, other = given.where(clear, 0.0), other.where(clear, 0.0)
        held["count"][at] += clear.int()
        held["given"][at] += given
        held["other"][at] += other
        leader = held["rival"][at]
        votes = held["votes"][at] + other.where(leader == rival, -other)  # the weighted majority
        held["rival"][at] = rival.int().where(votes < 0, leader)
        held["votes"][at] = votes.abs()

    def merge(self, group: ProcessGroup) -> None:
        """Exchange the records of all processes, which must call this together."""
        if group.world == 1:
            return
        parts = group.gather({name: x.cpu() for name, x in self.tensors.items()})
        latest = torch.stack([part["count"] for part in parts]).argmax(0)[None]
        for name, x in self.tensors.items():
            x.copy_(torch.stack([part[name] for part in parts]).gather(0, latest)[0])

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from the tensors of a checkpoint; older checkpoints have none."""
        for name, x in self.tensors.items():
            if name in tensors:
                x.copy_(tensors[name])
            else:
                x.fill_(_NONE if name in ("unseen_given", "unseen_other") else 0)

    def opinions(self) -> list[Opinions]:
        """What cross-validation says, if there was one, and the mean of what was recorded."""
        given, other, rival = (
            self.tensors[f"unseen_{name}"].cpu().numpy() for name in ("given", "other", "rival")
        )
        given, other = (np.where(x == _NONE, np.nan, x) for x in (given, other))
        unseen = [] if np.isnan(given).all() else [Opinions(given, other, rival)]
        count, given, other, rival = (
            self.tensors[name].cpu().numpy() for name in ("count", "given", "other", "rival")
        )
        with np.errstate(invalid="ignore"):
            return [*unseen, Opinions(given / count, other / count, rival)]
