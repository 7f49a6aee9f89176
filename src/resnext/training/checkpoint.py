"""Checkpoints of a run: complete, checksummed, written in the background, never half.

A file is a line of JSON with the SHA-256 of all that follows, then a safetensors file whose header
carries what is not a tensor.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from resnext.errors import CheckpointError
from resnext.system.atomic import write_atomically

_KEPT = 2  # the last one, and one before it in case that is damaged
_PATTERN = "checkpoint-*.state"
_ABOUT = "resnext"


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run continues from.

    Args:
        tensors: Weights, averages, and what the optimizer remembers, by name.
        about: The rest, as JSON has it: position, history, settings.
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix` and a dot, without it."""
        start = f"{prefix}."
        return {k.removeprefix(start): x for k, x in self.tensors.items() if k.startswith(start)}


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in main memory, of which none changes any more."""
    return {name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()}


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What an optimizer remembers: tensors by name, and the rest as JSON has it."""
    whole = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entry in whole["state"].items():
        for name, value in entry.items():
            place = tensors if isinstance(value, Tensor) else numbers
            place[f"{index}.{name}"] = value
    groups = [{k: v for k, v in g.items() if k != "params"} for g in whole["param_groups"]]
    return tensors, {"numbers": numbers, "groups": groups}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Let an optimizer remember that again, in the memory layout of its parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *about["numbers"].items()):
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        elif isinstance(value, Tensor):
            value = value.clone()  # a view of the file keeps all of it in memory
        state.setdefault(int(index), {})[name] = value
    groups = [
        {**saved, "betas": tuple(saved["betas"]), "params": now["params"]}
        if "betas" in saved  # JSON has lists only
        else {**saved, "params": now["params"]}
        for saved, now in zip(about["groups"], optimizer.state_dict()["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def write_checkpoint(state: Checkpoint, folder: Path, position: int) -> Path:
    """Write a checkpoint, then remove all but the newest two.

    Raises:
        CheckpointError: It cannot be written, or holds weights that are no numbers; those before
            it are still there.
    """
    for name, x in state.tensors.items():
        if not name.startswith("optimizer.") and not x.isfinite().all():
            raise CheckpointError(f"{name} holds values that are no numbers.")
    content = save(state.tensors, metadata={_ABOUT: json.dumps(state.about)})
    first = json.dumps({"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)})
    path = folder / f"checkpoint-{position:010}.state"

    def write(temporary: str) -> None:
        with Path(temporary).open("wb") as file:
            file.write(first.encode() + b"\n")
            file.write(content)

    write_atomically(path, write)
    for old in sorted(folder.glob(_PATTERN))[:-_KEPT]:
        old.unlink(missing_ok=True)
    for torn in folder.glob(f".{_PATTERN}.*"):  # what a killed process was writing
        torn.unlink(missing_ok=True)
    return path


def read_state(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: It is damaged.
    """
    try:
        first, _, content = path.read_bytes().partition(b"\n")
        wanted = json.loads(first)["sha256"]
        if hashlib.sha256(content).hexdigest() != wanted:
            raise ValueError("its checksum is wrong")
        length = int.from_bytes(content[:8], "little")
        about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_ABOUT])
        return Checkpoint(load(content), about)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error


def latest_checkpoint(folder: Path, tell: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; None if there is none at all.

    Args:
        folder: Of the run.
        tell: Told of each damaged one.

    Raises:
        CheckpointError: There are checkpoints, and all are damaged.
    """
    files = sorted(folder.glob(_PATTERN), reverse=True)
    for path in files:
        try:
            return read_state(path)
        except CheckpointError as error:
            tell(str(error))
            if not isinstance(error.__cause__, OSError):  # it is not the disk that is away
                path.replace(path.with_suffix(".damaged"))
    if files:
        raise CheckpointError(
            f"Every checkpoint in {folder} is damaged. Start again with --overwrite."
        )
    return None


class CheckpointWriter:
    """Writes in the background, one thing after the other.

    Of states that wait, only the newest is written. What cannot be written is told once and tried
    again with the next one; a state is never written before the model it speaks of.

    A thread lives only while there is something to write. One that stayed would keep the OpenMP
    threads that torch gives each thread; with more of these than cores, GNU's OpenMP lets all of
    them sleep between two operations, and small networks train up to a third slower.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._model: Callable[[], object] | None = None
        self._state: Callable[[], object] | None = None
        self._problem = self._kind = ""
        self._lock = threading.Lock()
        self._busy = False
        self._thread = threading.Thread()

    def model(self, write: Callable[[], object]) -> None:
        """Write a model soon."""
        with self._lock:
            self._model = write
            self._begin()

    def state(self, write: Callable[[], object]) -> None:
        """Write a state soon, in place of one that still waits."""
        with self._lock:
            self._state = write
            self._begin()

    def flush(self) -> None:
        """Wait until everything is written.

        Raises:
            CheckpointError: It cannot be.
        """
        self.close()
        if self._model or self._state:  # failed before: the last try
            with self._lock:
                self._begin()
            self.close()
        if self._model or self._state:
            raise CheckpointError(f"{self._problem}.")

    def close(self) -> None:
        """Wait for what is being written now."""
        if self._thread.ident is not None:
            self._thread.join()

    def _begin(self) -> None:
        if not self._busy:
            self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
            self._thread.start()
            self._busy = True

    def _work(self) -> None:
        newer = True
        while newer:
            with self._lock:
                model, state = self._model, self._state
            problem, kind = "", ""
            try:
                if model:
                    model()
                    self._done("_model", model)
                if state:
                    state()
                    self._done("_state", state)
            except Exception as error:  # whatever it is, training must not end with it
                problem = (str(error) or type(error).__name__).rstrip(".")
                kind = f"{type(error)} {getattr(error.__cause__, 'errno', '')}"
            again = kind != self._kind
            self._problem, self._kind = problem, kind
            with suppress(Exception):  # a terminal that is gone
                if problem and again:
                    self._tell(
                        f"Not saved: {problem}. Training goes on; the last good one is kept."
                    )
                elif again:
                    self._tell("Saving works again.")
            with self._lock:
                newer = self._model is not model and self._model is not None
                newer |= self._state is not state and self._state is not None
                self._busy = newer

    def _done(self, slot: str, what: Callable[[], object]) -> None:
        with self._lock:
            if getattr(self, slot) is what:
                setattr(self, slot, None)
