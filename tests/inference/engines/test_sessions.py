"""Sessions of the engines: any number of images, from any number of threads, in order."""

from __future__ import annotations

import copy
import ctypes
import gc
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from helpers import tiny_network

from resnext import Card, Preprocessing, ResNeXt, ResNeXtConfig
from resnext.data.transforms import normalized
from resnext.errors import InputError
from resnext.inference.engines import ENGINES
from resnext.inference.engines.base import EngineConfig, InputKind
from resnext.inference.engines.builder import EngineBuilder
from resnext.inference.engines.onnx_export import export_graph, graph_with_pixel_input
from resnext.inference.engines.onnxruntime import OnnxSession
from resnext.inference.engines.openvino import OpenVinoSession
from resnext.inference.engines.quantization import quantize, with_pixel_input
from resnext.inference.engines.torch import TorchRunner, TorchSession, evaluating, weights_digest
from resnext.inference.fold import fold
from resnext.inference.runner import Session

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, PIECE = 12, 4
CONFIG = ResNeXtConfig(
    (1, 1), 4, 16, num_classes=5, num_stages=2, channels=(16, 16), stem_channels=8, small_stem=True
)
PREPROCESSING = Preprocessing(SIZE, SIZE, mean=(0.9, -0.4, 0.1), std=(0.3, 1.7, 0.2))
COUNTS = [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 1]
KINDS = [("onnxruntime", 1), ("onnxruntime", 3), ("openvino", 1), ("openvino", 3), ("torch", 1)]


@pytest.fixture(scope="module")
def network() -> ResNeXt:
    """A network whose logits differ between images."""
    return tiny_network(CONFIG)


@pytest.fixture(scope="module")
def builder(network: ResNeXt) -> EngineBuilder:
    """Exports the network once for all tests."""
    return EngineBuilder(network, SIZE, torch.device("cpu"), PREPROCESSING)


@pytest.fixture(scope="module")
def graph(builder: EngineBuilder) -> Any:
    """The network in ONNX."""
    return builder.graph()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Forty normalized images."""
    shape = (40, 3, SIZE, SIZE)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def wanted(network: ResNeXt, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits and embeddings of each image, computed one by one in double precision."""
    twin = ResNeXt(CONFIG)
    twin.load_state_dict(network.state_dict())
    twin.double().eval()
    with torch.no_grad():
        each = [torch.from_numpy(image[None]).double() for image in images]
        logits = torch.cat([twin(x) for x in each]).numpy()
        embeddings = torch.cat([twin.embed(x) for x in each]).numpy()
    assert np.ptp(logits, axis=0).min() > 1e-2 * abs(logits).max()
    return logits, embeddings


Made = Callable[..., Session]


@pytest.fixture(scope="module")
def make(network: ResNeXt, graph: Any) -> Made:
    """A session of each kind."""

    def session(kind: str, streams: int = 1, piece: int = PIECE, pixels: bool = False) -> Session:
        if kind == "torch":
            preprocessing = PREPROCESSING if pixels else None
            return TorchSession(fold(network), torch.float32, preprocessing, piece=piece)
        content = (
            graph_with_pixel_input(graph, PREPROCESSING) if pixels else graph
        ).SerializeToString()
        if kind == "onnxruntime":
            return OnnxSession(content, piece, streams, streams)
        model = openvino.Core().read_model(content)
        return OpenVinoSession(model, piece, streams, streams, "f32")

    return session


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def session(request: pytest.FixtureRequest, make: Made) -> Session:
    """One of each kind, with one stream and with several."""
    return make(*request.param)


def agree(
    got: tuple[np.ndarray, ...], wanted: tuple[np.ndarray, ...], rows: Any, by: float = 1e-5
) -> None:
    """Outputs are those of the images, in order."""
    assert len(got) == 2
    for mine, table in zip(got, wanted, strict=True):
        theirs = table[rows]
        assert (mine.shape, mine.dtype) == (theirs.shape, np.float32)
        if len(theirs):
            assert abs(mine - theirs).max() <= by * abs(table).max()


