"""Plans: read as written, used where they match, and ignored with a reason elsewhere."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_network
from PIL import Image

from resnext import Card, Preprocessing, ResNeXt, ResNeXtConfig, optimize, predict, save
from resnext.errors import CheckpointError, InputError
from resnext.inference import search
from resnext.inference.engines import ENGINES, base
from resnext.inference.engines.base import EngineConfig
from resnext.inference.engines.torch import TorchRunner
from resnext.inference.opener import open_planned, open_runner
from resnext.inference.optimized import Optimized
from resnext.inference.plan import (
    Measurement,
    Plan,
    find_plan,
    machine_id,
    plan_path,
    read_plans,
    save_beside,
    write_plans,
)
from resnext.system.digest import file_sha256

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 12
CONFIG = ResNeXtConfig(
    (1,), 2, 8, num_classes=4, num_stages=1, channels=(16,), stem_channels=8, small_stem=True
)
CARD = Card(("ant", "bee", "cat", "dog"), Preprocessing(SIZE, 14))


def network() -> ResNeXt:
    """The network of all model files here."""
    return tiny_network(CONFIG, CARD)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A model file without a plan."""
    save(network(), tmp_path / "pets.safetensors")
    return tmp_path / "pets.safetensors"


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with a plan for ONNX Runtime, in a folder that tests copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_SECONDS", 0.0)
        patch.setattr(search, "_WIDTHS", ())
        path = tmp_path_factory.mktemp("optimized") / "pets.safetensors"
        save(network(), path)
        optimize(path, engine="onnxruntime", precision="fp32", batch=2).save_plan(path)
        return path


@pytest.fixture
def planned(optimized: Path, tmp_path: Path) -> Path:
    """A copy of that file and its plan."""
    for source in (optimized, plan_path(optimized)):
        shutil.copy(source, tmp_path)
    return tmp_path / optimized.name


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A picture."""
    values = np.random.default_rng(0).integers(0, 256, (15, 17, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def plan(**changes: Any) -> Plan:
    """A plan that matches this machine."""
    rows = (
        Measurement(
            EngineConfig("openvino", piece=2, streams=8, width=16), 123.4, "chosen", 1e-7, 1.0
        ),
        Measurement(EngineConfig("openvino", "int8"), 99.0, "refused: …", accuracy=0.25),
        Measurement(EngineConfig("compile"), 0.0, "failed: [no] compiler"),
        Measurement(None, 10.0),
    )
    usual = Plan(
        model="0" * 64,
        form=EngineConfig("torch", piece=16),
        batch=16,
        size=SIZE,
        device="cpu",
        request='["auto", "auto", null]',
        machine=machine_id("cpu"),
        version=ENGINES["torch"].version,
        rows=rows,
    )
    return replace(usual, **changes)


# -- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3])
def test_plans_come_back_as_they_were(tmp_path: Path, count: int) -> None:
    """Nested rows become rows again, and numbers keep every digit."""
    plans = [
        plan(batch=n + 1, rows=(*plan().rows, Measurement(None, 1 / 3, "é …", math.inf, 0.1 + 0.2)))
        for n in range(count)
    ]
    path = tmp_path / "inside" / "a.plan.json"
    path.parent.mkdir()
    write_plans(path, plans)
    found = read_plans(path)
    assert found == plans
    assert all(type(row) is Measurement for each in found for row in each.rows)
    assert hash(tuple(found)) == hash(tuple(plans))
    assert [p.name for p in path.parent.iterdir()] == ["a.plan.json"]  # no half-written files


def test_differences_that_are_not_finite(tmp_path: Path) -> None:
    """A form that was refused for NaN keeps its row."""
    write_plans(
        tmp_path / "a", [plan(rows=(Measurement(EngineConfig("torch"), 1.0, "refused", math.nan),))]
    )
    difference = read_plans(tmp_path / "a")[0].rows[0].difference
    assert difference is not None
    assert math.isnan(difference)


def test_a_missing_file_has_no_plans(tmp_path: Path) -> None:
    """Most models have none."""
    assert read_plans(tmp_path / "none.plan.json") == []


def good(**changes: Any) -> dict[str, Any]:
    """A plan as plain values with changes; None removes one."""
    path = Path(os.environ["RESNEXT_HOME"]) / "good.plan.json"
    path.parent.mkdir(exist_ok=True)
    write_plans(path, [plan()])
    values = json.loads(path.read_text())["plans"][0]
    return {k: v for k, v in {**values, **changes}.items() if v is not None}


DAMAGED: dict[str, Any] = {
    "empty": b"",
    "cut": b'{"format": 1, "plans": [{"model": "0',
    "bytes": b"\xff\xfe\x00plans",
    "null": b"null",
    "list": b"[]",
    "text": b'"plans"',
    "no plans": b'{"format": 1}',
    "a number": b'{"plans": 3}',
    "a text for plans": b'{"plans": "none"}',
    "plans of numbers": b'{"plans": [1]}',
    "an empty plan": b'{"plans": [{}]}',
    "no form": {"form": None},
    "an unknown field": {"colour": "red"},
    "an unknown field of a form": {"form": {"engine": "torch", "colour": "red"}},
    "a form that is a list": {"form": ["torch"]},
    "an unknown engine": {"form": {"engine": "abacus", "precision": "fp32"}},
    "rows of numbers": {"rows": [1, 2]},
    "a batch that is text": {"batch": "many"},
    "a size that is text": {"size": "small"},
    "a piece of nothing": {"form": {"engine": "torch", "piece": 0}},
}


def damage(path: Path, how: str) -> None:
    """Write a damaged plan."""
    content = DAMAGED[how]
    if isinstance(content, dict):
        content = json.dumps({"format": 1, "plans": [good(**content)]}).encode()
    path.write_bytes(content)


@pytest.mark.parametrize("how", DAMAGED)
def test_damaged_files_say_what_to_do(tmp_path: Path, how: str) -> None:
    """A KeyError, here or later in an engine, would not say which file to delete."""
    damage(tmp_path / "a.plan.json", how)
    with pytest.raises(CheckpointError, match=r"a\.plan\.json .*resnext optimize"):
        read_plans(tmp_path / "a.plan.json")


@pytest.mark.parametrize("how", DAMAGED)
def test_prediction_works_without_a_damaged_plan(
    file: Path, image: Path, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A plan only makes prediction faster; progress says why it is not used."""
    wanted = predict(file, image, plan=False, device="cpu")
    damage(plan_path(file), how)
    found, reason = find_plan(file, 1, "auto")
    assert found is None
    assert "resnext optimize" in reason
    capfd.readouterr()
    assert predict(file, image, device="cpu") == wanted
    assert capfd.readouterr() == ("", "")
    assert predict(file, image, device="cpu", progress=True) == wanted
    out, err = capfd.readouterr()
    assert out == ""
    assert plan_path(file).name in err.replace("\n", "")
    assert "resnext optimize" in " ".join(err.split())


