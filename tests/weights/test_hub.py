"""Sharing: folders that timm reads, model cards, and an upload with a stand-in for the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from oracles.originals import randomize, timm

from resnext import Card, Preprocessing, ResNeXt, ResNeXtConfig, load, variant
from resnext.errors import CheckpointError, InputError
from resnext.weights.hub import model_card, push, save_pretrained

CARD = Card(
    ("cat", "dog | wolf"),
    Preprocessing(96, 110, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)),
    metrics={"val_accuracy": 0.9125},
    provenance={"data": "photos", "notes": ["one", "two"]},
    licence="mit",
)


def network(config: ResNeXtConfig | None = None) -> ResNeXt:
    model = ResNeXt(config or variant("resnext50_32x4d", num_classes=2))
    randomize(model)
    model.card = CARD
    return model.eval()


def answers(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.ones(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["resnext50_32x4d", "seresnext26t_32x4d"])
def test_timm_reads_the_folder(tmp_path: Path, name: str) -> None:
    """timm gives the same answers and finds the same preprocessing, without our package."""
    model = network(variant(name, num_classes=2))
    save_pretrained(model, tmp_path / "f", repo="someone/cats")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'f'}", pretrained=True).eval()
    assert torch.allclose(answers(theirs), answers(model), rtol=1e-4, atol=1e-4)
    settings = timm.data.resolve_model_data_config(theirs)
    assert settings["input_size"] == (3, 96, 96)
    assert tuple(settings["mean"]) == (0.5, 0.4, 0.3)
    assert int(96 / settings["crop_pct"]) == 110


def test_we_read_the_folder(tmp_path: Path) -> None:
    """Weights, labels, licence and preprocessing come back as they were."""
    model = network()
    assert save_pretrained(model, tmp_path / "a" / "b") == tmp_path / "a" / "b"
    loaded = load(tmp_path / "a" / "b")
    assert isinstance(loaded, ResNeXt)
    assert loaded.card == CARD
    assert torch.equal(answers(loaded), answers(model))
    (tmp_path / "a" / "b" / "model.safetensors").read_bytes()


def test_networks_that_timm_has_not(tmp_path: Path) -> None:
    """config.json then promises timm nothing."""
    config = ResNeXtConfig((1,), 2, 8, num_stages=1, channels=(16,), num_classes=2)
    save_pretrained(network(config), tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    assert "architecture" not in about
    assert about["label_names"] == list(CARD.labels)
    assert load(tmp_path).config == config
    assert "- timm" not in (tmp_path / "README.md").read_text()


def test_the_model_card() -> None:
    """What somebody who finds it must know: what, how good, how to use, whence, licence."""
    text = model_card(network(), "someone/cats")
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert "license: mit" in head.splitlines()
    assert "- timm" in head.splitlines()
    for part in (
        "# cats",
        "resnext50_32x4d",
        "cat, dog",
        "0.9125",
        'load("hf://someone/cats")',
        "one; two",
        "bicubic",
        "GMACs",
        "22,",
    ):
        assert part in body, part
    assert "dog \\| wolf" not in head


def test_without_labels_nothing_is_shared(tmp_path: Path) -> None:
    """A shared model is useless if its classes have no names."""
    model = network()
    model.card = None
    for share in (lambda: save_pretrained(model, tmp_path / "f"), lambda: push(model, "a/b")):
        with pytest.raises(InputError, match="no labels"):
            share()
    assert not (tmp_path / "f").exists()


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    """A file in the way is one line."""
    (tmp_path / "f").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_pretrained(network(), tmp_path / "f")


@pytest.mark.parametrize("repo", ["cats", "a/b/c", "/cats", "a/"])
def test_names_of_repositories(repo: str) -> None:
    """Refused before anything is sent."""
    with pytest.raises(InputError, match="must be owner/name"):
        push(network(), repo)


def test_push(monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository is made, then the folder goes up with the token that was given."""
    sent: dict[str, Any] = {}

    class Hub:
        def __init__(self, token: str | None) -> None:
            sent["token"] = token

        def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
            sent.update(repo=repo, private=private, exist_ok=exist_ok)

        def upload_folder(self, repo_id: str, folder_path: str) -> Any:
            sent["files"] = {path.name for path in Path(folder_path).iterdir()}
            sent["card"] = (Path(folder_path) / "README.md").read_text()
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    address = push(network(), "someone/cats", private=True, token="t")
    assert address == "https://hub/someone/cats/commit/1"
    assert sent["files"] == {"model.safetensors", "config.json", "README.md"}
    assert (sent["token"], sent["repo"], sent["private"]) == ("t", "someone/cats", True)
    assert "hf://someone/cats" in sent["card"]


def test_a_refusal_of_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong token, no network, no rights."""

    class Hub:
        def __init__(self, token: str | None) -> None: ...

        def create_repo(self, repo: str, **options: Any) -> None:
            raise RuntimeError("401 Unauthorized\nmore")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    with pytest.raises(CheckpointError, match=r"cats cannot be uploaded: 401 Unauthorized$"):
        push(network(), "someone/cats")
