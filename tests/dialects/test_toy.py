"""A library that the package does not know, added from outside: a file and a row are enough."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import run_cli, tiny_network

import resnext
from resnext import Card, Preprocessing, ResNeXt, ResNeXtConfig
from resnext.dialects.dialect import (
    CheckpointMetadata,
    Dialect,
    Documents,
    NameRule,
    ParameterNames,
)
from resnext.dialects.table import DIALECTS
from resnext.errors import CheckpointError

CONFIG = ResNeXtConfig((1, 1), 4, 16, num_stages=2, channels=(16, 32), num_classes=2)
CARD = Card(("cat", "dog"), Preprocessing(32, 40, "bicubic"), licence="mit")


def toy_metadata(documents: Documents) -> CheckpointMetadata:
    """Labels and preprocessing, as the toy library writes them."""
    toy = documents.file.get("toy")
    if not isinstance(toy, dict):
        return CheckpointMetadata()
    return CheckpointMetadata(
        tuple(toy["classes"]), Preprocessing(*toy["image"]), {"toy": 1}, licence=toy["licence"]
    )


def toy_content(
    state: dict[str, torch.Tensor], config: ResNeXtConfig, card: Card
) -> dict[str, Any]:
    """A toy checkpoint."""
    image = (card.preprocessing.size, card.preprocessing.resize, card.preprocessing.interpolation)
    about = {"classes": list(card.labels), "image": list(image), "licence": card.licence}
    return {"toy": about, "weights": state}


def toy_names(names: ParameterNames) -> bool:
    """The toy's stem has a name of its own; its blocks are torchvision's."""
    return "entry.weight" in names.network


def toy_problem(config: ResNeXtConfig) -> str:
    """The toy has no attention."""
    return "has no attention." if config.gate else ""


TOY = Dialect(
    "toy",
    "Toy Vision",
    network=(NameRule("conv1.", "entry."), NameRule("fc.", "answer.head.")),
    suffixes=(".toy",),
    content=toy_content,
    metadata=toy_metadata,
    recognises=toy_names,
    problem=toy_problem,
)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row."""
    monkeypatch.setitem(DIALECTS, "toy", TOY)


def own_file(path: Path, config: ResNeXtConfig = CONFIG) -> ResNeXt:
    """One of our files."""
    model = tiny_network(config, CARD)
    resnext.save(model, path)
    return model


def logits(model: Any) -> torch.Tensor:
    """What a model answers."""
    with torch.no_grad():
        return model(torch.ones(1, 3, 32, 32))


def test_there_and_back(tmp_path: Path) -> None:
    """Names, labels and preprocessing go to the toy library's file and come back from it."""
    model = own_file(tmp_path / "a.safetensors")
    done = resnext.convert(tmp_path / "a.safetensors", tmp_path / "b.toy", to="toy")
    assert (done.source, done.target) == ("resnext", "toy")
    assert done.parity.difference == 0
    content = torch.load(tmp_path / "b.toy", weights_only=True)
    assert content["toy"] == {"classes": ["cat", "dog"], "image": [32, 40, "bicubic"]} | {
        "licence": "mit"
    }
    assert {"entry.weight", "layer1.0.conv2.weight"} < set(content["weights"])
    loaded = resnext.load(tmp_path / "b.toy")
    assert isinstance(loaded, ResNeXt)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.card is not None
    assert (loaded.card.labels, loaded.card.licence) == (CARD.labels, "mit")
    assert loaded.card.preprocessing == CARD.preprocessing
    assert loaded.card.provenance["dialect"] == "toy"
    assert loaded.card.provenance["toy"] == 1
    back = resnext.convert(tmp_path / "b.toy", tmp_path / "c.safetensors")
    assert (back.source, back.target) == ("toy", "resnext")
    assert torch.equal(logits(resnext.load(tmp_path / "c.safetensors")), logits(model))


