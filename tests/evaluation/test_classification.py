"""Measuring: the numbers against scikit-learn's, and what must not happen on the way."""

from __future__ import annotations

import json
import math
import multiprocessing
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.originals import sklearn, torchvision
from oracles.recorded import fill
from PIL import Image
from torch import Tensor

from resnext import Card, Preprocessing, ResNeXt, ResNeXtConfig, evaluate, optimize, save
from resnext.benchmark import bench
from resnext.calibration import expected_calibration_error
from resnext.data.dataset import ImageSet
from resnext.data.decoding import open_image
from resnext.data.loader import eval_loader
from resnext.data.open import open_splits
from resnext.data.transforms import prepare
from resnext.errors import CheckpointError, DataError, InputError, ResNeXtError
from resnext.evaluation.classification import collect_outputs, compare, measure, merge_outputs
from resnext.evaluation.metrics import EvalOutputs, Evaluation, score
from resnext.inference.engines.torch import TorchRunner
from resnext.prediction.files import predict_files
from resnext.system.device import pick_device

TINY = ResNeXtConfig(
    (1, 1), 2, 8, channels=(16, 32), num_stages=2, small_stem=True, num_classes=3, stem_channels=16
)
HOW = Preprocessing(12, 14)
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def network(labels: tuple[str, ...] = ("ant", "bee", "cat")) -> ResNeXt:
    """An untrained network with a card that predicts different classes for different images."""
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
    """What `measure` makes of given logits, and the progress it reported."""
    k, done = logits.shape[1], []
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
    return measure(classify, loader, images, CPU, done.append), done


@settings(max_examples=60)
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
    got, done = measured(logits, targets, batch)

    predicted, every = logits.argmax(1), np.arange(k)
    likely = np.exp(logits - logits.max(1, keepdims=True))
    likely /= likely.sum(1, keepdims=True)
    assert (got.count, got.data, sum(done)) == (count, "numbers", count)
    assert got.accuracy == pytest.approx(
        sklearn.metrics.accuracy_score(targets, predicted), abs=1e-12
    )
    wanted_confusion = sklearn.metrics.confusion_matrix(targets, predicted, labels=every)
    assert np.array_equal(got.confusion, wanted_confusion)
    # scikit-learn clips probabilities at its epsilon, which the largest scale would reach
    wanted_nll = -np.log(likely[np.arange(count), targets]).mean()
    assert got.nll == pytest.approx(wanted_nll, rel=1e-4, abs=1e-5)
    if scale < 20:
        assert got.nll == pytest.approx(
            sklearn.metrics.log_loss(targets, likely, labels=every), rel=1e-4
        )
    if k > 5:
        wanted_top5 = sklearn.metrics.top_k_accuracy_score(targets, logits, k=5, labels=every)
        assert got.top5 == pytest.approx(wanted_top5, abs=1e-12)
    else:
        assert got.top5 is None  # it would always be one
    present = np.unique(targets)
    each: Any = {"average": None}  # scikit-learn's types know only names
    wanted_recall = sklearn.metrics.recall_score(targets, predicted, labels=present, **each)
    recall = np.array(got.recall())
    assert recall[present] == pytest.approx(wanted_recall)
    assert np.isnan(np.delete(recall, present)).all()
    nan: Any = {"zero_division": np.nan}
    metrics = sklearn.metrics
    for mine, theirs in (
        (got.precision(), metrics.precision_score),
        (got.f1(), metrics.f1_score),
    ):
        wanted = theirs(targets, predicted, labels=every, **each, **nan)
        assert np.array(mine) == pytest.approx(wanted, nan_ok=True)
    assert np.array_equal(got.targets, targets)
    assert np.array_equal(got.predicted, predicted)
    assert got.confidence == pytest.approx(likely.max(1), abs=1e-6)
    wanted_ece = expected_calibration_error(got.confidence, predicted == targets)
    assert got.ece == pytest.approx(wanted_ece, abs=1e-6)
    assert got.interval()[0] <= got.accuracy <= got.interval()[1]
    assert got.indices.tolist() == list(range(count))
    assert (got.skipped, got.logits) == ((), None)


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
    assert np.array_equal(
        got.confusion, sklearn.metrics.confusion_matrix(right, predicted, labels=names)
    )
    assert got.accuracy == sklearn.metrics.accuracy_score(right, predicted)
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