@pytest.mark.parametrize("count", COUNTS)
def test_any_number_of_images(
    session: Session, images: np.ndarray, wanted: tuple[np.ndarray, ...], count: int
) -> None:
    """The last piece is padded, or shorter; streams finish in any order."""
    for start in (0, 7):
        rows = slice(start, start + count)
        agree(session(images[rows]), wanted, rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_digests_tell_weights_apart(network: ResNeXt, dtype: torch.dtype) -> None:
    """Predictions of another network must not be reused, whatever its number type."""
    twin = copy.deepcopy(network).to(dtype)
    before = weights_digest(twin)
    assert weights_digest(copy.deepcopy(twin)) == before
    with torch.no_grad():
        twin.fc.bias[-1] += 1
    assert weights_digest(twin) != before


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO does this only on Linux")
def test_signals_find_their_stack(make: Made, graph: Any, images: np.ndarray) -> None:
    """Each `Core` of OpenVINO installs one; a signal on a freed one overwrites other data."""

    def stack() -> bytes:
        found = ctypes.create_string_buffer(24)
        assert ctypes.CDLL(None).sigaltstack(None, found) == 0
        return found.raw

    several = [make("openvino", 1, 1)]
    before = stack()
    several += [make("openvino", 1, piece) for piece in (2, 3)]
    model = openvino.Core().read_model(graph.SerializeToString())
    right = several[0](images[:12])[0]

    def accuracy(session: Session) -> float:  # that of 8 bits is so bad that NNCF tries several
        return 1 - 10 * float(abs(session(images[:12])[0] - right).max() / abs(right).max())

    quantize(model, images[:12], accuracy)
    while several:
        del several[0]
        gc.collect()
    assert stack() == before


@pytest.mark.parametrize("streams", [2, 5])
@pytest.mark.parametrize("piece", [1, 3])
@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_pieces_come_back_in_order(
    make: Made,
    images: np.ndarray,
    wanted: tuple[np.ndarray, ...],
    kind: str,
    piece: int,
    streams: int,
) -> None:
    """More pieces than streams, repeatedly: outputs in the wrong row are a rare race."""
    several = make(kind, streams, piece)
    for _ in range(5):
        agree(several(images), wanted, slice(None))


def test_torch_takes_all_at_once_by_default(
    network: ResNeXt, images: np.ndarray, wanted: tuple[np.ndarray, ...]
) -> None:
    """Without a piece size, a batch is not divided; an empty batch gives empty outputs."""
    for last in (True, False):
        whole = TorchSession(network, torch.float32, channels_last=last)
        for count in (0, 1, 40):
            agree(whole(images[:count]), wanted, slice(count))


def test_threads_get_their_own_answers(
    session: Session, images: np.ndarray, wanted: tuple[np.ndarray, ...]
) -> None:
    """A request or buffer that two calls share mixes up outputs only under load."""

    def calls(thread: int) -> None:
        rng = np.random.default_rng(thread)
        for _ in range(30):
            rows = rng.integers(0, len(images), rng.integers(1, 2 * PIECE + 2))
            agree(session(images[rows]), wanted, rows)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(calls, thread) for thread in range(8)]:
            done.result()


def test_answers_are_kept(session: Session, images: np.ndarray) -> None:
    """Engines return their own buffers, which the next call overwrites."""
    kept = session(images[: PIECE + 1])
    before = [values.copy() for values in kept]
    for start in range(0, 30, 3):
        session(images[start : start + PIECE + 1])
    for values, copies in zip(kept, before, strict=True):
        assert np.array_equal(values, copies)


