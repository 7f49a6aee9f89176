"""An engine is one class and one row of a table, wherever they are written."""

from __future__ import annotations

import ast
import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import run_cli
from inference_cases import BATCH, Clock, agree, chosen, images

import resnext
from resnext import ResNeXt, optimize
from resnext.benchmark import bench, timing
from resnext.benchmark.contenders import CONTENDERS
from resnext.data.transforms import normalized
from resnext.errors import InputError
from resnext.inference import open_runner
from resnext.inference.engines import ENGINES
from resnext.inference.engines.base import (
    Engine,
    EngineConfig,
    InputKind,
    core_divisions,
    load_package,
)
from resnext.inference.engines.builder import EngineBuilder
from resnext.inference.fold import LogitsAndEmbedding
from resnext.inference.optimized import Optimized
from resnext.inference.plan import find_plan, read_plans
from resnext.inference.runner import Outputs, Session

pytestmark = pytest.mark.usefixtures("one_thread", "quick_search")


class Toy(Engine):
    """The folded network in double precision, as a pickled module."""

    name = "toy"
    title = "Toy in Doubles"
    package = "numpy"
    install_hint = "numpy"
    suffix = ".toy"

    def __init__(self) -> None:
        self.opened: list[tuple[Path, EngineConfig]] = []

    def precisions(self, device: str) -> tuple[str, ...]:
        """One, on processors."""
        return ("fp32",) if device == "cpu" else ()

    def divisions(self, batch: int) -> list[tuple[int, int]]:
        """Two images at once."""
        return [(2, 1)]

    def build(self, source: EngineBuilder, form: EngineConfig, kind: InputKind) -> Session:
        """A session of the folded network."""
        return self.session(self.module(source), self.normalization(source, kind))

    def save(self, source: EngineBuilder, form: EngineConfig, kind: InputKind, path: Path) -> None:
        """Pickle the folded network."""
        torch.save((self.module(source), self.normalization(source, kind)), path)

    def open(self, path: Path, form: EngineConfig) -> Session:
        """Unpickle it."""
        self.opened.append((path, form))
        return self.session(*torch.load(path, weights_only=False))

    def module(self, source: EngineBuilder) -> Any:
        """A copy of the folded network, which belongs to all engines."""
        return LogitsAndEmbedding(copy.deepcopy(source.folded)).double()

    def normalization(self, source: EngineBuilder, kind: InputKind) -> Any:
        """What normalizes pixels."""
        return source.preprocessing if kind == "pixels" else None

    def session(self, module: Any, preprocessing: Any) -> Session:
        """Two images at once."""

        @torch.no_grad()
        def compute(x: np.ndarray) -> Outputs:
            tensor = torch.from_numpy(x)
            tensor = normalized(tensor, preprocessing) if preprocessing else tensor
            parts = [module(part.double()) for part in tensor.split(2)]
            logits, embeddings = (torch.cat(some).float().numpy() for some in zip(*parts))  # noqa: B905
            return logits, embeddings

        return compute


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    """A new row of the table."""
    engine = Toy()
    monkeypatch.setitem(ENGINES, engine.name, engine)
    return engine


@pytest.fixture
def only_toy() -> Iterator[Toy]:
    """The only row of the table, whose order is restored."""
    before, engine = dict(ENGINES), Toy()
    ENGINES.clear()
    ENGINES["toy"] = engine
    yield engine
    ENGINES.clear()
    ENGINES.update(before)


NAME: Any = "toy"  # the types of arguments name only the engines that come with the library


# -- an engine from outside -------------------------------------------------------------------


def test_a_registered_engine_is_optimized_with(network: ResNeXt, toy: Toy) -> None:
    """By name: built, compared with the network, written into the plan and the table."""
    quick = optimize(network, batch=BATCH, engine=NAME)
    assert quick.plan.form == EngineConfig("toy", piece=2)
    assert quick.plan.version == metadata.version("numpy")
    assert [row.form for row in quick.plan.rows] == [quick.plan.form, None]
    agree(quick, network, images(5))
    (line,) = [line for line in quick.explain().splitlines() if "Toy in Doubles" in line]
    assert line.endswith("chosen")
    assert "fp32" in line
    assert "1 × 2 images" in line


