"""Embeddings: what the classifier sees, by whichever engine, and computed only once."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import agree, photo_folder, tiny_network
from inference_cases import INSTALLED

import resnext
from resnext import Card, Preprocessing, ResNeXt
from resnext.data import open_splits
from resnext.data.dataset import ImageSet
from resnext.data.transforms import prepare
from resnext.errors import DataError, ResNeXtError, Terminated
from resnext.inference.engines.base import EngineConfig
from resnext.inference.plan import Plan, machine_id
from resnext.system.progress import reporter
from resnext.training import embeddings
from resnext.training.embeddings import Embedder, engine_forms
from resnext.training.interrupts import Interrupts

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_cache")
SIZE = Preprocessing(16, 18)


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """A dozen photos."""
    return open_splits(photo_folder(tmp_path / "photos", count=7)).train


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A model file."""
    resnext.save(tiny_network(card=Card(("a", "b"), SIZE)), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def embedder(weights: Path, preprocessing: Preprocessing = SIZE, **changes: object) -> Embedder:
    """An embedder of a model file, on the processor."""
    network = resnext.load(weights)
    assert isinstance(network, ResNeXt)
    usual = Embedder(
        network=network,
        weights=weights,
        preprocessing=preprocessing,
        device=torch.device("cpu"),
        requested_precision="fp32",
        workers=0,
        progress=reporter(False),
        interrupts=Interrupts(),
    )
    return replace(usual, **changes)


def direct(weights: Path, images: ImageSet) -> torch.Tensor:
    """The embeddings by the network itself, in double precision."""
    network = resnext.load(weights)
    assert isinstance(network, ResNeXt)
    x = torch.stack([prepare(images.open(i, "RGB"), SIZE) for i in range(len(images))])
    with torch.no_grad():
        return network.double().embed(x.double())


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of an engine computes."""
    counts: list[int] = []
    open_session = Embedder._session

    def counting(self: Embedder, count: int) -> Callable[[np.ndarray], object]:
        session = open_session(self, count)

        def call(x: np.ndarray) -> object:
            counts.append(len(x))
            return session(x)

        return call

    monkeypatch.setattr(Embedder, "_session", counting)
    return counts


def test_they_are_what_the_classifier_sees(weights: Path, images: ImageSet) -> None:
    """Embeddings of another layer, or in another order, would teach nothing."""
    (rows,) = embedder(weights).embed(images)
    assert rows.dtype == np.float32
    agree(torch.from_numpy(rows), direct(weights, images))


def test_exported_engines_give_the_same(
    weights: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine may change the speed only."""
    monkeypatch.setattr(embeddings, "_EXPORT_PAYS", 0)
    assert engine_forms(1, "cpu", "fp32")[0].engine == "openvino"
    (rows,) = embedder(weights).embed(images)
    agree(torch.from_numpy(rows), direct(weights, images))


def test_engines_by_number_of_images_device_and_precision() -> None:
    """An export for ten images wastes seconds; ONNX Runtime has no bf16, a GPU no OpenVINO."""

    def engines(*arguments: object) -> list[str]:
        return [form.engine for form in engine_forms(*arguments)]  # pyright: ignore

    assert engines(10, "cpu", "fp32") == ["torch"]
    assert engines(10_000, "cpu", "fp32") == ["openvino", "onnxruntime", "torch"]
    assert engines(10_000, "cpu", "bf16") == ["openvino", "torch"]
    assert engines(10_000, "cuda", "fp16") == ["torch"]


def test_missing_export_packages_leave_pytorch(
    weights: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO without onnx cannot be used here, which must not end the run."""

    def refuse(*_: object) -> None:
        raise resnext.errors.InputError("onnx is not installed")

    monkeypatch.setattr(embeddings, "_EXPORT_PAYS", 0)
    monkeypatch.setattr("resnext.inference.engines.builder.export_graph", refuse)
    (rows,) = embedder(weights).embed(images)
    agree(torch.from_numpy(rows), direct(weights, images))


def test_second_time_nothing_is_computed(
    weights: Path, images: ImageSet, computed: list[int]
) -> None:
    """Neither for the same set nor for its halves, and the numbers are the same bit by bit."""
    (rows,) = embedder(weights).embed(images)
    assert sum(computed) == len(images)
    half = images.select(range(5), images.name)
    again, part = embedder(weights).embed(images, half)
    assert sum(computed) == len(images)
    assert np.array_equal(rows, again)
    assert np.array_equal(rows[:5], part)


def test_other_weights_are_computed(
    weights: Path, images: ImageSet, computed: list[int], tmp_path: Path
) -> None:
    """Embeddings of one network mean nothing to another; a new classifier changes nothing."""
    (rows,) = embedder(weights).embed(images)
    network = resnext.load(weights)
    assert isinstance(network, ResNeXt)
    with torch.no_grad():
        network.fc.weight += 1
    resnext.save(network, tmp_path / "head.safetensors")
    assert np.array_equal(embedder(tmp_path / "head.safetensors").embed(images)[0], rows)
    assert sum(computed) == len(images)
    with torch.no_grad():
        network.bn1.running_mean += 1  # pyright: ignore
    resnext.save(network, tmp_path / "other.safetensors")
    assert not np.allclose(embedder(tmp_path / "other.safetensors").embed(images)[0], rows)
    assert sum(computed) == 2 * len(images)


@pytest.mark.parametrize(
    "changed",
    [replace(SIZE, size=14), replace(SIZE, mean=(0.1, 0.2, 0.3)), replace(SIZE, resize=30)],
)
def test_other_preprocessing_is_computed(
    weights: Path, images: ImageSet, computed: list[int], changed: Preprocessing
) -> None:
    """Another crop shows the network another picture."""
    (rows,) = embedder(weights).embed(images)
    assert not np.allclose(embedder(weights, changed).embed(images)[0], rows)
    assert sum(computed) == 2 * len(images)


def test_a_changed_image_is_computed_and_no_other(
    weights: Path, images: ImageSet, computed: list[int]
) -> None:
    """Neither name, size nor time of a file say what is in it."""
    (rows,) = embedder(weights).embed(images)
    first, last = images.images[0], images.images[-1]
    assert isinstance(first, Path)
    assert isinstance(last, Path)
    shutil.copystat(first, last)
    last.write_bytes(first.read_bytes())  # now a copy of the first
    content = bytearray(images.images[1].read_bytes())  # pyright: ignore
    images.images[1].write_bytes(content + b"\0")  # pyright: ignore
    (again,) = embedder(weights).embed(images)
    assert sum(computed) == len(images) + 1
    assert np.array_equal(again[-1], rows[0])
    assert np.array_equal(again[:-1], rows[:-1])


def test_interrupted_work_is_kept(
    weights: Path, images: ImageSet, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after an hour must not cost an hour."""
    monkeypatch.setattr(embeddings, "BATCH", 4)
    interrupts, check = Interrupts(), Interrupts.check

    def checked(self: Interrupts) -> None:
        check(self)
        signal.raise_signal(signal.SIGTERM)  # waits for the end of the batch

    with monkeypatch.context() as patched:
        patched.setattr(Interrupts, "check", checked)
        with pytest.raises(Terminated):
            embedder(weights, interrupts=interrupts).embed(images)
    assert computed == [4]
    (rows,) = embedder(weights).embed(images)
    assert sum(computed) == len(images)
    agree(torch.from_numpy(rows), direct(weights, images))


def test_a_damaged_cache_is_computed_again(
    weights: Path, images: ImageSet, computed: list[int], fresh_cache: Path
) -> None:
    """A full disk leaves half a file."""
    (rows,) = embedder(weights).embed(images)
    (file,) = (fresh_cache / "embeddings").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert np.array_equal(embedder(weights).embed(images)[0], rows)
    assert sum(computed) == 2 * len(images)


def test_a_cache_that_cannot_be_written_is_only_reported(
    weights: Path, images: ImageSet, fresh_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk must not cost the result."""
    fresh_cache.mkdir()
    (fresh_cache / "embeddings").write_text("in the way")
    (rows,) = embedder(weights, progress=reporter(True)).embed(images)
    assert len(rows) == len(images)
    assert "The next run will compute all embeddings again" in capsys.readouterr().err


def test_an_image_that_disappears_is_named(weights: Path, images: ImageSet) -> None:
    """The rows would no longer belong to the classes."""
    path = images.images[2]
    assert isinstance(path, Path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=f"1 image became unreadable .*{path.name}.*--resume"):
        embedder(weights).embed(images)


def test_weights_with_nan_are_refused(weights: Path, images: ImageSet, tmp_path: Path) -> None:
    """Logistic regression would run forever, or return NaN."""
    network = resnext.load(weights)
    with torch.no_grad():
        network.conv1.weight[0] = torch.nan  # pyright: ignore
    resnext.save(network, tmp_path / "nan.safetensors")  # pyright: ignore
    with pytest.raises(ResNeXtError, match="NaN or infinite"):
        embedder(tmp_path / "nan.safetensors").embed(images)


@pytest.mark.parametrize(
    ("engine", "precision", "size", "used"),
    [
        ("openvino", "fp32", 16, True),
        ("openvino", "int8", 16, False),
        ("openvino", "bf16", 16, False),  # fp32 is requested
        ("openvino", "fp32", 12, False),
    ],
)
def test_a_plan_beside_the_weights_is_used(
    weights: Path, images: ImageSet, engine: str, precision: str, size: int, used: bool
) -> None:
    """What optimize has measured is the fastest; but not in 8 bits, nor at another size."""
    assert engine in INSTALLED
    plan = Plan(
        model="0" * 64,
        form=EngineConfig(engine, precision),
        batch=16,
        size=size,
        device="cpu",
        request="[]",
        machine=machine_id("cpu"),
        version=resnext.inference.engines.ENGINES[engine].version,
        rows=(),
    )
    resnext.inference.plan.save_beside(weights, plan)
    found = embedder(weights).plan
    assert (found is not None) is used
    if used:
        (rows,) = embedder(weights).embed(images)
        agree(torch.from_numpy(rows), direct(weights, images))
