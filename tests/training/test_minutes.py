"""`minutes`: the choice, the time it leaves for epochs, and planning again."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import (
    QUICK,
    TINY,
    forget_later_fields,
    rewrite_checkpoint,
    sha,
    stop_after,
)

import resnext
from resnext import ResNeXtConfig
from resnext.errors import CheckpointError, InputError
from resnext.training import minutes as module
from resnext.training import preparation, replanning, trainer
from resnext.training.checkpoint import Checkpoint
from resnext.training.defaults import Choice
from resnext.training.forecast import Speed, epochs_that_fit
from resnext.training.minutes import (
    MOST_EPOCHS,
    PASSES,
    STEPS,
    climb,
    enough_epochs,
)
from resnext.training.optim import lr_schedule
from resnext.training.run_state import Clock, RunSettings, TrainState

SLOW = {"small": 1.0, "large": 4.0}  # seconds per epoch


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Two tiny candidates whose epochs take so many seconds, and a clock that stands still."""
    seconds = dict(SLOW)
    configs = {"small": TINY, "large": TINY.replace(channels=(24, 48))}

    def measure(_: Any, splits: Any, settings: RunSettings, *__: Any, **___: Any) -> Speed:
        steps = len(splits.train) // settings.recipe.batch_size
        return Speed(seconds[settings.title] / steps, 0.0)

    def variant(name: str, **changes: Any) -> ResNeXtConfig:
        return configs[name].replace(**changes)

    monkeypatch.setattr(module, "STEPS", 1)  # a few photos need thousands of epochs for more
    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(module.time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(preparation, "variant", variant)
    for user in (module, replanning):
        monkeypatch.setattr(user, "fastest_threads", lambda *_: 1.0)
    choices = [Choice("small", 16), Choice("large", 20)]
    monkeypatch.setattr(module, "choices", lambda *_: choices)
    monkeypatch.setattr(resnext.training.launch, "default_choice", lambda *_: choices[0])
    return seconds


def timed(photos: Path, out: Path, minutes: float, **changes: Any) -> resnext.ResNeXt:
    """A run whose candidates are those of `machine`; it stops before its first epoch."""
    given = {"recipe": QUICK, "workers": 0, "progress": False, **changes}
    return resnext.train(photos, out=out, minutes=minutes, **given)


def planned(photos: Path, out: Path, minutes: float, **changes: Any) -> dict[str, Any]:
    """The identity of the run that was chosen."""
    seen: list[RunSettings] = []
    with pytest.MonkeyPatch.context() as patch:

        def stop(*arguments: Any) -> None:
            seen.append(arguments[2])
            raise InputError("enough")

        patch.setattr(resnext.training.launch, "Trainer", stop)
        with pytest.raises(InputError, match="enough"):
            timed(photos, out, minutes, **changes)
    return seen[0].identity


@pytest.mark.parametrize(
    ("seconds", "channels", "size", "epochs"),
    [
        (10, (16, 32), 16, 10),  # too short for either: the fastest
        (4 * PASSES, (16, 32), 16, 4 * PASSES),
        (320, (16, 32), 16, MOST_EPOCHS),  # 80 epochs of the other: 84 would be needed
        (324, (24, 48), 20, 81),
        (4 * MOST_EPOCHS * 2, (24, 48), 20, MOST_EPOCHS),
    ],
)
def test_the_choice(
    machine: dict[str, float],
    photos: Path,
    tmp_path: Path,
    seconds: int,
    channels: tuple[int, int],
    size: int,
    epochs: int,
) -> None:
    """The largest network with time for enough epochs, and epochs that fill the time."""
    ending = Speed(0.0, 0.0).ending()
    minutes = (seconds + ending) / 60 / (1 - module._MARGIN) + 1e-9
    chosen = planned(photos, tmp_path / "a.safetensors", minutes)
    assert chosen["config.channels"] == list(channels)
    assert (chosen["preprocessing.size"], chosen["recipe.epochs"]) == (size, epochs)
    assert chosen["minutes"] == minutes


@pytest.mark.parametrize(
    ("images", "batch_size", "wanted"),
    [
        (50_000, 32, PASSES),
        (3200, 32, STEPS // 100),
        (1320, 32, math.ceil(STEPS / 41)),
        (40, 32, MOST_EPOCHS),
        (20, 32, MOST_EPOCHS),
    ],
)
def test_few_images_need_more_epochs(images: int, batch_size: int, wanted: int) -> None:
    """27 epochs of 1,320 photos were too few for the network that 15 epochs seemed enough for."""
    assert enough_epochs(images, batch_size) == wanted


@pytest.mark.parametrize(
    ("epochs", "best"),
    [
        ((24.3, 16.9, 6.4), 1),  # 3 minutes of 5,000 CIFAR-10 images
        ((96.0, 65.3, 19.8), 1),  # 8: the last network is worse, as measured
        ((10.0, 10.7, 1.9), 1),  # it is larger, and not slower
        ((10.0, 9.0, 8.0), 0),
        ((300.0, 290.0, 280.0), 2),
        ((300.0, 100.0, 90.0), 2),  # compared with the first, the third is not much slower
        ((30.0, 0.0), 0),
    ],
)
def test_a_slower_network_needs_more_epochs(epochs: tuple[float, ...], best: int) -> None:
    """What it learns more than the one before must be worth the epochs that it costs."""
    assert climb(epochs, 5000, 32)[0] == best


def test_the_table(
    machine: dict[str, float], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every candidate, the choice and its reason are shown."""
    planned(photos, tmp_path / "a.safetensors", 8, progress=True)
    text = capsys.readouterr().err
    assert "Candidates for 8 minutes on this machine:" in text
    assert "  small   16 pixels" in text
    assert re.search(r"> large   20 pixels .* images/s  .* epochs, \d+ needed\n", text)
    assert "Chosen: large at 20 pixels, the largest one with time for the epochs that" in text


def test_a_short_time(
    machine: dict[str, float], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The only candidate that was timed is not one that was given."""
    machine["small"] = 20.0
    planned(photos, tmp_path / "a.safetensors", 1, progress=True)
    text = capsys.readouterr().err
    assert "Candidates for 1 minute on this machine:" in text
    assert "  large   " not in text
    assert (
        "Chosen: small at 16 pixels, the fastest one, because a larger one needs more time" in text
    )
    planned(photos, tmp_path / "a.safetensors", 1, model="small", size=16, progress=True)
    assert "Chosen: small at 16 pixels, network and size were given." in capsys.readouterr().err


def test_the_only_candidate(
    machine: dict[str, float],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The network of the digits, which nobody gave, was said to be given."""
    monkeypatch.setattr(module, "choices", lambda *_: [Choice("small", 16)])
    planned(photos, tmp_path / "a.safetensors", 1, progress=True)
    shown = capsys.readouterr().err
    assert "Chosen: small at 16 pixels, the one that suits these images." in shown


def test_what_is_given_is_kept(machine: dict[str, float], photos: Path, tmp_path: Path) -> None:
    """A size applies to all candidates; a network and a size leave the epochs only."""
    out = tmp_path / "a.safetensors"
    chosen = planned(photos, out, 30, model="small", size=24)
    assert (chosen["config.channels"], chosen["preprocessing.size"]) == ([16, 32], 24)
    assert chosen["recipe.epochs"] == MOST_EPOCHS
    chosen = planned(photos, out, 30, model="small", batch_size=10)
    assert (chosen["config.channels"], chosen["preprocessing.size"]) == ([16, 32], 20)
    assert chosen["recipe.batch_size"] == 10


def test_too_short(machine: dict[str, float], photos: Path, tmp_path: Path) -> None:
    """Less than one epoch is refused with the time that one takes."""
    machine["small"] = 600.0
    with pytest.raises(
        InputError, match=r"--minutes 3 is too short: .* leave .* An epoch of 20 .* about 10 min"
    ):
        timed(photos, tmp_path / "a.safetensors", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"minutes": 0}, "minutes must be"),
        ({"minutes": -1}, "minutes must be"),
        ({"minutes": float("nan")}, "minutes must be"),
        ({"minutes": True}, "minutes must be"),
        ({"minutes": 3, "epochs": 5}, "Give minutes or epochs, not both"),
    ],
)
def test_refused(photos: Path, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    """In one line, before anything is read."""
    with pytest.raises(InputError, match=message):
        resnext.train(photos, out=tmp_path / "a.safetensors", progress=False, **arguments)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The seconds of a whole epoch, five steps and a validation, by the trainer's clock.

    After `turn` seconds, it is `then`. Steps with smaller images take less.
    """
    each, load = {"seconds": 1.0, "turn": math.inf, "then": 1.0}, trainer.Trainer._next_parts

    def add(clock: Clock, part: str, area: float = 1.0) -> None:
        late = sum(clock.seconds.values()) > each["turn"]
        clock.seconds[part] += area * each["then" if late else "seconds"] / 6

    def seconds(self: Any, part: str) -> Any:
        if part == "validating":
            add(self, part)
        return trainer.suppress()

    def parts(self: Any, batches: Any) -> Any:
        add(self.clock, "training", (self.sampler.side / self.settings.side()) ** 2)
        return load(self, batches)

    monkeypatch.setattr(trainer.Trainer, "_next_parts", parts)

    monkeypatch.setattr(Clock, "measure", seconds)
    return each


def test_a_slower_machine(
    machine: dict[str, float], steady: dict[str, float], photos: Path, tmp_path: Path
) -> None:
    """The number of epochs follows, and the card and the report say so."""
    machine["large"] = 1e9
    steady["seconds"] = 2.0
    out = tmp_path / "a.safetensors"
    model = timed(photos, out, 12 / 60)
    assert model.card is not None
    rows = (tmp_path / "a.run" / "metrics.jsonl").read_text().splitlines()
    assert 3 <= len(rows) <= 5  # of 8 that a second each would leave time for
    assert "Planned again after epoch 2" in (tmp_path / "a.run" / "report.html").read_text()
    assert json.loads(rows[-1])["rate"] < 0.1 * QUICK.learning_rate  # the schedule ends
    choice = model.card.provenance["minutes"]
    assert choice["candidates"][choice["chosen"]]["network"] == "small"


@pytest.mark.parametrize("first_size", [1.0, 0.5])
@pytest.mark.parametrize(
    ("first", "then"), [(1.0, 1.0), (0.7, 0.7), (1.4, 1.4), (0.8, 1.5), (1.5, 0.8)]
)
def test_the_time_is_used(
    machine: dict[str, float],
    steady: dict[str, float],
    photos: Path,
    tmp_path: Path,
    first: float,
    then: float,
    first_size: float,
) -> None:
    """At any speed the last epoch, which may be a shorter one, ends when the time is over.

    A run of three minutes ended 8 % early: whole epochs were counted, and only twice as many as
    were left would have been more.
    """
    machine["large"] = 1e9
    budget = 20.4
    steady.update(seconds=first, turn=budget / 2, then=then)
    ending = Speed(0.0, 0.0).ending()
    minutes = (budget + ending) / 60 / (1 - module._MARGIN)
    timed(photos, tmp_path / "a.safetensors", minutes, first_size=first_size)
    lines = (tmp_path / "a.run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert 0.97 * budget <= sum(row["seconds"] for row in rows) <= 1.02 * budget
    assert [row["steps"] for row in rows[:-1]] == [5] * (len(rows) - 1)
    assert rows[-1]["rate"] < 0.1 * QUICK.learning_rate  # the schedule ends


def test_what_comes_after_an_epoch_is_part_of_the_time(
    machine: dict[str, float], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a run beside a busy program, or of 300 epochs on a slow disk, ends late."""
    parts, clocks = list[Any](), list[Clock]()

    def clock() -> Clock:
        clocks.append(Clock())
        return clocks[-1]

    def note(*_: Any) -> float:
        parts.extend(clocks[0]._running)
        return 1.0

    def stop(*_: Any) -> None:
        note()
        raise KeyboardInterrupt

    monkeypatch.setattr(replanning, "_STARTING", -1.0)
    monkeypatch.setattr(trainer, "Clock", clock)
    monkeypatch.setattr(replanning.Replanner, "choose_threads", note)
    monkeypatch.setattr(trainer.MetricsLog, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        timed(photos, tmp_path / "a.safetensors", 5)
    assert parts == ["training", "checkpoints"]


def test_the_latest_epochs() -> None:
    """Short epochs say little about the next one, and those with other threads nothing."""
    rows = [{"seconds": 1.0, "threads": 1 + (i < 4)} for i in range(20)]
    assert replanning.latest(rows, 0.0) == rows[-3:]
    assert replanning.latest(rows, 7.5) == rows[-8:]
    assert replanning.latest(rows, 99.0) == rows[4:]
    assert replanning.latest(rows[:5], 0.0) == rows[4:5]


def test_small_changes_need_no_line(
    machine: dict[str, float], steady: dict[str, float], photos: Path, tmp_path: Path
) -> None:
    """On a busy machine the terminal was full of lines about a few epochs more or fewer."""
    machine["large"] = 1e9
    steady.update(seconds=1.1, turn=10.0, then=0.9)
    timed(photos, tmp_path / "a.safetensors", 25 / 60)
    assert "Planned again" not in (tmp_path / "a.run" / "report.html").read_text()
    rows = (tmp_path / "a.run" / "metrics.jsonl").read_text().splitlines()
    assert sum(json.loads(row)["seconds"] for row in rows) > 18


@pytest.mark.parametrize("seconds", [0.9, 1.0, 5.2, 5.99, 8.0])
def test_epochs_that_fit(seconds: float) -> None:
    """They need the time at most, and less than a step would be left."""
    step, validation, steps = 0.02, 0.1, 40  # 0.9 s a whole epoch
    epochs = epochs_that_fit(seconds, step, validation, steps)
    needed = round(epochs * steps) * step + math.ceil(epochs) * validation
    assert needed <= seconds + 1e-9
    assert seconds - needed < step + validation


def test_no_time_no_epochs() -> None:
    """A run that is late ends; a small folder is not repeated without end."""
    assert epochs_that_fit(-3.0, 0.1, 1.0, 5) == 0
    assert epochs_that_fit(1e9, 0.1, 1.0, 5) == MOST_EPOCHS


@pytest.mark.parametrize(
    ("minutes", "kept"), [(1, 0.0), (3, 4.0), (30, 4.0)], ids=["short", "long", "longer"]
)
def test_time_is_kept_for_the_index(
    machine: dict[str, float], photos: Path, tmp_path: Path, minutes: float, kept: float
) -> None:
    """Where it takes a small part of the time; 20 + 4 images at a second for the 4."""
    plans: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "measure", lambda *_, **__: Speed(0.1, 4 / 6))
        patch.setattr(resnext.training.launch, "_run", lambda *given: plans.append(given[-1]))
        patch.setattr(resnext.training.launch, "load_classifier", lambda *_, **__: None)
        timed(photos, tmp_path / "a.safetensors", minutes)
        timed(photos, tmp_path / "b.safetensors", minutes, index=False)
    assert [plan.kept for plan in plans] == pytest.approx([kept, 0.0])


@pytest.mark.parametrize(("seconds", "steps"), [(3.5, 1), (50.5, 4), (300.5, 25)])
def test_probe_then_fine_tuning(
    machine: dict[str, float],
    steady: dict[str, float],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    steps: int,
) -> None:
    """With weights: the classifier, then fine-tuning for the seconds that are left."""
    speed, now = Speed(10.0, 10.0), [0.0]
    looking = speed.validation * 24 / 4  # four of the 24 images are for validation
    fit = resnext.training.launch.starting_classifier

    def fitted(*given: Any) -> Any:
        now[0] += looking
        return fit(*given)

    monkeypatch.setattr(resnext.training.launch, "starting_classifier", fitted)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "measure", lambda *_, **__: speed)
    steady["seconds"] = 60.0
    network = resnext.ResNeXt(TINY.replace(num_classes=3))
    network.card = resnext.Card(("a", "b", "c"), resnext.Preprocessing(16, 16))
    weights, out = tmp_path / "weights.safetensors", tmp_path / "a.safetensors"
    resnext.save(network, weights)
    given = {"probe": True, "weights": weights, "index": False, "learning_rate": 1e-6}
    minutes = (looking + seconds + speed.ending()) / 60 / (1 - module._MARGIN)
    timed(photos, out, minutes, **given)
    rows = (tmp_path / "a.run" / "metrics.jsonl").read_text().splitlines()
    assert sum(json.loads(row)["steps"] for row in rows) == steps
    with pytest.raises(InputError, match="is too short"):
        timed(photos, out, 0.9 * looking / 60, overwrite=True, **given)


def test_resume_keeps_the_choice(
    machine: dict[str, float], steady: dict[str, float], photos: Path, tmp_path: Path
) -> None:
    """Bit for bit, although the machine is measured differently the second time."""
    whole, halves = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    timed(photos, whole, 0.15)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 12)  # in the third epoch
        with pytest.raises(KeyboardInterrupt):
            timed(photos, halves, 0.15)
    machine["small"] = 4.0
    with pytest.raises(CheckpointError, match=r"minutes was 0\.15, now 0\.2"):
        timed(photos, halves, 0.2, resume=True)
    timed(photos, halves, 0.15, resume=True)
    assert sha(whole) == sha(halves)


@pytest.mark.parametrize("model", [None, "small"])
def test_resume_with_what_the_time_has_changed(
    machine: dict[str, float],
    steady: dict[str, float],
    photos: Path,
    tmp_path: Path,
    model: str | None,
) -> None:
    """The size for a given network, and fewer epochs than the classifier alone was to have."""
    given = {"model": model, "recipe": replace(QUICK, epochs=60), "head_epochs": 20}
    whole, halves = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    timed(photos, whole, 0.15, **given)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 12)  # in the third epoch
        with pytest.raises(KeyboardInterrupt):
            timed(photos, halves, 0.15, **given)
    timed(photos, halves, 0.15, resume=True, **given)
    assert sha(whole) == sha(halves)


@pytest.mark.parametrize("lost", ["all", "steps", "size", "validating", "threads"])
def test_a_run_of_an_earlier_version_keeps_its_time(
    machine: dict[str, float],
    steady: dict[str, float],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
) -> None:
    """Its epochs do not say how many steps they had: it ended in a KeyError when it replanned."""

    def forget(state: Checkpoint) -> None:
        if lost == "all":
            forget_later_fields(state)
        for row in state.about["position"]["history"]:
            row.pop(lost, None)
        state.about["position"]["threads"] = [2, 4]  # so that threads are chosen again

    machine["large"] = 1e9
    out, run = tmp_path / "a.safetensors", tmp_path / "a.run"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 12)  # in the third epoch
        with pytest.raises(KeyboardInterrupt):
            timed(photos, out, 12 / 60)
    rewrite_checkpoint(run, forget)
    steady["seconds"] = 1.4
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    timed(photos, out, 12 / 60, resume=True)
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = sum(row["seconds"] for row in rows)
    budget = 12 * (1 - module._MARGIN) - Speed(0.0, 0.0).ending()
    assert 0.85 * budget < seconds < 1.1 * budget


def test_resume_keeps_the_threads(
    machine: dict[str, float],
    steady: dict[str, float],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the process has its own number again at the end."""
    before, used = torch.get_num_threads(), list[int]()
    fewer, epoch = before + 1, trainer.Trainer._train_epoch

    def choose(*_: Any) -> float:
        torch.set_num_threads(fewer)
        return 0.5

    def train_epoch(self: Any) -> None:
        used.append(torch.get_num_threads())
        epoch(self)

    monkeypatch.setattr(module, "fastest_threads", choose)
    monkeypatch.setattr(trainer.Trainer, "_train_epoch", train_epoch)
    monkeypatch.setattr(replanning.Replanner, "choose_threads", lambda *_: 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "_log_epoch", _interrupt_at(3))
        with pytest.raises(KeyboardInterrupt):
            timed(photos, tmp_path / "a.safetensors", 0.15)
    assert torch.get_num_threads() == before
    timed(photos, tmp_path / "a.safetensors", 0.15, resume=True)
    assert set(used) == {fewer}
    assert torch.get_num_threads() == before


def _interrupt_at(epoch: int) -> Any:
    def log(self: trainer.Trainer, *_: Any, **__: Any) -> None:
        if self.state.epoch == epoch:
            raise KeyboardInterrupt

    return log


@pytest.mark.parametrize(
    "replans", [[], [(2, 5)], [(1, 20), (4, 6)], [(3, 4)], [(0, 3.5), (16 / 7, 20 / 7)]]
)
def test_the_schedule_is_stretched(replans: list[tuple[float, float]]) -> None:
    """It starts at the start, never jumps, and ends at the end, however often it is changed."""
    steps, planned = 7, 10
    state = TrainState(replans=replans)
    last = round(state.epochs(planned) * steps)
    positions = np.array([state.progress(i, steps, planned) for i in range(last + 1)])
    assert positions[0] == 0
    assert positions[-1] == pytest.approx(steps * planned)
    assert (np.diff(positions) > 0).all()
    first = round(replans[0][0] * steps) if replans else last
    assert positions[: first + 1] == pytest.approx(np.arange(first + 1))  # as it was planned
    recipe = replace(QUICK, epochs=planned)
    rates = [lr_schedule(recipe, x, steps * planned) for x in positions]
    assert rates[-1] == pytest.approx(0, abs=1e-9)
