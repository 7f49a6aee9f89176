"""Signals and kills: nothing that was reached may be lost."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import wait_until
from training_runs import quick, run, scripted, sha

import resnext
from resnext.system.signals import STOPPING
from resnext.training import checkpoint as state
from resnext.training.interrupts import Interrupts, Terminated
from resnext.training.trainer import Trainer


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


def test_signals_end_the_command_and_lose_nothing(
    tmp_path: Path, environment: dict[str, str], left_alone: Reference
) -> None:
    """The real signals, in the real command: exit code, one line, a checkpoint, a file that loads.

    The run goes on from each; in the end, the file is that of a run that was left alone.
    """
    out = tmp_path / "m.safetensors"
    command = [*DIGITS, "--out", str(out)]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        before = {*tmp_path.glob("m.run/*.state")}
        with subprocess.Popen(
            [*command, "--resume"] if before else command,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            # a test run that is itself in the background has its interrupts ignored, and passes
            # that on; so do shells that ignore hangups
            preexec_fn=default_signals,
        ) as process:
            wait_until(
                lambda before=before: out.exists() and {*tmp_path.glob("m.run/*.state")} - before
            )
            os.kill(process.pid, number)
            _, errors = process.communicate()
        assert ("Resumed in epoch" in errors) == bool(before), errors
        assert process.returncode == code, errors
        assert "Traceback" not in errors
        assert "with --resume to continue" in errors
        assert resnext.load(out).card is not None
    again = run([*command, "--resume"], environment)
    assert "Resumed in epoch" in again.stderr
    assert sha(out) == left_alone.sha


def default_signals() -> None:
    """As a terminal starts programs."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


DIGITS = [
    *(sys.executable, "-m", "resnext", "train", "digits", "--model", "resnext11_8x16d"),
    *("--epochs", "3", "--set", "ema=0.9", "--set", "mixup=0.2", "--checkpoint-minutes", "0.005"),
]


class Reference(NamedTuple):
    """What an undisturbed run of `DIGITS` gives."""

    sha: str
    cpu_seconds: float


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """One undisturbed run, which all disturbed ones are compared with."""
    out = tmp_path_factory.mktemp("reference") / "left_alone.safetensors"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run([*DIGITS, "--out", str(out)], {**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Reference(sha(out), used)


@pytest.mark.parametrize(
    "moments", [2, pytest.param(30, marks=pytest.mark.slow)], ids=["2 moments", "30 moments"]
)
def test_killed_at_any_moment(
    tmp_path: Path, moments: int, environment: dict[str, str], left_alone: Reference
) -> None:
    """A kill leaves no time for anything; the file in the end must be the undisturbed one's.

    SIGPROF, which Python does not handle, ends the process once it has used a random amount of
    processor time, so the moments do not depend on how busy the machine is.
    """
    killed = tmp_path / "killed.safetensors"
    command = [*DIGITS, "--out", str(killed), "--resume"]
    rng, done = random.Random(moments), 0
    while done < moments:
        seconds = rng.uniform(0.2, 0.8) * left_alone.cpu_seconds
        process = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            preexec_fn=lambda after=seconds: signal.setitimer(signal.ITIMER_PROF, after),
        )
        if process.returncode == 0:  # it had come to the end: begin anew
            assert sha(killed) == left_alone.sha
            killed.unlink()
            shutil.rmtree(tmp_path / "killed.run")
            continue
        assert process.returncode == -signal.SIGPROF, process.stderr
        done += 1
    run(command, environment)
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
    monkeypatch.setattr(state, "write_atomically", written)
    monkeypatch.setattr(Trainer, "_after_step", original)
    quick(photos, out, epochs=3, resume=True)
    assert sha(out) == sha(tmp_path / "left_alone.safetensors")
    assert not list((tmp_path / "m.run").glob(".*.state.*"))


@pytest.fixture
def handled() -> Iterator[None]:
    """Handlers of the test, restored afterwards."""
    before = {s: signal.getsignal(s) for s in STOPPING}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handled")
@pytest.mark.parametrize("first", STOPPING)
def test_the_first_signal_waits_and_a_second_ctrl_c_does_not(first: signal.Signals) -> None:
    """A step that is cut in half cannot be saved, but one that hangs must be left somehow."""
    interrupts = Interrupts()
    with interrupts.listen():
        signal.raise_signal(first)
        assert (interrupts.requested, interrupts.forced) == (first, False)
        with pytest.raises(KeyboardInterrupt) as second:
            signal.raise_signal(signal.SIGINT)
        assert interrupts.forced
    assert second.type is KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt) as stopped:
        interrupts.stop()
    assert stopped.type is (KeyboardInterrupt if first == signal.SIGINT else Terminated)
    for each in STOPPING:
        assert signal.getsignal(each) is signal.default_int_handler


