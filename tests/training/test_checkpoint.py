"""Checkpoints of a run: whole or refused, bit for bit, and written beside the training."""

from __future__ import annotations

import errno
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resnext import ResNeXtConfig
from resnext.errors import CheckpointError
from resnext.network import ResNeXt
from resnext.training import Recipe
from resnext.training.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    latest_checkpoint,
    optimizer_state,
    read_state,
    restore_optimizer,
    snapshot,
    write_checkpoint,
)
from resnext.training.optim import optimizer

TINY = ResNeXtConfig((1, 1), 2, 8, num_classes=3, channels=(8, 16), num_stages=2, small_stem=True)

pytestmark = pytest.mark.usefixtures("one_thread")


def some_state(seed: int = 0) -> Checkpoint:
    """Every kind of value that a run keeps."""
    torch.manual_seed(seed)
    tensors = {
        "network.conv.weight": torch.randn(4, 2, 3, 3),
        "network.bn.num_batches_tracked": torch.tensor(2**40 + seed),
        "network.half": torch.randn(3, 5).bfloat16(),
        "network.fp16": torch.randn(2).half(),
        "network.double": torch.randn(2, dtype=torch.float64),
        "optimizer.0.odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "network.none": torch.empty(0, 3),
        "networks.other": torch.ones(1),
        "optimizer.0.step": torch.tensor(7.0),
    }
    about = {
        "position": {"epoch": 3, "total": 0.1 + 0.2, "best": None, "bad": {"7": "a/ü.jpg: „no“"}},
        "numbers": [1e-300, 2**60, -1, True],
        "seed": seed,
    }
    return Checkpoint(tensors, about)


def equal(a: Checkpoint, b: Checkpoint) -> bool:
    """Whether two are the same, to the last bit and type."""
    return (
        a.about == b.about
        and sorted(a.tensors) == sorted(b.tensors)
        and all(identical(x, b.tensors[name]) for name, x in a.tensors.items())
    )


def identical(x: Tensor, y: Tensor) -> bool:
    """Bits, not values: NaN is NaN, and -0 is not 0."""
    bits = [t.contiguous().view(-1).view(torch.uint8).tolist() for t in (x, y)]
    return x.dtype == y.dtype and x.shape == y.shape and bits[0] == bits[1]


# -- files ------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """A type that is rounded or forgotten makes the run another one."""
    state = some_state()
    path = write_checkpoint(state, tmp_path, 12)
    assert equal(read_state(path), state)
    found = latest_checkpoint(tmp_path, pytest.fail)
    assert found is not None
    assert equal(found, state)
    assert read_state(path).part("network").keys() == {
        name.removeprefix("network.") for name in state.tensors if name.startswith("network.")
    }
    assert read_state(path).part("optimizer").keys() == {"0.step", "0.odd"}
    assert read_state(path).part("average") == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_kept(tmp_path: Path, value: float) -> None:
    """A diverged run must not push out the last checkpoint that could be gone on from."""
    state = some_state()
    state.tensors["network.bn.bias"] = torch.tensor([1.0, value])
    with pytest.raises(CheckpointError, match=r"network\.bn\.bias contains NaN or infinity"):
        write_checkpoint(state, tmp_path, 1)
    assert not list(tmp_path.iterdir())


