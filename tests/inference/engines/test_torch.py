"""PyTorch as an engine: how it is compiled, in which type, and for how many images at once."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_network
from inference_cases import BATCH, CARD, CONFIG, SIZE, images

from resnext import ResNeXt, optimize
from resnext.data.transforms import normalized
from resnext.errors import InputError
from resnext.inference.engines import ENGINES
from resnext.inference.engines.base import EngineConfig
from resnext.inference.engines.builder import EngineBuilder
from resnext.inference.engines.torch import Torch, TorchSession
from resnext.inference.fold import fold

pytestmark = pytest.mark.usefixtures("one_thread", "quick_search")


class Compiled:
    """Takes the place of `torch.compile`: notes its arguments and the images that come."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []
        self.seen: list[torch.Tensor] = []

    def __call__(self, module: torch.nn.Module, **options: Any) -> Any:
        """The module, noting what it is given."""
        self.options.append(options)

        def run(x: torch.Tensor) -> Any:
            assert not torch.is_inference_mode_enabled()  # compilers do not support it
            assert not torch.is_grad_enabled()
            self.seen.append(x)
            return module(x)

        return run


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    """Compiles nothing, in no time."""
    compiled = Compiled()
    monkeypatch.setattr(torch, "compile", compiled)
    return compiled


@pytest.mark.parametrize(
    ("name", "device", "options"),
    [
        ("torch", "cpu", None),
        ("torch", "cuda", None),
        ("compile", "cpu", {"options": {"freezing": True}}),
        ("compile", "cuda", {"options": {"freezing": True, "triton.cudagraphs": True}}),
        ("tensorrt", "cuda", {"backend": "tensorrt"}),
    ],
)
def test_options_of_the_compilers(name: str, device: str, options: dict[str, Any] | None) -> None:
    """Without freezing, folded weights are inputs; without CUDA graphs, kernels wait for Python."""
    engine = ENGINES[name]
    assert isinstance(engine, Torch)
    assert engine.compiler_options(device) == options


@pytest.mark.parametrize("count", [0, 1, 3, 4, 9])
def test_compiled_graphs_see_one_size(network: ResNeXt, compiled: Compiled, count: int) -> None:
    """Each new size would be compiled for minutes."""
    source = EngineBuilder(network, SIZE, torch.device("cpu"))
    session = source.session(EngineConfig("compile", piece=4))
    assert compiled.options == [{"dynamic": False, "options": {"freezing": True}}]
    x = images(count)
    logits, embeddings = session(x.numpy())
    assert {tuple(seen.shape) for seen in compiled.seen} == {(4, 3, SIZE, SIZE)}
    assert (logits.shape, embeddings.shape) == ((count, 4), (count, 64))
    with torch.no_grad():
        assert np.allclose(logits, network(x), atol=1e-4 * float(abs(network(images(4))).max()))


def test_an_eager_network_sees_the_images_only(network: ResNeXt) -> None:
    """It is not compiled, so padding would only cost time."""
    seen: list[tuple[int, ...]] = []
    source = EngineBuilder(network, SIZE, torch.device("cpu"))
    session: Any = source.session(EngineConfig("torch", piece=4))
    session._module.register_forward_pre_hook(lambda _, x: seen.append((*x[0].shape,)))
    session(images(6).numpy())
    assert [shape[0] for shape in seen] == [4, 2]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["images", "pixels"])
def test_a_session_is_built_of_a_copy(network: ResNeXt, precision: str, kind: Any) -> None:
    """In the precision of the form, with channels last; the folded network serves others."""
    source = EngineBuilder(network, SIZE, torch.device("cpu"), CARD.preprocessing)
    before = {name: value.clone() for name, value in source.folded.state_dict().items()}
    session: Any = source.session(EngineConfig("torch", precision, 4), kind)
    weight = session._module.network.layer1[0].conv2.weight
    assert weight.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    for name, value in source.folded.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.dtype == before[name].dtype
    values = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    x = normalized(torch.from_numpy(values), CARD.preprocessing)
    logits = session(values if kind == "pixels" else x.numpy())[0]
    with torch.no_grad():
        wanted = network(x).numpy()
    tolerance = {"fp32": 1e-5, "bf16": 5e-2}[precision]
    assert abs(logits - wanted).max() <= tolerance * abs(wanted).max()


def test_tensorrt_says_what_to_install(network: ResNeXt, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would only say that it knows no such backend."""
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    message = r"torch_tensorrt is not installed\. Install it with pip install torch-tensorrt\.$"
    with pytest.raises(InputError, match=message):
        EngineBuilder(network, SIZE, torch.device("cpu")).session(EngineConfig("tensorrt"))
    name: Any = "tensorrt"
    with pytest.raises(InputError, match="TensorRT does not run on cpu"):
        optimize(network, engine=name, device="cpu")


def test_memory_formats() -> None:
    """The unmodified network is timed as people run it: channels first."""
    network = fold(tiny_network(CONFIG))
    seen: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    for last in (True, False):
        session: Any = TorchSession(network, torch.float32, channels_last=last)
        session._module.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        session(images(BATCH).numpy())
        assert seen[-1].is_contiguous(memory_format=torch.channels_last) == last
