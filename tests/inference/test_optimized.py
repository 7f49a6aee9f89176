"""`Optimized`: called like the network, from several threads, with lost graphs built again."""

from __future__ import annotations

import copy
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_network
from inference_cases import BATCH, CARD, CONFIG, INSTALLED, SIZE, agree, chosen, images

import resnext
from resnext import ResNeXt, optimize
from resnext.errors import InputError
from resnext.inference.engines.base import EngineConfig
from resnext.inference.engines.openvino import OpenVino
from resnext.inference.runner import Session
from resnext.weights.load import load_classifier

pytestmark = pytest.mark.usefixtures("one_thread", "quick_search")


@pytest.mark.parametrize("engine", ["auto", *INSTALLED])
def test_answers_are_the_networks(network: ResNeXt, engine: Any) -> None:
    """For any batch size, logits and embeddings are those of the network."""
    quick = optimize(network, batch=BATCH, engine=engine)
    assert engine in ("auto", quick.plan.form.engine)
    assert quick.batch == BATCH
    for count in (0, 1, 3, 4, 9, 17):
        agree(quick, network, images(count, seed=count))
    assert chosen(quick.plan).difference is not None
    assert (quick.card, quick.config) == (network.card, network.config)


def test_pixels_and_predictions(network: ResNeXt, photos: Path) -> None:
    """A picture gets the same probabilities with and without a plan."""
    values = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    preprocessing = CARD.preprocessing
    x = (values / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    with torch.no_grad():
        twin = copy.deepcopy(network).double()
        wanted = twin(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    plain = resnext.predict(network, photos, top=4, device="cpu")
    for engine in INSTALLED:
        quick = optimize(network, batch=BATCH, engine=engine)
        logits, embeddings = quick.pixels(values)
        assert abs(logits - wanted).max() <= 1e-5 * abs(wanted).max()
        assert embeddings.shape == (5, 64)
        for a, b in zip(resnext.predict(quick, photos, top=4), plain, strict=True):
            assert (a.name, a.labels) == (b.name, b.labels)
            assert a.probabilities == pytest.approx(b.probabilities, rel=1e-4)


def test_a_file_is_read_once(file: Path, network: ResNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's sessions have no file of their own: each read the whole model again."""
    read: list[object] = []

    def load(source: object, **options: Any) -> ResNeXt:
        read.append(source)
        return load_classifier(source, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr("resnext.inference.optimize.load_classifier", load)
    quicks = []
    for _ in range(2):  # measured, and from the cache
        read.clear()
        quicks.append(quick := optimize(file, batch=BATCH, engine="torch"))
        agree(quick, network, images(3))
        quick.pixels(np.zeros((1, SIZE, SIZE, 3), dtype=np.uint8))
        assert quick.classifier.bias.shape == (CONFIG.num_classes,)
        assert read == [file]
    agree(pickle.loads(pickle.dumps(quicks[-1])), network, images(3))
    assert len(read) == 2  # a copy takes the path with it, not the weights


def test_threads_get_their_own_answers(network: ResNeXt) -> None:
    """Simultaneous first calls open the engine once, and no call gets another's outputs."""
    optimize(network, batch=BATCH, engine="openvino")
    quick = optimize(network, batch=BATCH, engine="openvino")  # remembered: nothing is open yet
    opened: list[EngineConfig] = []
    original = OpenVino.open
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

    def counted(self: OpenVino, path: Path, form: EngineConfig) -> Session:
        opened.append(form)
        return original(self, path, form)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(8) as pool:
        patch.setattr(OpenVino, "open", counted)
        for done in [pool.submit(calls, thread) for thread in range(8)]:
            done.result()
    assert len(opened) == len(set(opened)) <= 2  # one for few images, one for many


@pytest.mark.parametrize("engine", INSTALLED)
def test_images_of_other_types(network: ResNeXt, engine: Any) -> None:
    """Half precision, gradients and unusual strides are common."""
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
        (torch.zeros(2, 3, SIZE, SIZE + 1), r"\(n, 3, 12, 12\), for which this was optimized"),
        (torch.zeros(2, 3, 32, 32), r"not \(2, 3, 32, 32\)"),
        (torch.zeros(2, SIZE, SIZE, 3), r"not \(2, 12, 12, 3\)"),
    ],
)
def test_images_it_cannot_take(network: ResNeXt, x: Any, message: str) -> None:
    """An engine's error comes from C++ code, and torch would even accept other sizes."""
    quick = optimize(network, batch=BATCH, engine="torch")
    for call in (quick, quick.embed):
        with pytest.raises(InputError, match=message):
            call(x)


def test_files_that_are_kept(network: ResNeXt, fresh_cache: Path) -> None:
    """One for images and one for pixels, if the engine has files and the card fits the network."""
    form = optimize(network, batch=BATCH, engine="torch").plan.form
    assert [path.name[-10:] for path in fresh_cache.rglob("*.*")] == [".plan.json"]
    assert form.engine == "torch"
    for channels, kinds in ((3, {"images", "pixels"}), (5, {"images"})):
        other = tiny_network(CONFIG.replace(in_channels=channels), CARD)
        plan = optimize(other, batch=1, engine="onnxruntime", precision="fp32").plan
        files = list(plan.graph("images").parent.glob("*.onnx"))
        assert {path.name.partition("-")[0] for path in files} == kinds


# -- Files of engines -------------------------------------------------------------------------


@pytest.mark.parametrize(("engine", "suffix"), [("onnxruntime", ".onnx"), ("openvino", ".xml")])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "folder gone", "no folder possible"])
def test_graphs_that_were_lost(network: ResNeXt, engine: Any, suffix: str, damage: str) -> None:
    """After a full disk, or with an emptied or read-only cache, graphs are built again."""
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
