"""Files in 8 bits: they compute what the plan does, whose accuracy was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_network
from inference_cases import CARD, CONFIG, trained_digits

import resnext
from resnext.errors import CheckpointError, InputError, ResNeXtError
from resnext.exporting import targets
from resnext.exporting.examine import examine
from resnext.exporting.export import export
from resnext.inference import optimize as optimizing
from resnext.inference import search
from resnext.inference.engines import ENGINES
from resnext.inference.engines.base import EngineConfig
from resnext.inference.exported import Exported
from resnext.inference.plan import Measurement, Plan, machine_id, save_beside

EIGHT = EngineConfig("openvino", "int8")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trained network, and a plan for 8 bits next to it."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNEXT_HOME", str(folder / "home"))
        patch.setattr(search, "_SECONDS", 0.0)
        patch.setattr(search, "_WIDTHS", ())
        patch.setattr(optimizing, "_CALIBRATION", 16)
        patch.setattr(optimizing, "_LABELLED", 64)
        file = trained_digits(folder)
        resnext.optimize(file, precision="int8", data="digits", batch=8).save_plan(file)
        yield file


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "pixels", "picture"])
def test_a_file_computes_what_the_plan_does(kind: Any, digits: Path, tmp_path: Path) -> None:
    """To the last bit but for rounding: the accuracy of the plan is then that of the file."""
    outputs = ["probabilities", "embedding", "map"]
    path = export(digits, tmp_path / "net.xml", input=kind, outputs=outputs, precision="int8")
    exported = Exported(path)
    assert (exported.precision, exported.input, exported.outputs) == ("int8", kind, (*outputs,))
    accuracy = exported.proof["accuracy"]
    assert accuracy["int8"] >= accuracy["network"] - 0.005 > 0.5
    by_plan, found = (resnext.evaluate(x, "digits") for x in (digits, path))
    assert np.mean(found.predicted == by_plan.predicted) > 0.99
    assert abs(found.accuracy - by_plan.accuracy) < 0.01
    kinds = [op.get_type_name() for op in exported._opened._model.get_ops()]  # type: ignore
    assert kinds.count("FakeQuantize") > 4
    assert any("Accuracy on the images of that plan: 9" in x for x in examine(exported).notes)
    photo = np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8)
    assert resnext.explain(path, photo).how == "map"


@pytest.mark.slow
def test_the_same_plan_gives_the_same_bytes(digits: Path, tmp_path: Path) -> None:
    """And they name no path; another graph than the plan's is not kept."""
    one, two = (export(digits, tmp_path / name, precision="int8") for name in ("a.xml", "b.xml"))
    for a, b in zip(*(targets.TARGETS["openvino"].files(x) for x in (one, two)), strict=True):
        assert a.read_bytes() == b.read_bytes()
        assert str(digits.parent).encode() not in a.read_bytes()


@pytest.mark.slow
def test_a_file_that_differs_from_the_plan_is_not_kept(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here its normalization is another."""
    build = targets.OpenVino.build

    def broken(self: Any, module: Any, *rest: Any) -> Any:
        rule = module.card.preprocessing
        module.card = replace(module.card, preprocessing=replace(rule, mean=(0.9,)))
        return build(self, module, *rest)

    monkeypatch.setattr(targets.OpenVino, "build", broken)
    with pytest.raises(ResNeXtError, match="OpenVINO answers differently"):
        export(digits, tmp_path / "net.xml", input="pixels", precision="int8")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A model file without a plan."""
    resnext.save(tiny_network(CONFIG, CARD), tmp_path / "pets.safetensors")
    return tmp_path / "pets.safetensors"


def plan(form: EngineConfig, *rows: Measurement, machine: str = "") -> Plan:
    """A plan of this machine."""
    here = machine or machine_id("cpu")
    version = ENGINES[form.engine].version
    return Plan("0" * 64, form, 4, 12, "cpu", "[]", here, version, rows)


def chosen(accuracy: float) -> Measurement:
    """The row of the 8 bits."""
    return Measurement(EIGHT, 9.0, "chosen", accuracy=accuracy)


USUAL = Measurement(None, 1.0, accuracy=0.9)
REFUSED = Measurement(EIGHT, 9.0, "refused: accuracy 80.00%, the network has 90.00%", accuracy=0.8)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "there is none. Run resnext optimize .*pets.safetensors --precision int8 --data"),
        (plan(EngineConfig("openvino"), USUAL), "8 bits were not tried"),
        (plan(EngineConfig("openvino"), REFUSED, USUAL), "refused: accuracy 80.00%, the network"),
        (plan(EIGHT, chosen(0.9), USUAL, machine="a quantum computer"), "made for a quantum"),
        (plan(EIGHT, chosen(0.88), USUAL), r"lose 2.00 points .*--max-loss 0.5"),
        (plan(EIGHT, chosen(0.9), USUAL), r"8-bit network, is missing. Run resnext optimize"),
    ],
)
def test_without_a_graph_that_passed(
    made: Plan | None, message: str, file: Path, fresh_cache: Path
) -> None:
    """One line that says what to run; nothing is quantized behind the user's back."""
    if made is not None:
        save_beside(file, made)
    with pytest.raises((InputError, CheckpointError), match=message) as caught:
        export(file, file.with_name("net.xml"), precision="int8")
    assert "\n" not in str(caught.value)


def test_what_8_bits_do_not_have(file: Path, tmp_path: Path) -> None:
    """Other formats, other sizes, the maps of other stages, networks in memory."""
    refused: list[tuple[str, str, dict[str, Any]]] = [
        ("--to openvino", "net.onnx", {}),
        ("--to openvino", "net.pt2", {}),
        ("Leave out --sizes", "net.xml", {"sizes": "dynamic"}),
    ]
    for message, name, options in refused:
        with pytest.raises(InputError, match=message):
            export(file, tmp_path / name, precision="int8", **options)
    with pytest.raises(InputError, match="needs a model file and its plan"):
        export(resnext.load(file), tmp_path / "net.xml", precision="int8")
