"""`optimize`: the fastest of what agrees, found once, and the same classifier to everybody."""

from __future__ import annotations

import copy
import hashlib
import re
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import run_cli
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from oracles.originals import randomize
from PIL import Image
from torch import nn

import resnext
from resnext import Card, Preprocessing, ResNeXt, ResNeXtConfig, optimize, save
from resnext.cli.app import main
from resnext.errors import (
    CheckpointError,
    DataError,
    InputError,
    MissingFileError,
)
from resnext.inference import optimize as optimizing
from resnext.inference import optimized as optimized_module
from resnext.inference import plan as plan_module
from resnext.inference.engines import builder as workshop
from resnext.inference.engines.builder import EngineBuilder
from resnext.inference.engines.quantization import quantize
from resnext.inference.optimize import patterns, weights_digest
from resnext.inference.optimized import Optimized
from resnext.inference.plan import EngineConfig, Measurement, Plan, plan_path, read_plans
from resnext.inference.plan_table import plan_table
from resnext.inference.runner import Outputs, Session, openvino_core
from resnext.training import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, BATCH = 12, 4
CONFIG = ResNeXtConfig(
    (1,), 4, 16, num_classes=4, num_stages=1, channels=(16,), stem_channels=8, small_stem=True
)
CARD = Card(
    ("ant", "bee", "cat", "dog"),
    Preprocessing(SIZE, 14, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)),
)
ENGINES = ("torch", "openvino", "onnxruntime")
_GRAPHS: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own for each test; networks are exported once for all of them."""
    monkeypatch.setenv("RESNEXT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(optimizing, "_SECONDS", 0.0)
    monkeypatch.setattr(optimizing, "_WIDTHS", ())
    export = workshop.export_graph

    def exported(network: ResNeXt, size: int) -> Any:
        key = f"{network.config} {size} {weights_digest(network)}"
        if key not in _GRAPHS:
            _GRAPHS[key] = export(network, size)
        return _GRAPHS[key]

    monkeypatch.setattr(workshop, "export_graph", exported)


def made(config: ResNeXtConfig = CONFIG, card: Card | None = CARD) -> ResNeXt:
    """A network that answers differently to different images."""
    network = ResNeXt(config)
    randomize(network)
    network.card = card
    return network.eval()


@pytest.fixture
def network() -> ResNeXt:
    """The usual one."""
    return made()


@pytest.fixture
def file(network: ResNeXt, tmp_path: Path) -> Path:
    """The same as a file."""
    save(network, tmp_path / "pets.safetensors")
    return tmp_path / "pets.safetensors"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures of each class."""
    rng = np.random.default_rng(0)
    for label in CARD.labels:
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(3):
            values = rng.integers(0, 256, (17, 20, 3), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / "photos" / label / f"{i}.png")
    return tmp_path / "photos"


