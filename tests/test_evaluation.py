"""Measuring: the numbers against scikit-learn's, and what must not happen on the way."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.recorded import fill
from PIL import Image
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    recall_score,
    top_k_accuracy_score,
)
from torch import Tensor

from resnext import Card, Preprocessing, ResNeXt, ResNeXtConfig, evaluate, save
from resnext.data import ImageSet
from resnext.errors import CheckpointError, DataError, InputError
from resnext.evaluation import Evaluation, batches, measure, pick_device
from resnext.transforms import open_image, prepare

TINY = ResNeXtConfig(
    (1, 1), 2, 8, channels=(16, 32), num_stages=2, small_stem=True, num_classes=3, stem_channels=16
)
HOW = Preprocessing(12, 14)
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def network(labels: tuple[str, ...] = ("ant", "bee", "cat")) -> ResNeXt:
    """A network that is sure of nothing and untrained, with a card."""
    model = ResNeXt(TINY.replace(num_classes=max(len(labels), 1)))
    fill(model)
    with torch.no_grad():
        model.fc.bias.sub_(model.eval()(torch.zeros(1, 3, 12, 12))[0])  # no class always wins
    model.card = Card(labels, HOW)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Noise in three colours, in class folders that are not alike in size."""
    rng = np.random.default_rng(0)
    for channel, (name, count) in enumerate({"ant": 3, "bee": 5, "cat": 2}.items()):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 120, (17, 20 + i, 3), dtype=np.uint8)
            pixels[..., channel] += 130
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def naive(model: ResNeXt, root: Path) -> tuple[list[str], np.ndarray]:
    """Every image by itself: right classes by folder name, and logits."""
    files = sorted(root.rglob("*.png"))
    with torch.no_grad():
        logits = [model.eval()(prepare(open_image(file, "RGB"), HOW)[None])[0] for file in files]
    return [file.parent.name for file in files], torch.stack(logits).double().numpy()


# -- the numbers ------------------------------------------------------------------------------


