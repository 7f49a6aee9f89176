"""Eight bits: faster, at most half a point less accurate, or refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inference_cases import SIZE, Clock, chosen, trained_digits

import resnext
from resnext import ResNeXt, optimize
from resnext.errors import CheckpointError, InputError
from resnext.inference import frontier, open_runner
from resnext.inference import optimize as optimizing
from resnext.inference.engines import quantization
from resnext.inference.engines.builder import EngineBuilder
from resnext.inference.engines.openvino import openvino_core
from resnext.inference.engines.quantization import quantize
from resnext.inference.optimize import patterns
from resnext.inference.optimized import Optimized
from resnext.inference.plan import plan_path
from resnext.inference.runner import Session
from resnext.inference.search import Search

pytestmark = pytest.mark.usefixtures("one_thread", "quick_search")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network trained for a few epochs."""
    return trained_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images to measure on, because NNCF is slow."""
    monkeypatch.setattr(optimizing, "_CALIBRATION", 16)
    monkeypatch.setattr(optimizing, "_LABELLED", 32)


def per_channel(model: Any) -> list[tuple[int, int]]:
    """For each quantized convolution: output channels, and number of different scales."""
    found = []
    for node in model.get_ops():
        if node.get_type_name() not in ("Convolution", "GroupConvolution"):
            continue
        source = node.input_value(1).get_node()
        while source.get_type_name() in ("Reshape", "Convert"):
            source = source.input_value(0).get_node()
        kind = source.get_type_name()
        if kind not in ("FakeQuantize", "Multiply"):
            continue  # computed in floats
        scale = source.input_value(4 if kind == "FakeQuantize" else 1).get_node()
        assert scale.get_type_name() == "Constant"
        shape = list(source.get_output_shape(0))
        outer = 1 if node.get_type_name() == "Convolution" else 2  # groups, then channels of each
        values = np.asarray(scale.data)
        assert list(values.shape[:outer]) == shape[:outer]
        rows = values.reshape(int(np.prod(shape[:outer])), -1)
        found.append((len(rows), len(np.unique(rows, axis=0))))
    return found


@pytest.mark.usefixtures("few")
def test_eight_bits_keep_the_accuracy(digits: Path, clock: Clock) -> None:
    """At most half a point is lost, on images that it was not calibrated with."""
    quick = optimize(digits, precision="int8", data="digits", batch=8)
    row, base = chosen(quick.plan), quick.plan.rows[-1]
    assert quick.plan.form.precision == "int8"
    assert row.accuracy is not None
    assert base.accuracy is not None
    assert base.accuracy > 0.6
    assert row.accuracy >= base.accuracy - 0.005
    text = quick.explain()
    assert f"{row.accuracy:.2%} right" in text
    assert f"{base.accuracy:.2%} right" in text

    import openvino

    model = openvino.Core().read_model(quick.plan.graph("images"))
    scales = per_channel(model)
    assert len(scales) >= 4
    assert all(different > channels // 2 for channels, different in scales)

    plain = resnext.evaluate(digits, "digits", plan=False)
    whole = resnext.evaluate(quick, "digits")
    assert whole.count == plain.count
    assert abs(whole.accuracy - plain.accuracy) < 0.03
    quick.save_plan(digits)
    try:
        by_plan = resnext.evaluate(digits, "digits", keep_logits=True)
        assert (by_plan.predicted == whole.predicted).all()
        quick.plan.graph("pixels").write_bytes(b"<net")
        with pytest.raises(CheckpointError, match=r"is damaged.*Run resnext optimize --again"):
            resnext.predict(digits, np.zeros((8, 8), np.uint8))
        for kind in ("images", "pixels"):
            quick.plan.graph(kind).unlink()
        with pytest.raises(CheckpointError, match=r"is missing.*Run resnext optimize --again"):
            resnext.evaluate(digits, "digits")
        with pytest.raises(CheckpointError, match=r"is missing.*Run resnext optimize --again"):
            resnext.predict(digits, np.zeros((8, 8), np.uint8))
    finally:
        plan_path(digits).unlink()


def broken(model: Any, images: np.ndarray, accuracy: Any = None) -> Any:
    """A broken quantizer: the logits have the wrong sign."""
    from openvino import opset8

    model = model.clone()
    model.reshape([1, *(size.get_length() for size in list(model.input(0).partial_shape)[1:])])
    result = model.outputs[0].node.input(0)
    result.replace_source_output(opset8.negative(result.get_source_output()).output(0))
    return model


@pytest.mark.usefixtures("few")
def test_eight_bits_that_cost_accuracy_are_refused(
    digits: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if they are the fastest."""
    clock.fastest("openvino")
    monkeypatch.setattr(quantization, "quantize", broken)
    quick = optimize(digits, data="digits", batch=8)
    assert quick.plan.form.precision == "fp32"
    assert chosen(quick.plan).images_per_second > 0
    (refused,) = [row for row in quick.plan.rows if row.verdict.startswith("refused")]
    assert refused.form is not None
    assert refused.form.precision == "int8"
    assert "accuracy" in refused.verdict
    with pytest.raises(InputError, match="refused: accuracy"):
        optimize(digits, data="digits", batch=8, precision="int8")


