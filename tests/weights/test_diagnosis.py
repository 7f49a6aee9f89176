"""`diagnose`: every file ends in a clear message, however damaged."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import lua
from oracles.originals import randomize, torchvision
from oracles.recorded import file_bytes
from safetensors.torch import save_file
from torch import Tensor

from resnext import ResNeXt, ResNeXtConfig, diagnose, load, save
from resnext.architectures import variant
from resnext.card import Card
from resnext.errors import MissingFileError, ResNeXtError
from resnext.weights.diagnosis import Diagnosis, nearest

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = ResNeXtConfig((1,), 2, 8, num_stages=1, channels=(16,), num_classes=3)
ONE_FOLDER = [HealthCheck.function_scoped_fixture]


def network(config: ResNeXtConfig = TINY) -> ResNeXt:
    model = ResNeXt(config)
    randomize(model)
    model.card = Card(("a", "b", "c"))
    return model


def saved(path: Path, change: Callable[[dict[str, Tensor]], Any], config: Any = TINY) -> Diagnosis:
    """The diagnosis of a network's file after a change."""
    state = dict(network(config).state_dict())
    change(state)
    torch.save(state, path / "a.pth")
    return diagnose(path / "a.pth")


@pytest.mark.parametrize("name", ["epoch_1.pth", "published-legacy-format.pth", "lucid_small.lcd"])
def test_recorded_files(tmp_path: Path, name: str) -> None:
    """Dialect, format, classes and the next thing to type, of files that originals wrote."""
    (tmp_path / name).write_bytes(file_bytes(name))
    diagnosis = diagnose(tmp_path / name)
    assert diagnosis.dialect == ("Lucid 2" if "lucid" in name else "MMClassification")
    assert diagnosis.classifier
    assert not diagnosis.problems
    assert diagnosis.advice[0].startswith(f"resnext convert {tmp_path / name}")
    assert diagnosis.tensors == (87 if "lucid" in name else 320)
    assert diagnosis.card is not None
    assert len(diagnosis.card.labels) == (0 if "lucid" in name else 3)
    assert any("assumed" in note for note in diagnosis.notes)


def test_named_variants(tmp_path: Path) -> None:
    """The nearest variant is what a user recognises."""
    assert nearest(variant("resnext50_32x4d", num_classes=7))[0] == "resnext50_32x4d"
    assert nearest(variant("resnext50_32x4d", style="caffe"))[0] == (
        "resnext50_32x4d with other style"
    )
    assert nearest(TINY)[0] == "none of the named variants"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["layer1.0.bn1.weight"].fill_(float("nan")), "bn1.weight is not finite"),
        (lambda s: s["layer1.0.conv3.weight"].fill_(float("inf")), "conv3.weight is not finite"),
        (lambda s: s["layer1.0.bn2.running_var"].zero_(), "bn2.running_var is not positive"),
        (lambda s: s["layer1.0.bn2.running_var"].fill_(-1), "bn2.running_var is not positive"),
        (
            lambda s: (s["layer1.0.bn1.weight"].zero_(), s["layer1.0.bn1.bias"].fill_(-1)),
            "4 channels are dead",
        ),
        (lambda s: s["layer1.0.bn3.weight"].zero_(), "was never trained"),
    ],
)
def test_health(tmp_path: Path, change: Any, said: str) -> None:
    """These networks load and answer, and all their answers are useless."""
    diagnosis = saved(tmp_path, change)
    assert any(said in problem for problem in diagnosis.problems), diagnosis.problems
    assert diagnosis.config == load(tmp_path / "a.pth").config


def test_a_healthy_network_has_no_problems(tmp_path: Path) -> None:
    """The health checks must not report every network."""
    assert not saved(tmp_path, lambda state: None).problems


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("layer2.0.conv1.weight"), "1 missing: layer2.0.conv1.weight"),
        (
            lambda s: s.update({"layer2.0.conv2.conv_offset.weight": torch.ones(1)}),
            "deformable convolutions",
        ),
        (lambda s: s.update({"layer2.0.context_block.x": torch.ones(1)}), "context blocks"),
        (lambda s: s.update({"layer2.0.conv1.lora_a": torch.ones(1)}), "LoRA"),
        (lambda s: s.update({"layer1.0.conv1.weight_mask": torch.ones(1)}), "pruned"),
        (
            lambda s: s.update({"layer2.0.bn1.weight": torch.ones(7)}),
            r"1 of another shape: layer2.0.bn1.weight (7,) for (256,)",
        ),
    ],
)
def test_what_differs_from_the_nearest(tmp_path: Path, change: Any, said: str) -> None:
    """Which names, beside which variant, and why."""
    diagnosis = saved(tmp_path, change, variant("resnext26_32x4d"))
    assert any(said in problem for problem in diagnosis.problems), diagnosis.problems
    assert (
        any("resnext26_32x4d" in p for p in diagnosis.problems)
        or "blocks" in said
        or "1" not in said
    )
    assert diagnosis.advice


def test_other_networks(tmp_path: Path) -> None:
    """A ResNet-18 is named as one; other files are not."""
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "a.pth")
    assert any("ResNet-18" in problem for problem in diagnose(tmp_path / "a.pth").problems)
    save_file({"encoder.weight": torch.ones(2)}, tmp_path / "b.safetensors")
    diagnosis = diagnose(tmp_path / "b.safetensors")
    assert "No ResNeXt is in it" in diagnosis.problems[0]
    assert "encoder.weight" in diagnosis.problems[0]


