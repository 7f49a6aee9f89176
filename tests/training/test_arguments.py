"""Arguments of a run that have no effect are refused; `test_launch.py` has what is invalid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_runs import QUICK, TINY, quick, stop_after

import resnext
from resnext.errors import ConfigError
from resnext.training import launch


def test_a_network_ignores_what_is_for_new_weights(photos: Path, tmp_path: Path) -> None:
    """Its weights are what they are, and nothing can be fitted to a file that there is not."""
    network, out = resnext.ResNeXt(TINY), tmp_path / "m.safetensors"
    given: dict[str, Any] = {"recipe": QUICK, "size": 16, "progress": False}
    with pytest.raises(ConfigError, match=r"zero_init_residual has no effect with a network"):
        resnext.train(photos, network, out=out, zero_init_residual=True, **given)
    with pytest.raises(ConfigError, match="probe has no effect with a network in memory, only"):
        resnext.train(photos, network, out=out, probe=True, **given)
    assert not list(tmp_path.glob("m.*"))


def test_what_has_an_effect_is_accepted(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Together with the field that it needs; layers that stay random are worth a line."""
    changes: dict[str, Any] = {"momentum": 0.8, "min_area": 0.5, "frozen_stages": 1}
    changes |= {"schedule": "step", "milestones": (0.5,), "label_smoothing": 0.0}
    quick(photos, tmp_path / "m.safetensors", dry_run=True, progress=True, **changes)
    line = "Without weights, frozen_stages keeps layers as they are initialized."
    assert capsys.readouterr().err.count(line) == 1
    given: dict[str, Any] = {"recipe": QUICK, "size": 16, "workers": 0, "progress": False}
    given |= {"drop_path": 0.1, "zero_init_residual": True, "dry_run": True}
    network = resnext.train(photos, "resnext_nano_32px", out=tmp_path / "m.safetensors", **given)
    assert network.config.drop_path_rate == 0.1


def test_a_run_that_has_begun_continues(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions accepted what had no effect, and their runs are not lost."""
    given: dict[str, Any] = {"recipe": "distill", "epochs": 2, "batch_size": 4, "magnitude": 3}
    with monkeypatch.context() as patch:
        patch.setattr(launch, "check_effects", lambda *_: None)
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            quick(photos, tmp_path / "m.safetensors", **given)
    assert quick(photos, tmp_path / "m.safetensors", resume=True, **given).card