def images(count: int, channels: int = 3, size: int = SIZE, seed: int = 0) -> torch.Tensor:
    """Normalised ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=generator)


@torch.no_grad()
def agree(quick: Optimized, network: ResNeXt, x: torch.Tensor, by: float = 1e-5) -> None:
    """The network, in double precision, is the oracle."""
    twin = copy.deepcopy(network).double().eval()
    for got, wanted in (
        (quick(x), twin(x.double())),
        (quick.embed(x), twin.embed(x.double())),
    ):
        assert (got.shape, got.dtype, got.device) == (wanted.shape, torch.float32, x.device)
        assert not got.requires_grad
        if len(wanted):
            assert (got - wanted).abs().max() <= by * wanted.abs().max()


class Clock:
    """Says how long each form takes, so that the order of the table is the test's choice."""

    def __init__(self) -> None:
        self.forms: dict[int, EngineConfig] = {}
        self.kept: list[Session] = []  # a number of an object that is gone is given again
        self.seconds: Callable[[EngineConfig], float] = lambda form: 0.5

    def fastest(self, *engines: str) -> None:
        """These engines are the fastest, the first more than the second; 8 bits before all."""

        def seconds(form: EngineConfig) -> float:
            rank = engines.index(form.engine) + 1 if form.engine in engines else 9
            return 0.01 * rank if form.precision == "int8" else 0.1 * rank + 0.001 * form.piece

        self.seconds = seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Takes the place of the clock on the wall."""
    clock = Clock()
    session = EngineBuilder.session

    def tagged(self: EngineBuilder, form: EngineConfig, kind: Any = "images") -> Session:
        found = session(self, form, kind)
        clock.forms[id(found)] = form
        clock.kept.append(found)
        return found

    def seconds(self: Any, session: Session) -> float:
        session(self.x)
        form = clock.forms.get(id(session))
        return 1.0 if form is None else clock.seconds(form)

    monkeypatch.setattr(EngineBuilder, "session", tagged)
    monkeypatch.setattr(optimizing._Search, "seconds", seconds)
    return clock


def chosen(plan: Plan) -> Measurement:
    """The one row that was chosen."""
    (row,) = [row for row in plan.rows if row.verdict == "chosen"]
    assert row.form == plan.form
    return row


# -- what it gives ----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_answers_are_the_networks(network: ResNeXt, engine: Any) -> None:
    """For any number of images, whatever it was made fast for; embeddings too."""
    quick = optimize(network, batch=BATCH, engine=engine)
    assert engine in ("auto", quick.plan.form.engine)
    assert quick.batch == BATCH
    for count in (0, 1, 3, 4, 9, 17):
        agree(quick, network, images(count, seed=count))
    assert chosen(quick.plan).difference is not None
    assert (quick.card, quick.config) == (network.card, network.config)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_fastest_that_agrees_is_chosen(network: ResNeXt, clock: Clock, engine: Any) -> None:
    """And the table tells all that was timed, once, fastest first."""
    clock.fastest(engine)
    quick = optimize(network, batch=BATCH, precision="fp32")
    plan, row = quick.plan, chosen(quick.plan)
    assert row.form is not None
    assert row.form.engine == engine
    forms = [row.form for row in plan.rows]
    assert len(set(forms)) == len(forms)
    assert forms[-1] is None  # what to compare with
    assert {form.engine for form in forms if form} == set(ENGINES)
    speeds = [row.images_per_second for row in plan.rows[:-1]]
    assert speeds == sorted(speeds, reverse=True)
    assert row.images_per_second == max(speeds) == pytest.approx(BATCH / clock.seconds(row.form))
    assert {row.verdict for row in plan.rows} == {"", "chosen"}
    text = quick.explain()
    for name in ("PyTorch, as it is", "ONNX Runtime", "OpenVINO"):
        assert name in text
    lines = [line for line in text.splitlines() if line.endswith("chosen")]
    assert len(lines) == 1
    assert f"{row.images_per_second:,.1f}" in lines[0]
    assert str(row.form) in lines[0]
    base = plan.rows[-1].images_per_second
    assert f" {row.images_per_second / base:.2f} " in lines[0]
    assert f"{BATCH} images of {SIZE}×{SIZE} pixels" in text
    agree(quick, network, images(5))


def test_wider_groups_are_tried_and_taken(
    network: ResNeXt, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form says how wide; the engine must then get the wider graph."""
    monkeypatch.setattr(optimizing, "_WIDTHS", (8, 16))
    clock.seconds = lambda form: 0.05 if (form.engine, form.width) == ("onnxruntime", 8) else 0.06
    quick = optimize(network, batch=BATCH, precision="fp32")
    assert (quick.plan.form.engine, quick.plan.form.width) == ("onnxruntime", 8)
    assert "groups of 8" in quick.explain()
    assert quick.plan.graph("images").exists()
    agree(quick, network, images(5))


