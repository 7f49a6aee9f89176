"""Training dynamics: what is recorded, by how many processes, and that wrong labels show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import quick, stop_after

import resnext
from resnext.evaluation.label_doubts import Opinions, read_doubts
from resnext.training.checkpoint import read_state
from resnext.training.dynamics import Dynamics, StepOutputs

CPU = torch.device("cpu")
TARGETS = np.array([0, 1, 2, 0, 1, 2])

pytestmark = pytest.mark.usefixtures("one_thread")


class Process:
    """A process of several; `gather` returns what it was told the others have."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.world, self.parts = len(parts), parts

    def gather(self, value: object) -> Sequence[Any]:
        """The values of all processes."""
        return self.parts


def outputs(seed: int, targets: np.ndarray) -> StepOutputs:
    """Random logits, and the targets as trained on."""
    logits = torch.randn(len(targets), 3, generator=torch.Generator().manual_seed(seed))
    hot = torch.nn.functional.one_hot(torch.tensor(targets), 3).float()
    return StepOutputs(torch.zeros(()), logits, 0.9 * hot + 0.1 / 3)


def test_records_are_means_over_epochs_and_the_majority() -> None:
    """The same numbers, added up one by one."""
    dynamics, probabilities = Dynamics(TARGETS, CPU), []
    for epoch in range(5):
        order = np.random.default_rng(epoch).permutation(6)
        dynamics.start_epoch(order)
        told = outputs(epoch, TARGETS[order])
        for start in (0, 3):
            part = StepOutputs(told.loss, *(x[start : start + 3] for x in told[1:]))
            dynamics.record(range(start, start + 3), [], part)
        probabilities.append(told.logits.softmax(1).numpy()[np.argsort(order)])
    (found,) = dynamics.opinions()
    rows = np.arange(6)
    given = np.stack([p[rows, TARGETS] for p in probabilities])
    others = np.stack(probabilities)
    others[:, rows, TARGETS] = -1
    assert found.given == pytest.approx(given.mean(0), abs=1e-6)
    assert found.other == pytest.approx(others.max(2).mean(0), abs=1e-6)
    for image in range(6):  # a class with more than half of the votes leads
        votes = np.bincount(others[:, image].argmax(1), others[:, image].max(1), 3)
        if votes.max() > votes.sum() / 2:
            assert found.rival[image] == votes.argmax()


def test_views_that_say_nothing_about_a_label_are_left_out() -> None:
    """Mixed images, unreadable ones, second views, unlabelled images, and logits that are NaN."""
    dynamics = Dynamics(TARGETS, CPU)
    order = np.array([0, 0, 1, 2, 3, 6, 4, 5])  # 6 is an unlabelled image
    told = outputs(0, np.append(TARGETS, 0)[order])
    told.targets[2] = 0.5 * (told.targets[2] + told.targets[3])
    told.logits[4] = torch.nan
    dynamics.start_epoch(order)
    dynamics.record(range(8), [2], told)
    assert dynamics.tensors["count"].tolist() == [1, 0, 0, 0, 1, 1]
    assert all(bool(x.isfinite().all()) for x in dynamics.tensors.values())
    assert np.isnan(dynamics.opinions()[0].given).tolist() == [
        False,
        True,
        True,
        True,
        False,
        False,
    ]