def test_a_file_is_what_its_first_line_says(tmp_path: Path) -> None:
    """Other programs, and we in ten years, have to be able to read it."""
    content = write_checkpoint(some_state(), tmp_path, 1).read_bytes()
    first, _, rest = content.partition(b"\n")
    assert json.loads(first) == {"sha256": hashlib.sha256(rest).hexdigest(), "bytes": len(rest)}


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    """Disks and networks flip bits; weights with one are wrong without a word."""
    state = some_state()
    path = write_checkpoint(state, tmp_path, 1)
    good = path.read_bytes()
    length = good.index(b"\n")
    rng = np.random.default_rng(0)
    inside = rng.integers(length + 1, len(good), 50)
    for place in (*range(0, length + 1, 3), length, length + 1, len(good) - 1, *inside):
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        if place > length:
            with pytest.raises(CheckpointError, match="is damaged: its checksum is wrong"):
                read_state(path)
            continue
        try:  # the length that the first line tells is for people
            found = read_state(path)
        except CheckpointError as error:
            assert str(error).startswith(f"{path} is damaged: ")  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert equal(found, state)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    """A full disk or a power cut leaves the first part of a file."""
    path = write_checkpoint(some_state(), tmp_path, 1)
    good = path.read_bytes()
    for length in (0, 1, 50, good.index(b"\n"), good.index(b"\n") + 1, 500, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(CheckpointError, match="is damaged"):
            read_state(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(CheckpointError, match="checksum"):
        read_state(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="is damaged"):
        read_state(path)


@pytest.mark.parametrize("content", [b"[]\n", b'{"sha256": 3}\n', b"\xff\xfe", b"{}\n{}", b'"a"\n'])
def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path, content: bytes) -> None:
    """Somebody's own file in the folder must not end in a traceback."""
    path = tmp_path / "checkpoint-0000000001.state"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_state(path)


def test_the_newest_whole_one_is_taken(tmp_path: Path) -> None:
    """A damaged file must cost minutes of training, not all of it, and must be told."""
    assert latest_checkpoint(tmp_path, pytest.fail) is None
    states = [some_state(i) for i in range(2)]
    paths = [
        write_checkpoint(state, tmp_path, 9 + i) for i, state in enumerate(states)
    ]  # 9, then 10
    told: list[str] = []
    found = latest_checkpoint(tmp_path, told.append)
    assert found is not None
    assert equal(found, states[1])
    assert told == []

    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    found = latest_checkpoint(tmp_path, told.append)
    assert found is not None
    assert equal(found, states[0])
    assert told == [f"{paths[1]} is damaged: its checksum is wrong."]

    paths[0].write_bytes(b"")
    told.clear()
    with pytest.raises(CheckpointError, match=r"Every checkpoint in .* Start again with --over"):
        latest_checkpoint(tmp_path, told.append)
    assert len(told) == 1  # the other one was put aside when it was found


def test_two_are_kept_and_nothing_is_left_over(tmp_path: Path) -> None:
    """A run of days would fill the disk with checkpoints, and killed ones with pieces."""
    others = ["metrics.jsonl", "checkpoint.state.txt", ".checkpoint", "model.safetensors"]
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".checkpoint-0000000007.state.abc123").write_text("half of one")
    for position in (5, 99, 100, 1000, 12_345):
        path = write_checkpoint(some_state(position), tmp_path, position)
        assert read_state(path).about["seed"] == position
    left = {p.name for p in tmp_path.iterdir()} - set(others)
    assert left == {"checkpoint-0000001000.state", "checkpoint-0000012345.state"}
    assert all((tmp_path / name).read_text() == "mine" for name in others)
    write_checkpoint(some_state(1), tmp_path, 12_345)  # the same step once more
    assert read_state(tmp_path / "checkpoint-0000012345.state").about["seed"] == 1
    assert read_state(tmp_path / "checkpoint-0000001000.state").about["seed"] == 1000