@pytest.mark.parametrize("way", ["every other", "turned", "mirrored", "read-only", "by channel"])
def test_images_however_they_lie_in_memory(
    session: Session, images: np.ndarray, wanted: tuple[np.ndarray, ...], way: str
) -> None:
    """An engine that ignores strides sees another image; torch refuses negative strides."""
    rows: Any = slice(0, 10)
    if way == "every other":
        rows = slice(0, 18, 2)
        x = images[rows]
    elif way == "turned":
        x = np.ascontiguousarray(images[rows].swapaxes(2, 3)).swapaxes(2, 3)
    elif way == "mirrored":
        x = np.ascontiguousarray(images[rows][..., ::-1])[..., ::-1]
    elif way == "by channel":
        x = np.ascontiguousarray(images[rows].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    else:
        x = images[rows].copy()
        x.flags.writeable = False
    assert way == "read-only" or not x.flags.c_contiguous
    agree(session(x), wanted, rows)


def test_inputs_are_left_unchanged(session: Session, images: np.ndarray) -> None:
    """ReLUs in place must not reach the caller's images."""
    x = images[:PIECE].copy()
    session(x)
    assert np.array_equal(x, images[:PIECE])


@pytest.mark.parametrize("wrong", ["shape", "type"])
def test_a_call_that_fails_spoils_no_other(
    session: Session, images: np.ndarray, wanted: tuple[np.ndarray, ...], wrong: str
) -> None:
    """A request that is not released makes the next call wait forever."""
    bad: Any = np.zeros((PIECE + 1, 2, SIZE, SIZE), np.float32)
    if wrong == "type":
        bad = np.array([["a"]], object)
    for _ in range(2):
        with pytest.raises(Exception):  # noqa: B017, PT011 (each engine has its own)
            session(bad)
        agree(session(images[:9]), wanted, slice(9))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
@pytest.mark.parametrize("count", COUNTS)
def test_pixels(make: Made, network: ResNeXt, kind: tuple[str, int], count: int) -> None:
    """The engine normalizes them with the card's means and deviations, and pads with zeros."""
    values = np.random.default_rng(5).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    with torch.no_grad():
        x = normalized(torch.from_numpy(values), PREPROCESSING)
        both = network(x).numpy(), network.embed(x).numpy()
    agree(make(*kind, pixels=True)(values), both, slice(None))


def test_openvino_takes_pixels_by_itself(network: ResNeXt, graph: Any) -> None:
    """8-bit models cannot be edited as ONNX."""
    model = openvino.Core().read_model(graph.SerializeToString())
    session = OpenVinoSession(with_pixel_input(model, PREPROCESSING), PIECE, 2, 2, "f32")
    values = np.random.default_rng(5).integers(0, 256, (9, SIZE, SIZE, 3), dtype=np.uint8)
    with torch.no_grad():
        x = normalized(torch.from_numpy(values), PREPROCESSING)
        both = network(x).numpy(), network.embed(x).numpy()
    agree(session(values), both, slice(None))
    assert model.input(0).element_type == openvino.Type.f32  # the model itself is left alone


def test_bf16_roughly_agrees(
    network: ResNeXt, images: np.ndarray, wanted: tuple[np.ndarray, ...]
) -> None:
    """Images are converted to bf16 like the weights, and outputs back to fp32."""
    half = TorchSession(fold(network).bfloat16(), torch.bfloat16, piece=PIECE)
    got = half(images)
    agree(got, wanted, slice(None), by=0.04)
    assert abs(got[0] - wanted[0]).max() > 1e-5 * abs(wanted[0]).max()  # it is really bf16


def test_no_images_for_networks_with_group_norm() -> None:
    """Their graph fails on an empty batch: an empty folder ended in the engine's error."""
    config = CONFIG.replace(norm="group", norm_groups=4, layers=(1,), channels=(16,), num_stages=1)
    made = ResNeXt(config)
    content = export_graph(fold(made), SIZE).SerializeToString()
    model = openvino.Core().read_model(content)
    x = np.zeros((0, 3, SIZE, SIZE), np.float32)
    for session in (
        OpenVinoSession(model, PIECE, 1, 1, "f32"),
        OnnxSession(content, PIECE, 1, 1),
    ):
        assert [found.shape for found in session(x)] == [(0, 5), (0, 64)]


# -- opening ----------------------------------------------------------------------------------


def test_graphs_from_files(
    graph: Any, images: np.ndarray, wanted: tuple[np.ndarray, ...], tmp_path: Path
) -> None:
    """Plans keep ONNX files for one engine and XML files for the other."""
    onnx_file, own = tmp_path / "a b.onnx", tmp_path / "a b.xml"
    onnx_file.write_bytes(graph.SerializeToString())
    model = openvino.Core().read_model(onnx_file)
    openvino.save_model(model, own, compress_to_fp16=False)
    for file, form, kind in (
        (onnx_file, EngineConfig("onnxruntime", piece=3, streams=2), OnnxSession),
        (own, EngineConfig("openvino", piece=3, streams=2), OpenVinoSession),
        (onnx_file, EngineConfig("openvino", piece=3), OpenVinoSession),
    ):
        session = ENGINES[form.engine].open(file, form)
        assert isinstance(session, kind)
        agree(session(images), wanted, slice(None))


@pytest.mark.parametrize("kind", ["images", "pixels"])
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_sessions_of_a_network_and_of_its_file(
    builder: EngineBuilder, network: ResNeXt, name: str, kind: InputKind, tmp_path: Path
) -> None:
    """A plan computes the same in the process that made it and in the next one."""
    values = np.random.default_rng(5).integers(0, 256, (7, SIZE, SIZE, 3), dtype=np.uint8)
    with torch.no_grad():
        x = normalized(torch.from_numpy(values), PREPROCESSING)
        both = network(x).numpy(), network.embed(x).numpy()
    engine, form = ENGINES[name], EngineConfig(name, piece=3, streams=2)
    path = tmp_path / f"a{engine.suffix}"
    engine.save(builder, form, kind, path)
    for session in (builder.session(form, kind), engine.open(path, form)):
        agree(session(values if kind == "pixels" else x.numpy()), both, slice(None))


@pytest.mark.parametrize(("threads", "streams", "each"), [(5, 2, 2), (4, 1, 4), (1, 3, 1)])
def test_streams_of_onnx_runtime_share_the_threads(
    graph: Any, threads: int, streams: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More threads than cores would wait for each other."""
    counts: list[int] = []
    create = onnxruntime.InferenceSession

    def counted(graph: Any, options: Any, **others: Any) -> Any:
        counts.append(options.intra_op_num_threads)
        return create(graph, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    OnnxSession(graph.SerializeToString(), PIECE, streams, threads)
    assert counts == [each]


@pytest.mark.parametrize(
    ("module", "extra"), [("onnxruntime", "onnx"), ("openvino", "openvino"), ("nncf", "openvino")]
)
def test_a_missing_engine_names_its_extra(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare ImportError does not say which extra to install."""
    monkeypatch.setitem(sys.modules, module, None)
    message = rf'{module} is not installed\. .*pip install "resnext\[{extra}\]"'
    if module == "nncf":
        with pytest.raises(InputError, match=message):
            quantize(None, np.zeros((1, 3, SIZE, SIZE), np.float32))
    else:
        with pytest.raises(InputError, match=message):
            ENGINES[module].open(Path("graph"), EngineConfig(module))


# -- the unmodified network -------------------------------------------------------------------


def test_an_unmodified_network(network: ResNeXt) -> None:
    """Without a plan, pixels are normalized too."""
    network.card = Card(tuple("abcde"), PREPROCESSING)
    values = np.random.default_rng(5).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    with torch.no_grad():
        x = normalized(torch.from_numpy(values), PREPROCESSING)
        both = network(x).numpy(), network.embed(x).numpy()
    plain = TorchRunner(network)
    agree(plain.pixels(values), both, slice(None))
    assert (plain.card, plain.config, plain.batch) == (network.card, CONFIG, 16)


def test_evaluation_mode_is_for_a_while(network: ResNeXt) -> None:
    """Modes are restored after an error too, for each module."""
    network.train()
    network.get_submodule("layer1").eval()
    modes = {name: module.training for name, module in network.named_modules()}

    def fail() -> None:
        with evaluating(network):
            assert not any(module.training for module in network.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert {name: module.training for name, module in network.named_modules()} == modes
    network.eval()