def test_processes_together_record_what_one_records_alone() -> None:
    """Each process sees a part of every batch; the order of images changes with the epoch."""
    alone, several = Dynamics(TARGETS, CPU), [Dynamics(TARGETS, CPU) for _ in range(2)]
    for epoch in range(3):
        order = np.random.default_rng(epoch).choice(6, 6)  # as with balanced sampling
        told = outputs(epoch, TARGETS[order])
        alone.start_epoch(order)
        alone.record(range(6), [], told)
        for rank, own in enumerate(several):
            own.start_epoch(order)
            part = StepOutputs(told.loss, told.logits[rank::2], told.targets[rank::2])
            own.record(range(rank, 6, 2), [], part)
        group: Any = Process([{k: x.clone() for k, x in d.tensors.items()} for d in several])
        for own in several:
            own.merge(group)
    for own in several:
        for name, x in alone.tensors.items():
            assert torch.equal(own.tensors[name], x), name


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "balance": "sampling"}, {"repeats": 2}])
def test_resumed_runs_have_the_same_dynamics(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Bit for bit: else the doubts of a resumed run differ from those of one left alone."""
    quick(photos, tmp_path / "alone.safetensors", **options)
    stop_after(monkeypatch, 2, 6)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            quick(photos, tmp_path / "m.safetensors", resume=True, **options)
    quick(photos, tmp_path / "m.safetensors", resume=True, **options)
    alone, resumed = (
        read_state(max((tmp_path / f"{name}.run").glob("*.state"))).part("dynamics")
        for name in ("alone", "m")
    )
    assert int(alone["count"].max()) == 2
    for name, x in alone.items():
        assert torch.equal(x, resumed[name]), name


def test_runs_of_older_versions_resume(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their checkpoints hold no dynamics; the rest of the run is recorded."""
    dynamics = Dynamics(TARGETS, CPU)
    dynamics.tensors["count"] += 3
    dynamics.hold_out(Opinions(np.ones(6), np.zeros(6), TARGETS))
    dynamics.restore({})
    assert dynamics.tensors["count"].tolist() == [0] * 6
    assert len(dynamics.opinions()) == 1


def test_cross_validation_comes_first() -> None:
    """Fine-tuning from a fitted classifier has its folds; images in none of them are unknown."""
    given, other = np.array([0.9, 0.8, np.nan, 0.7, 0.6, 0.5]), np.full(6, 0.1)
    dynamics, restored = (Dynamics(TARGETS, CPU) for _ in range(2))
    dynamics.hold_out(Opinions(given, other, TARGETS[::-1]))
    restored.restore({name: x.clone() for name, x in dynamics.tensors.items()})
    unseen, recorded = restored.opinions()
    assert unseen.given == pytest.approx(given, nan_ok=True)
    assert unseen.other == pytest.approx(other)
    assert unseen.rival.tolist() == TARGETS[::-1].tolist()
    assert np.isnan(recorded.given).all()


@pytest.mark.parametrize("recipe", ["epochs", "probe", "finetune"])
def test_a_wrong_label_is_found(photos: Path, tmp_path: Path, recipe: str) -> None:
    """Two red images among the blue ones: by the dynamics, and out of fold.

    Fine-tuning starts from a classifier that is fitted to these labels, so one epoch at a tiny
    rate says nothing that the folds do not know better.
    """
    for i in range(12):
        for label in ("red", "blue"):
            turned = Image.open(photos / label / f"{i}.png").rotate(180)
            turned.save(photos / label / f"turned{i}.png")
    for i in (3, 7):
        (photos / "red" / f"{i}.png").rename(photos / "blue" / f"wrong{i}.png")
    quick(photos, tmp_path / "m.safetensors", epochs=6)
    folder = tmp_path / "m.run"
    if recipe != "epochs":
        options: dict[str, Any] = {"recipe": recipe, "progress": False, "workers": 0}
        if recipe == "finetune":
            options |= {"epochs": 1, "batch_size": 8, "learning_rate": 1e-6}
        model = resnext.load(tmp_path / "m.safetensors")
        assert isinstance(model, resnext.ResNeXt)
        assert model.card is not None
        model.card = replace(model.card, labels=("x", "y"))  # else its classifier is kept
        weights = tmp_path / "w.safetensors"
        resnext.save(model, weights)
        resnext.train(photos, weights=weights, out=tmp_path / "p.safetensors", **options)
        folder = tmp_path / "p.run"
    found = read_doubts(folder / "label_doubts.csv")
    wrong = {(str(photos / "blue" / f"wrong{i}.png"), "blue", "red") for i in (3, 7)}
    assert {row[:3] for row in found[:2]} == wrong
    assert found[0][3] > 0.75