def test_a_full_disk_leaves_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing over the last good one, or removing it first, loses it when it is needed."""
    states = [some_state(i) for i in range(2)]
    for i, state in enumerate(states):
        write_checkpoint(state, tmp_path, i)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("resnext.system.atomic.os.fsync", full)  # after all was "written"
        with pytest.raises(CheckpointError, match="No space left on device"):
            write_checkpoint(some_state(2), tmp_path, 2)
        with pytest.raises(CheckpointError, match="cannot be written"):
            write_checkpoint(some_state(2), tmp_path / "gone", 2)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_snapshot_does_not_change_any_more() -> None:
    """It is written while training goes on; half of an update in it would be no state at all."""
    live = {
        "wide": torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last).requires_grad_(),
        "count": torch.tensor(3),
        "view": torch.arange(12).view(3, 4).t(),
    }
    wanted = {name: x.detach().clone() for name, x in live.items()}
    kept = snapshot(live)
    with torch.no_grad():
        for x in live.values():
            x.zero_()
    for name, x in kept.items():
        assert torch.equal(x, wanted[name])
        assert x.is_contiguous()
        assert not x.requires_grad


# -- optimizers -------------------------------------------------------------------------------


class Training:
    """A few steps with gradients that depend on the weights."""

    def __init__(self, name: Any, head_steps: int = 0) -> None:
        torch.manual_seed(3)
        self.network = ResNeXt(TINY).to(memory_format=torch.channels_last)  # pyright: ignore
        self.recipe = Recipe(
            epochs=2,
            batch_size=4,
            learning_rate=0.01,
            optimizer=name,
            layer_decay=0.7,
            weight_decay=0.05,
        )
        self.optimizer = optimizer(self.network, self.recipe)
        self.head_steps = head_steps

    def step(self, first: int, last: int) -> None:
        """Steps of these numbers, each with a rate and images of its own."""
        for number in range(first, last):
            self.network.train().requires_grad_(True)
            if number < self.head_steps:
                self.network.requires_grad_(False).fc.requires_grad_(True)
            for group in self.optimizer.param_groups:
                group["lr"] = 0.01 * group["scale"] / (1 + number)
            torch.manual_seed(number)
            x = torch.randn(4, 3, 9, 9).to(memory_format=torch.channels_last)
            value = nn.functional.cross_entropy(self.network(x), torch.tensor([0, 1, 2, 0]))
            value.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def state(self) -> Checkpoint:
        """As a run writes it."""
        remembered, about = optimizer_state(self.optimizer)
        tensors = {f"network.{k}": x for k, x in self.network.state_dict().items()}
        tensors |= {f"optimizer.{k}": x for k, x in remembered.items()}
        return Checkpoint(snapshot(tensors), json.loads(json.dumps(about)))

    def restore(self, state: Checkpoint) -> None:
        """As a run reads it."""
        self.network.load_state_dict(state.part("network"))
        restore_optimizer(self.optimizer, state.part("optimizer"), state.about)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
@pytest.mark.parametrize("head_steps", [0, 3, 7])
def test_optimizers_go_on_bit_for_bit(tmp_path: Path, name: Any, head_steps: int) -> None:
    """Momentum that is lost, rounded, or laid out otherwise in memory makes another run of it.

    With `head_steps`, some parameters have no memory yet when the state is written.
    """
    whole = Training(name, head_steps)
    whole.step(0, 5)
    path = write_checkpoint(whole.state(), tmp_path, 5)
    whole.step(5, 10)

    for steps_before in (0, 2):  # into a fresh one, and, as a retry does, into a used one
        other = Training(name, head_steps)
        other.step(0, steps_before)
        other.restore(read_state(path))
        other.step(5, 10)
        assert equal(other.state(), whole.state())


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_memory_has_the_layout_of_its_parameter(tmp_path: Path, name: Any) -> None:
    """Fused optimizers walk through memory, not through indices: a mix of layouts mixes values."""
    run = Training(name)
    run.step(0, 2)
    path = write_checkpoint(run.state(), tmp_path, 2)
    other = Training(name)
    other.restore(read_state(path))
    found = 0
    for parameter, entry in other.optimizer.state.items():
        for value in entry.values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                assert value.stride() == parameter.stride()
                assert value.dtype == parameter.dtype
                found += parameter.ndim == 4
    assert found >= 8
    assert {g["scale"] for g in other.optimizer.param_groups} == {
        g["scale"] for g in run.optimizer.param_groups
    }


def test_an_optimizer_without_steps_is_restored(tmp_path: Path) -> None:
    """The first checkpoint is written before the first step; a diverging run goes back to it."""
    for name in ("sgd", "adamw", "lamb"):
        run = Training(name)
        path = write_checkpoint(run.state(), tmp_path, 0)
        run.step(0, 4)
        other = Training(name)
        other.step(0, 3)
        other.restore(read_state(path))
        other.step(0, 4)
        assert equal(other.state(), run.state()), name


# -- the writer -------------------------------------------------------------------------------


class Desk:
    """A writer, what it wrote and told, and a gate that makes it wait."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.told: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Event()
        self.failing: BaseException | None = None
        self.writer = CheckpointWriter(self.told.append)

    def write(self, what: str) -> Callable[[], None]:
        """Something to write, which fails or waits as long as we say."""

        def now() -> None:
            self.began.set()
            assert self.gate.wait(20)
            if self.failing is not None:
                raise self.failing
            self.done.append(what)

        return now

    def model(self, what: str) -> None:
        """Ask for a model."""
        self.writer.model(self.write(what))

    def state(self, what: str) -> None:
        """Ask for a state."""
        self.writer.state(self.write(what))

    def hold(self, what: str) -> None:
        """Begin to write a state, and stay at it."""
        self.gate.clear()
        self.began.clear()
        self.state(what)
        assert self.began.wait(20)

    def idle(self) -> None:
        """Wait until nothing more is tried."""
        self.writer._thread.join(20)
        assert not self.writer._thread.is_alive()


@pytest.fixture
def desk() -> Iterator[Desk]:
    """Closed in the end, so that no thread outlives its test."""
    desk = Desk()
    yield desk
    desk.failing = None
    desk.gate.set()
    desk.writer.close()
    assert not desk.writer._thread.is_alive()


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_nothing_stays_when_all_is_written(desk: Desk) -> None:
    """A thread that stays keeps OpenMP threads of its own, and all of them go to sleep."""
    before = threading.active_count()
    desk.state("0")
    desk.writer.flush()
    assert threading.active_count() == before
    desk.state("1")
    desk.writer.flush()
    assert desk.done == ["0", "1"]


def test_a_state_comes_after_the_model_it_speaks_of(desk: Desk) -> None:
    """A checkpoint that says "best is epoch 7" beside the model of epoch 6 is a lie."""
    desk.hold("old state")
    desk.state("state 7")  # asked for first, and still
    desk.model("model 7")
    desk.gate.set()
    desk.writer.flush()
    assert desk.done == ["old state", "model 7", "state 7"]
    assert desk.told == []