def test_confusions_by_frequency() -> None:
    """The diagonal is not a mistake, and row and column must not change places."""
    labels = ("a", "b", "c")
    confusion = np.array([[9, 2, 0], [0, 1, 5], [1, 0, 0]])
    result = Evaluation("x", 18, 10 / 18, None, 1.0, confusion, labels)
    assert result.confusions() == [("b", "c", 5), ("a", "b", 2), ("c", "a", 1)]
    assert result.confusions(1) == [("b", "c", 5)]
    assert all(type(times) is int for *_, times in result.confusions())


def test_the_numbers_as_json(folder: Path) -> None:
    """A class without images has no recall, and NaN is not JSON."""
    model = network(("zebra", "cat", "ant", "bee"))
    got = evaluate(model, folder, device="cpu")
    values = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    assert values["accuracy"] == got.accuracy
    assert values["interval"] == list(got.interval())
    assert values["top5"] is None
    zebra, cat = values["classes"][:2]
    assert (zebra["label"], zebra["images"], zebra["recall"]) == ("zebra", 0, None)
    assert (cat["label"], cat["images"], cat["recall"]) == ("cat", 2, got.recall()[1])
    wrong = sum(times for *_, times in values["confusions"])
    assert wrong == round(got.count * (1 - got.accuracy))


def test_logits_that_are_not_finite() -> None:
    """A run that diverges is validated once more before its loss is seen."""
    got = score(
        EvalOutputs(
            torch.tensor([[1.0, 0.0], [math.nan, 0.0]]), torch.tensor([0, 1]), torch.arange(2)
        ),
        ImageSet([np.zeros((1, 1), np.uint8)] * 2, [0, 1], ("a", "b"), "x"),
    )
    assert math.isnan(got.nll)
    assert math.isnan(got.ece)
    assert "val_ece" not in got.metrics("val")


def test_the_cards_temperature_counts(folder: Path) -> None:
    """`predict` and `evaluate` must calibrate alike; the logits stay as they are."""
    model = network()
    assert model.card
    plain = evaluate(model, folder, device="cpu", keep_logits=True)
    model.card = replace(model.card, temperature=2.5)
    got = evaluate(model, folder, device="cpu", keep_logits=True)
    assert plain.logits is not None
    assert np.array_equal(got.logits, plain.logits)  # pyright: ignore
    likely = torch.from_numpy(plain.logits / 2.5).softmax(1).numpy()
    assert got.confidence == pytest.approx(likely.max(1), rel=1e-5)
    assert got.nll == pytest.approx(-np.log(likely[range(10), got.targets]).mean(), rel=1e-5)
    assert got.accuracy == plain.accuracy


# -- parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 12])
def test_several_processes(folder: Path, world: int) -> None:
    """Each takes a part, some none at all; padded samplers give an image to two of them."""
    model = network().eval()
    files = sorted(folder.rglob("*.png"))
    targets = [["ant", "bee", "cat"].index(file.parent.name) for file in files]
    images = ImageSet(files, targets, ("ant", "bee", "cat"), "all")
    files[4].write_text("no image")
    whole = measure(model, eval_loader(images, HOW, batch_size=3, workers=0), images, CPU)
    parts = []
    for rank in range(world):
        mine = range(rank, len(images), world)
        loader = eval_loader(images, HOW, batch_size=3, workers=0, indices=mine)
        parts.append(pickle.loads(pickle.dumps(collect_outputs(model, loader, CPU))))
    got = score(merge_outputs([*parts, parts[0]]), images)
    assert np.array_equal(got.predicted, whole.predicted)
    assert np.array_equal(got.targets, whole.targets)
    assert got.nll == pytest.approx(whole.nll, rel=1e-5)
    assert got.skipped == whole.skipped == (str(files[4]),)
    assert not merge_outputs(parts).logits.is_inference()


# -- test-time augmentation -------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("views", [2, 10])
def test_views_are_torchvisions(folder: Path, views: int, interpolation: Any) -> None:
    """Probabilities are averaged, not logits, after calibration, and corners are corners."""
    model = network()
    how = Preprocessing(11, 14, interpolation)
    model.card = Card(("ant", "bee", "cat"), how, temperature=0.5)
    got = evaluate(model, folder, device="cpu", views=views, batch_size=7, keep_logits=True)
    wanted = []
    for file in sorted(folder.rglob("*.png")):
        image = open_image(file, "RGB")
        x = prepare(image, how)
        several = [x, x.flip(2)]
        if views == 10:
            short = min(image.size)
            size = int(14 * image.width / short), int(14 * image.height / short)
            filters = Image.Resampling.__members__
            resized = image.resize(size, filters[interpolation.upper()])
            ten_crop, square = torchvision.transforms.TenCrop(11), replace(how, resize=11)
            several = [prepare(crop, square) for crop in ten_crop(resized)]
        with torch.no_grad():
            p = (model.eval()(torch.stack(several)) / 0.5).softmax(1)
        wanted.append(p.mean(0).double().numpy())
    likely = np.stack(wanted)
    assert np.array_equal(got.predicted, likely.argmax(1))
    assert got.confidence == pytest.approx(likely.max(1), rel=1e-5)
    assert got.nll == pytest.approx(-np.log(likely[range(10), got.targets]).mean(), rel=1e-5)


