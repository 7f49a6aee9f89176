"""`optimize` for files of other runtimes: engines and pieces are compared, the file stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import run_cli, tiny_network
from inference_cases import CARD, CONFIG, pictures

import resnext
from resnext.errors import InputError
from resnext.exporting.graph import ExportedModule
from resnext.exporting.metadata import own_metadata
from resnext.exporting.targets import TARGETS
from resnext.inference import open_runner, optimize_file
from resnext.inference.exported import Exported, usual_form
from resnext.inference.plan import plan_path, read_plans, save_beside

OUTPUTS = "probabilities", "embedding"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One ONNX and one OpenVINO file, without the proof, which is not the question here."""
    folder = tmp_path_factory.mktemp("files")
    network = tiny_network(CONFIG, CARD)
    module = ExportedModule(network, CARD, "pixels", OUTPUTS, half=False).eval()
    own = own_metadata(CONFIG, CARD, "pixels", OUTPUTS, "fixed", "fp32", 0, {})
    for name in ("onnx", "openvino"):
        target = TARGETS[name]
        target.write(target.build(module, "fixed"), folder / f"net{target.suffix}", own, module)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy of the files, which plans may be written beside."""
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def fastest(monkeypatch: pytest.MonkeyPatch, engine: str, streams: int = 1) -> None:
    """Replaces the clock."""

    def speed(runner: Exported, _: Any) -> float:
        form = runner._form
        assert form is not None
        return 9.0 if (form.engine, form.streams, form.piece) == (engine, streams, 4) else 1.0

    monkeypatch.setattr(optimize_file, "_speed", speed)


@pytest.mark.parametrize(
    ("name", "engine"),
    [("net.onnx", "openvino"), ("net.onnx", "onnxruntime"), ("net.xml", "openvino")],
)
def test_predict_uses_the_plan(
    name: str, engine: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fastest that agrees, also if it is not the file's own runtime."""
    fastest(monkeypatch, engine)
    file, photos = folder / name, pictures(folder / "photos", 1)
    wanted = resnext.predict(file, photos, top=4)
    plan = optimize_file.optimize_file(Exported(file), batch=4)
    assert (plan.form.engine, plan.form.piece, plan.batch, plan.size) == (engine, 4, 4, 12)
    assert plan.rows[-1].form == usual_form(file)
    assert save_beside(file, plan) == plan_path(file) == folder / f"{name}.plan.json"
    opened, usual = open_runner(file), open_runner(file, plan=False)
    assert isinstance(opened, Exported)
    assert isinstance(usual, Exported)
    assert (opened._form, opened.batch) == (plan.form, 4)
    assert usual._form is None
    for mine, theirs in zip(resnext.predict(file, photos, top=4), wanted, strict=True):
        assert mine.labels == theirs.labels
        assert mine.probabilities == pytest.approx(theirs.probabilities, abs=1e-5)
    x = np.random.default_rng(0).integers(0, 256, (7, 12, 12, 3), np.uint8)
    for mine, theirs in zip(opened.pixels(x), usual.pixels(x), strict=True):
        assert np.allclose(mine, theirs, atol=1e-4)


def test_a_runtime_that_disagrees_is_not_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However fast it is; one that fails is a row of the table."""
    fastest(monkeypatch, "openvino")
    pixels = Exported.pixels

    def wrong(self: Exported, x: Any) -> Any:
        logits, embedding = pixels(self, x)
        form = self._form
        if form is not None and form.engine == "openvino":
            if form.piece == 1:
                raise RuntimeError("no kernel for this\nand a long trace")
            logits = logits * np.float32(1.001)
        return logits, embedding

    monkeypatch.setattr(Exported, "pixels", wrong)
    plan = optimize_file.optimize_file(Exported(folder / "net.onnx"), batch=4)
    assert plan.form.engine == "onnxruntime"
    verdicts = {row.verdict for row in plan.rows if row.form and row.form.engine == "openvino"}
    assert "failed: no kernel for this" in verdicts
    assert any(verdict.startswith("refused: logits differ by 1") for verdict in verdicts)
    with pytest.raises(InputError, match="Nothing that runs"):
        optimize_file.optimize_file(Exported(folder / "net.onnx"), engine="openvino", batch=4)


def test_the_command(folder: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The model that the file was made from keeps its own plans."""
    fastest(monkeypatch, "openvino")
    own = folder / "net.plan.json"
    own.write_text("mine")
    monkeypatch.chdir(folder)
    code, text, _ = run_cli(capsys, monkeypatch, "optimize", "net.onnx", "--batch-size", 4)
    assert code == 0
    assert "OpenVINO" in text
    assert "net.onnx.plan.json: the plan" in text
    assert own.read_text() == "mine"
    assert len(read_plans(folder / "net.onnx.plan.json")) == 1
    (folder / "net.pt2").write_bytes((folder / "net.onnx").read_bytes())
    for arguments, message in (
        (("net.onnx", "--precision", "int8"), "precision and size are fixed"),
        (("net.xml", "--engine", "onnxruntime"), "can be run by openvino only"),
        (("net.pt2",), "cannot be opened"),
        (("net.plan.json", "--size", 12), "are for ONNX and OpenVINO files from other programs"),
    ):
        code, _, text = run_cli(capsys, monkeypatch, "optimize", *arguments)
        assert code == 2
        assert message in text
