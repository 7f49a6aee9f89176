"""The forecast: what it counts, and that it changes nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import QUICK, TINY, quick, sha, stop_after

import resnext
from resnext import ResNeXt
from resnext.data import open_splits
from resnext.errors import InputError
from resnext.training import Recipe, forecast, launch
from resnext.training.forecast import Speed, forecast_line, measure
from resnext.training.run_state import RunSettings, TrainState
from resnext.training.trainer import Trainer


def test_time_of_a_run() -> None:
    """Steps, one or two validations per epoch, and the end of the run."""
    speed = Speed(step=0.5, validation=2.0)
    plain = Recipe(epochs=10, batch_size=4, learning_rate=0.1)
    assert speed.epoch(plain, 43) == 10 * 0.5 + 2.0
    assert speed.epoch(replace(plain, ema=0.9), 43) == 10 * 0.5 + 2 * 2.0
    assert speed.run(plain, 43) == 10 * 7.0 + speed.ending()


@pytest.fixture
def settings(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSettings:
    """Settings of a run, taken from one that ends before its first step."""
    seen: list[RunSettings] = []

    def stop(*arguments: Any) -> Trainer:
        seen.append(arguments[2])
        raise InputError("enough")

    monkeypatch.setattr(launch, "Trainer", stop)
    with pytest.raises(InputError, match="enough"):
        quick(photos, tmp_path / "a.safetensors")
    return seen[0]


def test_nothing_changes(photos: Path, settings: RunSettings) -> None:
    """The network that is timed is a copy, statistics of its norms included."""
    network = ResNeXt(TINY)
    before = copy.deepcopy(network.state_dict())
    splits = open_splits(photos)
    speed = measure(network, splits, settings, launch.init_distributed("cpu"), seconds=0.0)
    assert speed.step > 0
    assert speed.validation > 0
    assert all(torch.equal(before[k], x) for k, x in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"ema": 0.9}, {"repeats": 2}])
def test_counts_real_steps(
    photos: Path, settings: RunSettings, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """The clock advances by a second per part of a batch and by ten per validated batch."""
    now = [0.0]
    train, validate = forecast.TrainStep.backward, forecast.Validator.outputs

    def slow_backward(*arguments: Any) -> Any:
        now[0] += 1
        return train(*arguments)

    def slow_outputs(self: Any, *arguments: Any) -> Any:
        now[0] += 10 * -(-len(self.images) // (2 * settings.recipe.batch_size))
        return validate(self, *arguments)

    monkeypatch.setattr(forecast.TrainStep, "backward", slow_backward)
    monkeypatch.setattr(forecast.Validator, "outputs", slow_outputs)
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: now[0])
    settings = replace(settings, recipe=replace(settings.recipe, **changes))
    speed = measure(ResNeXt(TINY), open_splits(photos), settings, launch.init_distributed("cpu"))
    assert speed.step == settings.recipe.accumulate
    assert speed.validation == 10  # four images, one batch


def test_many_validation_images(
    photos: Path, settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many images a part is timed; what a validation costs in any case counts once."""
    now = [0.0]

    def outputs(self: Any, *_: Any) -> None:
        now[0] += 5 + 0.5 * len(self.images)

    monkeypatch.setattr(forecast.Validator, "outputs", outputs)
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: now[0])
    splits = open_splits(photos)
    many = splits.val.select([0, 1, 2, 3] * 50, "many")
    monkeypatch.setattr(forecast, "_step_seconds", lambda *_: 1.0)
    speed = measure(
        ResNeXt(TINY), replace(splits, val=many), settings, launch.init_distributed("cpu")
    )
    assert speed.validation == pytest.approx(5 + 0.5 * 200)
    assert now[0] < 5 * 3 + 0.5 * 200  # not all images were needed


def test_smaller_images_at_first(
    photos: Path, settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step counts as the mean of the run: here 8, 12, 12 and 16 pixels, for a quarter each."""
    monkeypatch.setattr(forecast, "_step_seconds", lambda *given: given[-1] ** 2)
    settings = replace(settings, recipe=replace(settings.recipe, first_size=0.5))
    speed = measure(ResNeXt(TINY), open_splits(photos), settings, launch.init_distributed("cpu"))
    assert speed.step == pytest.approx((8**2 + 12**2 + 12**2 + 16**2) / 4)


def test_line(photos: Path, settings: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above an hour on a processor, the alternative is named, where it can still be taken."""
    monkeypatch.setattr(forecast, "clock_time", lambda _: "14:20")
    monkeypatch.setattr(forecast.torch, "get_num_threads", lambda: 2)
    assert forecast_line(settings, 20, 38 * 60) == (
        "ResNeXt(1, 1), 2×8d at 16 pixels, 2 epochs of 20 images: "
        "done at about 14:20 (38 min on 2 cores)."
    )
    monkeypatch.setattr(forecast, "measure", lambda *_: Speed(400.0, 0.0))
    given = (ResNeXt(TINY), open_splits(photos), settings, launch.init_distributed("cpu"))
    (_, advice) = forecast.run_forecast(*given, None)
    assert "--minutes 30" in advice
    assert not [x for x in forecast.run_forecast(*given, TrainState()) if "--minutes" in x]


def test_dry_run(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It shows the data and the forecast, and touches no file: not even an unfinished run."""
    out = tmp_path / "a.safetensors"
    network = quick(photos, out, progress=True, dry_run=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "Classes: 2 (blue, red).",
        "Images: 20 train, 4 val; 12 of each class; 24×20 pixels.",
        "Passed over: nothing.",
    ]
    assert "done at about" in lines[-1]
    assert list(tmp_path.glob("a.*")) == []
    assert network.card is None
    quick(photos, out)
    before = {path: sha(path) for path in tmp_path.rglob("*") if path.is_file()}
    quick(photos, out, overwrite=True, dry_run=True)
    assert {path: sha(path) for path in tmp_path.rglob("*") if path.is_file()} == before


def test_dry_run_of_an_unfinished_run(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With `--resume` it said nothing at all; the forecast is of what is left."""
    out = tmp_path / "a.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 5)  # the first of two epochs
        with pytest.raises(KeyboardInterrupt):
            quick(photos, out)
    seen: list[float] = []
    monkeypatch.setattr(forecast, "measure", lambda *_: Speed(60.0, 0.0))
    monkeypatch.setattr(forecast, "clock_time", lambda seconds: seen.append(seconds) or "14:20")
    before = {path: sha(path) for path in tmp_path.rglob("*") if path.is_file()}
    quick(photos, out, resume=True, progress=True, dry_run=True)
    assert "The run would be resumed in epoch 1, step 5.\n" in capsys.readouterr().err
    assert seen == [Speed(60.0, 0.0).run(QUICK, 20) / 2]
    assert {path: sha(path) for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_forecast_changes_no_file(photos: Path, tmp_path: Path) -> None:
    """A run that shows its forecast must give the bytes of one that does not."""
    quick(photos, tmp_path / "a.safetensors")
    quick(photos, tmp_path / "b.safetensors", progress=True)
    assert sha(tmp_path / "a.safetensors") == sha(tmp_path / "b.safetensors")


def test_refused_before_the_forecast(photos: Path, tmp_path: Path) -> None:
    """A dry run finds the same mistakes as a run."""
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(resnext.ResNeXtError, match=r"a\.safetensors exists"):
        quick(photos, tmp_path / "a.safetensors", dry_run=True)
