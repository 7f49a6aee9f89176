"""`describe`: config and card of whatever `load` takes, and of variants."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import tiny_network

from resnext import Card, Preprocessing, ResNeXtConfig, save
from resnext.architectures import variant
from resnext.errors import CheckpointError, MissingFileError, UnknownNameError
from resnext.weights import resolve
from resnext.weights.catalog import find
from resnext.weights.description import describe

CONFIG = ResNeXtConfig((1, 1), 4, 16, num_stages=2, channels=(16, 32), num_classes=2)
CARD = Card(("a", "b"), Preprocessing(40, 48))


def refuse(*arguments: object, **options: object) -> None:
    """Stands for what must not be called."""
    raise AssertionError("weights were read")


def test_a_variant() -> None:
    """It has no card, because there are no weights; its size is the architecture's."""
    description = describe("resnext_50_32x4d")
    assert description.title == "resnext_50_32x4d"
    assert description.config == variant("resnext50_32x4d")
    assert description.card is None
    assert description.classifier
    assert description.size == 224
    assert describe("resnext29_32x4d").size == 32


def test_a_name_of_the_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded."""
    monkeypatch.setattr(resolve, "resolve", refuse)
    for name in ("resnext50_32x4d.a1_in1k", "open-mmlab://resnext50_32x4d", "fb/resnext_50_32x4d"):
        description, row = describe(name), find(name)
        assert description.title == name
        assert description.config == row.config
        assert description.card == row.card
        assert description.size == row.size
    assert describe("mmcls://resnext50_32x4d").config == variant("resnext50_32x4d")


@pytest.mark.parametrize("as_text", [True, False])
def test_our_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_text: bool) -> None:
    """Its header is enough."""
    path = tmp_path / "a.safetensors"
    save(tiny_network(CONFIG, CARD), path)
    monkeypatch.setattr(resolve, "resolve", refuse)
    description = describe(str(path) if as_text else path)
    assert description == (str(path), CONFIG, CARD, True)
    assert description.size == 40


def test_another_librarys_file(tmp_path: Path) -> None:
    """It is read; without a classifier, the description says so."""
    state = tiny_network(CONFIG, CARD).state_dict()
    torch.save({"state_dict": state, "meta": {"CLASSES": ("x", "y")}}, tmp_path / "a.pth")
    description = describe(tmp_path / "a.pth")
    assert description.config == CONFIG
    assert description.card is not None
    assert description.card.labels == ("x", "y")
    assert description.classifier
    trunk = {name: value for name, value in state.items() if not name.startswith("fc.")}
    torch.save(trunk, tmp_path / "b.pth")
    assert not describe(tmp_path / "b.pth").classifier


def test_a_folder(tmp_path: Path) -> None:
    """As for `load`, the file of weights in it counts."""
    save(tiny_network(CONFIG, CARD), tmp_path / "model.safetensors")
    assert describe(str(tmp_path)).config == CONFIG


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load` takes the file too."""
    monkeypatch.chdir(tmp_path)
    save(tiny_network(CONFIG, CARD), "resnext50_32x4d.a1_in1k")
    assert describe("resnext50_32x4d.a1_in1k").config == CONFIG


def test_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is resolved, with progress if asked for; an ending does not make it a path."""
    asked: list[tuple[object, bool]] = []

    def resolved(source: object, *, progress: bool) -> None:
        asked.append((source, progress))
        raise CheckpointError("asked")

    monkeypatch.setattr(resolve, "resolve", resolved)
    for address in ("hf://owner/repo", "https://example.org/a.pth"):
        for progress in (False, True):
            with pytest.raises(CheckpointError, match="asked"):
                describe(address, progress=progress)
            assert asked.pop() == (address, progress)


def test_mistakes(tmp_path: Path) -> None:
    """A missing file, an unknown name and a damaged file are different mistakes."""
    for missing in ("missing.pth", "folder/file", tmp_path / "missing"):
        with pytest.raises(MissingFileError, match="does not exist"):
            describe(missing)
    for name in ("resnext51", "a" * 5000):
        with pytest.raises(UnknownNameError):
            describe(name)
    (tmp_path / "a.pth").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="weights"):
        describe(tmp_path / "a.pth")


def test_names_and_our_files_need_no_torch(tmp_path: Path) -> None:
    """`resnext info` would take a second longer."""
    save(tiny_network(CONFIG, CARD), tmp_path / "a.safetensors")
    code = (
        "import sys\n"
        "from resnext.weights.description import describe\n"
        "for name in sys.argv[1:]: print(describe(name).size)\n"
        "assert 'torch' not in sys.modules\n"
    )
    names = ["resnext50_32x4d", "resnext50_32x4d.a1_in1k", str(tmp_path / "a.safetensors")]
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr) == (["224", "288", "40"], "")
