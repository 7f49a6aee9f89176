"""Checkpoints of a run: complete, checksummed, written atomically and in the background.

A file is one line of JSON with the SHA-256 of the rest, then a safetensors file whose header holds
all values that are not tensors.
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

_KEPT = 2  # the newest, and the one before it in case the newest is damaged
_PATTERN = "checkpoint-*.state"
_ABOUT = "resnext"


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to resume.

    Args:
        tensors: Weights, weight averages and optimizer state, by name.
        about: All other values, as JSON values: state of the run, identity, execution.
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose names begin with `prefix` and a dot; the prefix is removed."""
        start = f"{prefix}."
        return {k.removeprefix(start): x for k, x in self.tensors.items() if k.startswith(start)}


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in main memory, which training does not change."""
    return {name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()}


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of an optimizer: tensors by name, and all other values as JSON values."""
    whole = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entry in whole["state"].items():
        for name, value in entry.items():
            values = tensors if isinstance(value, Tensor) else numbers
            values[f"{index}.{name}"] = value
    groups = [{k: v for k, v in g.items() if k != "params"} for g in whole["param_groups"]]
    return tensors, {"numbers": numbers, "groups": groups}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Restore the state from `optimizer_state`, in the memory layout of the parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *about["numbers"].items()):
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        elif isinstance(value, Tensor):
            value = value.clone()  # a view would keep the complete file in memory
        state.setdefault(int(index), {})[name] = value
    groups = [
        {**saved, "betas": tuple(saved["betas"]), "params": now["params"]}
        if "betas" in saved  # JSON has no tuples
        else {**saved, "params": now["params"]}
        for saved, now in zip(about["groups"], optimizer.state_dict()["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def write_checkpoint(state: Checkpoint, folder: Path, position: int) -> Path:
    """Write a checkpoint, then remove all but the newest two.

    Raises:
        CheckpointError: The file cannot be written, or weights contain NaN or infinity. Earlier
            checkpoints are kept.
    """
    for name, x in state.tensors.items():
        if not name.startswith("optimizer.") and not x.isfinite().all():
            raise CheckpointError(f"{name} contains NaN or infinity.")
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
    for torn in folder.glob(f".{_PATTERN}.*"):  # left by a killed process
        torn.unlink(missing_ok=True)
    return path


def read_state(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: The checkpoint is damaged.
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


def latest_checkpoint(folder: Path, log: Callable[[str], None]) -> Checkpoint | None:
    """The newest undamaged checkpoint; None if the folder has no checkpoints.

    Args:
        folder: Folder of the run.
        log: Called with one line for each damaged checkpoint.

    Raises:
        CheckpointError: All checkpoints are damaged.
    """
    files = sorted(folder.glob(_PATTERN), reverse=True)
    for path in files:
        try:
            return read_state(path)
        except CheckpointError as error:
            log(str(error))
            if not isinstance(error.__cause__, OSError):  # not for an unreachable disk
                path.replace(path.with_suffix(".damaged"))
    if files:
        raise CheckpointError(
            f"Every checkpoint in {folder} is damaged. Start again with --overwrite."
        )
    return None


class CheckpointWriter:
    """Writes models and states in the background, one after the other.

    Of several waiting states, only the newest is written. A failed write is logged once and tried
    again together with the next one. A state is never written before the model it refers to.

    The thread ends when everything is written. A permanent thread would keep the OpenMP threads
    that torch creates for each thread. With more of these than cores, GNU OpenMP puts all of them
    to sleep between two operations, and small networks train up to a third slower.

    Args:
        log: Called with one line when writing fails, and when it works again.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._model: Callable[[], object] | None = None
        self._state: Callable[[], object] | None = None
        self._problem = self._kind = ""
        self._lock = threading.Lock()
        self._busy = False
        self._thread = threading.Thread()

    def model(self, write: Callable[[], object]) -> None:
        """Write a model in the background."""
        with self._lock:
            self._model = write
            self._begin()

    def state(self, write: Callable[[], object]) -> None:
        """Write a state in the background; it replaces one that is still waiting."""
        with self._lock:
            self._state = write
            self._begin()

    def flush(self) -> None:
        """Wait until everything is written, and retry failed writes once.

        Raises:
            CheckpointError: A write failed again.
        """
        self.close()
        if self._model or self._state:
            with self._lock:
                self._begin()
            self.close()
        if self._model or self._state:
            raise CheckpointError(f"{self._problem}.")

    def close(self) -> None:
        """Wait for the running write."""
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
            except Exception as error:  # no error of any kind may end training
                problem = (str(error) or type(error).__name__).rstrip(".")
                kind = f"{type(error)} {getattr(error.__cause__, 'errno', '')}"
            again = kind != self._kind
            self._problem, self._kind = problem, kind
            with suppress(Exception):  # the terminal may be closed
                if problem and again:
                    self._log(
                        f"Not saved: {problem}. Training continues; what was saved before is kept."
                    )
                elif again:
                    self._log("Saving works again.")
            with self._lock:
                newer = self._model is not model and self._model is not None
                newer |= self._state is not state and self._state is not None
                self._busy = newer

    def _done(self, slot: str, written: Callable[[], object]) -> None:
        with self._lock:
            if getattr(self, slot) is written:
                setattr(self, slot, None)
