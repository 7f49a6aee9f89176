"""What wrappers, reparametrizations, casts and Python 2 leave in state dicts."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers import agree, tiny_network
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from resnext import ResNeXt, ResNeXtConfig, load
from resnext.errors import CheckpointError

CONFIG = ResNeXtConfig((2, 1, 1, 1), 4, 8, num_classes=5, channels=(16, 32, 64, 128))
X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> ResNeXt:
    return tiny_network(CONFIG)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(X)


def loaded(state: Any, tmp_path: Path) -> Tensor:
    """Logits of what `load` makes of a file."""
    torch.save(state, tmp_path / "a.pth")
    return logits(load(tmp_path / "a.pth"))


# -- counters --------------------------------------------------------------------------------------

CASTS: dict[str, Callable[[Tensor], Tensor]] = {
    "float": lambda x: x.float(),
    "double": lambda x: x.double(),
    "int32": lambda x: x if x.is_floating_point() else x.int(),
    "one number": lambda x: x.reshape(1) if x.ndim == 0 else x,
    "one by one": lambda x: x.float().reshape(1, 1) if x.ndim == 0 else x,
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_counters_may_be_cast_and_reshaped(
    tmp_path: Path, network: ResNeXt, cast: Callable[[Tensor], Tensor], suffix: str
) -> None:
    """`{k: v.half()}` over a whole state dict casts counters too, and was refused."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = torch.tensor(21)
    state = {name: cast(x) for name, x in network.state_dict().items()}
    path = tmp_path / f"a.{suffix}"
    torch.save(state, path) if suffix == "pth" else save_file(state, path)
    model: Any = load(path)
    agree(logits(model), logits(network), 1e-6)
    count = model.bn1.num_batches_tracked
    assert (count.dtype, count.shape, int(count)) == (torch.int64, (), 21)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_counters_in_half_precision(tmp_path: Path, network: ResNeXt, dtype: torch.dtype) -> None:
    """A large count is infinite in half precision, and no integer."""
    state = {name: x.to(dtype) for name, x in network.state_dict().items()}
    state["bn1.num_batches_tracked"] = torch.tensor(1e6).to(dtype)
    agree(loaded(state, tmp_path), logits(network), 0.05)
    state["layer1.0.bn1.num_batches_tracked"] = torch.ones(3)
    with pytest.raises(CheckpointError, match=r"layer1.0.bn1.num_batches_tracked should be \(\)"):
        loaded(state, tmp_path)


# -- wrappers --------------------------------------------------------------------------------------


def inside(where: str, words: str) -> Callable[[str], str]:
    """Adds words after a module's name."""
    return lambda name: name.replace(where, where + words)


WRAPPED: dict[str, Callable[[str], str]] = {
    "FSDP": lambda n: "_fsdp_wrapped_module." + inside("0.", "_fsdp_wrapped_module.")(n),
    "FSDP 1.11": inside("layer1.", "_fsdp_wrapped_module._fpw_module."),
    "activation checkpointing": inside("layer1.0.", "_checkpoint_wrapped_module."),
    "compiled stages": inside("layer2.", "_orig_mod."),
    "compiled, in DDP": lambda n: "_orig_mod.module." + n,
    "DDP, compiled inside": lambda n: "module." + inside("layer3.", "_orig_mod.")(n),
    "parts in DataParallel": lambda n: inside("fc.", "module.")(inside("layer4.", "module.")(n)),
    "a network in a model": lambda n: "model.module.backbone._orig_mod." + n,
    "Fabric": lambda n: "_forward_module.model." + n,
    "Opacus": lambda n: "_module." + n,
}


