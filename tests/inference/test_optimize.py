"""`optimize`: networks and arguments that it accepts or refuses, progress, and the cache."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_network
from inference_cases import BATCH, CARD, CONFIG, INSTALLED, SIZE, agree, images
from torch import nn

import resnext
from resnext import Card, Preprocessing, ResNeXt, optimize
from resnext.errors import CheckpointError, DataError, InputError, MissingFileError
from resnext.inference import plan as plan_module
from resnext.inference.engines.base import Engine, EngineConfig
from resnext.inference.optimize import patterns
from resnext.inference.plan import read_plans
from resnext.inference.search import Search

pytestmark = pytest.mark.usefixtures("one_thread", "quick_search")


def test_grey_networks() -> None:
    """Networks with one channel, as in their card."""
    preprocessing = Preprocessing(SIZE, SIZE, mean=(0.7,), std=(0.1,), colour="L")
    network = tiny_network(CONFIG.replace(in_channels=1), Card(CARD.labels, preprocessing))
    picture = np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)
    plain = resnext.predict(network, picture, top=4, device="cpu")[0]
    for engine in ("onnxruntime", "openvino"):
        quick = optimize(network, batch=BATCH, engine=engine, precision="fp32")
        agree(quick, network, images(5, channels=1))
        got = resnext.predict(quick, picture, top=4)[0]
        assert got.labels == plain.labels
        assert got.probabilities == pytest.approx(plain.probabilities, rel=1e-4)


def test_networks_without_a_card() -> None:
    """They accept normalized images only, of the default size."""
    network = tiny_network(CONFIG)
    quick = optimize(network, batch=1, engine="onnxruntime")
    agree(quick, network, images(3, size=32))
    with pytest.raises(InputError, match="labels"):
        resnext.predict(quick, np.zeros((32, 32, 3), np.uint8))


def test_channels_that_no_picture_has() -> None:
    """Satellite images have five bands; a card's means are for three."""
    network = tiny_network(CONFIG.replace(in_channels=5), CARD)
    quick = optimize(network, batch=1, engine="onnxruntime")
    agree(quick, network, images(3, channels=5))


