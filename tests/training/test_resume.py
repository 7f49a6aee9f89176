"""Resuming: the file of an interrupted run equals that of a run that was left alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import QUICK, TINY, quick, sha, stop_after

import resnext
from resnext import Card, ResNeXtConfig
from resnext.errors import CheckpointError
from resnext.training.trainer import Trainer

OPTIONS: list[dict[str, Any]] = [
    {},
    {"optimizer": "adamw", "learning_rate": 0.01, "clip": 1.0},
    {"optimizer": "lamb", "learning_rate": 0.01, "loss": "binary", "repeats": 2},
    {"ema": 0.9, "mixup": 0.3, "cutmix": 1.0, "policy": "trivial", "erasing": 0.5},
    {"accumulate": 2, "balance": "sampling", "schedule": "step", "milestones": (0.5,)},
    {"balance": "weights", "head_epochs": 1, "layer_decay": 0.5, "padding": 2},
    {"first_size": 0.5, "epochs": 4},
    {"frozen_stages": 1, "ema": 0.9, "head_epochs": 1},
    {"frozen_stages": 1, "cached_views": 1, "accumulate": 2, "balance": "sampling"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_is_exact_for_every_option(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    workers: int,
) -> None:
    """What one option remembers between steps is easily left out of the checkpoint."""
    quick(photos, tmp_path / "left_alone.safetensors", workers=workers, **options)
    stop_after(monkeypatch, 2, 6)
    out = tmp_path / "m.safetensors"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            quick(photos, out, workers=workers, resume=True, **options)
    quick(photos, out, workers=workers, resume=True, **options)
    assert sha(out) == sha(tmp_path / "left_alone.safetensors")


def test_dropout_and_stochastic_depth_go_on_exactly(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both draw from torch's own generator, whose state a checkpoint does not hold."""
    config = TINY.replace(dropout=0.3, drop_path_rate=0.5)
    given: dict[str, Any] = {"recipe": QUICK, "size": 16, "workers": 0, "progress": False}
    resnext.train(photos, config, out=tmp_path / "left_alone.safetensors", **given)
    out = tmp_path / "m.safetensors"
    stop_after(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        resnext.train(photos, config, out=out, **given)
    torch.rand(17)  # whatever else the next process draws
    resnext.train(photos, config, out=out, resume=True, **given)
    assert sha(out) == sha(tmp_path / "left_alone.safetensors")


def test_a_finished_run_is_not_trained_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that a scheduler starts once more must find its result, and leave it as it is."""
    out = tmp_path / "m.safetensors"
    quick(photos, out)
    before = sha(out)
    monkeypatch.setattr(Trainer, "_train_epoch", lambda self: pytest.fail("trained again"))
    quick(photos, out, resume=True)
    assert sha(out) == before


def test_a_checkpoint_is_not_taken_for_another_run(photos: Path, tmp_path: Path) -> None:
    """Going on with other images or another recipe gives a model nobody asked for."""
    out = tmp_path / "m.safetensors"
    quick(photos, out)
    with pytest.raises(CheckpointError, match=r"epochs was 2, now 3\. Give the same"):
        quick(photos, out, epochs=3, resume=True)
    for name, value, was in (("seed", 1, 0), ("val_fraction", 0.25, 0.2)):
        with pytest.raises(CheckpointError, match=rf"{name} was {was}, now {value}\. Give"):
            quick(photos, out, **{name: value}, resume=True)
    with pytest.raises(CheckpointError, match=r"resize was 18, now 23|size was 16, now 20"):
        quick(photos, out, size=20, resume=True)
    moved = photos.rename(photos.with_name("elsewhere"))
    quick(moved, out, resume=True)
    moved.rename(photos)
    shutil.copy(photos / "red" / "0.png", photos / "red" / "new.png")
    with pytest.raises(CheckpointError, match="run on other images"):
        quick(photos, out, resume=True)


def test_a_damaged_checkpoint_is_passed_over(photos: Path, tmp_path: Path) -> None:
    """A disk that flips a bit costs the time since the checkpoint before, not the run."""
    out = tmp_path / "m.safetensors"
    quick(photos, out)
    before = sha(out)
    newest = max((tmp_path / "m.run").glob("*.state"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    quick(photos, out, resume=True)
    assert sha(out) == before


@pytest.mark.filterwarnings("ignore:An image of 16 bits")
def test_runs_of_older_versions_keep_classes_and_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders were numbered as text, and 16-bit grey kept its upper 8 bits, until the run ends."""
    for label in ("1", "2", "10"):
        (tmp_path / "bits" / label).mkdir(parents=True)
        for i in range(4):
            values = np.random.default_rng(i).integers(0, 4096, (8, 8)).astype(np.uint16)
            Image.fromarray(values).save(tmp_path / "bits" / label / f"{i}.tif")

    def run(**options: Any) -> Card:
        network = resnext.train(
            tmp_path / "bits",
            ResNeXtConfig((1,), 2, 8, num_stages=1, channels=(16,), stem_channels=8),
            out=tmp_path / "m.safetensors",
            epochs=1,
            size=32,
            device="cpu",
            workers=0,
            progress=False,
            **options,
        )
        assert network.card is not None
        return network.card

    with monkeypatch.context() as older:
        older.setattr("resnext.data.sources.folders.in_order", lambda names: (*sorted({*names}),))
        older.setattr("resnext.data.open.used_range", lambda _: None)
        before = run()
    assert (before.labels, before.preprocessing.value_range) == (("1", "10", "2"), None)
    assert run(resume=True) == before
    new = run(overwrite=True)
    assert new.labels == ("1", "2", "10")
    assert new.preprocessing.value_range is not None
