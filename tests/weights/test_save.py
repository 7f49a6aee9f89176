"""Model files: what is saved is what is loaded, and nothing else is."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles.recorded import fill
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import resnext
from resnext import Backbone, Card, Preprocessing, ResNeXt, ResNeXtConfig, ResNeXtError, save
from resnext.errors import CheckpointError, MissingFileError
from resnext.weights import save as files
from resnext.weights.header import read_header

TINY = ResNeXtConfig(
    (1, 1), 2, 8, channels=(16, 32), num_stages=2, small_stem=True, num_classes=3, stem_channels=16
)
CARD = Card(
    labels=("ant", "bee", "Löwe \U0001f981"),
    preprocessing=Preprocessing(32, 36, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "BGR"),
    metrics={"val_accuracy": 1 / 3},
    provenance={"seed": 7, "recipe": {"epochs": 3, "flip": True, "schedule": [1, 2.5, None]}},
    licence="CC-BY-4.0",
)
CONFIGS = {
    "plain": TINY,
    "blur": TINY.replace(anti_alias="blur", avg_down=True),
    "affine standardised": TINY.replace(conv="affine_weight_standardized"),
    "standardised, group": TINY.replace(conv="weight_standardized", norm="group", norm_groups=4),
    "se": TINY.replace(attention="se", drop_path_rate=0.3, dropout=0.5),
    "eca, same padding": TINY.replace(attention="eca", conv="same_padding"),
    "Lucid's block_args": TINY.replace(block_args={"se": True, "se_args": {"reduction": 4}}),
    "untracked": TINY.replace(norm_track=False, norm_momentum=None),
    "no affine": TINY.replace(norm="instance", norm_affine=False),
    "layer": TINY.replace(norm="layer"),
    "deep stem": TINY.replace(small_stem=False, stem_type="deep", stem_channels=(8, 8, 16)),
    "grey": TINY.replace(in_channels=1, num_classes=1, padding_mode="reflect"),
}
TYPES = (torch.float32, torch.float64, torch.bfloat16)
with_one_folder = settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


pytestmark = pytest.mark.usefixtures("one_thread")


def network(config: ResNeXtConfig = TINY, card: Card | None = CARD) -> ResNeXt:
    """A network no number of which is a default."""
    model = ResNeXt(config)
    fill(model)
    model.card = card
    return model.eval()


def load(path: str | Path, **options: Any) -> ResNeXt:
    """`resnext.load` of a file with a classifier."""
    model = resnext.load(path, **options)
    assert isinstance(model, ResNeXt)
    return model


def channels_last(model: ResNeXt) -> ResNeXt:
    """The network with its filters in this order."""
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model


def images(model: ResNeXt) -> Tensor:
    """Something to look at, of the network's type."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, model.config.in_channels, 12, 10)
    return torch.randn(shape, generator=generator).to(model.fc.weight.dtype)


