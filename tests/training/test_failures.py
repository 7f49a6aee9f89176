"""Disks and images that fail during a run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from helpers import photo_folder
from training_runs import more_photos, quick, sha, stop_after

from resnext.errors import CheckpointError, DataError
from resnext.training import best_model
from resnext.training import checkpoint as state
from resnext.training.dataloader import TrainDataset
from resnext.training.trainer import Trainer


def test_a_full_disk_keeps_the_last_good_checkpoint(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Training goes on while nothing can be saved, says so once, and saves when there is room."""
    written, full = state.write_atomically, [False, True, True, False]

    def failing(path: Path, write: Any) -> None:
        if path.suffix == ".state" and (full.pop(0) if full else False):
            raise CheckpointError(f"{path} cannot be written: No space left on device.")
        written(path, write)

    monkeypatch.setattr(state, "write_atomically", failing)
    # each is written before the next step
    keep = Trainer._save_checkpoint
    monkeypatch.setattr(
        Trainer, "_save_checkpoint", lambda self, **how: keep(self, **{**how, "wait": True})
    )
    quick(photos, tmp_path / "m.safetensors", epochs=5, progress=True)
    told = capsys.readouterr().err
    assert told.count("No space left on device") == 2  # in the log, and when waited for
    assert told.count("Saving works again") == 1
    assert len(list((tmp_path / "m.run").glob("*.state"))) == 2


def test_an_unwritable_result_is_an_error(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose model was never written must not end as if it were."""

    def failing(model: Any, path: Path) -> None:
        raise CheckpointError(f"{path} cannot be written: read-only file system.")

    with monkeypatch.context() as patched:
        patched.setattr(best_model, "save", failing)
        with pytest.raises(CheckpointError, match="read-only"):
            quick(photos, tmp_path / "m.safetensors")
    assert quick(photos, tmp_path / "m.safetensors", resume=True).card is not None


def test_damaged_images_are_left_out_and_listed(photos: Path, tmp_path: Path) -> None:
    """One truncated JPEG used to kill a run hours after it began."""
    more_photos(photos, 60)
    whole = (photos / "red" / "0.png").read_bytes()
    (photos / "red" / "0.png").write_bytes(whole[: len(whole) // 2])
    (photos / "blue" / "3.png").write_text("no image")
    quick(photos, tmp_path / "m.safetensors")
    with (tmp_path / "m.run" / "quarantine.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["image"]).relative_to(photos).as_posix() for row in rows} == {
        "red/0.png",
        "blue/3.png",
    }
    assert all(row["reason"] for row in rows)


def test_what_was_listed_before_an_interruption_stays_listed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--resume` began the list anew: what had failed while training was in no record any more."""
    more_photos(photos, 60)
    (photos / "blue" / "3.png").write_text("no image")
    gone, original = {photos / "red" / "0.png"}, TrainDataset.__getitem__

    def failing(self: TrainDataset, key: Any) -> Any:
        for path in gone:
            path.rename(path.with_suffix(".away"))
        try:
            return original(self, key)
        finally:
            for path in gone:
                path.with_suffix(".away").rename(path)

    def listed() -> list[str]:
        with (tmp_path / "m.run" / "quarantine.csv").open(newline="") as file:
            return [Path(row["image"]).name for row in csv.DictReader(file)]

    monkeypatch.setattr(TrainDataset, "__getitem__", failing)
    stop_after(monkeypatch, 40)
    with pytest.raises(KeyboardInterrupt):
        quick(photos, tmp_path / "m.safetensors", val_fraction=0.1)
    assert listed() == ["3.png", "0.png"]
    gone.clear()
    gone.add(photos / "red" / "1.png")
    quick(photos, tmp_path / "m.safetensors", val_fraction=0.1, resume=True)
    assert listed() == ["3.png", "0.png", "1.png"]
    quick(photos, tmp_path / "m.safetensors", val_fraction=0.1, overwrite=True)
    assert listed() == ["3.png", "1.png"]


def test_a_second_run_in_the_same_place_is_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --overwrite it deleted the checkpoints of the first, and both wrote one file."""
    out, original = tmp_path / "m.safetensors", Trainer._epoch
    refused: list[str] = []

    def again(self: Trainer) -> None:
        monkeypatch.setattr(Trainer, "_epoch", original)
        with pytest.raises(CheckpointError) as caught:
            quick(photos, out, overwrite=True)
        refused.append(str(caught.value))
        original(self)

    monkeypatch.setattr(Trainer, "_epoch", again)
    quick(photos, out)
    name = tmp_path / "m.run"
    advice = "Wait until it ends, or choose another name."
    assert refused == [f"Another run is writing {name}. {advice}"]
    assert len(list(name.glob("*.state"))) == 2
    quick(photos, out, overwrite=True)


def test_too_many_damaged_images_stop_before_training(photos: Path, tmp_path: Path) -> None:
    """A class that is mostly gone gives a model that knows nothing of it, without a word."""
    for i in range(2):
        (photos / "red" / f"{i}.png").write_text("no image")
    out = tmp_path / "m.safetensors"
    with pytest.raises(DataError, match=r"2 of 12 .*'red'") as caught:
        quick(photos, out)
    assert "\n" not in str(caught.value)
    assert "quarantine.csv" in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_vanish_while_training(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """A mount that goes away ends the run with what was reached; it comes back, the run goes on."""
    quick(photos, tmp_path / "left_alone.safetensors", workers=workers)
    out, original = tmp_path / "m.safetensors", Trainer._epoch
    away = photos.with_name("away")

    def vanish(self: Any) -> None:
        if self.state.epoch == 2:
            photos.rename(away)
        original(self)

    monkeypatch.setattr(Trainer, "_epoch", vanish)
    with pytest.raises(DataError, match="continue with --resume") as caught:
        quick(photos, out, workers=workers)
    assert "\n" not in str(caught.value)
    away.rename(photos)
    monkeypatch.setattr(Trainer, "_epoch", original)
    quick(photos, out, workers=workers, resume=True)
    assert sha(out) == sha(tmp_path / "left_alone.safetensors")


def test_validation_images_that_vanish(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accuracies of different epochs, measured on different images, were compared."""
    original = Trainer._epoch

    def vanish(self: Any) -> None:
        if self.state.epoch == 2:
            Path(self.splits.val.images[0]).unlink()
        original(self)

    monkeypatch.setattr(Trainer, "_epoch", vanish)
    with pytest.raises(DataError, match=r"1 of 4 validation images cannot be read any more"):
        quick(photos, tmp_path / "m.safetensors")


def test_a_validation_image_that_vanishes_is_reported_once(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same line after each of a hundred epochs hides all others."""
    photo_folder(tmp_path / "data" / "val", ("blue", "red"))
    photos.rename(tmp_path / "data" / "train")
    original = Trainer._epoch

    def vanish(self: Any) -> None:
        (tmp_path / "data" / "val" / "red" / "003.jpg").unlink(missing_ok=True)
        original(self)

    monkeypatch.setattr(Trainer, "_epoch", vanish)
    quick(tmp_path / "data", tmp_path / "m.safetensors", epochs=3, ema=0.9, progress=True)
    assert capsys.readouterr().err.count("1 validation image cannot be read, such as") == 1
