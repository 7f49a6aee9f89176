"""Resuming: the file of an interrupted run equals that of a run that was left alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import (
    QUICK,
    TINY,
    forget_later_fields,
    quick,
    rewrite_checkpoint,
    sha,
    stop_after,
)

import resnext
from resnext import Card, ResNeXtConfig
from resnext.errors import CheckpointError
from resnext.training.identity import check_identity
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


def test_a_lost_model_is_told_at_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training went on to the end, and only then was there no file to write the report from."""
    out = tmp_path / "m.safetensors"
    stop_after(monkeypatch, 8)  # in the second epoch
    with pytest.raises(KeyboardInterrupt):
        quick(photos, out)
    kept = out.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(
        CheckpointError, match=r"m\.safetensors is missing\. It held the best epoch"
    ):
        quick(photos, out, resume=True)
    kept.rename(out)
    quick(photos, out, resume=True)


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


def test_a_run_of_an_earlier_version_is_continued_exactly(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fields that came later are missing in its checkpoint: it ended in a KeyError."""
    quick(photos, tmp_path / "left_alone.safetensors", epochs=3)
    stop_after(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        quick(photos, tmp_path / "m.safetensors", epochs=3)
    rewrite_checkpoint(tmp_path / "m.run", forget_later_fields)
    quick(photos, tmp_path / "m.safetensors", epochs=3, resume=True)
    assert sha(tmp_path / "m.safetensors") == sha(tmp_path / "left_alone.safetensors")
    rows = (tmp_path / "m.run" / "metrics.jsonl").read_text().splitlines()
    assert ["size" in row for row in rows] == [False, True, True]  # nothing is invented


def _renamed(values: dict[str, Any], old: str) -> None:
    values[f"{old}_elsewhere"] = values.pop(old)


OTHER_VERSIONS: dict[str, Any] = {
    r"forms\.dtype, forms\.dtype_elsewhere": lambda x: _renamed(x.about["forms"], "dtype"),
    r"position\.later": lambda x: x.about["position"].update(later=1),
    r"recipe\.later": lambda x: x.about["identity"].update({"recipe.later": 0.5}),
    r"config\.layers": lambda x: x.about["identity"].pop("config.layers"),
    r"preprocessing\.later": lambda x: x.about["identity"].update({"preprocessing.later": 1}),
    r"classes": lambda x: x.about["identity"].pop("classes"),
    r"seed, val_fraction, classes, …": lambda x: x.about.pop("identity"),
    r"forms\.dtype, ": lambda x: x.about.pop("forms"),
    r"scaler": lambda x: x.about.pop("scaler"),
    r"KeyError|Missing key": lambda x: x.tensors.pop("network.fc.bias"),
    r"parameter group|index|zip": lambda x: x.about["optimizer"]["groups"].pop(),
}


def test_a_checkpoint_of_a_version_that_differs_is_refused_in_one_line(
    photos: Path, tmp_path: Path
) -> None:
    """There were a KeyError, a TypeError, and values of a later version that were passed over."""
    out, folder = tmp_path / "m.safetensors", tmp_path / "m.run"
    quick(photos, out, epochs=1)
    kept = {path: path.read_bytes() for path in folder.glob("*.state")}
    for names, change in OTHER_VERSIONS.items():
        rewrite_checkpoint(folder, change)
        with pytest.raises(
            CheckpointError,
            match=rf"^The run in {folder} was begun by another version of resnext, whose "
            rf"checkpoints differ \(.*({names}).*\)\. Finish it with that version, or start again "
            rf"with --overwrite\.$",
        ):
            quick(photos, out, epochs=1, resume=True)
        for path, content in kept.items():
            path.write_bytes(content)


def test_a_recipe_that_has_changed_can_be_given_again() -> None:
    """A named recipe has other values in a later version; the same command is then refused."""
    before = {"seed": 0, "recipe.optimizer": "sgd", "recipe.clip": 1.0, "recipe.probe": False}
    now = {"seed": 0, "recipe.optimizer": "adamw", "recipe.clip": 1.0, "recipe.first_size": 1.0}
    with pytest.raises(CheckpointError) as caught:
        check_identity(before, {**now, "recipe.momentum": 0.8})
    assert str(caught.value) == (
        "The checkpoint is of another run: optimizer was sgd, now adamw; momentum was 0.9, now "
        "0.8. Give the same arguments (--set optimizer=sgd --set momentum=0.9), or start again "
        "with --overwrite."
    )
    check_identity(before, {**now, "recipe.optimizer": "sgd"})
    with pytest.raises(CheckpointError, match="ceil_pooling was True, now False"):
        check_identity({**before, "config.ceil_pooling": True}, {**now, "recipe.optimizer": "sgd"})
    with pytest.raises(CheckpointError, match="of a run with the recipe probe"):
        check_identity({"seed": 0, "recipe": "probe", "recipe.balance": "none"}, now)
    with pytest.raises(CheckpointError, match="of a run without the recipe probe"):
        check_identity(before, {"seed": 0, "recipe": "probe", "recipe.balance": "none"})