@pytest.mark.parametrize("views", [0, 3, 5, -1, 2.0, True, "2"])
def test_views_are_one_two_or_ten(folder: Path, views: Any) -> None:
    """True is one view to Python; 5 would have been ten halved."""
    with pytest.raises(InputError, match="views must be 1, 2 or 10"):
        evaluate(network(), folder, device="cpu", views=views)


def test_corners_need_a_margin(folder: Path) -> None:
    """Pillow pads crops with black, so five of ten views would have been rims."""
    model = network()
    model.card = Card(("ant", "bee", "cat"), Preprocessing(14, 12))
    with pytest.raises(InputError, match="10 views cut corners of 14 pixels"):
        evaluate(model, folder, device="cpu", views=10)
    assert evaluate(model, folder, device="cpu", views=2).count == 10


# -- two models -------------------------------------------------------------------------------


def test_comparison(folder: Path) -> None:
    """Images are compared one by one, whatever the order of the models' classes."""
    a, b = network(), network(("zebra", "cat", "ant", "bee"))
    (folder / "bee" / "2.png").write_text("no image")
    got = compare(a, b, folder, device="cpu")
    one, two = evaluate(a, folder, device="cpu"), evaluate(b, folder, device="cpu")
    assert np.array_equal(got.a.predicted, one.predicted)
    assert np.array_equal(got.b.predicted, two.predicted)
    pairs = [*zip(one.right.tolist(), two.right.tolist(), strict=True)]
    assert len(pairs) == 9
    assert (got.only_a, got.only_b) == (pairs.count((True, False)), pairs.count((False, True)))
    same = compare(a, a, folder, device="cpu")
    assert (same.only_a, same.only_b, same.p) == (0, 0, 1)
    assert json.loads(json.dumps(got.to_dict(), allow_nan=False))["b"]["count"] == 9


def test_comparison_on_what_both_have_not_seen(folder: Path) -> None:
    """A model measured on its training images beats an honest one."""
    splits = open_splits(folder, seed=1, val_fraction=0.5)
    note = {"fingerprint": splits.fingerprint, "seed": 1, "val_fraction": 0.5}
    a, b = network(), network()
    assert a.card
    a.card = replace(a.card, provenance=note)
    for first, second in ((a, b), (b, a)):
        got = compare(first, second, folder, device="cpu")
        assert got.a.count == got.b.count == len(splits.val)
        assert got.p == 1


# -- the command ------------------------------------------------------------------------------


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, as JSON, and from the functions: the numbers must be the same."""
    from resnext.cli.app import app

    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save(network(), paths[0])
    other = network(("cat", "ant", "bee"))
    save(other, paths[1])
    (folder / "bee" / "2.png").write_text("no image")
    numbers = tmp_path / "numbers.json"
    given = ["evaluate", *map(str, paths[:1]), str(folder), "--views", "2", "--json", str(numbers)]
    app([*given, "--device", "cpu", "--against", str(paths[1])])
    said = " ".join(capsys.readouterr().out.split())
    got = compare(paths[0], paths[1], folder, views=2, device="cpu")
    assert json.loads(numbers.read_text(encoding="utf-8")) == got.to_dict()
    low, high = got.a.interval()
    assert f"9 images, accuracy {got.a.accuracy:.2%} (95% interval {low:.2%} to {high:.2%})" in said
    assert f"calibration error {got.a.ece:.2%}" in said
    assert f"{paths[1]}: accuracy {got.b.accuracy:.2%}" in said
    assert f"Only {paths[0]} is right on {got.only_a} images" in said
    assert f"only {paths[1]} on {got.only_b}; p = {got.p:.2g} (McNemar's exact test)" in said
    assert "2.png" in said.replace(" ", "")
    for right, predicted, times in got.a.confusions(5):
        assert f"{right} {predicted} {times}" in said
    with pytest.raises(ResNeXtError, match=r"cannot be written: .*Not a directory"):
        app([*given[:-1], str(numbers / "x.json")])


def test_many_classes_are_not_all_printed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A thousand rows push the accuracy out of the terminal."""
    from resnext.cli.app import app

    save(
        network(("ant", "bee", "cat", *(f"class {i}" for i in range(60)))),
        tmp_path / "a.safetensors",
    )
    app(["evaluate", str(tmp_path / "a.safetensors"), str(folder), "--device", "cpu"])
    said = capsys.readouterr().out
    assert "The 3 classes with the lowest F1, of 63" in said
    assert len(said.splitlines()) < 30