def same_state(got: nn.Module, wanted: nn.Module) -> bool:
    """Whether names, order, types and every bit agree."""
    a, b = got.state_dict(), wanted.state_dict()
    assert list(a) == list(b)
    return all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good model file, not to be changed."""
    path = tmp_path_factory.mktemp("model") / "good.safetensors"
    save(network(), path)
    return path


# -- round trips ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """A lost buffer or a changed type shows as logits that differ in their last bits, or much."""
    card = CARD if CONFIGS[name].num_classes == 3 else Card()
    model = network(CONFIGS[name], card).to(dtype)
    save(model, tmp_path / "a.safetensors")
    loaded = load(tmp_path / "a.safetensors")
    assert same_state(loaded, model)
    assert loaded.config == model.config
    assert loaded.card == card
    assert all(not tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    with torch.no_grad():
        wanted = model(images(model))
        assert torch.equal(loaded(images(model)), wanted)
    assert wanted.dtype == dtype
    assert wanted.std() > 0


def test_channels_last(tmp_path: Path) -> None:
    """Training keeps weights in this order; safetensors refuses it, or would store it shuffled."""
    model = network()
    save(channels_last(model), tmp_path / "a.safetensors")
    loaded = load(tmp_path / "a.safetensors")
    assert same_state(loaded, network())
    with torch.no_grad():
        assert torch.equal(loaded(images(model)), network()(images(model)))


def test_saving_changes_nothing(tmp_path: Path) -> None:
    """Training continues after each save: mode, type, order and gradients must not change."""
    model = channels_last(network()).train()
    model(images(model)).sum().backward()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    save(model, tmp_path / "a.safetensors")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    weight = model.get_parameter("layer1.0.conv2.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())
    assert model.card == CARD


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    """Reproducible runs are compared by checksum; safetensors shuffles keys of its metadata."""
    contents = []
    for i in range(6):
        model = network() if i < 3 else load(tmp_path / "0.safetensors")
        save(model, tmp_path / f"{i}.safetensors")
        contents.append((tmp_path / f"{i}.safetensors").read_bytes())
    assert len({*contents}) == 1


def test_a_model_without_card(tmp_path: Path) -> None:
    """Weights are worth saving before anybody has named the classes."""
    save(network(card=None), tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").card == Card()


def test_paths_may_be_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare name has no parent to put a temporary file in but the current folder."""
    monkeypatch.chdir(tmp_path)
    save(network(), "a.safetensors")
    assert same_state(load("a.safetensors"), network())
    assert os.listdir() == ["a.safetensors"]  # noqa: PTH208


def test_a_loaded_model_is_independent_of_its_file(tmp_path: Path) -> None:
    """Weights mapped from the file would change, or crash, when it is written again."""
    path = tmp_path / "a.safetensors"
    save(network(), path)
    loaded = load(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert same_state(loaded, network())
    save(loaded, path)
    other = load(path)
    with torch.no_grad():
        other.fc.weight.zero_()
    save(other, path)
    assert same_state(loaded, network())
    assert load(path).fc.weight.abs().sum() == 0


def test_a_loaded_model_is_in_evaluation_mode_and_can_learn(file: Path) -> None:
    """Weights made on the meta device or under inference mode refuse gradients."""
    loaded, model = load(file), network()
    assert not any(module.training for module in loaded.modules())
    for each in (loaded, model):
        optimizer = torch.optim.SGD(each.train().parameters(), lr=0.1)
        each(images(each)).square().sum().backward()
        optimizer.step()
    for (name, got), wanted in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert got.requires_grad, name
        assert got.grad is not None
        assert wanted.grad is not None
        assert torch.equal(got.grad, wanted.grad), name
    assert same_state(loaded, model)
    assert not same_state(loaded, network())


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), torch.device("cpu", 0)])
def test_device(file: Path, device: Any) -> None:
    """Both spellings are torch's own."""
    loaded = load(file, device=device)
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    assert same_state(loaded, network())


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:99", ""])
def test_a_device_that_is_not_there_is_not_the_files_fault(file: Path, device: str) -> None:
    """'The file is damaged' would make people train again; `meta` has no weights at all."""
    with pytest.raises(ResNeXtError, match="device") as caught:
        load(file, device=device)
    assert "damaged" not in str(caught.value)


# -- what must not be saved -------------------------------------------------------------------