@pytest.mark.parametrize("rename", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_anywhere(tmp_path: Path, network: ResNeXt, rename: Callable[[str], str]) -> None:
    """Wrappers of parts of a network put words inside names, and were refused."""
    state = {rename(name): x for name, x in network.state_dict().items()}
    assert len(state) == len(network.state_dict())
    assert torch.equal(loaded(state, tmp_path), logits(network))


def test_layers_that_peft_trained(tmp_path: Path, network: ResNeXt) -> None:
    """`modules_to_save=["fc"]` keeps the original beside the trained layer, which is the last."""
    state = {f"base_model.model.{n}": x for n, x in network.state_dict().items() if n[:3] != "fc."}
    for name, x in network.fc.state_dict().items():
        state[f"base_model.model.fc.original_module.{name}"] = torch.zeros_like(x)
        state[f"base_model.model.fc.modules_to_save.default.{name}"] = x
    assert torch.equal(loaded(state, tmp_path), logits(network))
    other = "base_model.model.fc.modules_to_save.other.weight"
    with pytest.raises(CheckpointError, match=r"adapters of peft, default and other\. Save"):
        loaded({**state, other: torch.zeros(5, 128)}, tmp_path)


def test_two_networks_stay_two(tmp_path: Path, network: ResNeXt) -> None:
    """Without their wrappers both would have the same names, and one would be lost."""
    state = network.state_dict()
    both = {f"{p}.{n}": x for p in ("a", "a.module") for n, x in state.items()}
    with pytest.raises(CheckpointError, match=r"should be|Several networks"):
        loaded({**both, "a.module.conv1.weight": torch.zeros(1)}, tmp_path)


def test_shards_of_fsdp_are_named(tmp_path: Path) -> None:
    """A flat parameter is one process's share; a full state dict must be saved."""
    state = {"_fsdp_wrapped_module._flat_param": torch.zeros(9)}
    with pytest.raises(CheckpointError, match="Save a full state dict of FSDP"):
        loaded(state, tmp_path)


# -- weights that are computed ---------------------------------------------------------------------


def convolutions(model: nn.Module) -> Iterable[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


def each(change: Callable[[nn.Module], object]) -> Callable[[nn.Module], None]:
    """Applies a change to every convolution, and to the classifier."""

    def apply(model: nn.Module) -> None:
        for layer in (*convolutions(model), model.get_submodule("fc")):
            change(layer)

    return apply


COMPUTED: dict[str, Callable[[nn.Module], None]] = {
    "weight norm": each(parametrizations.weight_norm),
    "weight norm of all": each(
        lambda m: parametrizations.weight_norm(m, dim=None)  # pyright: ignore[reportArgumentType]
    ),
    "weight norm of inputs": each(lambda m: parametrizations.weight_norm(m, dim=1)),
    "spectral norm": each(parametrizations.spectral_norm),
    "spectral norm before 1.9": each(spectral_norm),
    "pruned": each(lambda m: prune.l1_unstructured(m, "weight", 0.5)),
}


@pytest.mark.parametrize("change", COMPUTED.values(), ids=COMPUTED)
def test_computed_weights(
    tmp_path: Path, network: ResNeXt, change: Callable[[nn.Module], None]
) -> None:
    """The logits of the network that was saved, without its reparametrization."""
    model = deepcopy(network)
    change(model)
    model.train()(X)  # spectral norm of torch before 1.9 has its first estimate now
    wanted = logits(model.eval())
    agree(loaded(model.state_dict(), tmp_path), wanted, 1e-4)


def test_pruned_biases(tmp_path: Path, network: ResNeXt) -> None:
    """A classifier without its bias has other logits, and no error says so."""
    model = deepcopy(network)
    nn.init.normal_(model.fc.bias)
    prune.random_unstructured(model.fc, "bias", 0.5)
    agree(loaded(model.state_dict(), tmp_path), logits(model), 1e-5)


def test_observers_are_left_out(tmp_path: Path, network: ResNeXt) -> None:
    """Those of `torch.ao.quantization`, and thop's counters, stand beside ordinary weights."""
    state: dict[str, Any] = dict(network.state_dict())
    for name in list(state):
        layer, _, end = name.rpartition(".")
        if end == "weight":
            state[f"{layer}.activation_post_process.min_val"] = torch.tensor(0.0)
            state[f"{layer}.weight_fake_quant.scale"] = torch.ones(1)
            state[f"{layer}.total_ops"] = torch.zeros(1, dtype=torch.float64)
    state["activation_post_process_0.scale"] = torch.ones(1)
    state["total_params"] = torch.zeros(1, dtype=torch.float64)
    agree(loaded(state, tmp_path), logits(network), 1e-6)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_weight_norm_before_2(tmp_path: Path, network: ResNeXt) -> None:
    """`weight_g` and `weight_v`."""
    model = deepcopy(network)
    each(weight_norm)(model)
    agree(loaded(model.state_dict(), tmp_path), logits(model), 1e-4)


class Doubled(nn.Module):
    """A reparametrization that only its author's code knows."""

    def forward(self, weight: Tensor) -> Tensor:
        """Twice the stored numbers."""
        return 2 * weight


@pytest.mark.parametrize("layer", ["layer1.0.conv2", "fc"])
def test_unknown_computations_are_refused(tmp_path: Path, network: ResNeXt, layer: str) -> None:
    """The stored numbers are not the weight."""
    model = deepcopy(network)
    parametrize.register_parametrization(model.get_submodule(layer), "weight", Doubled())
    with pytest.raises(CheckpointError, match=rf"{layer}.weight is computed from .*does not show"):
        loaded(model.state_dict(), tmp_path)


# -- Python 2 --------------------------------------------------------------------------------------


BASE: Any = pickle._Pickler  # the C version takes no other writers of types


class Python2(BASE):
    """Writes text and bytes as Python 2's `str`, and its names of modules, in protocol 2."""

    dispatch: ClassVar[Any] = dict(BASE.dispatch)

    def save_str(self, value: Any) -> None:
        """A text or bytes, as bytes without an encoding."""
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        head = b"U" + bytes([len(raw)]) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))
        self.write(head + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_str

    def save_global(self, obj: Any, name: str | None = None) -> None:
        """A class or function under the name that its module had."""
        module = obj.__module__.replace("builtins", "__builtin__")
        module = module.replace("numpy._core", "numpy.core")
        self.write(f"c{module}\n{name or obj.__qualname__}\n".encode())
        self.memoize(obj)

    dispatch[type] = dispatch[type(lambda: 0)] = save_global

    def persistent_id(self, obj: Any) -> Any:
        """A storage, which follows after the pickle."""
        if not isinstance(obj, torch.storage.TypedStorage):
            return None
        kind = torch.FloatStorage if obj.dtype == torch.float32 else torch.LongStorage
        key = str(obj._untyped_storage.data_ptr())
        STORAGES[key] = obj
        return ("storage", kind, key, "cpu", obj._size(), None)


STORAGES: dict[str, Any] = {}


def python2_file(path: Path, content: Any) -> None:
    """What `torch.save` wrote under Python 2, before torch 1.6."""
    STORAGES.clear()
    with path.open("wb") as file:
        sizes = {"short": 2, "int": 4, "long": 4}
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
        for part in (0x1950A86A20F9469CFC6C, 1001, system, content, sorted(STORAGES)):
            part = sorted(STORAGES) if isinstance(part, list) else part
            Python2(file, 2).dump(part)
        file.flush()
        for _, storage in sorted(STORAGES.items()):
            raw = storage._untyped_storage
            file.write(struct.pack("<q", storage._size()) + bytes(raw.tolist()))


@pytest.mark.parametrize(
    "beside",
    [{}, {"best_prec1": np.float64(54.65439)}, {"top1": np.float32(0.7), "n": np.int64(255)}],
    ids=["plain", "float64", "others"],
)
def test_python_2(tmp_path: Path, network: ResNeXt, beside: dict[str, Any]) -> None:
    """A NumPy number has bytes above 127, which are no text in UTF-8."""
    state = {f"module.{n}": x for n, x in network.state_dict().items() if "batches" not in n}
    python2_file(tmp_path / "a.pth.tar", {"epoch": 90, "state_dict": state, **beside})
    assert torch.equal(logits(load(tmp_path / "a.pth.tar")), logits(network))


def test_python_2_arrays(tmp_path: Path, network: ResNeXt) -> None:
    """A pickle of NumPy arrays."""
    arrays = {n: x.numpy() for n, x in network.state_dict().items() if "batches" not in n}
    with (tmp_path / "a.pkl").open("wb") as file:
        Python2(file, 2).dump(arrays)
    assert torch.equal(logits(load(tmp_path / "a.pkl")), logits(network))


def test_python_2_code_is_refused(tmp_path: Path, network: ResNeXt) -> None:
    """Bytes that are no text must not lead to a reader that executes names."""

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, ("raise SystemExit",)

    content = {"state_dict": network.state_dict(), "n": np.float64(0.1), "x": Evil()}
    python2_file(tmp_path / "a.pth", content)
    with pytest.raises(CheckpointError, match="not known to be harmless"):
        load(tmp_path / "a.pth")
