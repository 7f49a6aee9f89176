"""The loop: which epoch is kept, and which weights are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import quick, scripted

import resnext
from resnext.evaluation.metrics import Evaluation
from resnext.training.trainer import Trainer


def test_the_best_epoch_is_kept(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worse last epoch must not replace a better one."""
    scripted(monkeypatch, [0.5, 0.75, 0.6])
    model = quick(photos, tmp_path / "m.safetensors", epochs=3)
    assert model.card is not None
    assert model.card.provenance["epoch"] == 2


def test_the_average_is_kept_where_it_is_better(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The average of the weights is measured beside them; the better of both is the model."""
    with monkeypatch.context() as patched:
        scripted(patched, [0.5, 0.75])
        averaged = quick(photos, tmp_path / "a.safetensors", epochs=1, ema=0.9)
        scripted(patched, [0.75, 0.5])
        raw = quick(photos, tmp_path / "b.safetensors", epochs=1, ema=0.9)
    without = quick(photos, tmp_path / "c.safetensors", epochs=1)
    assert averaged.card is not None
    assert averaged.card.provenance["averaged_weights"] is True
    for name, value in raw.state_dict().items():
        assert torch.equal(value, without.state_dict()[name]), "an average must not change training"
    assert not torch.equal(averaged.fc.weight, raw.fc.weight)


def test_only_the_head_learns_at_first(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random classifier's gradients would destroy what the body knows."""
    seen: list[dict[str, Any]] = []
    original = Trainer._validate

    def look(self: Any, network: resnext.ResNeXt) -> Evaluation:
        seen.append({k: x.clone() for k, x in network.state_dict().items()})
        return original(self, network)

    monkeypatch.setattr(Trainer, "_validate", look)
    quick(photos, tmp_path / "m.safetensors", epochs=3, head_epochs=2)
    first, second, third = seen
    body = [name for name in first if not name.startswith("fc.")]
    assert all(torch.equal(first[name], second[name]) for name in body)
    assert not torch.equal(first["fc.weight"], second["fc.weight"])
    assert not torch.equal(second["layer1.0.conv2.weight"], third["layer1.0.conv2.weight"])