@pytest.mark.parametrize("labels", [("a",), ("a", "b"), ("a", "b", "c", "d")])
def test_labels_must_fit(tmp_path: Path, labels: tuple[str, ...]) -> None:
    """Every prediction of the file would carry the wrong name."""
    with pytest.raises(CheckpointError, match=f"{len(labels)} labels, the network 3 classes"):
        save(network(card=Card(labels)), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def another_classifier(model: ResNeXt) -> nn.Module:
    model.fc = nn.Linear(model.num_features, 5)
    model.card = None
    return model


def another_stem(model: ResNeXt) -> nn.Module:
    model.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
    return model


def parametrized(model: ResNeXt) -> nn.Module:
    nn.utils.parametrizations.weight_norm(model.fc)
    return model


def without_norm(model: ResNeXt) -> nn.Module:
    model.bn1 = nn.Identity()
    return model


def quantised(model: ResNeXt) -> nn.Module:
    model.fc.weight = nn.Parameter(torch.ones(3, 128, dtype=torch.int8), requires_grad=False)
    return model


@pytest.mark.parametrize("change", [another_classifier, parametrized])
def test_a_changed_classifier_is_saved(
    tmp_path: Path, change: Callable[[ResNeXt], nn.Module]
) -> None:
    """`model.fc = nn.Linear(…)` is a common idiom, with the config and labels left as they were."""
    model: Any = change(network(card=CARD)).eval()
    save(model, tmp_path / "a.safetensors")
    again: Any = load(tmp_path / "a.safetensors")
    assert again.config.num_classes == model.fc.out_features
    with torch.no_grad():
        x = torch.randn(2, again.config.in_channels, 64, 64)
        assert torch.allclose(again(x), model(x), atol=1e-5)


def test_labels_of_a_replaced_classifier_are_left_out(tmp_path: Path) -> None:
    """They name classes that the new layer does not have; labels of the new ones are kept."""
    model = network(card=replace(CARD, metrics={"top1": 0.9}))
    old = model.config.num_classes
    model.fc = nn.Linear(model.num_features, old + 1)
    save(model, tmp_path / "a.safetensors")
    card: Any = load(tmp_path / "a.safetensors").card
    assert (card.labels, card.metrics, card.preprocessing) == ((), {}, CARD.preprocessing)
    model.card = Card(labels=tuple(f"class {i}" for i in range(old + 1)))
    save(model, tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").card == model.card


@pytest.mark.parametrize("change", [another_stem, without_norm, quantised])
def test_a_network_that_could_not_be_loaded_is_not_saved(
    tmp_path: Path, change: Callable[[ResNeXt], nn.Module]
) -> None:
    """Its file would be refused by `load`, after the network is gone."""
    model: Any = change(network())
    with pytest.raises(CheckpointError, match="config"):
        save(model, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [{1, 2}, Path("data"), torch.ones(1), object()], ids=type)
def test_a_card_that_is_not_json_is_not_saved(tmp_path: Path, value: Any) -> None:
    """NumPy's numbers and paths are what people put there; json's error names no card."""
    card = Card(CARD.labels, provenance={"value": value})
    with pytest.raises(CheckpointError, match="card"):
        save(network(card=card), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


# -- completely or not at all -----------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_the_file_is_readable_by_whom_the_umask_allows(tmp_path: Path, mask: int) -> None:
    """Temporary files are private: colleagues and web servers could not read the model."""
    before = os.umask(mask)
    try:
        save(network(), tmp_path / "a.safetensors")
        assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask
        now = os.umask(mask)
        assert now == mask
    finally:
        os.umask(before)


def half_written(error: BaseException) -> Callable[..., None]:
    """A `save_file` that fails in the middle."""

    def save_file(state: Any, path: str, metadata: Any = None) -> None:
        Path(path).write_bytes(b"half")
        raise error

    return save_file


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what a full disk does, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_costs_nothing_but_the_save(tmp_path: Path, existing: bool) -> None:
    """The best epoch's file must survive the next best epoch's failure."""
    path = tmp_path / "a.safetensors"
    if existing:
        save(network(), path)
    before = path.read_bytes() if existing else None
    other = network(TINY.replace(channels=(32, 64)))
    with room_for(20_000), pytest.raises(CheckpointError, match=r"a.safetensors cannot be written"):
        save(other, path)
    assert [p.name for p in tmp_path.iterdir()] == ([path.name] if existing else [])
    assert (path.read_bytes() if existing else None) == before
    save(other, path)
    assert same_state(load(path), other)


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (OSError(28, "No space left on device"), CheckpointError),
        (SafetensorError("I/O error"), CheckpointError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (MemoryError(), MemoryError),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, seen: type[Exception]
) -> None:
    """Ctrl-C comes at any time; half a file, or a forgotten one of 300 MB, must not stay."""
    path = tmp_path / "a.safetensors"
    save(network(), path)
    before = path.read_bytes()
    monkeypatch.setattr(files, "save_file", half_written(error))
    with pytest.raises(seen):
        save(network(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these was an OSError without the file's name."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "missing" / "a", tmp_path / "file" / "a", tmp_path / "folder"):
        with pytest.raises(CheckpointError, match=f"{path} cannot be written"):
            save(network(), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert not list((tmp_path / "folder").iterdir())

    def denied(*args: Any, **kwargs: Any) -> Any:  # root may write everywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", denied)
    with pytest.raises(CheckpointError, match=r"b cannot be written: .*Permission denied"):
        save(network(), tmp_path / "b")


# -- files that are no model ------------------------------------------------------------------


def test_what_is_no_file(tmp_path: Path) -> None:
    """A missing file is an error of its own class, as `except FileNotFoundError` expects."""
    with pytest.raises(MissingFileError, match=r"a.safetensors does not exist"):
        load(tmp_path / "a.safetensors")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="is a folder") as caught:
        load(tmp_path)
    assert not isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"Not a model.\n" * 100,
        b"\xff" * 64,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        b"\x80\x04K\x01.",
    ],
    ids=lambda x: repr(x[:12]),
)
def test_other_files(tmp_path: Path, content: bytes) -> None:
    """Downloads that failed, web pages, other formats."""
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a.safetensors"):
        load(tmp_path / "a.safetensors")


@with_one_folder
@given(data=st.data())
def test_cut_files_are_refused(tmp_path: Path, file: Path, data: st.DataObject) -> None:
    """A download that stopped must never give a network with some weights of it."""
    content = file.read_bytes()
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    end = data.draw(st.integers(0, header_end + 8) | st.integers(0, len(content) - 1))
    (tmp_path / "cut").write_bytes(content[:end])
    refused = r"cut is (empty|damaged|cut off|not a (safetensors )?file)"
    with pytest.raises(CheckpointError, match=refused):
        load(tmp_path / "cut")


def test_files_with_something_behind_are_refused(tmp_path: Path, file: Path) -> None:
    """Two downloads into one file."""
    (tmp_path / "a").write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        load(tmp_path / "a")


@with_one_folder
@given(data=st.data())
def test_flipped_bits_in_the_header(tmp_path: Path, file: Path, data: st.DataObject) -> None:
    """Damage raises one kind of error, unless it only changes a letter of a label."""
    content = bytearray(file.read_bytes())
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header_end - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "bits").write_bytes(content)
    try:
        loaded = load(tmp_path / "bits")
    except CheckpointError as error:
        assert "bits" in str(error)  # noqa: PT017
        return
    assert len(loaded.state_dict()) == len(network().state_dict())
    assert isinstance(loaded.card, Card)


@pytest.mark.parametrize("bit", range(64))
def test_a_wrong_length_of_the_header(tmp_path: Path, file: Path, bit: int) -> None:
    """The first eight bytes; some values ask for exabytes."""
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CheckpointError):
        load(tmp_path / "a")


@settings(with_one_folder, max_examples=100)
@given(content=st.binary(max_size=200), honest=st.booleans())
def test_any_bytes(tmp_path: Path, content: bytes, honest: bool) -> None:
    """No file at all may raise anything else."""
    content = struct.pack("<Q", len(content)) + content if honest else content
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CheckpointError):
        load(tmp_path / "a")


