"""Training: honest, repeatable, and never losing what was reached."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import resnext
from resnext import ResNeXtConfig, ResNeXtError
from resnext.evaluation import Evaluation
from resnext.training import RECIPES, Recipe, loop
from resnext.training.loop import parameter_groups, rate

TINY = ResNeXtConfig((1, 1), 2, 8, num_classes=2, channels=(16, 32), num_stages=2, small_stem=True)
QUICK = Recipe(epochs=2, batch_size=4, learning_rate=0.05)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of a dozen 20×24 images: reddish and bluish noise."""
    rng = np.random.default_rng(0)
    for name, channel in (("red", 0), ("blue", 2)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 100, (20, 24, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_digits_are_learnt(tmp_path: Path) -> None:
    """The demo promises 98 % of digits it has not seen."""
    model = resnext.train(
        "digits", "resnext11_8x16d", out=tmp_path / "model.safetensors", progress=False
    )
    assert resnext.evaluate(model, "digits").accuracy >= 0.98


def test_the_file_is_all_one_needs(photos: Path, tmp_path: Path) -> None:
    """Labels, preprocessing and measured accuracy must be those of the run, not defaults."""
    out = tmp_path / "model.safetensors"
    trained = resnext.train(photos, TINY, out=out, recipe=QUICK, size=16, progress=False)
    loaded = resnext.load(out)
    assert loaded.card is not None
    assert loaded.card.labels == ("blue", "red")
    assert loaded.card.preprocessing.size == 16
    assert loaded.config == TINY.replace(num_classes=2)
    result = resnext.evaluate(out, photos)
    assert result.count == 4  # a fifth of each dozen, held out
    assert result.accuracy == pytest.approx(loaded.card.metrics["val_accuracy"])
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded(x), trained(x))


def test_same_seed_same_file(photos: Path, tmp_path: Path) -> None:
    """Chance must come from the seed alone: not from workers, time or memory."""
    files = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for file, workers, seed in zip(files, (0, 0, 2, 0), (1, 1, 1, 2), strict=True):
        resnext.train(
            photos,
            TINY,
            out=file,
            recipe=QUICK,
            size=16,
            workers=workers,
            seed=seed,
            progress=False,
        )
    first, again, with_workers, other_seed = (file.read_bytes() for file in files)
    assert first == again
    assert first == with_workers
    assert first != other_seed


def scripted(
    monkeypatch: pytest.MonkeyPatch, accuracies: list[float | type[BaseException]]
) -> None:
    """Let validation give these accuracies, one after the other."""
    answers = iter(accuracies)

    def measure(*args: Any) -> Evaluation:
        answer = next(answers)
        if isinstance(answer, type):
            raise answer
        return Evaluation("val", 4, answer, None, 1.0, np.zeros((2, 2), int), ("blue", "red"))

    monkeypatch.setattr(loop, "measure", measure)


def test_the_best_epoch_is_kept(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worse last epoch must not replace a better one."""
    scripted(monkeypatch, [0.5, 0.75, 0.6])
    model = resnext.train(
        photos,
        TINY,
        out=tmp_path / "m.safetensors",
        recipe=QUICK,
        epochs=3,
        size=16,
        progress=False,
    )
    assert model.card is not None
    assert model.card.provenance["epoch"] == 2
    assert model.card.metrics["val_accuracy"] == 0.75


@pytest.mark.parametrize(("accuracies", "epoch", "complete"), [([0.5], 1, True), ([], 1, False)])
def test_interrupting_leaves_a_usable_file(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    accuracies: list[float],
    epoch: int,
    complete: bool,
) -> None:
    """Ctrl-C after an epoch keeps it; before the first one is over, the weights as they are."""
    scripted(monkeypatch, [*accuracies, KeyboardInterrupt])
    out = tmp_path / "m.safetensors"
    with pytest.raises(KeyboardInterrupt):
        resnext.train(photos, TINY, out=out, recipe=QUICK, size=16, progress=False)
    card = resnext.load(out).card
    assert card is not None
    assert card.provenance["epoch"] == epoch
    assert card.provenance["complete_epoch"] == complete
    assert bool(card.metrics) == complete
    assert {p.name for p in tmp_path.iterdir()} == {"photos", out.name}


def test_ctrl_c_from_the_terminal(tmp_path: Path) -> None:
    """The real signal, in the real command: exit code 130, one line, a file that loads."""
    out = tmp_path / "m.safetensors"
    command = ["train", "digits", "--model", "resnext11_8x16d", "--out", str(out)]
    with subprocess.Popen(
        [sys.executable, "-m", "resnext", *command],
        stderr=subprocess.PIPE,
        text=True,
        # a test run that is itself in the background has its interrupts ignored, and passes that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        deadline = time.monotonic() + 120
        while not out.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "Interrupted in epoch" in errors
    assert resnext.load(out).card is not None


def test_a_diverging_loss_stops_with_advice(photos: Path, tmp_path: Path) -> None:
    """Training on after NaN wastes hours and overwrites nothing with garbage."""
    with pytest.raises(ResNeXtError, match="Lower the learning rate"):
        resnext.train(
            photos,
            TINY.replace(norm="group", norm_groups=1),
            out=tmp_path / "m.safetensors",
            recipe=QUICK,
            learning_rate=1000.0,
            epochs=30,
            size=16,
            progress=False,
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnext5"}, "No variant is called 'resnext5'"),
        ({"model": "resnext50_32x4d", "size": 16}, "size must be at least 32"),
        ({"size": 0}, "size must be at least"),
        ({"recipe": "best"}, "No recipe is called 'best'. There are small, digits"),
        ({"epochs": 0}, "epochs must be a whole number from 1"),
        ({"batch_size": 1}, "batch_size must be a whole number from 2"),
        ({"learning_rate": -1.0}, "learning_rate must be a number from"),
        ({"nesterov": True}, "A recipe has no field 'nesterov'"),
        ({"val_fraction": 1.0}, "val_fraction must be between 0 and 1"),
        ({"device": "toaster"}, "device 'toaster' cannot be used"),
        ({"data": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_wrong_arguments_leave_an_existing_file_alone(
    photos: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    """A mistake must be told before anything is written or trained."""
    out = tmp_path / "m.safetensors"
    out.write_text("precious")
    given = {"data": photos, "model": TINY, "size": 16, "overwrite": True, **arguments}
    with pytest.raises(ResNeXtError, match=message):
        resnext.train(out=out, progress=False, **given)
    assert out.read_text() == "precious"


def test_existing_files_are_not_overwritten_unasked(photos: Path, tmp_path: Path) -> None:
    """A second run with the default name would destroy the first one's result."""
    out = tmp_path / "m.safetensors"
    out.write_text("precious")
    with pytest.raises(ResNeXtError, match="exists"):
        resnext.train(photos, TINY, out=out, progress=False)
    with pytest.raises(ResNeXtError, match="a folder that exists"):
        resnext.train(photos, TINY, out=tmp_path / "no" / "m.safetensors", progress=False)


def test_damaged_images_are_found_before_training(photos: Path, tmp_path: Path) -> None:
    """One truncated JPEG used to kill a run hours after it began."""
    whole = (photos / "red" / "0.png").read_bytes()
    (photos / "red" / "0.png").write_bytes(whole[: len(whole) // 2])
    (photos / "blue" / "3.png").write_text("no image")
    out = tmp_path / "m.safetensors"
    with pytest.raises(ResNeXtError, match=r"not a readable image .* So are 1 others") as caught:
        resnext.train(photos, TINY, out=out, recipe=QUICK, size=16, progress=False)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_fewer_images_than_a_batch(photos: Path, tmp_path: Path) -> None:
    """Dropping the last incomplete batch would leave nothing to learn from."""
    model = resnext.train(
        photos, TINY, out=tmp_path / "m", recipe=QUICK, batch_size=500, size=16, progress=False
    )
    assert model.card is not None
    assert model.card.provenance["recipe"]["batch_size"] == 20


def test_rate_rises_linearly_and_falls_to_zero() -> None:
    """The paper's optimizer with warm-up; a jump or a negative rate would show here."""
    rates = [rate(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 2))
    assert all(a >= b > 0 for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] < 1e-3
    assert rate(0, 1, 0.1) == 1


def test_norms_and_biases_are_not_decayed() -> None:
    """Decaying them costs accuracy; no parameter may be left out or counted twice."""
    network = resnext.create("seresnext26t_32x4d", num_classes=3)
    decayed, spared = parameter_groups(network, 1e-4)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-4, 0.0)
    assert len(decayed["params"]) + len(spared["params"]) == len(list(network.parameters()))
    modules = torch.nn.Conv2d | torch.nn.Linear
    weights = {id(m.weight) for m in network.modules() if isinstance(m, modules)}
    assert {id(p) for p in decayed["params"]} == weights


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_name_their_source(name: str) -> None:
    """A recipe without source or measurement is folklore."""
    text = RECIPES[name].__doc__ or ""
    assert "Source" in text or "benchmarks/" in text
    assert RECIPES[name]() == RECIPES[name]()