def test_folders_and_missing_files(tmp_path: Path) -> None:
    """A folder is examined as `load` would read it."""
    (tmp_path / "f").mkdir()
    assert "without model.safetensors" in diagnose(tmp_path / "f").problems[0]
    save(network(), tmp_path / "f" / "model.safetensors")
    diagnosis = diagnose(tmp_path / "f")
    assert not diagnosis.problems
    assert diagnosis.dialect == "resnext"
    assert diagnosis.path == tmp_path / "f"
    with pytest.raises(MissingFileError):
        diagnose(tmp_path / "g")


def test_facts_are_for_people(tmp_path: Path) -> None:
    """Every fact is a line of text."""
    facts = dict(saved(tmp_path, lambda state: None).facts())
    assert facts["Classes"] == "3"
    assert facts["Written for"] == "torchvision"
    assert all(isinstance(value, str) and value for value in facts.values())


# -- damaged files ---------------------------------------------------------------------------------


def samples(folder: Path) -> list[Path]:
    """A small file of each format."""
    model = network()
    state = model.state_dict()
    torch.save({"state_dict": state, "meta": {"CLASSES": ("a", "b", "c")}}, folder / "zip")
    torch.save(state, folder / "legacy", _use_new_zipfile_serialization=False)
    save_file(state, folder / "safetensors")
    save(model, folder / "own")
    arrays = {name: value.numpy() for name, value in state.items()}
    with (folder / "npz").open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore
    (folder / "lcd").write_bytes(pickle.dumps({"format_version": 1.1, "content": arrays}))
    (folder / "pickle2").write_bytes(pickle.dumps(arrays, 2))
    lua.written(folder / "t7", lua.network(state, model.config))
    files = sorted(folder.iterdir())
    assert len(files) == 8
    return files


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return samples(tmp_path_factory.mktemp("originals"))


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The bytes after something that happens to files."""
    out = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
        where = int(len(out) * rng.random() ** rng.choice([1, 3, 6])) if out else 0
        if rng.random() < 0.3:
            where = max(len(out) - 1 - int(400 * rng.random()), 0)
        kind = rng.randrange(7)
        if kind == 0:
            del out[where:]
        elif kind == 1 and out:
            out[min(where, len(out) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 2:
            out[where : where + rng.randrange(1, 64)] = rng.randbytes(rng.randrange(1, 64))
        elif kind == 3:
            out[where:where] = rng.randbytes(rng.randrange(1, 16))
        elif kind == 4:
            del out[where : where + rng.randrange(1, 200)]
        elif kind == 5:
            start = rng.randrange(len(out) + 1)
            out[where:where] = out[start : start + rng.randrange(1, 200)]
        else:
            out[where : where + 8] = rng.choice(
                [b"\xff" * 8, bytes(8), b"\x7f" * 8, (1 << 40).to_bytes(8, "little")]
            )
    return bytes(out)


def examined(path: Path) -> None:
    """It ends in a diagnosis whose texts say something, and `load` agrees with it."""
    diagnosis = diagnose(path)
    for text in (*diagnosis.problems, *diagnosis.advice, *diagnosis.notes):
        assert text.strip()
        assert len(text) < 2000
    assert diagnosis.problems or diagnosis.config is not None
    assert diagnosis.facts()
    assert bool(diagnosis.problems) or loads(path)


def loads(path: Path) -> bool:
    try:
        load(path)
    except ResNeXtError:
        return False
    return True


@settings(max_examples=150, suppress_health_check=ONE_FOLDER)
@given(seed=st.integers(0, 2**32), kind=st.integers(0, 7))
def test_damaged_files(tmp_path: Path, originals: list[Path], seed: int, kind: int) -> None:
    """Downloads that stopped, disks that failed, files that were edited."""
    (tmp_path / "a").write_bytes(damaged(originals[kind].read_bytes(), random.Random(seed)))
    examined(tmp_path / "a")


@settings(max_examples=100, suppress_health_check=ONE_FOLDER)
@given(content=st.binary(max_size=300), start=st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04"]))
def test_any_bytes(tmp_path: Path, content: bytes, start: bytes) -> None:
    """Files that were never weights."""
    (tmp_path / "a").write_bytes(start + content)
    examined(tmp_path / "a")


@pytest.mark.slow
@settings(max_examples=12_000, suppress_health_check=[*ONE_FOLDER])
@given(seed=st.integers(0, 2**63), kind=st.integers(0, 7))
def test_ten_thousand_damaged_files(
    tmp_path: Path, originals: list[Path], seed: int, kind: int
) -> None:
    """Every one ends in a clear message: the promise of `resnext doctor`."""
    (tmp_path / "a").write_bytes(damaged(originals[kind].read_bytes(), random.Random(seed)))
    examined(tmp_path / "a")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions are a matter of one line, too."""
    (tmp_path / "a").write_bytes(b"x")

    def denied(*args: Any, **kwargs: Any) -> Any:  # root may read everything
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "open", denied)
    assert "Permission denied" in diagnose(tmp_path / "a").problems[0]