# -- safetensors files that are no model of ours ----------------------------------------------


def changed(file: Path, path: Path, change: Callable[[dict[str, Tensor], Any], Any]) -> Path:
    """A copy of a model file with changed tensors or header."""
    state, about = load_file(file), json.loads(_metadata(file)["resnext"])
    replaced = change(state, about)
    save_file(state, path, {"resnext": json.dumps(about if replaced is None else replaced)})
    return path


def _metadata(file: Path) -> dict[str, str]:
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length])["__metadata__"]


def test_a_copy_without_change_loads(tmp_path: Path, file: Path) -> None:
    """Otherwise the tests below could pass for a reason of their own."""
    assert same_state(load(changed(file, tmp_path / "a", lambda state, about: None)), network())


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"Resnext": "{}"}])
def test_other_safetensors_files(tmp_path: Path, file: Path, metadata: Any) -> None:
    """timm's and Hugging Face's files do not say what network they are of; their weights do."""
    save_file(load_file(file), tmp_path / "a", metadata)
    loaded, own = load(tmp_path / "a"), load(file)
    assert same_state(loaded, own)
    assert loaded.card is not None
    assert not loaded.card.labels
    assert any("assumed" in note for note in loaded.card.provenance["notes"])


@pytest.mark.parametrize(
    ("key", "make"),
    [
        ("fc.weight", None),
        ("layer2.0.bn2.running_var", None),
        ("bn1.num_batches_tracked", None),
        ("head.weight", lambda x: x),
        ("fc.weight", lambda x: x[:2].clone()),
        ("fc.weight", lambda x: x.t().contiguous()),
        ("fc.bias", lambda x: x[:, None].clone()),
        ("bn1.num_batches_tracked", lambda x: torch.zeros(2, dtype=torch.int64)),
        ("conv1.weight", lambda x: torch.zeros(0)),
        ("fc.weight", lambda x: x.to(torch.int32)),
        ("fc.weight", lambda x: x > 0),
        ("bn1.running_mean", lambda x: x.to(torch.int64)),
    ],
)
def test_weights_that_do_not_fit_their_config(
    tmp_path: Path, file: Path, key: str, make: Callable[[Tensor], Tensor] | None
) -> None:
    """A tensor left at its initial value is a network that is silently worse."""

    def change(state: dict[str, Tensor], about: Any) -> None:
        value = state.pop(key, torch.ones(1))
        if make:
            state[key] = make(value)

    with pytest.raises(CheckpointError, match=key):
        load(changed(file, tmp_path / "a", change))


