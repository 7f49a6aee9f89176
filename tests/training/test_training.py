"""Training: honest, repeatable, and never losing what was reached."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import resnext
from resnext import ResNeXtConfig, ResNeXtError
from resnext.errors import CheckpointError, ConfigError, DataError
from resnext.evaluation.classification import Evaluation
from resnext.training import Recipe, preparation, trainer, validation
from resnext.training import checkpoint as state
from resnext.training.trainer import Trainer

TINY = ResNeXtConfig((1, 1), 2, 8, num_classes=2, channels=(16, 32), num_stages=2, small_stem=True)
QUICK = Recipe(epochs=2, batch_size=4, learning_rate=0.05)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from or written to the cache of whoever runs the tests."""
    monkeypatch.setenv("RESNEXT_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


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

    def judge(*args: Any, **options: Any) -> Evaluation:
        answer = next(answers)
        if isinstance(answer, type):
            raise answer
        return Evaluation("val", 4, answer, None, 1.0, np.zeros((2, 2), int), ("blue", "red"))

    monkeypatch.setattr(validation, "score", judge)


def quick(photos: Path, out: Path, **changes: Any) -> resnext.ResNeXt:
    """A run of seconds."""
    given = {"recipe": QUICK, "size": 16, "workers": 0, "progress": False, **changes}
    return resnext.train(photos, TINY, out=out, **given)


def sha(path: Path) -> str:
    """What is in a file, in short."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


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


# -- being interrupted, and going on ------------------------------------------------------------


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
        quick(photos, out)
    card = resnext.load(out).card
    assert card is not None
    assert card.provenance["epoch"] == epoch
    assert card.provenance["complete_epoch"] == complete
    assert bool(card.metrics) == complete
    assert {p.name for p in tmp_path.iterdir()} == {"photos", "m.safetensors", "m.run"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_command_and_lose_nothing(
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    environment: dict[str, str],
    left_alone: Reference,
) -> None:
    """The real signal, in the real command: exit code, one line, a checkpoint, a file that loads.

    Going on from there gives the file of a run that was left alone.
    """
    out = tmp_path / "m.safetensors"
    command = [*DIGITS, "--out", str(out)]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # a test run that is itself in the background has its interrupts ignored, and passes that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        wait_for(lambda: out.exists())
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert "with --resume to continue" in errors
    assert resnext.load(out).card is not None
    again = run([*command, "--resume"], environment)
    assert "Resumed in epoch" in again.stderr
    assert sha(out) == left_alone.sha


DIGITS = [
    *(sys.executable, "-m", "resnext", "train", "digits", "--model", "resnext11_8x16d"),
    *("--epochs", "3", "--set", "ema=0.9", "--set", "mixup=0.2", "--checkpoint-minutes", "0.005"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of processes: the tests' cache, and one thread, which is faster for tiny networks."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    return {**os.environ, "RESNEXT_HOME": str(cache), "OMP_NUM_THREADS": "1"}


class Reference(NamedTuple):
    """What a run of `DIGITS` gives that is left alone."""

    sha: str
    seconds: float


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Reference:
    """One undisturbed run, which all disturbed ones are compared with."""
    out = tmp_path_factory.mktemp("reference") / "left_alone.safetensors"
    began = time.monotonic()
    run([*DIGITS, "--out", str(out)], environment)
    return Reference(sha(out), time.monotonic() - began)


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A command that is expected to work."""
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def wait_for(what: Any) -> None:
    """Until something holds."""
    deadline = time.monotonic() + 120
    while not what() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert what()


@pytest.mark.parametrize(
    "moments", [3, pytest.param(30, marks=pytest.mark.slow)], ids=["3 moments", "30 moments"]
)
def test_killed_at_any_moment(
    tmp_path: Path, moments: int, environment: dict[str, str], left_alone: Reference
) -> None:
    """SIGKILL leaves no time for anything; the file in the end must be the undisturbed one's."""
    killed = tmp_path / "killed.safetensors"
    rng, done = random.Random(moments), 0
    while done < moments:
        command = [*DIGITS, "--out", str(killed), "--resume"]
        with subprocess.Popen(
            command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment
        ) as process:
            try:
                process.wait(rng.uniform(0.2, 0.8) * left_alone.seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                done += 1
        if process.returncode == 0:  # it had come to the end: begin anew
            assert sha(killed) == left_alone.sha
            killed.unlink()
            shutil.rmtree(tmp_path / "killed.run")
    run([*DIGITS, "--out", str(killed), "--resume"], environment)
    assert sha(killed) == left_alone.sha


class Killed(BaseException):
    """Stands for the end of the process, where nothing is cleaned up."""


@pytest.mark.parametrize("moment", ["before", "half", "after"])
def test_killed_inside_a_write(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Neither half a checkpoint nor one that was just put in place may confuse what goes on."""
    quick(photos, tmp_path / "left_alone.safetensors", epochs=3)
    out, written, count = tmp_path / "m.safetensors", state.write_atomically, 0

    def dying(path: Path, write: Any) -> None:
        nonlocal count
        count += path.suffix == ".state"
        if count < 3 or path.suffix != ".state":
            written(path, write)
            return
        if moment == "half":
            torn = path.with_name(f".{path.name}.abcdefgh")
            write(str(torn))
            torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
        if moment == "after":
            written(path, write)
        dead.append(True)
        raise OSError("the process is gone")

    dead: list[bool] = []
    original = Trainer._after_step

    def step(self: Any) -> None:
        original(self)
        if dead:
            raise Killed

    monkeypatch.setattr(state, "write_atomically", dying)
    monkeypatch.setattr(Trainer, "_after_step", step)
    with pytest.raises(Killed):
        quick(photos, out, epochs=3, checkpoint_minutes=0)
    monkeypatch.undo()
    monkeypatch.setenv("RESNEXT_HOME", str(tmp_path / "cache"))
    quick(photos, out, epochs=3, resume=True)
    assert sha(out) == sha(tmp_path / "left_alone.safetensors")
    assert not list((tmp_path / "m.run").glob(".*.state.*"))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"optimizer": "adamw", "learning_rate": 0.01, "clip": 1.0},
    {"optimizer": "lamb", "learning_rate": 0.01, "loss": "binary", "repeats": 2},
    {"ema": 0.9, "mixup": 0.3, "cutmix": 1.0, "policy": "trivial", "erasing": 0.5},
    {"accumulate": 2, "balance": "sampling", "schedule": "step", "milestones": (0.5,)},
    {"balance": "weights", "head_epochs": 1, "layer_decay": 0.5, "padding": 2},
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
    original, steps = Trainer._after_step, 0

    def stopping(self: Any) -> None:
        nonlocal steps
        steps += 1
        self.interrupts.requested = signal.SIGINT if steps in (2, 6) else None
        original(self)

    monkeypatch.setattr(Trainer, "_after_step", stopping)
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
    original = Trainer._after_step

    def stopping(self: Any) -> None:
        stops = (self.state.epoch, self.state.step) == (1, 4)
        self.interrupts.requested = signal.SIGINT if stops else None
        original(self)

    out = tmp_path / "m.safetensors"
    monkeypatch.setattr(Trainer, "_after_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        resnext.train(photos, config, out=out, **given)
    monkeypatch.setattr(Trainer, "_after_step", original)
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


# -- disks, images and losses that fail ------------------------------------------------------------


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

    monkeypatch.setattr(trainer, "save", failing)
    with pytest.raises(CheckpointError, match="read-only"):
        quick(photos, tmp_path / "m.safetensors")
    monkeypatch.undo()
    monkeypatch.setenv("RESNEXT_HOME", str(tmp_path / "cache"))
    assert quick(photos, tmp_path / "m.safetensors", resume=True).card is not None


def more_photos(photos: Path, count: int) -> None:
    """So many images in each class, so that one is less than 5 %."""
    for name in ("red", "blue"):
        for i in range(12, count):
            shutil.copy(photos / name / f"{i % 12}.png", photos / name / f"{i}.png")
            with (photos / name / f"{i}.png").open("ab") as file:
                file.write(bytes([i]))  # else they were duplicates


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


GROUPED = TINY.replace(norm="group", norm_groups=1)  # batch norm hides rates that are too high


def test_a_diverging_loss_stops_with_advice(photos: Path, tmp_path: Path) -> None:
    """Training on after NaN wastes hours and overwrites nothing with garbage."""
    with pytest.raises(ResNeXtError, match="Lower the learning rate") as caught:
        resnext.train(
            photos,
            GROUPED,
            out=tmp_path / "m.safetensors",
            recipe=QUICK,
            learning_rate=1000.0,
            epochs=30,
            size=16,
            progress=False,
        )
    assert "in epoch" in str(caught.value)
    assert "at rate" in str(caught.value)
    good = state.latest_checkpoint(tmp_path / "m.run", pytest.fail)
    assert good is not None
    assert all(x.isfinite().all() for x in good.tensors.values() if x.is_floating_point())


def test_a_diverging_loss_is_retried_with_half_the_rate(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retries go back to good weights, keep the order of images, and halve the rate each time."""
    original, rates = Trainer._check_losses, []

    def judge(self: Any) -> str:
        found = original(self)
        if self.state.epoch == 2 and self.state.factor > 0.3:
            rates.append(self.train_step.optimizer.param_groups[0]["lr"])
            return "The loss became nan."
        return found

    monkeypatch.setattr(Trainer, "_check_losses", judge)
    out = tmp_path / "m.safetensors"
    with pytest.raises(ResNeXtError, match="became nan"):
        quick(photos, out, retries=1)
    assert rates[1] == pytest.approx(rates[0] / 2)
    rates.clear()
    quick(photos, out, retries=2, overwrite=True)
    rows = [json.loads(x) for x in (tmp_path / "m.run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["rate"] < rows[0]["rate"] / 4


# -- several processes -----------------------------------------------------------------------------


def processes(
    count: int, command: list[str], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """`torchrun` with so many processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    return run([*launcher, *command[1:]], environment)


def test_two_processes_train_what_one_does(tmp_path: Path, environment: dict[str, str]) -> None:
    """With the same batches and synchronised norms, only rounding may differ.

    Weights agree to 0.2 % after a few steps from the same start; without synchronised norms they
    differ by more, so the tolerance can fail.
    """
    command = [
        *(sys.executable, "-m", "resnext", "train", "digits", "--model", "resnext11_8x16d"),
        *("--epochs", "1", "--batch-size", "380", "--learning-rate", "0.003"),
    ]
    names = {"one": [], "two": ["--sync-norms"], "apart": []}
    for name, more in names.items():
        whole = [*command, *more, "--out", str(tmp_path / f"{name}.safetensors")]
        done = run(whole, environment) if name == "one" else processes(2, whole, environment)
        assert done.stderr.count("epoch   1/1") == 1  # the first process speaks for all
    one, two, apart = (
        resnext.load(tmp_path / f"{name}.safetensors").state_dict() for name in names
    )

    def difference(other: dict[str, Any]) -> float:
        weights = [name for name, x in one.items() if x.ndim > 1 or "running" in name]
        return max(float((one[n] - other[n]).norm() / one[n].norm()) for n in weights)

    assert difference(two) < 0.002
    assert difference(apart) > 0.005
    cards = [resnext.load(tmp_path / f"{name}.safetensors").card for name in names]
    assert all(card is not None and card.metrics for card in cards)


def test_two_processes_go_on_after_a_kill(tmp_path: Path, environment: dict[str, str]) -> None:
    """`torchrun` starts the processes again when one dies; the run then resumes by itself."""
    out = tmp_path / "m.safetensors"
    command = [
        *("-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"),
        *("-m", "resnext", "train", "digits", "--model", "resnext11_8x16d", "--epochs", "3"),
        *("--batch-size", "64", "--out", str(out)),
    ]
    with subprocess.Popen(
        [sys.executable, *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        wait_for(lambda: out.exists())
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert "Resumed in epoch" in errors
    card = resnext.load(out).card
    assert card is not None
    assert card.provenance["complete_epoch"]


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnext5"}, "No variant is called 'resnext5'"),
        ({"model": "resnext50_32x4d", "size": 16}, "size must be at least 32"),
        ({"size": 0}, "size must be at least"),
        ({"recipe": "best"}, "No recipe is called 'best'. Available are small, large"),
        ({"epochs": 0}, "epochs must be a whole number from 1"),
        ({"batch_size": 1}, "batch_size must be a whole number from 2|at least 2"),
        ({"learning_rate": -1.0}, "learning_rate must be a number from"),
        ({"nesterov": True}, "A recipe has no field 'nesterov'"),
        ({"val_fraction": 1.0}, "val_fraction must be between 0 and 1"),
        ({"device": "toaster"}, "device 'toaster' cannot be used"),
        ({"data": "nowhere"}, "nowhere does not exist"),
        ({"precision": "fp8"}, "precision must be auto, fp32, bf16 or fp16"),
        ({"precision": "fp16", "device": "cpu"}, "needs a GPU"),
        ({"retries": -1}, "retries must be 0 or more"),
        ({"workers": -1}, "workers must be 0 or more"),
        ({"weights": "nowhere.pth", "model": None}, "nowhere.pth"),
        ({"weights": "x.pth"}, "a model or weights, not both"),
        ({"accumulate": 3}, "cannot be divided into 3|leaves less than two"),
    ],
)
def test_wrong_arguments_leave_an_existing_file_alone(
    photos: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    """A mistake must be told before anything is written or trained."""
    out = tmp_path / "m.safetensors"
    out.write_text("precious")
    checkpoint = tmp_path / "m.run" / "checkpoint-0000000007.state"
    checkpoint.parent.mkdir()
    checkpoint.write_text("precious too")
    given = {
        "data": photos,
        "model": TINY,
        "size": 16,
        "recipe": QUICK,
        "overwrite": True,
        **arguments,
    }
    with pytest.raises(ResNeXtError, match=message):
        resnext.train(out=out, progress=False, **given)
    assert out.read_text() == "precious"
    assert checkpoint.exists()


def test_existing_files_are_not_overwritten_unasked(photos: Path, tmp_path: Path) -> None:
    """A second run with the default name would destroy the first one's result."""
    out = tmp_path / "m.safetensors"
    out.write_text("precious")
    with pytest.raises(ResNeXtError, match="exists"):
        quick(photos, out)
    with pytest.raises(ResNeXtError, match="a folder that exists"):
        quick(photos, tmp_path / "no" / "m.safetensors")
    out.unlink()
    quick(photos, out)
    out.unlink()
    with pytest.raises(ResNeXtError, match="continue with --resume"):
        quick(photos, out)  # its checkpoints are still there
    quick(photos, out, overwrite=True)
    shutil.rmtree(tmp_path / "m.run")
    with pytest.raises(ResNeXtError, match="no checkpoint to resume from"):
        quick(photos, out, resume=True)  # would begin anew, and replace a finished model


def test_what_is_not_installed_is_told_before_anything_is_removed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with --overwrite emptied the folder of the run before, and then could not begin."""
    out = tmp_path / "m.safetensors"
    quick(photos, out)
    files = {path.name for path in (tmp_path / "m.run").iterdir()}
    for missing, change in (("kornia", {"policy": "rand"}), ("pytorch_optimizer", LAMB)):
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(ConfigError, match=rf"{missing}.*resnext\[train\]"):
            quick(photos, out, overwrite=True, **change)
    assert {path.name for path in (tmp_path / "m.run").iterdir()} == files


LAMB: dict[str, Any] = {"optimizer": "lamb"}


def test_fewer_images_than_a_batch(photos: Path, tmp_path: Path) -> None:
    """Dropping the last incomplete batch would leave nothing to learn from."""
    model = quick(photos, tmp_path / "m.safetensors", batch_size=500)
    assert model.card is not None
    assert model.card.provenance["recipe"]["batch_size"] == 20


# -- starting from weights -------------------------------------------------------------------------


def test_weights_are_what_training_starts_from(photos: Path, tmp_path: Path) -> None:
    """Fine-tuning that silently starts from scratch looks like poor data."""
    first = quick(photos, tmp_path / "first.safetensors")
    for name in ("red", "blue"):
        (photos / name).rename(photos / f"{name}dish")
    out = tmp_path / "second.safetensors"
    given: dict[str, Any] = {"size": 16, "progress": False, "workers": 0}
    tuned = resnext.train(
        photos,
        weights=tmp_path / "first.safetensors",
        out=out,
        epochs=2,
        head_epochs=1,
        learning_rate=1e-9,
        batch_size=4,
        frozen_norms=True,
        **given,
    )
    assert tuned.config == first.config
    assert tuned.card is not None
    assert tuned.card.labels == ("bluedish", "reddish")
    assert tuned.card.provenance["weights"] == "first.safetensors"
    before, after = first.state_dict(), tuned.state_dict()
    for name, value in before.items():
        if not name.startswith("fc."):
            assert torch.allclose(value, after[name], atol=1e-6), name
    assert not torch.allclose(before["fc.weight"], after["fc.weight"])  # other classes: untrained


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


# -- what a run leaves behind ----------------------------------------------------------------------


def test_a_run_tells_what_happened(photos: Path, tmp_path: Path) -> None:
    """Figures for people and programs: the page, the lines, the events, the calibration."""
    model = quick(photos, tmp_path / "m.safetensors", epochs=3)
    folder = tmp_path / "m.run"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(row["loss"] > 0 and 0 <= row["val_accuracy"] <= 1 for row in rows)
    assert list(folder.glob("events.out.tfevents.*"))
    page = (folder / "report.html").read_text()
    assert "blue" in page
    assert model.card is not None
    assert model.card.temperature > 0
    assert model.card.metrics["val_nll"] > 0
    assert not preparation.check_identity({}, {})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_a_compiled_network_learns_the_same(photos: Path, tmp_path: Path) -> None:
    """Compiling changes names of parameters and of the module; the file must not show it."""
    plain = quick(photos, tmp_path / "plain.safetensors", epochs=1)
    compiled = quick(photos, tmp_path / "compiled.safetensors", epochs=1, compile=True)
    for name, value in plain.state_dict().items():
        assert torch.allclose(value.float(), compiled.state_dict()[name].float(), atol=1e-3), name


def test_bf16_is_taken_only_where_the_hardware_has_it(photos: Path, tmp_path: Path) -> None:
    """Emulated bf16 is a hundred times slower than fp32; asked for, it must work all the same."""
    model = quick(photos, tmp_path / "m.safetensors", epochs=1, precision="bf16")
    assert {x.dtype for x in model.parameters()} == {torch.float32}
    assert model.card is not None