def test_pixels_and_predictions(network: ResNeXt, photos: Path) -> None:
    """The same picture must get the same probabilities by either way."""
    values = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    how = CARD.preprocessing
    x = (values / 255 - np.array(how.mean)) / np.array(how.std)
    with torch.no_grad():
        twin = copy.deepcopy(network).double()
        wanted = twin(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    plain = resnext.predict(network, photos, top=4, device="cpu")
    for engine in ENGINES:
        quick = optimize(network, batch=BATCH, engine=engine)
        logits, embeddings = quick.pixels(values)
        assert abs(logits - wanted).max() <= 1e-5 * abs(wanted).max()
        assert embeddings.shape == (5, 64)
        for a, b in zip(resnext.predict(quick, photos, top=4), plain, strict=True):
            assert (a.name, a.labels) == (b.name, b.labels)
            assert a.probabilities == pytest.approx(b.probabilities, rel=1e-4)


def test_threads_get_their_own_answers(network: ResNeXt) -> None:
    """The first calls come at once, too: the engine is opened once, and no answer is another's."""
    optimize(network, batch=BATCH, engine="openvino")
    quick = optimize(network, batch=BATCH, engine="openvino")  # remembered: nothing is open yet
    opened: list[EngineConfig] = []
    original = optimized_module.opened
    x = images(40)
    with torch.no_grad():
        wanted = network(x)
    gate = threading.Barrier(8)

    def calls(thread: int) -> None:
        rng = np.random.default_rng(thread)
        gate.wait()
        for _ in range(30):
            rows = torch.from_numpy(rng.integers(0, 40, rng.integers(1, 10)))
            assert (quick(x[rows]) - wanted[rows]).abs().max() <= 1e-5 * wanted.abs().max()

    def counted(graph: Any, form: EngineConfig) -> Session:
        opened.append(form)
        return original(graph, form)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(8) as pool:
        patch.setattr(optimized_module, "opened", counted)
        for done in [pool.submit(calls, thread) for thread in range(8)]:
            done.result()
    assert len(opened) == len(set(opened)) <= 2  # one for few images, one for many


@pytest.mark.parametrize("engine", ENGINES)
def test_images_of_other_types(network: ResNeXt, engine: Any) -> None:
    """Half precision, gradients and odd strides are a caller's everyday life."""
    quick = optimize(network, batch=BATCH, engine=engine)
    x = images(5)
    agree(quick, network, x.clone().requires_grad_())
    agree(quick, network, x.to(memory_format=torch.channels_last))
    agree(quick, network, images(10)[::2])
    agree(quick, network, x.mT)
    with torch.inference_mode():
        agree(quick, network, x * 1)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        agree(quick, network, x.to(dtype))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8),
            "floating-point tensor, not torch.uint8",
        ),
        (np.zeros((2, 3, SIZE, SIZE), np.float32), "floating-point tensor, not ndarray"),
        (None, "floating-point tensor, not NoneType"),
        (torch.zeros(3, SIZE, SIZE), r"not \(3, 12, 12\)"),
        (torch.zeros(2, 1, SIZE, SIZE), r"not \(2, 1, 12, 12\)"),
        (torch.zeros(2, 3, SIZE, SIZE + 1), r"\(n, 3, 12, 12\), for which this was made"),
        (torch.zeros(2, 3, 32, 32), r"not \(2, 3, 32, 32\)"),
        (torch.zeros(2, SIZE, SIZE, 3), r"not \(2, 12, 12, 3\)"),
    ],
)
def test_images_it_cannot_take(network: ResNeXt, x: Any, message: str) -> None:
    """An engine's own message comes from somewhere in C++; torch would even take other sizes."""
    quick = optimize(network, batch=BATCH, engine="torch")
    for call in (quick, quick.embed):
        with pytest.raises(InputError, match=message):
            call(x)


# -- what it takes ----------------------------------------------------------------------------


def test_grey_networks() -> None:
    """One channel, with a card that says so."""
    how = Preprocessing(SIZE, SIZE, mean=(0.7,), std=(0.1,), colour="L")
    network = made(CONFIG.replace(in_channels=1), Card(CARD.labels, how))
    picture = np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)
    plain = resnext.predict(network, picture, top=4, device="cpu")[0]
    for engine in ("onnxruntime", "openvino"):
        quick = optimize(network, batch=BATCH, engine=engine, precision="fp32")
        agree(quick, network, images(5, channels=1))
        got = resnext.predict(quick, picture, top=4)[0]
        assert got.labels == plain.labels
        assert got.probabilities == pytest.approx(plain.probabilities, rel=1e-4)


def test_networks_without_a_card() -> None:
    """Normalised images are all they can take; the size is the usual one."""
    network = made(card=None)
    quick = optimize(network, batch=1, engine="onnxruntime")
    agree(quick, network, images(3, size=32))
    with pytest.raises(InputError, match="labels"):
        resnext.predict(quick, np.zeros((32, 32, 3), np.uint8))