def test_refusals(tmp_path: Path) -> None:
    """The toy's endings, its networks and its files without a classifier are its own."""
    own_file(tmp_path / "a.safetensors")
    own_file(tmp_path / "se.safetensors", CONFIG.replace(attention="se"))
    for source, path, said in (
        ("a", "b.pth", r"b\.pth must end in \.toy for Toy Vision"),
        ("se", "b.toy", r"Toy Vision has no attention\."),
    ):
        with pytest.raises(CheckpointError, match=said):
            resnext.convert(tmp_path / f"{source}.safetensors", tmp_path / path, to="toy")
    state = resnext.load(tmp_path / "a.safetensors").state_dict()
    trunk = {name: value for name, value in state.items() if not name.startswith("fc.")}
    torch.save(trunk, tmp_path / "trunk.pth")
    with pytest.raises(CheckpointError, match="Convert it to mmcls or mmdet, or load it"):
        resnext.convert(tmp_path / "trunk.pth", tmp_path / "b.toy", to="toy")


def test_doctor(tmp_path: Path) -> None:
    """The diagnosis names the library."""
    own_file(tmp_path / "a.safetensors")
    resnext.convert(tmp_path / "a.safetensors", tmp_path / "b.toy", to="toy")
    diagnosis = resnext.diagnose(tmp_path / "b.toy")
    assert diagnosis.dialect == "Toy Vision"
    assert diagnosis.config == CONFIG.replace(small_stem=False)
    assert not diagnosis.problems


def test_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--to` takes every row of the table, and no other name."""
    own_file(tmp_path / "a.safetensors")
    source, path = tmp_path / "a.safetensors", tmp_path / "b.toy"
    code, out, _ = run_cli(capsys, monkeypatch, "convert", source, path, "--to", "toy")
    assert code == 0
    assert "resnext → toy" in out
    code, out, _ = run_cli(capsys, monkeypatch, "doctor", path)
    assert code == 0
    assert "Toy Vision" in out
    code, _, err = run_cli(capsys, monkeypatch, "convert", source, path, "--to", "joy")
    assert code == 2
    known = "torchvision, timm, mmcls, mmdet, lucid, toy, resnext"
    assert f"to must be {known}, not 'joy'." in err
    assert "--to" in err


def test_without_the_row_it_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So nothing but the row makes the tests above pass."""
    own_file(tmp_path / "a.safetensors")
    resnext.convert(tmp_path / "a.safetensors", tmp_path / "b.toy", to="toy")
    monkeypatch.delitem(DIALECTS, "toy")
    loaded = resnext.load(tmp_path / "b.toy")
    assert loaded.card is not None
    assert loaded.card.provenance["dialect"] == "structure"
    assert loaded.card.labels == ()
    with pytest.raises(CheckpointError, match="to must be"):
        resnext.convert(tmp_path / "a.safetensors", tmp_path / "c.toy", to="toy")


# What may name libraries for another reason than how their files look
ELSEWHERE = {
    "__init__.py": "the module resnext.mmcls",
    "config.py": "values of se_rounding",
    "dilation.py": "conventions of dilation",
    "cli/checkpoints.py": "choices that the help shows; the table decides",
    "weights/aliases.py": "names that libraries gave to checkpoints",
    "weights/catalog.py": "who published each checkpoint",
    "benchmark/contenders.py": "libraries that are timed",
    "weights/config_source.py": "configs of OpenMMLab",
    "benchmark/timing.py": "packages whose versions are recorded",
}


def test_nothing_else_names_a_dialect() -> None:
    """A special case for one library outside of its file is a second place to edit."""
    package = Path(resnext.__file__).parent
    allowed = {f"resnext.dialects.{name}" for name in ("table", "dialect")}
    named: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        if name.startswith(("dialects/", "mmcls/")):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in DIALECTS:
                named.setdefault(name, set()).add(str(node.value))
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if "dialects" in module and module not in allowed:
                named.setdefault(name, set()).add(module)
    assert set(named) - set(ELSEWHERE) == set()
    assert set(ELSEWHERE) - set(named) == set(), "no longer needed here"