@pytest.mark.usefixtures("handled")
@pytest.mark.parametrize(
    ("first", "again", "launched"),
    [
        (signal.SIGTERM, signal.SIGTERM, False),  # timeout: to its child, and to the group
        (signal.SIGINT, signal.SIGTERM, False),
        (signal.SIGTERM, signal.SIGTERM, True),  # torchrun sends on what the group gets anyway
        (signal.SIGINT, signal.SIGINT, True),
    ],
)
def test_a_repeated_signal_forces_nothing(
    monkeypatch: pytest.MonkeyPatch, first: signal.Signals, again: signal.Signals, launched: bool
) -> None:
    """The repetition came within milliseconds, and the run ended without its checkpoint."""
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    interrupts = Interrupts()
    with interrupts.listen():
        signal.raise_signal(first)
        signal.raise_signal(again)
    assert (interrupts.requested, interrupts.forced) == (first, False)


@pytest.mark.usefixtures("handled")
def test_ignored_signals_stay_ignored() -> None:
    """`nohup` and background shells ignore Ctrl-C on purpose."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts = Interrupts()
    with interrupts.listen():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.raise_signal(signal.SIGTERM)
    assert interrupts.requested == signal.SIGTERM


def test_listening_in_a_thread_changes_no_handler() -> None:
    """Python raises ValueError where another than the main thread sets a handler."""
    before, seen = signal.getsignal(signal.SIGINT), []

    def listen() -> None:
        with Interrupts().listen():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]


MOMENTS = """
import os, signal, sys
from multiprocessing.process import BaseProcess
from pathlib import Path
import resnext
from resnext.data import workers
from resnext.errors import Terminated
from resnext.training.best_model import BestModel
from resnext.training.step import TrainStep
from resnext.training.validation import Validator
from training_runs import quick, sha

photos, folder = map(Path, sys.argv[1:])

def signalling(owner, name, calls):
    '''Send SIGTERM to the whole group, workers too, inside of the call of this number.'''
    original, count = getattr(owner, name), 0
    def disturbed(*given, **options):
        nonlocal count
        count += 1
        if count == calls:
            os.killpg(0, signal.SIGTERM)
            os.killpg(0, signal.SIGTERM)  # `timeout` sends two
        result = original(*given, **options)
        if count == calls:
            os.killpg(0, signal.SIGTERM)
        return result
    setattr(owner, name, disturbed)
    return lambda: setattr(owner, name, original)

quick(photos, folder / "alone.safetensors", workers=2)
moments = [
    (BaseProcess, "start", 1), (BaseProcess, "start", 2), (TrainStep, "update", 2),
    (Validator, "outputs", 2), (BestModel, "offer", 1),
]
for owner, name, calls in moments:
    out = folder / "m.safetensors"
    restore = signalling(owner, name, calls)
    try:
        quick(photos, out, workers=2, overwrite=True)
    except Terminated:
        restore()
        assert list(folder.glob("m.run/*.state")), name
        quick(photos, out, workers=2, resume=True)
        print(name, calls, sha(out) == sha(folder / "alone.safetensors"))
"""


def test_sigterm_to_the_whole_group_at_any_moment(
    photos: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """systemd, timeout and scancel signal workers too: they died first, and with them the run."""
    script = tmp_path / "moments.py"
    script.write_text(MOMENTS)
    paths = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, str(script), str(photos), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": paths},
        start_new_session=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{moment} True" for moment in ("start 1", "start 2", "update 2", "outputs 2", "offer 1")
    ]
    assert "Traceback" not in done.stderr