@pytest.mark.usefixtures("few")
def test_a_quantizer_that_fails(
    digits: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NNCF does not support every layer; single precision is still there."""

    def fail(*_: Any) -> None:
        raise RuntimeError("nncf: unknown layer")

    monkeypatch.setattr(quantization, "quantize", fail)
    quick = optimize(digits, data="digits", batch=8)
    assert quick.plan.form.precision == "fp32"
    assert "unknown layer" in quick.explain()


def test_layers_that_cost_accuracy_return_to_floats(network: ResNeXt) -> None:
    """Here, accuracy counts images whose logits hardly moved."""
    source = EngineBuilder(network, SIZE, torch.device("cpu"))
    model = openvino_core().read_model(source.graph().SerializeToString())
    some = patterns(4, 3, SIZE)
    with torch.no_grad():
        wanted = network(torch.from_numpy(some)).numpy()
    limit = 0.015 * abs(wanted).max()

    def accuracy(session: Session) -> float:
        return float((abs(session(some)[0] - wanted).max(1) < limit).mean())

    def eight(model: Any) -> int:
        kinds = [op.get_type_name() for op in model.get_ops()]
        return kinds.count("FakeQuantize")

    def answers(model: Any) -> Session:
        model.reshape([4, 3, SIZE, SIZE])
        compiled = openvino_core().compile_model(model, "CPU")
        return lambda x: tuple(compiled(x)[i] for i in range(2))  # type: ignore[return-value]

    before = hashlib.sha256(str([op.get_friendly_name() for op in model.get_ops()]).encode())
    plain, careful = quantize(model, some), quantize(model, some, accuracy)
    after = hashlib.sha256(str([op.get_friendly_name() for op in model.get_ops()]).encode())
    assert before.digest() == after.digest()
    assert 0 < eight(careful) < eight(plain)
    assert accuracy(answers(plain.clone())) < 1
    assert accuracy(answers(careful.clone())) == 1


def test_predict_and_evaluate_by_the_plan(digits: Path, tmp_path: Path) -> None:
    """With the plan, every image gets the class it gets without."""
    plain = resnext.evaluate(digits, "digits", keep_logits=True)
    pictures = [np.random.default_rng(i).integers(0, 256, (9, 9), dtype=np.uint8) for i in range(7)]
    wanted = resnext.predict(digits, pictures, top=3)
    quick = optimize(digits, batch=8, engine="openvino")
    assert quick.save_plan(str(digits)) == plan_path(digits)
    try:
        for found in (
            resnext.evaluate(digits, "digits", keep_logits=True),
            resnext.evaluate(digits, "digits", keep_logits=True, plan=False),
            resnext.evaluate(quick, "digits", keep_logits=True, batch_size=5),
            resnext.evaluate(digits, "digits", keep_logits=True, views=2, plan=True),
        ):
            assert found.count == plain.count
            if found.nll == pytest.approx(plain.nll, rel=1e-4):
                assert found.accuracy == plain.accuracy
                assert (found.predicted == plain.predicted).all()
                assert found.nll == pytest.approx(plain.nll, rel=1e-5)
                assert found.logits is not None
                assert plain.logits is not None
                assert np.allclose(found.logits, plain.logits, rtol=0, atol=1e-4)
            else:  # two views are another question, which only has to be answered alike
                other = resnext.evaluate(digits, "digits", views=2, plan=False)
                assert (found.predicted == other.predicted).all()
                assert found.nll == pytest.approx(other.nll, rel=1e-4)
        for plan in (True, False):
            got = resnext.predict(digits, pictures, top=3, plan=plan)
            for a, b in zip(got, wanted, strict=True):
                assert a.labels == b.labels
                assert a.probabilities == pytest.approx(b.probabilities, rel=1e-4)
        compared = resnext.evaluation.compare(quick, digits, "digits", plan=False)
        assert (compared.only_a, compared.only_b) == (0, 0)
    finally:
        plan_path(digits).unlink()


def test_smaller_images_in_eight_bits(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph of the smaller size is saved, and opened again with the plan."""
    monkeypatch.setattr(frontier, "_FRACTIONS", (3 / 4,))
    monkeypatch.setattr(Search, "seconds", lambda self, run: self.builder.size / 100)
    file = tmp_path / digits.name
    file.write_bytes(digits.read_bytes())
    quick = optimize(file, precision="int8", data="digits", batch=8, max_loss=99)
    quick.save_plan(file)
    tradeoff = quick.plan.tradeoff
    assert tradeoff is not None
    assert (quick.plan.size, quick.plan.form.precision) == (6, "int8")
    opened = open_runner(file)
    assert isinstance(opened, Optimized)
    monkeypatch.setattr(opened, "_network", lambda: pytest.fail("built again"))
    assert opened.plan.graph("pixels").exists()
    assert np.isfinite(opened.pixels(np.zeros((3, 6, 6, 1), np.uint8))[0]).all()
    accuracy = resnext.evaluate(opened, "digits").accuracy
    assert accuracy == pytest.approx(tradeoff.chosen.accuracy, abs=0.06)
    assert accuracy > 0.3
