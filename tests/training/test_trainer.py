"""The loop: which epoch is kept, and which weights are trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import QUICK, TINY, quick, scripted

import resnext
from resnext.errors import ConfigError
from resnext.evaluation.metrics import Evaluation
from resnext.training.step import TrainStep
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


@pytest.mark.parametrize("workers", [0, 1])
def test_images_grow(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Workers live as long as the run, so the size must come with each sample."""
    seen: list[int] = []
    original = TrainStep.backward

    def backward(self: TrainStep, model: Any, batch: Any, *given: Any) -> Any:
        seen.append(batch.images.shape[1])
        return original(self, model, batch, *given)

    monkeypatch.setattr(TrainStep, "backward", backward)
    quick(photos, tmp_path / "a.safetensors", first_size=0.5, epochs=4, workers=workers)
    assert seen == [8] * 5 + [12] * 10 + [16] * 5
    rows = (tmp_path / "a.run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["size"] for row in rows] == [8, 12, 12, 16]


@pytest.mark.parametrize(
    ("stages", "frozen"), [(-1, ()), (0, ("conv1", "bn1")), (1, ("conv1", "bn1", "layer1"))]
)
@pytest.mark.parametrize("head_epochs", [0, 1])
def test_frozen_stages_stay(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stages: int,
    frozen: tuple[str, ...],
    head_epochs: int,
) -> None:
    """Weights, and statistics of the norms; all others learn."""
    scripted(monkeypatch, [0.1, 0.2, 0.2])  # the last epoch is kept
    network = resnext.ResNeXt(TINY)
    before = network.state_dict()
    given: dict[str, Any] = {"recipe": QUICK, "size": 16, "workers": 0, "progress": False}
    given |= {"frozen_stages": stages, "head_epochs": head_epochs, "weight_decay": 0.1}
    after = resnext.train(photos, network, out=tmp_path / "a.safetensors", **given).state_dict()
    same = {name for name, x in before.items() if torch.equal(x, after[name])}
    assert same == {name for name in before if name.partition(".")[0] in frozen}


def test_more_stages_than_there_are(photos: Path, tmp_path: Path) -> None:
    """Refused in one line, before anything is written."""
    with pytest.raises(ConfigError, match=r"from -1 \(none\) to 2, the stages of .* not 3"):
        quick(photos, tmp_path / "a.safetensors", frozen_stages=3)
    assert list(tmp_path.glob("a.*")) == []
