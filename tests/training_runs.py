"""Training runs of seconds, for the tests of training."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import resnext
from resnext import ResNeXtConfig
from resnext.evaluation.metrics import Evaluation
from resnext.training import Recipe, validation
from resnext.training.checkpoint import Checkpoint, read_state, write_checkpoint
from resnext.training.trainer import Trainer

TINY = ResNeXtConfig((1, 1), 2, 8, num_classes=2, channels=(16, 32), num_stages=2, small_stem=True)
QUICK = Recipe(epochs=2, batch_size=4, learning_rate=0.05)


def scripted(
    monkeypatch: pytest.MonkeyPatch, accuracies: list[float | type[BaseException]]
) -> None:
    """Let validation give these accuracies, one after the other."""
    answers = iter(accuracies)

    def judge(*args: Any, **options: Any) -> Evaluation:
        answer = next(answers)
        if isinstance(answer, type):
            raise answer
        return Evaluation("val", 4, answer, None, 1.0, np.zeros((2, 2), int), ("blue", "red"))

    monkeypatch.setattr(validation, "score", judge)


def quick(photos: Path, out: Path, **changes: Any) -> resnext.ResNeXt:
    """Train `TINY` on a dozen photos of each class; `changes` are arguments of `train`."""
    given = {"recipe": QUICK, "size": 16, "workers": 0, "progress": False, **changes}
    return resnext.train(photos, TINY, out=out, **given)


def sha(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(
    command: list[str], environment: dict[str, str], folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed, in a folder."""
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def stop_after(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Ask the runs of this test to stop after these steps, counted over all of them."""
    original, done = Trainer._after_step, 0

    def stopping(self: Any) -> None:
        nonlocal done
        done += 1
        self.interrupts.requested = signal.SIGINT if done in steps else None
        original(self)

    monkeypatch.setattr(Trainer, "_after_step", stopping)


def colour_photos(folder: Path) -> Path:
    """Two classes of a dozen 20×24 images: reddish and bluish noise."""
    rng = np.random.default_rng(0)
    for name, channel in (("red", 0), ("blue", 2)):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 100, (20, 24, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(folder / "photos" / name / f"{i}.png")
    return folder / "photos"


def more_photos(photos: Path, count: int) -> None:
    """So many images in each class, so that one is less than 5 %."""
    for name in ("red", "blue"):
        for i in range(12, count):
            shutil.copy(photos / name / f"{i % 12}.png", photos / name / f"{i}.png")
            with (photos / name / f"{i}.png").open("ab") as file:
                file.write(bytes([i]))  # else they were duplicates


def rewrite_checkpoint(folder: Path, change: Callable[[Checkpoint], None]) -> None:
    """Replace the newest checkpoint of a run by one that is changed."""
    path = max(folder.glob("*.state"))
    state = read_state(path)
    change(state)
    write_checkpoint(state, folder, int(path.stem.partition("-")[2]))


def forget_later_fields(state: Checkpoint) -> None:
    """Leave in a checkpoint what the first version that continued exactly wrote."""
    about = state.about
    position, identity = about["position"], about["identity"]
    for name in ("kept", "threads", "choice", "replans"):
        position.pop(name, None)
    if position["budget"] is None:
        del position["budget"]
    for row in position["history"]:
        for name in ("size", "threads", "steps", "validating"):
            del row[name]
    later = ("probe", "distill_temperature", "first_size", "frozen_stages", "cached_views")
    for name in (*(f"recipe.{name}" for name in later), "teacher"):
        del identity[name]
    for name in [name for name in state.tensors if name.startswith("dynamics.")]:
        del state.tensors[name]