def test_channels_that_no_picture_has() -> None:
    """Satellite images have five bands; a card's means are for three."""
    network = made(CONFIG.replace(in_channels=5), CARD)
    quick = optimize(network, batch=1, engine="onnxruntime")
    agree(quick, network, images(3, channels=5))


def test_files_are_opened(file: Path, network: ResNeXt) -> None:
    """As a path, and as text."""
    for source in (file, str(file)):
        agree(optimize(source, batch=2, engine="torch"), network, images(3))
    with pytest.raises(MissingFileError, match="does not exist"):
        optimize(file.with_name("gone.safetensors"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_networks_are_left_as_they_were(dtype: torch.dtype) -> None:
    """Type, modes, weights and gradients: training may go on after it."""
    network = made().to(dtype).train()
    network.layer1.eval()
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
        network.fc.weight.zero_()  # what was optimized keeps weights of its own
    assert quick(images(2)).std() > 1e-3


def test_norms_of_the_batch_itself() -> None:
    """Their answers depend on the other images: pieces that are filled up give other answers."""
    network = made(CONFIG.replace(norm_track=False))
    try:
        quick = optimize(network, batch=BATCH, engine="openvino")
    except InputError:
        return
    for count in (1, 3, BATCH, 7):
        agree(quick, network, images(count))


def test_what_is_shown(network: ResNeXt, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing, unless it is asked for; then on standard error, for output may be piped."""
    optimize(network, batch=BATCH)
    assert capfd.readouterr() == ("", "")
    optimize(network, batch=BATCH, again=True, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    for engine in ENGINES:
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
        ({"precision": "int8", "engine": "torch", "data": "digits"}, "openvino, not by torch"),
        ({"precision": "int8", "engine": "onnxruntime", "data": "digits"}, "by onnxruntime"),
        ({"precision": "fp16", "engine": "torch"}, "fp16 needs a GPU"),
        ({"precision": "bf16", "engine": "onnxruntime"}, "no bf16"),
        ({"device": "toaster"}, "device 'toaster' cannot be used"),
    ],
)
def test_arguments_that_make_no_sense(
    network: ResNeXt, options: dict[str, Any], message: str
) -> None:
    """Refused at once, not after minutes of timing."""
    with pytest.raises(InputError, match=message):
        optimize(network, **options)


def test_data_that_is_missing(network: ResNeXt, tmp_path: Path) -> None:
    """A name that was mistyped; a model without labels."""
    with pytest.raises(DataError, match="nowhere"):
        optimize(network, data=tmp_path / "nowhere")
    network.card = None
    with pytest.raises(InputError, match="labels"):
        optimize(network, data=tmp_path)


@pytest.mark.parametrize("missing", ["onnxruntime", "openvino"])
def test_engines_that_are_missing(
    network: ResNeXt, missing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself it does without; asked for by name it says how to get it."""
    version = plan_module.engine_version

    def without(engine: Any) -> str:
        return "" if engine == missing else version(engine)

    for module in (plan_module, optimizing):
        monkeypatch.setattr(module, "engine_version", without)
    monkeypatch.setitem(sys.modules, missing, None)
    quick = optimize(network, batch=BATCH)
    assert missing not in {row.form.engine for row in quick.plan.rows if row.form}
    agree(quick, network, images(5))
    for precision in ("fp32", "auto"):
        with pytest.raises(InputError, match=rf"{missing} is not installed.*resnext\["):
            optimize(network, engine=missing, precision=precision)


# -- remembering ------------------------------------------------------------------------------


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From then on, nothing may be timed."""

    def refuse(*_: Any) -> None:
        raise AssertionError("timed again")

    return lambda: monkeypatch.setattr(optimizing._Search, "run", refuse)


def test_what_was_found_is_remembered(
    network: ResNeXt, file: Path, never: Callable[[], None]
) -> None:
    """By the weights, not by the object; the second call opens what the first has kept."""
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
    monkeypatch.setattr(plan_module, "engine_version", lambda engine: "0.0.1")


def one_weight(network: ResNeXt) -> None:
    network.layer1[0].conv2.weight.view(-1)[-1] += 1e-6


def one_statistic(network: ResNeXt) -> None:
    network.bn1.running_var[3] += 1e-6


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
def test_another_question_is_not_remembered(
    network: ResNeXt, never: Callable[[], None], change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan for other weights gives other answers; for another machine, slow ones."""
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


def test_a_damaged_memory_is_no_memory(network: ResNeXt, tmp_path: Path) -> None:
    """It is only a cache."""
    first = optimize(network, batch=BATCH, engine="torch")
    (path,) = (tmp_path / "home").rglob("*.plan.json")
    path.write_text("{")
    second = optimize(network, batch=BATCH, engine="torch")
    assert (second.plan.model, second.plan.form) == (first.plan.model, first.plan.form)
    assert len(read_plans(path)) == 1


def test_a_cache_that_cannot_be_written(
    network: ResNeXt, tmp_path: Path, never: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said before minutes of timing, in one line."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESNEXT_HOME", str(tmp_path / "file" / "inside"))
    never()
    with pytest.raises(CheckpointError, match=r"cannot be written.*RESNEXT_HOME"):
        optimize(network, batch=BATCH)


@pytest.mark.parametrize(("engine", "suffix"), [("onnxruntime", ".onnx"), ("openvino", ".xml")])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "folder gone", "no folder possible"])
def test_graphs_that_were_lost(network: ResNeXt, engine: Any, suffix: str, damage: str) -> None:
    """A disk that was full, or a cache that was emptied or cannot be written: made again."""
    optimize(network, batch=BATCH, engine=engine)
    quick = optimize(network, batch=BATCH, engine=engine)
    path = quick.plan.graph("images")
    assert path.suffix == suffix
    for part in path.parent.glob(f"{path.stem}.*"):
        if damage in ("cut", "empty"):
            part.write_bytes(part.read_bytes()[: part.stat().st_size // 2 * (damage == "cut")])
        else:
            part.unlink()
    if "folder" in damage:
        shutil.rmtree(path.parent)
    if damage == "no folder possible":
        path.parent.write_text("in the way")
    agree(quick, network, images(5))
    assert path.exists() == (damage != "no folder possible")


# -- what does not agree ----------------------------------------------------------------------


class Wrong:
    """A session whose answers are not the network's."""

    def __init__(self, session: Session, how: str) -> None:
        self.session, self.how = session, how

    def __call__(self, x: np.ndarray) -> Outputs:
        """Answers, spoilt."""
        logits, embeddings = (values.copy() for values in self.session(x))
        if self.how == "a thousandth":
            logits += np.float32(1e-3 * abs(logits).max())
        elif self.how == "one image":
            logits[-1] *= np.float32(1.01)
        elif self.how == "not a number":
            logits[-1, 1] = np.nan
        elif self.how == "infinite":
            logits[0, 0] = np.inf
        elif self.how == "other images":
            logits = logits[::-1].copy()
        elif self.how == "other classes":
            logits = logits[:, ::-1].copy()
        elif self.how == "nothing":
            logits[:] = 0
        return logits, embeddings


def spoil(monkeypatch: pytest.MonkeyPatch, clock: Clock, how: str, *engines: str) -> None:
    """Let some engines answer wrongly, or fail."""
    session = EngineBuilder.session

    def spoilt(self: EngineBuilder, form: EngineConfig, kind: Any = "images") -> Any:
        if form.engine not in engines:
            return session(self, form, kind)
        if how == "it fails":
            raise RuntimeError("no kernel for this\nand a long trace")
        if how == "ONNX Runtime fails":
            raise Fail("[ONNXRuntimeError] : 1 : FAIL : no kernel for this")
        found = Wrong(session(self, form, kind), how)
        clock.forms[id(found)] = form
        clock.kept.append(found)
        return found

    monkeypatch.setattr(EngineBuilder, "session", spoilt)


WRONG = (
    "a thousandth",
    "one image",
    "not a number",
    "infinite",
    "other images",
    "other classes",
    "nothing",
)


@pytest.mark.parametrize("how", WRONG)
def test_wrong_answers_are_refused(
    network: ResNeXt, clock: Clock, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However fast they are: the next that agrees is taken, and the table tells why."""
    clock.fastest("openvino", "torch")
    spoil(monkeypatch, clock, how, "openvino")
    quick = optimize(network, batch=BATCH, precision="fp32")
    assert chosen(quick.plan).form == quick.plan.form
    assert quick.plan.form.engine == "torch"
    refused = [row for row in quick.plan.rows if row.verdict.startswith("refused")]
    assert refused
    assert {row.form.engine for row in refused if row.form} == {"openvino"}
    words = "not finite" if how in ("not a number", "infinite") else "logits differ by"
    assert all(words in row.verdict for row in refused)
    text = " ".join(quick.explain().split())
    assert "refused" in text
    assert text.count("chosen") == 1
    agree(quick, network, images(5))
    assert "refused" in optimize(network, batch=BATCH, precision="fp32").explain()  # remembered


def test_many_fast_forms_may_all_be_wrong(
    network: ResNeXt, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many cores one engine has more forms than were kept loaded: the right one was gone."""
    for module in (optimizing, plan_module):
        monkeypatch.setattr(module, "core_count", lambda: 4)
    monkeypatch.setattr(optimizing, "_WIDTHS", (8, 16))
    clock.fastest("openvino", "torch")
    spoil(monkeypatch, clock, "a thousandth", "openvino")
    quick = optimize(network, batch=BATCH, precision="fp32")
    forms = [row.form for row in quick.plan.rows if row.form]
    assert sum(form.engine == "openvino" for form in forms) > 4
    assert quick.plan.form.engine == "torch"


@pytest.mark.parametrize("how", ["it fails", "ONNX Runtime fails"])
def test_engines_that_fail_are_rows(
    network: ResNeXt, clock: Clock, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine without a kernel for one layer must not end the search of the others."""
    clock.fastest("openvino", "torch")
    spoil(monkeypatch, clock, how, "openvino", "onnxruntime")
    quick = optimize(network, batch=BATCH, precision="fp32")
    assert quick.plan.form.engine == "torch"
    failed = [row for row in quick.plan.rows if row.verdict.startswith("failed")]
    assert {row.form.engine for row in failed if row.form} == {"openvino", "onnxruntime"}
    assert all("no kernel for this" in row.verdict for row in failed)
    assert "no kernel for this" in quick.explain()


@pytest.mark.parametrize("how", ["a thousandth", "not a number", "it fails"])
def test_nothing_agrees(
    network: ResNeXt, clock: Clock, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then there is no classifier, and each form is listed with the reason."""
    spoil(monkeypatch, clock, how, *ENGINES)
    with pytest.raises(InputError) as info:
        optimize(network, batch=BATCH, precision="fp32")
    for engine in ENGINES:
        why = "failed" if how == "it fails" else "refused"
        assert re.search(rf"^{engine}( fp32)?: {why}", str(info.value), re.MULTILINE), engine


def test_networks_that_are_broken(network: ResNeXt) -> None:
    """NaN is not equal to NaN: every form of a broken network is refused."""
    with torch.no_grad():
        network.fc.bias[1] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        optimize(network, batch=BATCH, engine="torch")


def test_bf16_without_the_arithmetic(network: ResNeXt) -> None:
    """OpenVINO then computes in single precision under another name: it is a row without a speed.

    Such a row has to be printed, too.
    """
    with torch.no_grad():
        network.fc.bias[2] += 100  # every image has the same class, in any precision
    quick = optimize(network, batch=BATCH, precision="bf16")
    assert quick.plan.form == EngineConfig("torch", "bf16", BATCH)
    (row,) = [r for r in quick.plan.rows if r.form and r.form.engine == "openvino"]
    assert (row.images_per_second, "no bf16 arithmetic" in row.verdict) == (0, True)
    text = quick.explain()
    assert "no bf16 arithmetic" in text
    assert "100.0% same" in text


def test_bf16_must_keep_the_class(
    network: ResNeXt, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """99.5 % of 64 images are all of them."""
    with torch.no_grad():
        network.fc.bias[2] += 100
    clock.fastest("torch")
    spoil(monkeypatch, clock, "other classes", "torch")
    with pytest.raises(InputError, match="the class of only"):
        optimize(network, batch=BATCH, precision="bf16")


# -- the table --------------------------------------------------------------------------------


def table(*rows: Measurement) -> Plan:
    """A plan of these rows, and of the network as it is."""
    return Plan(
        model="0" * 64,
        form=EngineConfig("torch"),
        batch=4,
        size=12,
        device="cpu",
        request="",
        machine="[bold]Abacus[/] 3000, 2 threads",
        version="1",
        rows=(*rows, Measurement(None, 2.0)),
    )


def test_rows_without_a_speed() -> None:
    """Dividing by it broke the whole table."""
    text = plan_table(
        table(Measurement(EngineConfig("openvino", "bf16"), 0.0, "failed: no kernel"))
    )
    assert "OpenVINO" in text
    assert "–" in text
    assert "failed: no kernel" in text


def test_text_of_engines_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets in an engine's message are brackets, and no terminal's colours come in."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = plan_table(
        table(
            Measurement(EngineConfig("openvino"), 8.0, "failed: [cpu] in [/core]"),
            Measurement(EngineConfig("torch", piece=4), 4.0, "chosen", 1e-7, 1.0),
        )
    )
    assert "failed: [cpu] in [/core]" in text
    assert "[bold]Abacus[/] 3000" in text
    assert "\x1b" not in text


def test_numbers_of_the_table() -> None:
    """Images per second, how many times the network as it is, milliseconds of a batch."""
    text = plan_table(
        table(Measurement(EngineConfig("onnxruntime", "fp32", 2, 8, 16), 1234.5, "", 2.5e-7, 1.0))
    )
    (line,) = [line for line in text.splitlines() if "ONNX" in line]
    wanted = "ONNX Runtime fp32 8 × 2 images, groups of 16 1,234.5 617.25 3.2 ±2.5e-07"
    assert " ".join(line.split()) == wanted


def test_made_up_images_have_the_spectrum_of_photographs() -> None:
    """White noise becomes the same few numbers behind any network's first convolution."""
    some = patterns(16, 3, 32)
    assert some.shape == (16, 3, 32, 32)
    assert some.dtype == np.float32
    assert np.array_equal(some, patterns(16, 3, 32))
    assert some.std(axis=(2, 3)) == pytest.approx(1, abs=0.1)
    power = abs(np.fft.fft2(some)) ** 2
    assert power[..., 0, 1].mean() > 20 * power[..., 0, 8].mean() > 0
    assert len({image.tobytes() for image in some}) == 16


# -- eight bits -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learnt to read, somewhat."""
    folder = tmp_path_factory.mktemp("digits")
    config = CONFIG.replace(layers=(1, 1), num_stages=2, channels=(8, 16), stem_channels=16)
    recipe = Recipe(
        epochs=3, batch_size=24, learning_rate=0.1, min_area=0.9, flip=False, label_smoothing=0.0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNEXT_HOME", str(folder / "home"))
        out = folder / "digits.safetensors"
        resnext.train("digits", config, out=out, recipe=recipe, size=8, progress=False)
    return out


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few images to measure on: NNCF takes its time."""
    monkeypatch.setattr(optimizing, "_CALIBRATION", 16)
    monkeypatch.setattr(optimizing, "_LABELLED", 32)


def per_channel(model: Any) -> list[tuple[int, int]]:
    """For each quantised convolution: output channels, and scales of its weights."""
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
    """Half a point at most, measured on images that it was not calibrated with."""
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
        for kind in ("images", "pixels"):
            quick.plan.graph(kind).unlink()
        with pytest.raises(CheckpointError, match=r"is gone.*Run resnext optimize --again"):
            resnext.evaluate(digits, "digits")
        with pytest.raises(CheckpointError, match=r"is gone.*Run resnext optimize --again"):
            resnext.predict(digits, np.zeros((8, 8), np.uint8))
    finally:
        plan_path(digits).unlink()


def broken(model: Any, images: np.ndarray, accuracy: Any = None) -> Any:
    """What a quantiser could make of a model: its answers have the wrong sign."""
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
    """However fast they are."""
    clock.fastest("openvino")
    monkeypatch.setattr(workshop, "quantize", broken)
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
def test_a_quantiser_that_fails(
    digits: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NNCF does not know every layer; without it there still is single precision."""

    def fail(*_: Any) -> None:
        raise RuntimeError("nncf: unknown layer")

    monkeypatch.setattr(workshop, "quantize", fail)
    quick = optimize(digits, data="digits", batch=8)
    assert quick.plan.form.precision == "fp32"
    assert "unknown layer" in quick.explain()


def test_layers_that_hurt_are_computed_in_floats(network: ResNeXt) -> None:
    """Accuracy is a function of the answers; here any answer that moved is wrong."""
    bench = EngineBuilder(network, SIZE, torch.device("cpu"))
    model = bench.openvino(0)
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


# -- beside a file ----------------------------------------------------------------------------


def test_predict_and_evaluate_by_the_plan(digits: Path, tmp_path: Path) -> None:
    """The same accuracy, image for image, or the plan would be another model."""
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


# -- the command line -------------------------------------------------------------------------


def run(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    code, out, err = run_cli(capfd, monkeypatch, *arguments)
    return code, out, " ".join(err.split())


def test_the_command(
    file: Path, photos: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table, a plan beside the file, and both other commands use it from then on."""
    code, out, err = run(capfd, monkeypatch, "optimize", file, "--batch-size", 2)
    assert code == 0, err
    assert "PyTorch, as it is" in out
    assert out.count("chosen") == 1
    assert f"{plan_path(file)}: predict and evaluate use it from now on" in out
    assert "Timing onnxruntime fp32" in err
    (plan,) = read_plans(plan_path(file))
    assert (plan.batch, plan.fits()) == (2, "")
    engine = f"{plan.form.engine}, fp32"

    for command in (["predict", file, photos], ["evaluate", file, photos]):
        code, out, err = run(capfd, monkeypatch, *command)
        assert code == 0, err
        assert engine in err
        code, without, err = run(capfd, monkeypatch, *command, "--no-plan")
        assert code == 0, err
        assert engine not in err
        assert ".plan.json" not in err
        assert out == without

    code, out, err = run(capfd, monkeypatch, "optimize", file, "-b", 2)
    assert (code, "Timing" in err) == (0, False)  # remembered
    code, out, err = run(capfd, monkeypatch, "optimize", file, "-b", 2, "--again")
    assert (code, "Timing" in err) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.safetensors"], "nothing.safetensors is no file"),
        (["resnext50_32x4d.a1_in1k"], "is no file"),
        (["FILE", "--batch-size", "0"], "batch must be from 1"),
        (["FILE", "--precision", "int8"], "give data"),
        (["FILE", "--engine", "abacus"], "--engine"),
        (["FILE", "--data", "nowhere"], "nowhere"),
        (["FILE", "--device", "toaster"], "device 'toaster' cannot be used"),
    ],
)
def test_mistakes_end_in_one_line(
    file: Path,
    arguments: list[str],
    message: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is measured, and nothing written."""
    monkeypatch.chdir(file.parent)
    words = [str(file) if word == "FILE" else word for word in arguments]
    monkeypatch.setattr(sys, "argv", ["resnext", "optimize", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capfd.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("resnext: ")
    assert message in err
    assert not plan_path(file).exists()


# -- slow -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, inside its compiler
def test_torch_compile(network: ResNeXt) -> None:
    """Its pieces have one size; graphs are compiled for it, and the last piece is filled up."""
    quick = optimize(network, batch=BATCH, engine="compile", precision="fp32")
    assert quick.plan.form == EngineConfig("compile", piece=BATCH)
    for count in (0, 1, 3, 4, 9):
        agree(quick, network, images(count, seed=count))
    assert isinstance(network.bn1, nn.BatchNorm2d)


def test_of_equally_fast_forms_the_plainest_is_preferred() -> None:
    """A form that was lucky for a moment computes zeros for ever."""
    plain, cut = EngineConfig("onnxruntime", piece=16), EngineConfig("onnxruntime", streams=2)
    wide = EngineConfig("openvino", piece=16, width=32)
    search = object.__new__(optimizing._Search)

    def order(*rates: float) -> list[EngineConfig]:
        forms = dict(zip((plain, cut, wide), rates, strict=True))
        search.sessions = dict.fromkeys(forms, lambda x: (x, x))
        search.rows = {form: Measurement(form, rate) for form, rate in forms.items()}
        return search.preferred()

    assert order(100, 101, 102) == [plain, cut, wide]
    assert order(90, 100, 101) == [cut, wide, plain]
    assert order(90, 80, 101) == [wide, plain, cut]