def test_a_config_of_another_network(tmp_path: Path, file: Path) -> None:
    """The tensor that shows it is named, and both shapes."""

    def change(state: dict[str, Tensor], about: Any) -> None:
        about["config"]["num_classes"] = 4
        about["card"]["labels"] = list("abcd")

    with pytest.raises(CheckpointError, match=r"fc.weight should be \(4, 128\) and is \(3, 128\)"):
        load(changed(file, tmp_path / "a", change))


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("config", "depth", 50),
        ("config", "layers", "3463"),
        ("config", "layers", [1, 1.5]),
        ("config", "layers", None),
        ("config", "cardinality", True),
        ("config", "cardinality", 10**30),
        ("config", "channels", [10**12, 10**12]),
        ("config", "num_classes", 2**63),
        ("config", "num_classes", -1),
        ("config", "norm", "batch3d"),
        ("config", "norm", {}),
        ("config", "norm_eps", float("nan")),
        ("config", "dropout", "0.1"),
        ("config", "block_args", [1]),
        ("config", "block_args", {"se_args": {"x": 1}}),
        ("card", "labels", None),
        ("card", "labels", "abc"),
        ("card", "labels", [1, 2, 3]),
        ("card", "labels", ["one", "two"]),
        ("card", "preprocessing", None),
        ("card", "preprocessing", []),
        ("card", "preprocessing", {"side": 3}),
        ("card", "preprocessing", {"size": 0}),
        ("card", "preprocessing", {"size": 2.5}),
        ("card", "preprocessing", {"mean": [0, 0]}),
        ("card", "preprocessing", {"std": [0, 0, 0]}),
        ("card", "preprocessing", {"std": [1, 1, float("nan")]}),
        ("card", "preprocessing", {"colour": ["RGB"]}),
        ("card", "preprocessing", {"interpolation": {"a": 1}}),
        ("card", "metrics", None),
        ("card", "provenance", "mine"),
        ("card", "licence", 4),
        ("card", "author", "me"),
    ],
)
def test_headers_with_wrong_values(
    tmp_path: Path, file: Path, part: str, field: str, value: Any
) -> None:
    """A file that was edited, or written by a later version, must raise an error that says so."""

    def change(state: dict[str, Tensor], about: Any) -> None:
        about[part][field] = value

    path = changed(file, tmp_path / "edited", change)
    with pytest.raises(CheckpointError, match="edited"):
        load(path)