def test_files_are_opened(file: Path, network: ResNeXt) -> None:
    """Given as a path or a string."""
    for source in (file, str(file)):
        agree(optimize(source, batch=2, engine="torch"), network, images(3))
    with pytest.raises(MissingFileError, match="does not exist"):
        optimize(file.with_name("gone.safetensors"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_networks_are_left_as_they_were(dtype: torch.dtype) -> None:
    """Number type, modes, weights and gradients are unchanged: training may continue."""
    network = tiny_network(CONFIG, CARD).to(dtype).train()
    network.get_submodule("layer1").eval()
    network.fc.weight.grad = torch.ones_like(network.fc.weight)
    network.conv1.weight.requires_grad_(False)
    modes = {name: m.training for name, m in network.named_modules()}
    kinds = {name: type(m) for name, m in network.named_modules()}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    needs = {name: p.requires_grad for name, p in network.named_parameters()}
    quick = optimize(network, batch=BATCH, engine="openvino")
    agree(quick, network, images(5))
    assert {name: m.training for name, m in network.named_modules()} == modes
    assert {name: type(m) for name, m in network.named_modules()} == kinds
    assert {name: p.requires_grad for name, p in network.named_parameters()} == needs
    for name, value in network.state_dict().items():
        assert (value.dtype, value.device.type) == (before[name].dtype, "cpu"), name
        assert torch.equal(value, before[name]), name
    assert network.fc.weight.grad is not None
    assert network.fc.weight.grad.eq(1).all()
    with torch.no_grad():
        network.fc.weight.zero_()  # the optimized network has a copy
    assert quick(images(2)).std() > 1e-3


def test_norms_of_the_batch_itself() -> None:
    """Their outputs depend on the other images in the batch, so padding would change them."""
    network = tiny_network(CONFIG.replace(norm_track=False))
    try:
        quick = optimize(network, batch=BATCH, engine="openvino")
    except InputError:
        return
    for count in (1, 3, BATCH, 7):
        agree(quick, network, images(count))


def test_what_is_shown(network: ResNeXt, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing by default; progress goes to standard error, because output may be piped."""
    optimize(network, batch=BATCH)
    assert capfd.readouterr() == ("", "")
    optimize(network, batch=BATCH, again=True, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    for engine in INSTALLED:
        assert f"Timing {engine} fp32" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp64"}, "precision must be one of auto, fp32.*not 'fp64'"),
        ({"precision": None}, "precision must be one of"),
        ({"engine": "tensorflow"}, "engine must be one of auto, torch.*not 'tensorflow'"),
        ({"batch": 0}, "batch must be from 1 to 4096 images, not 0"),
        ({"batch": -1}, "batch must be"),
        ({"batch": True}, "batch must be from 1 to 4096 images, not True"),
        ({"batch": 10**9}, "batch must be"),
        ({"batch": 4.0}, "batch must be"),
        ({"batch": "4"}, "batch must be"),
        ({"precision": "int8"}, "give data"),
        (
            {"precision": "int8", "engine": "torch", "data": "digits"},
            "PyTorch has no int8 on cpu. Use fp32 or bf16, or another engine",
        ),
        (
            {"precision": "int8", "engine": "onnxruntime", "data": "digits"},
            "ONNX Runtime has no int8 on cpu. Use fp32, or another engine",
        ),
        ({"precision": "fp16", "engine": "torch"}, "fp16 needs a GPU"),
        ({"precision": "bf16", "engine": "onnxruntime"}, "ONNX Runtime has no bf16 on cpu"),
        ({"device": "toaster"}, "device 'toaster' cannot be used"),
    ],
)
def test_arguments_that_are_refused(
    network: ResNeXt, options: dict[str, Any], message: str
) -> None:
    """Refused at once, not after minutes of timing."""
    with pytest.raises(InputError, match=message):
        optimize(network, **options)


def test_data_that_is_missing(network: ResNeXt, tmp_path: Path) -> None:
    """A mistyped name, or a model without labels."""
    with pytest.raises(DataError, match="nowhere"):
        optimize(network, data=tmp_path / "nowhere")
    network.card = None
    with pytest.raises(InputError, match="labels"):
        optimize(network, data=tmp_path)


@pytest.mark.parametrize("missing", ["onnxruntime", "openvino"])
def test_engines_that_are_missing(
    network: ResNeXt, missing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left out by default; asked for by name, the error says how to install it."""
    monkeypatch.setitem(sys.modules, missing, None)
    quick = optimize(network, batch=BATCH)
    assert missing not in {row.form.engine for row in quick.plan.rows if row.form}
    agree(quick, network, images(5))
    for precision in ("fp32", "auto"):
        with pytest.raises(InputError, match=rf"{missing} is not installed.*resnext\["):
            optimize(network, engine=missing, precision=precision)


def test_synthetic_images_have_the_spectrum_of_photographs() -> None:
    """White noise hardly differs after the first convolution, so a difference would not show."""
    some = patterns(16, 3, 32)
    assert some.shape == (16, 3, 32, 32)
    assert some.dtype == np.float32
    assert np.array_equal(some, patterns(16, 3, 32))
    assert some.std(axis=(2, 3)) == pytest.approx(1, abs=0.1)
    power = abs(np.fft.fft2(some)) ** 2
    assert power[..., 0, 1].mean() > 20 * power[..., 0, 8].mean() > 0
    assert len({image.tobytes() for image in some}) == 16


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, inside its compiler
def test_torch_compile(network: ResNeXt) -> None:
    """Graphs are compiled for one piece size, and the last piece is padded."""
    quick = optimize(network, batch=BATCH, engine="compile", precision="fp32")
    assert quick.plan.form == EngineConfig("compile", piece=BATCH)
    for count in (0, 1, 3, 4, 9):
        agree(quick, network, images(count, seed=count))
    assert isinstance(network.bn1, nn.BatchNorm2d)


# -- The cache --------------------------------------------------------------------------------


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes any later measurement fail."""

    def refuse(*_: Any) -> None:
        raise AssertionError("timed again")

    return lambda: monkeypatch.setattr(Search, "run", refuse)


def test_results_are_cached(network: ResNeXt, file: Path, never: Callable[[], None]) -> None:
    """The key is the weights, not the object; the second call opens the files of the first."""
    first = optimize(network, batch=BATCH)
    never()
    for again in (network, copy.deepcopy(network).train(), file):
        second = optimize(again, batch=BATCH)
        assert second.plan == first.plan
        assert torch.equal(second(images(9)), first(images(9)))
        assert second.explain() == first.explain()
    with pytest.raises(AssertionError, match="timed again"):
        optimize(network, batch=BATCH, again=True)


def other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "cpu_name", lambda: "Abacus 3000")


def other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "version", "0.0.1")


def one_weight(network: ResNeXt) -> None:
    network.get_parameter("layer1.0.conv2.weight").view(-1)[-1] += 1e-6


def one_statistic(network: ResNeXt) -> None:
    network.get_buffer("bn1.running_var")[3] += 1e-6


def other_means(network: ResNeXt) -> None:
    network.card = replace(CARD, preprocessing=replace(CARD.preprocessing, mean=(0.4, 0.5, 0.61)))


def other_epsilon(network: ResNeXt) -> None:
    network.config = network.config.replace(norm_eps=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"batch": BATCH + 1},
        {"precision": "fp32"},
        {"engine": "torch"},
        other_machine,
        other_version,
        one_weight,
        one_statistic,
        other_means,
        other_epsilon,
    ],
    ids=lambda change: change.__name__ if callable(change) else next(iter(change)),
)
@torch.no_grad()
def test_other_requests_are_measured(
    network: ResNeXt, never: Callable[[], None], change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan for other weights gives wrong outputs; one for another machine is slow."""
    optimize(network, batch=BATCH)
    never()
    options: dict[str, Any] = {"batch": BATCH}
    if isinstance(change, dict):
        options |= change
    elif change.__name__ in ("other_machine", "other_version"):
        change(monkeypatch)
    else:
        change(network)
    with pytest.raises(AssertionError, match="timed again"):
        optimize(network, **options)


def test_a_damaged_cache_is_ignored(network: ResNeXt, fresh_cache: Path) -> None:
    """Measured again, since it is only a cache."""
    first = optimize(network, batch=BATCH, engine="torch")
    (path,) = fresh_cache.rglob("*.plan.json")
    path.write_text("{")
    second = optimize(network, batch=BATCH, engine="torch")
    assert (second.plan.model, second.plan.form) == (first.plan.model, first.plan.form)
    assert len(read_plans(path)) == 1


def test_a_cache_that_cannot_be_written(
    network: ResNeXt, tmp_path: Path, never: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error before minutes of measuring."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESNEXT_HOME", str(tmp_path / "file" / "inside"))
    never()
    with pytest.raises(CheckpointError, match=r"cannot be written.*RESNEXT_HOME"):
        optimize(network, batch=BATCH)
