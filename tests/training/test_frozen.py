"""Maps of frozen stages: computed once, in the right batch, for the right image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import quick, sha, stop_after

from resnext import ResNeXt
from resnext.data.transforms import random_view
from resnext.training import dataloader, frozen, step
from resnext.training.forecast import Speed
from resnext.training.frozen import FrozenMaps
from resnext.training.recipe import Recipe

VIEWS: dict[str, Any] = {"frozen_stages": 1, "cached_views": 2, "epochs": 5}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images in each batch that the frozen stages compute."""
    counts: list[int] = []

    def computing(network: ResNeXt, stages: int, x: torch.Tensor) -> torch.Tensor:
        counts.append(len(x))
        return frozen.frozen_maps(network, stages, x)

    monkeypatch.setattr(step, "frozen_maps", computing)
    return counts


@pytest.mark.parametrize("workers", [0, 1])
def test_each_view_is_computed_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[int], workers: int
) -> None:
    """Two epochs of five batches; in the three epochs after them no image is even read."""
    read: list[str] = []

    def reading(data: Any, name: str, *given: Any, **options: Any) -> torch.Tensor:
        read.append(name)
        return random_view(data, name, *given, **options)

    monkeypatch.setattr(dataloader, "random_view", reading)
    quick(photos, tmp_path / "a.safetensors", workers=workers, **VIEWS)
    assert seen == [4] * 10
    assert len(read) == (0 if workers else 40)  # workers read for themselves


def test_nothing_changes_without_memory(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[int]
) -> None:
    """The same views are shown, whether their maps are kept or computed again."""
    kept = quick(photos, tmp_path / "a.safetensors", **VIEWS).state_dict()
    monkeypatch.setattr(frozen, "_SHARE", 0)
    computed = quick(photos, tmp_path / "b.safetensors", **VIEWS).state_dict()
    assert seen == [4] * (10 + 25)
    for name, x in kept.items():
        torch.testing.assert_close(computed[name], x, rtol=1e-3, atol=1e-4)


def test_images_that_were_not_drawn(photos: Path, tmp_path: Path, seen: list[int]) -> None:
    """Sampling with repetition leaves some out; they are computed when they are drawn."""
    quick(photos, tmp_path / "a.safetensors", balance="sampling", **VIEWS)
    assert seen[:10] == [4] * 10
    assert 0 < sum(seen[10:]) < 3 * 20


@pytest.mark.parametrize("stop", [3, 7, 13, 22])
@pytest.mark.parametrize("balance", ["none", "sampling"])
def test_resume_is_exact(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, balance: str
) -> None:
    """Maps are in no checkpoint; a resumed run computes them in the batches it had."""
    quick(photos, tmp_path / "left_alone.safetensors", balance=balance, **VIEWS)
    stop_after(monkeypatch, stop)
    out = tmp_path / "m.safetensors"
    with pytest.raises(KeyboardInterrupt):
        quick(photos, out, balance=balance, **VIEWS)
    quick(photos, out, balance=balance, resume=True, **VIEWS)
    assert sha(out) == sha(tmp_path / "left_alone.safetensors")


def test_maps_and_classes_come_back() -> None:
    """Each to its image, in any order; the class is that of the image that was really read."""
    maps = FrozenMaps(views=2, images=6)
    values = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 2, 2)
    maps.store(0, np.array([4, 1, 0]), values[[4, 1, 0]], torch.tensor([40, 10, 0]))
    maps.store(1, np.array([2, 5]), values[[2, 5]] + 100, torch.tensor([20, 50]), bad=[2])
    new = values[[3]]
    x, targets = maps.join(0, np.array([0, 3, 4]), new, torch.tensor([0, 30, 0]))
    assert x[:, 0, 0, 0].tolist() == [0, 3, 4]
    assert targets.tolist() == [0, 30, 40]
    x, targets = maps.join(1, np.array([5]), None, torch.tensor([0]))
    assert (x[0, 0, 0, 0].item(), targets.item()) == (105, 50)
    assert maps.known.tolist() == [[True, True, False, False, True, False], [False] * 5 + [True]]


def test_time_of_a_run() -> None:
    """The first epochs take longer, in the forecast and in what fits into a time."""
    recipe = Recipe(10, 4, 0.1, frozen_stages=0, cached_views=3)
    speed = Speed(step=1.0, validation=2.0, later=0.2)
    assert speed.run(recipe, 43) == pytest.approx(3 * 12 + 7 * 4 + speed.ending())
    assert speed.epochs(recipe, 3 * 12 + 7 * 4 + 0.1, 10) == 10
    assert speed.epochs(recipe, 2 * 12 + 6.5, 10) == 2.4
    assert speed.epochs(recipe, 3 * 12 + 3.1, 10) == pytest.approx(3.5)