@pytest.mark.parametrize(
    "header",
    [
        *("", "{", "nonsense", "[]", "null", "1", '"text"', "{}", '{"config": {}}'),
        *('{"config": null, "card": {}}', '{"config": [], "card": []}'),
        "[" * 100_000,
        '{"config":' * 50_000,
    ],
    ids=lambda x: x[:20],
)
def test_headers_that_are_none(tmp_path: Path, file: Path, header: str) -> None:
    """JSON that is damaged, deep enough to overflow the stack, or something else entirely."""
    save_file(load_file(file), tmp_path / "a", {"resnext": header})
    for read in (read_header, load):
        with pytest.raises(CheckpointError, match=str(tmp_path / "a")):
            read(tmp_path / "a")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(with_one_folder, max_examples=80)
@given(data=st.data(), value=JSON)
def test_any_value_in_the_header(
    tmp_path: Path, file: Path, data: st.DataObject, value: Any
) -> None:
    """One field holds anything: the file loads as it says, or is refused."""
    about = json.loads(_metadata(file)["resnext"])
    part = data.draw(st.sampled_from(["config", "card", "preprocessing"]))
    fields = about["card"]["preprocessing"] if part == "preprocessing" else about[part]
    field = data.draw(st.sampled_from([*sorted({*fields} - {"preprocessing"}), "another"]))
    fields[field] = value
    save_file(load_file(file), tmp_path / "a", {"resnext": json.dumps(about)})
    try:
        loaded = load(tmp_path / "a")
    except CheckpointError:
        return
    assert loaded.card is not None
    said = loaded.config.to_dict() if part == "config" else loaded.card.to_dict()
    said = said["preprocessing"] if part == "preprocessing" else said
    assert json.dumps(said[field]) == json.dumps(value)


class Opened:
    """An object that leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def zipped(thing: Any, path: Path) -> None:
    torch.save(thing, path)


def legacy(thing: Any, path: Path) -> None:
    torch.save(thing, path, _use_new_zipfile_serialization=False)


def plain(thing: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(thing))


@pytest.mark.parametrize("write", [zipped, legacy, plain])
def test_pickles_are_refused_unopened(tmp_path: Path, write: Callable[[Any, Path], None]) -> None:
    """Unpickling a file from the web runs whatever its author wanted."""
    path, trace = tmp_path / "a.pth", tmp_path / "trace"
    write({"state_dict": network().state_dict(), "x": Opened(trace)}, path)
    for read in (read_header, load):
        with pytest.raises(CheckpointError, match=r"a.pth"):
            read(path)
    assert not trace.exists()
    torch.load(path, weights_only=False) if write is not plain else pickle.loads(path.read_bytes())
    assert trace.exists()  # so it would have been seen


def test_only_classifiers_are_saved(tmp_path: Path) -> None:
    """A backbone has no classes, so nothing could use its file."""
    backbone: Any = Backbone(ResNeXtConfig((1,), 1, 8, channels=(8,), num_stages=1))
    with pytest.raises(CheckpointError, match="Only a ResNeXt can be saved, not a Backbone"):
        save(backbone, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