def test_only_the_newest_waits(desk: Desk) -> None:
    """A slow disk must not pile up copies of the weights until memory is full."""
    desk.hold("0")
    for i in range(1, 6):
        desk.state(f"state {i}")
        desk.model(f"model {i}")
    desk.gate.set()
    desk.writer.flush()
    assert desk.done == ["0", "model 5", "state 5"]


def test_asking_does_not_wait_and_flush_does(desk: Desk) -> None:
    """Training goes on while the disk works; only the end waits for it."""
    desk.hold("0")
    desk.state("1")  # returns although the gate is shut
    flushed = threading.Event()
    waiting = threading.Thread(target=lambda: (desk.writer.flush(), flushed.set()))
    waiting.start()
    assert not flushed.wait(0.05)
    assert desk.done == []
    desk.gate.set()
    waiting.join(20)
    assert flushed.is_set()
    assert desk.done == ["0", "1"]
    desk.writer.flush()  # nothing to do


def test_a_failure_is_told_once_and_tried_again(desk: Desk) -> None:
    """A disk that is full for an hour must not fill the terminal, nor end the training."""
    desk.failing = FULL
    for i in range(3):
        desk.model(f"model {i}")
        desk.state(f"state {i}")
        desk.idle()
    assert desk.done == []
    desk.failing = None
    desk.state("state 3")
    desk.writer.flush()
    assert desk.done == ["model 2", "state 3"]  # the model had not been written yet
    desk.writer.close()
    assert desk.told == [
        "Not saved: [Errno 28] No space left on device. Training continues; what was saved before "
        "is kept.",
        "Saving works again.",
    ]


def test_another_problem_is_told_too(desk: Desk) -> None:
    """The second reason may be the one that can be helped."""
    for problem in (FULL, FULL, PermissionError(errno.EACCES, "Permission denied"), FULL):
        desk.failing = problem
        desk.state("s")
        desk.idle()
    desk.writer.close()
    assert [text.split("] ")[1].split(". Training")[0] for text in desk.told] == [
        "No space left on device",
        "Permission denied",
        "No space left on device",
    ]


def test_no_state_without_its_model(desk: Desk) -> None:
    """If the model cannot be written, a run that goes on from the state would miss it."""

    def fail() -> None:
        raise FULL

    desk.writer.model(fail)
    desk.state("state 7")
    desk.idle()
    desk.state("state 8")
    desk.idle()
    assert desk.done == []
    desk.model("model 8")
    desk.writer.flush()
    assert desk.done == ["model 8", "state 8"]


def test_flush_tries_once_more_and_then_raises(desk: Desk) -> None:
    """The end of a run must not say that all is well when nothing was saved."""
    desk.failing = FULL
    desk.state("last")
    desk.idle()
    desk.failing = None
    desk.writer.flush()
    assert desk.done == ["last"]

    desk.failing = FULL
    desk.state("lost")
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        desk.writer.flush()
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError):  # it is still not written
        desk.writer.flush()
    assert desk.done == ["last"]


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        CheckpointError("x cannot be written."),
        ValueError("bad"),
        KeyError("k"),
        MemoryError(),
        RuntimeError(),
        AssertionError(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_no_exception_ends_the_writer(desk: Desk, error: Exception) -> None:
    """A thread that died leaves a training of days without a checkpoint, and flush hanging."""
    desk.failing = error
    desk.state("a")
    desk.idle()
    desk.failing = None
    desk.state("b")
    desk.writer.flush()
    assert desk.done == ["b"]
    desk.writer.close()
    reason = str(error) or type(error).__name__
    assert desk.told[0].startswith(f"Not saved: {reason.rstrip('.')}. Training continues")
    assert desk.told[1:] == ["Saving works again."]


def test_closing_ends_the_thread_after_what_is_being_written() -> None:
    """A process that ends in the middle of a file leaves a temporary one behind."""
    desk = Desk()
    desk.hold("0")
    closing = threading.Thread(target=desk.writer.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    desk.gate.set()
    closing.join(20)
    assert not closing.is_alive()
    assert not desk.writer._thread.is_alive()
    assert desk.done == ["0"]
    desk.writer.close()  # twice does no harm
    assert "checkpoints" not in {thread.name for thread in threading.enumerate()}


def test_real_states_from_the_writer(tmp_path: Path) -> None:
    """Two threads, many states: the last one is there, whole, and no piece beside it."""
    told: list[str] = []
    writer = CheckpointWriter(told.append)
    for position in range(1, 30):
        state = some_state(position)
        writer.state(
            lambda state=state, position=position: write_checkpoint(state, tmp_path, position)
        )
    writer.flush()
    writer.close()
    found = latest_checkpoint(tmp_path, pytest.fail)
    assert found is not None
    assert equal(found, some_state(29))
    assert len(list(tmp_path.iterdir())) <= 2
    assert told == []