def measured(logits: np.ndarray, targets: np.ndarray, batch: int) -> tuple[Evaluation, list[int]]:
    """What `measure` makes of given logits, and the progress it told."""
    k, told = logits.shape[1], []
    table = torch.from_numpy(logits).float()
    labels = tuple(f"class {i}" for i in range(k))
    nothing = [np.zeros((1, 1), np.uint8)] * len(targets)
    images = ImageSet(nothing, targets.tolist(), labels, "numbers")

    def classify(x: Tensor) -> Tensor:  # an image is the number of its row
        return table[x.flatten().long()]

    numbers, wanted = torch.arange(len(targets)).float(), torch.from_numpy(targets)
    loader = (
        (numbers[i : i + batch].view(-1, 1, 1, 1), wanted[i : i + batch])
        for i in range(0, len(targets), batch)
    )
    return measure(classify, loader, images, CPU, told.append), told


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(2, 12),
    count=st.integers(1, 60),
    batch=st.integers(1, 64),
    scale=st.sampled_from([0.1, 1.0, 20.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_numbers_are_scikit_learns(k: int, count: int, batch: int, scale: float, seed: int) -> None:
    """A last batch that is smaller, rows and columns exchanged, means of means."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (count, k)).astype(np.float32).astype(np.float64)
    targets = rng.integers(0, k, count)
    got, told = measured(logits, targets, batch)

    predicted, every = logits.argmax(1), np.arange(k)
    likely = np.exp(logits - logits.max(1, keepdims=True))
    likely /= likely.sum(1, keepdims=True)
    assert (got.count, got.data, sum(told)) == (count, "numbers", count)
    assert got.accuracy == pytest.approx(accuracy_score(targets, predicted), abs=1e-12)
    wanted_confusion = confusion_matrix(targets, predicted, labels=every)
    assert np.array_equal(got.confusion, wanted_confusion)
    # scikit-learn clips probabilities at its epsilon, which the largest scale would reach
    wanted_nll = -np.log(likely[np.arange(count), targets]).mean()
    assert got.nll == pytest.approx(wanted_nll, rel=1e-4, abs=1e-5)
    if scale < 20:
        assert got.nll == pytest.approx(log_loss(targets, likely, labels=every), rel=1e-4)
    if k > 5:
        wanted_top5 = top_k_accuracy_score(targets, logits, k=5, labels=every)
        assert got.top5 == pytest.approx(wanted_top5, abs=1e-12)
    else:
        assert got.top5 is None  # it would always be one
    present = np.unique(targets)
    wanted_recall = recall_score(targets, predicted, labels=present, average=None)
    recall = np.array(got.recall())
    assert recall[present] == pytest.approx(wanted_recall)
    assert np.isnan(np.delete(recall, present)).all()


def test_metrics_by_name() -> None:
    """A card must say on which images a number was measured, and hold plain numbers."""
    confusion = np.array([[1, 1], [0, 1]])
    result = Evaluation("x", 3, 2 / 3, None, 0.1234567, confusion, ("a", "b"))
    assert result.metrics("val") == {"val_accuracy": 0.666667, "val_nll": 0.123457}
    with_top5 = Evaluation("x", 3, 1.0, 0.75, 0.0, confusion, ("a", "b"))
    assert with_top5.metrics("test")["test_top5"] == 0.75
    assert all(type(value) is float for value in with_top5.metrics("test").values())


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("given_as", ["model", "file"])
def test_evaluate(folder: Path, tmp_path: Path, batch_size: int, given_as: str) -> None:
    """Images are prepared as the card says, and each is counted once, under its own class."""
    model: Any = network()
    right, logits = naive(model, folder)
    if given_as == "file":
        save(model, tmp_path / "a.safetensors")
        model = tmp_path / "a.safetensors"
    got = evaluate(model, folder, batch_size=batch_size, device="cpu")
    names = np.array(["ant", "bee", "cat"])
    predicted = names[logits.argmax(1)]
    assert len({*predicted}) > 1  # or the confusion could be anybody's
    assert np.array_equal(got.confusion, confusion_matrix(right, predicted, labels=names))
    assert got.accuracy == accuracy_score(right, predicted)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = -np.mean(
        [row[list(names).index(name)] for row, name in zip(log_p, right, strict=True)]
    )
    assert got.nll == pytest.approx(wanted, rel=1e-5)
    assert (got.count, got.labels, got.data) == (10, ("ant", "bee", "cat"), str(folder))


def test_classes_are_matched_by_name(folder: Path) -> None:
    """The model's classes need not be in the alphabet's order, nor all have a folder."""
    model = network(("zebra", "cat", "ant", "bee"))
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.copy_(torch.tensor([0.0, 9.0, 1.0, 1.0]))  # everything is a cat
    got = evaluate(model, folder, device="cpu")
    assert got.accuracy == 2 / 10
    assert got.confusion.tolist() == [[0, 0, 0, 0], [0, 2, 0, 0], [0, 3, 0, 0], [0, 5, 0, 0]]
    assert got.labels == ("zebra", "cat", "ant", "bee")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_weights_of_other_types(folder: Path, dtype: torch.dtype) -> None:
    """`save` and `load` keep a model's type; float images then met double weights."""
    got = evaluate(network().to(dtype), folder, device="cpu")
    wanted = evaluate(network(), folder, device="cpu")
    assert got.count == wanted.count
    assert got.nll == pytest.approx(wanted.nll, rel=1e-5 if dtype == torch.float64 else 0.05)


# -- what it leaves behind --------------------------------------------------------------------


def test_the_network_is_left_as_it_was(folder: Path) -> None:
    """Training goes on after a measurement: with its modes, and statistics of its own images."""
    model = network().train()
    model.layer1.eval()  # as frozen parts are
    modes = {name: module.training for name, module in model.named_modules()}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate(model, folder, device="cpu")
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    model.eval()
    evaluate(model, folder, device="cpu")
    assert not any(module.training for module in model.modules())


def test_a_network_in_training_mode_is_measured_in_evaluation_mode(folder: Path) -> None:
    """Batch statistics would make each answer depend on the other images."""
    trained = evaluate(network().train(), folder, device="cpu")
    assert trained.nll == evaluate(network().eval(), folder, device="cpu").nll


def test_the_mode_survives_an_error(folder: Path) -> None:
    """A notebook goes on after an exception."""
    (folder / "bee" / "0.png").write_text("no image")
    model = network().train()
    with pytest.raises(DataError):
        evaluate(model, folder, device="cpu")
    assert all(module.training for module in model.modules())


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on fork
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_line(folder: Path, workers: int) -> None:
    """Torch wraps what a worker process raised in a page of traceback."""
    bad = folder / "cat" / "1.png"
    bad.write_text("no image")
    with pytest.raises(DataError) as caught:
        evaluate(network(), folder, workers=workers, batch_size=2, device="cpu")
    message = str(caught.value)
    del caught
    assert not multiprocessing.active_children()  # else some later line waits five seconds
    assert message.startswith(f"{bad}: not a readable image")
    assert "\n" not in message
    assert "Traceback" not in message


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_workers_change_nothing(folder: Path) -> None:
    """Order and content of the batches must not depend on who decodes."""
    files = sorted(folder.rglob("*.png"))
    images = ImageSet(files, list(range(len(files))), tuple(map(str, files)), "all")
    alone = list(batches(images, HOW, batch_size=4, workers=0))
    helped = list(batches(images, HOW, batch_size=4, workers=2))
    assert [len(x) for x, _ in alone] == [4, 4, 2]
    for (x, targets), (y, others) in zip(alone, helped, strict=True):
        assert torch.equal(x, y)
        assert torch.equal(targets, others)


def test_a_model_needs_labels(folder: Path) -> None:
    """Without names, folders cannot be matched to outputs."""
    for card in (None, Card(), Card(preprocessing=HOW)):
        model = network()
        model.card = card
        with pytest.raises(InputError, match=r"no labels\. Set model\.card"):
            evaluate(model, folder)


@pytest.mark.parametrize("labels", [("ant", "bee", "cat", "dog"), ("ant", "bee")])
def test_a_model_needs_a_label_for_each_class(folder: Path, labels: tuple[str, ...]) -> None:
    """The confusion of three outputs under two labels counts into the wrong rows."""
    model = network()
    model.card = Card(labels, HOW)
    with pytest.raises(InputError, match=f"{len(labels)} labels, the network 3 classes"):
        evaluate(model, folder)


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"batch_size": -4}, {"workers": -1}])
def test_arguments_that_make_no_sense(folder: Path, arguments: dict[str, int]) -> None:
    """Torch's own message names an argument that we do not have."""
    with pytest.raises(InputError, match=next(iter(arguments))):
        evaluate(network(), folder, device="cpu", **arguments)