# -- what it leaves behind --------------------------------------------------------------------


def test_the_network_is_left_as_it_was(folder: Path) -> None:
    """Training continues afterwards with its modes, and statistics of its own images."""
    model = network().train()
    model.get_submodule("layer1").eval()  # as frozen parts are
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
    """A notebook keeps its network after an exception."""
    model = network().train()
    model.card = Card(
        ("ant", "bee", "cat"), Preprocessing(12, 14, mean=(0.5,), std=(1,), colour="L")
    )
    with pytest.raises(InputError, match=r"\(n, 3, h, w\)"):
        evaluate(model, folder, device="cpu")
    assert all(module.training for module in model.modules())


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on fork
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_unreadable_images_are_named_and_left_out(
    folder: Path, workers: int, batch_size: int
) -> None:
    """Hours into ImageNet, one damaged file ended the measurement; or shifted all that follow."""
    model = network()
    right, logits = naive(model, folder)
    bad = [folder / "ant" / "1.png", folder / "cat" / "1.png"]
    for path in bad:
        path.write_text("no image")
    got = evaluate(
        model, folder, workers=workers, batch_size=batch_size, device="cpu", keep_logits=True
    )
    assert not multiprocessing.active_children()
    assert got.skipped == tuple(map(str, bad))
    kept = [0, 2, 3, 4, 5, 6, 7, 8]
    assert got.count == 8
    assert got.indices.tolist() == kept
    assert got.logits == pytest.approx(logits[kept], abs=1e-5)
    names = np.array(got.labels)
    assert names[got.targets].tolist() == [right[i] for i in kept]
    assert got.accuracy == np.mean(logits[kept].argmax(1) == got.targets)


def test_some_image_must_be_readable(folder: Path) -> None:
    """The accuracy over no image is a division by zero."""
    for path in folder.rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(DataError, match=r"no image that can be read, such as .*0\.png") as caught:
        evaluate(network(), folder, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_workers_change_nothing(folder: Path) -> None:
    """Order and content of the eval_loader must not depend on who decodes."""
    files = sorted(folder.rglob("*.png"))
    images = ImageSet(files, list(range(len(files))), tuple(map(str, files)), "all")
    alone = list(eval_loader(images, HOW, batch_size=4, workers=0))
    helped = list(eval_loader(images, HOW, batch_size=4, workers=2))
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
def test_arguments_out_of_range(folder: Path, arguments: dict[str, Any]) -> None:
    """Torch's own message names an argument that we do not have."""
    with pytest.raises(InputError, match=next(iter(arguments))):
        evaluate(network(), folder, device="cpu", **arguments)


@pytest.mark.parametrize("views", [1, 2])
def test_outputs_that_are_no_numbers(folder: Path, views: Any) -> None:
    """NaN was measured as if it were an answer."""
    model = network()
    with torch.no_grad():
        model.fc.bias[1] = torch.nan
    with pytest.raises(ResNeXtError, match=r"output for .*0\.png is NaN or infinite"):
        evaluate(model, folder, device="cpu", views=views)
    with pytest.raises(ResNeXtError, match="NaN or infinite"):
        compare(network(), model, folder, device="cpu")


def test_a_script_that_a_new_process_imports(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a guard, each spawned worker ran the script's work again on the same files."""
    process = multiprocessing.current_process()
    monkeypatch.setattr(process, "_inheriting", True, raising=False)
    model = network()
    for call in (
        lambda: evaluate(model, folder),
        lambda: compare(model, model, folder),
        lambda: optimize(model),
        lambda: bench(model),
        lambda: predict_files(TorchRunner(model), folder, folder / "a.csv"),
    ):
        with pytest.raises(
            InputError, match=r'only imports this script.*if __name__ == "__main__"'
        ):
            call()


def test_data_and_models_that_do_not_exist(folder: Path, tmp_path: Path) -> None:
    """The message says which of the two is missing."""
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