def test_a_registered_engine_is_timed_by_itself(network: ResNeXt, toy: Toy, clock: Clock) -> None:
    """With "auto", beside those that are installed, and chosen if it is the fastest."""
    clock.fastest("toy")
    quick = optimize(network, batch=BATCH, precision="fp32")
    assert quick.plan.form.engine == "toy"
    assert {"toy", "torch", "onnxruntime", "openvino"} == {
        row.form.engine for row in quick.plan.rows if row.form
    }
    again = optimize(network, batch=BATCH, precision="fp32")  # from the cache
    agree(again, network, images(3))
    assert toy.opened == [(again.plan.graph("images"), again.plan.form)]


def test_the_cache_forgets_plans_when_an_engine_is_registered(
    network: ResNeXt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one may be faster."""
    optimize(network, batch=BATCH, precision="fp32")
    monkeypatch.setitem(ENGINES, "toy", Toy())
    quick = optimize(network, batch=BATCH, precision="fp32")
    assert "toy" in {row.form.engine for row in quick.plan.rows if row.form}


def test_a_plan_of_a_registered_engine_is_opened(
    file: Path,
    photos: Path,
    toy: Toy,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the file beside the model, in Python and on the command line."""
    path = optimize(file, batch=BATCH, engine=NAME).save_plan(file)
    (plan,) = read_plans(path)
    assert json.loads(path.read_text())["plans"][0]["form"]["engine"] == "toy"
    assert plan.graph("pixels").suffix == ".toy"
    runner = open_runner(file)
    assert isinstance(runner, Optimized)
    assert runner.plan.form.engine == "toy"
    wanted = resnext.predict(file, photos, top=4, plan=False, device="cpu")
    for got, plain in zip(resnext.predict(runner, photos, top=4), wanted, strict=True):
        assert (got.name, got.labels) == (plain.name, plain.labels)
        assert got.probabilities == pytest.approx(plain.probabilities, rel=1e-4)
    assert toy.opened == [(plan.graph("pixels"), plan.form)]
    code, out, err = run_cli(capsys, monkeypatch, "predict", file, photos)
    assert code == 0, err
    assert "toy, fp32" in " ".join(err.split())
    code, plain_out, _ = run_cli(capsys, monkeypatch, "predict", file, photos, "--no-plan")
    assert (code, out) == (0, plain_out)
    assert len(toy.opened) == 2


def test_a_plan_of_an_engine_that_is_gone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model still predicts, and a reason is shown."""
    with monkeypatch.context() as patch:
        patch.setitem(ENGINES, "toy", Toy())
        optimize(file, batch=BATCH, engine=NAME).save_plan(file)
    plan, reason = find_plan(file, BATCH, "auto")
    assert plan is None
    assert "resnext optimize" in reason
    assert resnext.predict(file, np.zeros((20, 20, 3), np.uint8), device="cpu")


def test_a_registered_engine_takes_part_in_the_benchmark(
    file: Path,
    only_toy: Toy,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Our row is computed by it, in Python and on the command line."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(timing, "CONTENDERS", {"resnext": CONTENDERS["resnext"]})
    monkeypatch.setattr(timing, "time_calls", lambda run, seconds: [float(run() is None) + 0.5])
    monkeypatch.setattr(timing, "_SIDE", 8)
    monkeypatch.setattr(timing, "peak_memory", lambda contender: 12.0)
    (row,) = bench(file, batches=[BATCH], precision="fp32", memory=False).rows
    assert (row.who, row.how, row.note) == ("resnext", "toy, 1 × 2 images", "")
    assert row.difference is not None
    assert row.difference < 1e-5
    assert only_toy.opened
    result = tmp_path / "bench.json"
    options = ("--batch-size", 2, "--precision", "fp32", "--json", result)
    code, out, err = run_cli(capsys, monkeypatch, "bench", file, *options)
    assert code == 0, err
    assert "toy, 1 × 2 images" in out
    content = json.loads(result.read_text())
    assert content["rows"][0]["how"] == "toy, 1 × 2 images"
    assert content["versions"]["numpy"] == metadata.version("numpy")


# -- what an engine refuses -------------------------------------------------------------------


def test_precisions_are_asked_of_the_engine(network: ResNeXt, toy: Toy) -> None:
    """At once, naming those that it has."""
    with pytest.raises(InputError, match=r"^Toy in Doubles has no bf16 on cpu\. Use fp32, or ano"):
        optimize(network, engine=NAME, precision="bf16")
    with pytest.raises(InputError, match=r"^Toy in Doubles does not run on cuda\. Use another d"):
        toy.check_precision("fp32", "cuda")
    with pytest.raises(InputError, match="does not run on cuda"):
        toy.check_precision("auto", "cuda")
    toy.check_precision("auto", "cpu")
    toy.check_precision("fp32", "cpu")


@pytest.mark.parametrize(
    ("name", "on_cpu", "on_cuda"),
    [
        ("torch", "fp32 bf16", "fp32 bf16 fp16"),
        ("compile", "fp32 bf16", "fp32 bf16 fp16"),
        ("tensorrt", "", "fp32 bf16 fp16"),
        ("onnxruntime", "fp32", ""),
        ("openvino", "fp32 bf16 int8", ""),
    ],
)
def test_precisions_of_each_engine(name: str, on_cpu: str, on_cuda: str) -> None:
    """Engines are built for minutes before a missing kernel shows."""
    assert ENGINES[name].precisions("cpu") == tuple(on_cpu.split())
    assert ENGINES[name].precisions("cuda") == tuple(on_cuda.split())


def test_bf16_of_openvino_needs_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, OpenVINO computes in single precision under another name."""
    engine = ENGINES["openvino"]
    for precision in ("auto", "fp32", "int8"):
        engine.check_precision(precision, "cpu")
    with pytest.raises(InputError, match="no bf16 arithmetic"):
        engine.check_precision("bf16", "cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    engine.check_precision("bf16", "cpu")
    with pytest.raises(InputError, match="OpenVINO has no fp16 on cpu"):
        engine.check_precision("fp16", "cpu")


@pytest.mark.parametrize("call", ["open", "save", "quantize"])
def test_engines_need_not_have_files_or_8_bits(call: str) -> None:
    """What is called nevertheless must not pass for done."""
    arguments: dict[str, tuple[Any, ...]] = {
        "open": (Path("a"), EngineConfig("torch")),
        "save": (None, EngineConfig("torch"), "images", Path("a")),
        "quantize": (None, 0, None),
    }
    with pytest.raises(NotImplementedError):
        getattr(ENGINES["torch"], call)(*arguments[call])


# -- packages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ENGINES))
def test_a_row_is_complete(name: str) -> None:
    """The key is the name in plans; the hint is what pip must be given."""
    engine = ENGINES[name]
    assert engine.name == name
    titles = ("PyTorch", "torch.compile", "TensorRT", "ONNX Runtime", "OpenVINO")
    assert engine.title == dict(zip(ENGINES, titles, strict=True))[name]
    assert engine.suffix == {"onnxruntime": ".onnx", "openvino": ".xml"}.get(name, "")
    assert engine.merges_groups == (name in ("onnxruntime", "openvino"))
    assert engine.slow_to_build == (("cpu",) if name == "compile" else ())


def test_packages_that_are_missing(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked for without being imported, and have no version."""
    assert toy.installed
    assert toy.load() is np
    toy.package, toy.install_hint = "no_such_engine", "that-engine"
    assert not toy.installed
    assert toy.version == ""
    wanted = r"^no_such_engine is not installed\. Install it with pip install that-engine\.$"
    with pytest.raises(InputError, match=wanted):
        toy.load()
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert not ENGINES["openvino"].installed


def test_a_package_that_is_broken_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installing it again would not help."""
    (tmp_path / "broken_engine.py").write_text("raise ImportError('libGL.so.1 is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="libGL"):
        load_package("broken_engine", "broken-engine")


def test_an_engine_that_is_missing_is_left_out(network: ResNeXt, toy: Toy, clock: Clock) -> None:
    """Or asked for by name, refused before anything is timed."""
    toy.package, toy.install_hint = "no_such_engine", "that-engine"
    quick = optimize(network, batch=BATCH, precision="fp32")
    assert "toy" not in {row.form.engine for row in quick.plan.rows if row.form}
    with pytest.raises(InputError, match="pip install that-engine"):
        optimize(network, engine=NAME)


# -- dividing a batch -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "batch", "ways"),
    [
        (1, 1, [(1, 1)]),
        (8, 1, [(1, 1)]),
        (1, 4, [(1, 1), (4, 1)]),
        (2, 4, [(1, 1), (1, 2), (2, 2), (4, 1)]),
        (3, 7, [(1, 1), (1, 3), (3, 3), (7, 1)]),
        (4, 16, [(1, 1), (1, 2), (1, 4), (4, 4), (8, 2), (16, 1)]),
        (8, 3, [(1, 1), (1, 2), (1, 3), (2, 2), (3, 1)]),
        (8, 16, [(1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (4, 4), (8, 2), (16, 1)]),
    ],
)
def test_divisions(
    cores: int, batch: int, ways: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, one by one, and a piece for every core, or every two or four of them."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores))
    assert core_divisions(batch) == ways
    assert ENGINES["openvino"].divisions(batch) == ENGINES["onnxruntime"].divisions(batch) == ways
    assert ENGINES["torch"].divisions(batch) == [(batch, 1)]


@pytest.mark.parametrize(
    ("piece", "count", "alone"),
    [(16, 1, True), (16, 2, True), (16, 3, False), (16, 16, False), (8, 1, True), (8, 2, False),
     (7, 1, False), (1, 1, False), (1, 0, False), (16, 0, True)],
)  # fmt: skip
def test_few_images_in_openvino(piece: int, count: int, alone: bool) -> None:
    """A piece is always computed whole: up to an eighth of it, images are faster one by one."""
    form = EngineConfig("openvino", "bf16", piece, 3, 16)
    wanted = EngineConfig("openvino", "bf16", 1, 1, 16) if alone else form
    assert ENGINES["openvino"].form_for(form, count) == wanted
    other = EngineConfig("onnxruntime", "fp32", piece, 3, 16)
    assert ENGINES["onnxruntime"].form_for(other, count) is other


def test_few_images_are_opened_apart(network: ResNeXt, clock: Clock) -> None:
    """Once for few, once for many, and both right."""
    clock.seconds = lambda form: 1.0 / form.piece
    quick = optimize(network, batch=16, engine="openvino", precision="fp32")
    assert chosen(quick.plan).form == EngineConfig("openvino", piece=16)
    for count in (1, 2, 3, 17):
        agree(quick, network, images(count))
    assert {form for _, form in quick._sessions} == {
        EngineConfig("openvino"),
        EngineConfig("openvino", piece=16),
    }


# -- the house --------------------------------------------------------------------------------

ALLOWED = (
    *("inference/engines/", "cli/"),  # typed choices
    *("exporting/", "inference/exported.py"),  # formats of files
    "benchmark/contenders.py",  # peers
)


def test_engines_are_named_in_their_own_files_only() -> None:
    """A new engine must not need a change anywhere else."""
    root = Path(resnext.__file__).parent
    names = {engine for engine in ENGINES if engine != "torch"}  # torch is the library's own base
    names |= {engine.package for engine in ENGINES.values()} - {"torch"}
    mentions: list[str] = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.startswith(ALLOWED):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value in names:
                mentions.append(f"{name}:{node.lineno}")
    assert mentions == []


def test_tables_do_not_need_torch() -> None:
    """Importing torch takes longer than a prediction."""
    program = """
import sys
from resnext.inference.engines import ENGINES
from resnext.inference import plan_table, optimized
assert all(engine.title and engine.precisions("cpu") is not None for engine in ENGINES.values())
assert [engine.version for engine in ENGINES.values()]
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