def test_data_and_models_that_do_not_exist(folder: Path, tmp_path: Path) -> None:
    """Each is told from the other."""
    with pytest.raises(DataError, match="does not exist"):
        evaluate(network(), tmp_path / "missing")
    with pytest.raises(CheckpointError, match="does not exist"):
        evaluate(tmp_path / "missing.safetensors", folder)
    with pytest.raises(DataError, match="classes 0 to 9"):
        evaluate(network(), "digits")


def test_a_grey_model_on_colour_photographs(folder: Path) -> None:
    """The card decides how files are decoded, not the files."""
    model = ResNeXt(TINY.replace(in_channels=1))
    model.card = Card(("ant", "bee", "cat"), Preprocessing(12, 14, "bilinear", (0.5,), (0.5,), "L"))
    assert evaluate(model, folder, device="cpu").count == 10


# -- devices ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["", "gpu", "nonsense", "cuda:99", "cuda:-1", "CPU", "cpu:x", "xla", "hpu", "meta"],
)
def test_devices_that_are_not_there(name: str) -> None:
    """Torch raises four kinds of errors, some of a page; `meta` would erase the weights."""
    with pytest.raises(InputError, match="cannot be used") as caught:
        pick_device(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_devices_that_are_there() -> None:
    """`auto` may not be slower than it could be, nor fail where there is no GPU."""
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_wrong_device_costs_nothing(folder: Path) -> None:
    """The network must stay where it is if the device does not exist."""
    model = network().train()
    with pytest.raises(InputError):
        evaluate(model, folder, device="meta")
    assert model.training
    assert not any(p.is_meta for p in model.parameters())