def test_a_folder_in_place_of_the_plan(file: Path, image: Path) -> None:
    """It cannot be read, and prediction works without it."""
    plan_path(file).mkdir()
    with pytest.raises(CheckpointError, match="Delete it"):
        read_plans(plan_path(file))
    assert len(predict(file, image, device="cpu")) == 1


# -- whether a plan fits ----------------------------------------------------------------------


def test_a_plan_matches_where_it_was_made() -> None:
    """Otherwise no plan would ever be used."""
    assert plan().mismatch() == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"machine": "Abacus 3000, 2 threads"}, "it was made for Abacus 3000, 2 threads, this is"),
        ({"version": "1.13.0"}, "it was made with torch 1.13.0, here is 2"),
        (
            {"form": EngineConfig("tensorrt"), "version": "2.1"},
            "made with tensorrt 2.1, here is none",
        ),
        ({"device": "Abacus GPU", "machine": "Abacus GPU"}, "Abacus GPU"),
    ],
)
def test_plans_of_other_places(
    file: Path, changes: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fastest form of another machine may be slow here, or fail."""
    monkeypatch.setattr(ENGINES["tensorrt"], "package", "no_such_package")
    other = plan(file=file_sha256(file), **changes)
    write_plans(plan_path(file), [other])
    for device in ("auto", "cpu"):
        found, why = find_plan(file, 16, device)
        assert found is None
        assert why
        assert device == "cpu" or reason in why
        assert open_planned(file, device, 16, False) is None
    assert reason in other.mismatch()


def test_another_number_of_threads_is_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer cores, another form is fastest."""
    here = plan()
    monkeypatch.setenv("OMP_NUM_THREADS", "13")
    assert "13 threads" in here.mismatch()


def test_plans_of_other_weights(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """After training again under the same name, the old weights must not answer."""
    save_beside(file, plan())
    assert find_plan(file, 16, "auto")[0] is not None
    other = network()
    with torch.no_grad():
        other.fc.bias[0] += 1
    save(other, file)
    found, reason = find_plan(file, 16, "auto")
    assert found is None
    assert "other weights" in reason
    assert "resnext optimize" in reason
    assert isinstance(open_runner(file, device="cpu", progress=True), TorchRunner)
    assert "other weights" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(("device", "used"), [("auto", True), ("cpu", True), ("cuda", False)])
def test_plans_of_another_device(file: Path, device: str, used: bool) -> None:
    """With a GPU requested, a plan for the processor must not be used."""
    save_beside(file, plan())
    found, reason = find_plan(file, 16, device)
    assert (found is not None) == used
    assert used or device in reason


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two different GPUs, of which the first is the current one."""

    def name(index: int | None = None) -> str:
        return ("Abacus", "Slide rule")[index or 0]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", name)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("made_for", "device", "reason"),
    [
        ("Abacus", "auto", ""),
        ("Abacus", "cuda", ""),
        ("Abacus", "cuda:0", ""),
        ("Abacus", "cuda:1", "made for Abacus, this is Slide rule"),
        ("Slide rule", "cuda:1", ""),
        ("Slide rule", "auto", "made for Slide rule, this is Abacus"),
        ("Abacus", "cuda:2", "made for Abacus, this is no GPU"),
        ("Abacus", "toaster", "has no plan for toaster"),
        ("Abacus", "cuda:toaster", "has no plan for cuda:toaster"),
        ("Abacus", "cpu", "has no plan for cpu"),
    ],
)
def test_plans_of_another_gpu(file: Path, made_for: str, device: str, reason: str) -> None:
    """A plan was used on any device but the processor, whatever its name, and on the first GPU."""
    save_beside(file, plan(device=made_for, machine=made_for))
    found, why = find_plan(file, 16, device)
    assert (found is None) == bool(reason)
    assert reason in why
    opened = open_planned(file, device, 16, False)
    assert (opened is None) == bool(reason)


@pytest.mark.usefixtures("two_gpus")
def test_the_gpu_that_is_asked_for_computes(
    file: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every plan for a GPU ran on the first one, which another process may have filled."""
    asked: list[str] = []

    def pick(name: str) -> torch.device:
        asked.append(name)
        return torch.device("cpu")

    monkeypatch.setattr("resnext.system.device.pick_device", pick)
    save_beside(file, plan(device="Slide rule", machine="Slide rule"))
    predict(file, image, device="cuda:1")
    assert asked == ["cuda:1"]
    asked.clear()
    save_beside(file, plan())
    predict(file, image, device="cpu")
    assert asked == ["cpu"]


def test_devices_that_do_not_exist_are_named(file: Path, image: Path) -> None:
    """With a plan for a GPU next to the file, any text was accepted."""
    save_beside(file, plan(device="Abacus", machine="Abacus"))
    with pytest.raises(InputError, match="device 'toaster' cannot be used"):
        predict(file, image, device="toaster")


@pytest.mark.parametrize(
    ("batch", "nearest"), [(1, 1), (2, 1), (13, 16), (16, 16), (20, 16), (60, 64), (999, 64)]
)
def test_the_nearest_number_of_images_is_chosen(file: Path, batch: int, nearest: int) -> None:
    """With a plan for 64 images, one image is computed with 63 of padding."""
    for made_for in (16, 1, 64):
        save_beside(file, plan(batch=made_for))
    found, _ = find_plan(file, batch, "auto")
    assert found is not None
    assert found.batch == nearest


def test_a_match_is_better_than_a_near_batch_size(file: Path) -> None:
    """The nearest plan may be for another machine."""
    save_beside(file, plan(batch=1))
    save_beside(file, plan(batch=16, machine="Abacus"))
    found, _ = find_plan(file, 16, "auto")
    assert found is not None
    assert found.batch == 1


# -- remembering ------------------------------------------------------------------------------


def test_plans_are_kept_or_replaced(file: Path) -> None:
    """A file may be used with several batch sizes, on several machines that share a disk."""
    first = plan(batch=1)
    assert save_beside(file, first) == plan_path(file) == file.with_name("pets.plan.json")
    save_beside(file, plan(batch=16))
    save_beside(file, plan(batch=16, machine="Abacus"))
    save_beside(file, plan(batch=1, form=EngineConfig("openvino")))
    found = read_plans(plan_path(file))
    assert [(p.batch, p.machine, p.form.engine) for p in found] == [
        (16, machine_id("cpu"), "torch"),
        (16, "Abacus", "torch"),
        (1, machine_id("cpu"), "openvino"),
    ]
    assert {p.file for p in found} == {file_sha256(file)}
    assert first.file == ""


def test_useless_plans_are_removed(file: Path) -> None:
    """Plans for replaced weights, and files that cannot be read."""
    write_plans(plan_path(file), [plan(batch=1, file="f" * 64)])
    save_beside(file, plan())
    assert [p.batch for p in read_plans(plan_path(file))] == [16]
    plan_path(file).write_bytes(b"\xff")
    save_beside(file, plan(batch=3))
    assert [p.batch for p in read_plans(plan_path(file))] == [3]


def test_a_folder_that_cannot_be_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An existing plan must survive an error."""
    save_beside(file, plan(batch=3))
    before = {p.name: p.read_bytes() for p in file.parent.iterdir()}

    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("resnext.system.atomic.tempfile.mkstemp", refuse)
    with pytest.raises(CheckpointError, match=r"pets\.plan\.json cannot be written.*denied"):
        save_beside(file, plan())
    assert {p.name: p.read_bytes() for p in file.parent.iterdir()} == before
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_plans(file / "inside" / "a.plan.json", [plan()])


# -- using them -------------------------------------------------------------------------------


def test_the_plan_is_used(planned: Path, image: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By default, with the network's answers, and shown in progress."""
    runner = open_runner(planned, progress=True)
    assert isinstance(runner, Optimized)
    assert "onnxruntime, fp32" in " ".join(capfd.readouterr().err.split())
    assert isinstance(open_runner(planned, plan=False), TorchRunner)
    (quick,), (plain,) = (predict(planned, image, top=4, plan=p) for p in (True, False))
    assert quick.labels == plain.labels
    assert quick.probabilities == pytest.approx(plain.probabilities, rel=1e-5)


@pytest.mark.parametrize(
    "source",
    [
        "resnext50_32x4d.a1_in1k",
        "hf://timm/resnext50_32x4d.a1_in1k",
        "https://example.org/a.safetensors?signature=" + "x" * 400,
        "",
        ".",
        "/",
        "..",
    ],
)
def test_sources_that_are_not_files(source: str) -> None:
    """Only files have plans; a signed URL is longer than a file name may be.

    `resnext predict . photos` is for a folder with config.json and model.safetensors.
    """
    assert open_planned(source, "auto", 1, False) is None


def test_folders_have_no_plan(tmp_path: Path) -> None:
    """A folder with weights can be beside the plan of a file."""
    (tmp_path / "pets").mkdir()
    write_plans(tmp_path / "pets.plan.json", [plan()])
    assert open_planned(tmp_path / "pets", "auto", 1, False) is None


def test_predicting_by_a_plan_needs_no_torch(planned: Path, image: Path) -> None:
    """Importing torch takes longer than the prediction, and memory that a small server lacks."""
    wanted = predict(planned, image, top=4)[0]
    program = f"""
import json, sys
from resnext.prediction import predict
found = predict({str(planned)!r}, {str(image)!r}, top=4)[0]
assert "torch" not in sys.modules
print(json.dumps([found.labels, found.probabilities]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    labels, probabilities = json.loads(done.stdout)
    assert tuple(labels) == wanted.labels
    assert tuple(probabilities) == pytest.approx(wanted.probabilities, rel=1e-6)


def test_a_graph_that_is_gone_is_made_again(planned: Path, image: Path) -> None:
    """A cache may be emptied; the model file is enough."""
    wanted = predict(planned, image, top=4)[0]
    (found,) = read_plans(plan_path(planned))
    graph = found.graph("pixels")
    content = graph.read_bytes()
    try:
        graph.unlink()
        assert predict(planned, image, top=4)[0].labels == wanted.labels
        assert graph.exists()
    finally:
        graph.write_bytes(content)


def test_a_graph_that_is_damaged(planned: Path, image: Path) -> None:
    """After a power cut while it was written, predictions must still work."""
    wanted = predict(planned, image, top=4)[0]
    (found,) = read_plans(plan_path(planned))
    graph = found.graph("pixels")
    content = graph.read_bytes()
    try:
        graph.write_bytes(content[: len(content) // 2])
        try:
            got = predict(planned, image, top=4)[0]
        except CheckpointError as error:
            assert str(graph) in str(error)  # noqa: PT017 (either is right)
        else:
            assert got.labels == wanted.labels
    finally:
        graph.write_bytes(content)


def test_versions_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that was uninstalled has no version."""

    def missing(name: str) -> str:
        raise base.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(base.metadata, "version", missing)
    assert ENGINES["openvino"].version == ""
