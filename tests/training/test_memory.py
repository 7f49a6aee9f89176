"""A container's memory decides in how many parts a batch is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import QUICK, TINY, quick, sha, stop_after

from resnext import ResNeXt, load, variant
from resnext.training import memory, preparation
from resnext.training.distributed import ProcessGroup
from resnext.training.memory import activation_bytes, parts_that_fit, step_bytes


def limited(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    """Let a container have so many bytes of memory."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for module in (memory, preparation):
        monkeypatch.setattr(module, "total_memory", lambda: size)


def test_activations_are_those_that_a_step_keeps() -> None:
    """Nothing is computed; a real pass keeps as many numbers, which the graph itself tells."""
    network = ResNeXt(TINY).train()
    x = torch.rand(2, 3, 32, 32)
    kept: dict[int, int] = {}
    todo: list[Any] = [network(x).grad_fn]
    while todo:
        node = todo.pop()
        for name in dir(node):
            if name.startswith("_saved_") and isinstance(
                value := getattr(node, name), torch.Tensor
            ):
                kept[value.data_ptr()] = value.untyped_storage().nbytes()
        todo += [parent for parent, _ in node.next_functions if parent is not None]
    own = {tensor.data_ptr() for tensor in network.state_dict().values()}
    wanted = sum(size for pointer, size in kept.items() if pointer not in own and pointer)
    assert activation_bytes(TINY, 32) == pytest.approx(wanted / 2, rel=0.01)


def test_a_batch_is_divided_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch for 40 GB was started in a container of 4, and the kernel ended the run."""
    with torch.device("meta"):
        network = ResNeXt(variant("resnext50_32x4d"))
    recipe = QUICK.changed(batch_size=256)
    sizes = [step_bytes(network, recipe, 224, 256 // n) for n in (1, 2, 4, 8)]
    assert sizes[0] > 30e9
    for n, size in zip((1, 2, 4, 8), sizes, strict=True):
        limited(monkeypatch, int(1.001 * size / 0.8))
        assert parts_that_fit(network, recipe, 224, ProcessGroup()) == n
        limited(monkeypatch, int(0.999 * size / 0.8))
        assert parts_that_fit(network, recipe, 224, ProcessGroup()) == 2 * n
    assert parts_that_fit(network, recipe, 224, ProcessGroup(0, 4)) == 4  # a quarter each
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # and all on this machine
    assert parts_that_fit(network, recipe, 224, ProcessGroup(0, 4)) > 8
    limited(monkeypatch, 10**6)
    assert parts_that_fit(network, recipe, 224, ProcessGroup()) == 128
    limited(monkeypatch, None)
    assert parts_that_fit(network, recipe, 224, ProcessGroup()) == 1


def test_a_run_keeps_its_parts(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run that is resumed in a larger container gives the file of one left alone."""
    limited(monkeypatch, 10**6)
    quick(photos, tmp_path / "alone.safetensors", progress=True)
    assert "4 images of 16 pixels at once may exceed the 1 MB" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        with pytest.raises(KeyboardInterrupt):
            quick(photos, tmp_path / "m.safetensors")
    limited(monkeypatch, 10**12)
    quick(photos, tmp_path / "m.safetensors", resume=True)
    assert sha(tmp_path / "m.safetensors") == sha(tmp_path / "alone.safetensors")
    card = load(tmp_path / "m.safetensors").card
    assert card is not None
    assert card.provenance["recipe"]["accumulate"] == 2
    quick(photos, tmp_path / "m.safetensors", overwrite=True)
    quick(photos, tmp_path / "given.safetensors", accumulate=1)
    assert sha(tmp_path / "m.safetensors") == sha(tmp_path / "given.safetensors")
