"""Distillation: what a student learns from, what its teacher sees, which teachers are refused."""

from __future__ import annotations

import copy
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import agree, photo_folder, run_cli, tiny_network
from PIL import Image
from sample_images import noise
from training_runs import QUICK, TINY, sha, stop_after

import resnext
from resnext import Backbone, Card, Preprocessing, ResNeXt
from resnext.data.dataset import ImageSet
from resnext.errors import CheckpointError, ResNeXtError
from resnext.training import forecast, minutes
from resnext.training.augmentation import plain
from resnext.training.dataloader import TrainDataset
from resnext.training.forecast import Speed
from resnext.training.identity import check_identity
from resnext.training.teacher import converted, distillation_loss, open_teacher

DATA = ImageSet([Path("x.png")] * 2, [0, 1], ("cat", "dog"), "photos")
SHORT = QUICK.changed(epochs=4, flip=True, mixup=1.0, label_smoothing=0.0)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos`, and `big.safetensors`, which was trained on them."""
    folder = tmp_path_factory.mktemp("distillation")
    photos = photo_folder(folder / "photos")
    given: dict[str, Any] = {"recipe": QUICK, "epochs": 6, "size": 16, "workers": 0}
    big = resnext.train(photos, TINY, out=folder / "big.safetensors", progress=False, **given)
    assert big.card is not None
    assert big.card.metrics["val_accuracy"] == 1
    return folder


def distil(work: Path, out: Path, **changes: Any) -> ResNeXt:
    """Train a student of the module's teacher; `changes` are arguments of `distill`."""
    given = {"teacher": work / "big.safetensors", "data": work / "photos", "model": TINY}
    given |= {"recipe": SHORT, "workers": 0, "progress": False, **changes}
    return resnext.distill(out=out, **given)


def test_the_loss_is_the_divergence_from_the_teacher() -> None:
    """A swapped order of the two, a missing square or another mean still trains, but worse."""
    student = torch.zeros(2, 2, requires_grad=True)
    quarter = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)  # of (1/4, 3/4) from (1/2, 1/2)
    for temperature in (1.0, 2.0):
        teacher = torch.tensor([[0.0, temperature * math.log(3)], [5.0, 5.0]])
        loss = distillation_loss(student, teacher, temperature)
        assert loss.item() == pytest.approx(temperature**2 * quarter / 2)
        (gradient,) = torch.autograd.grad(loss, student)
        wanted = torch.tensor([[0.25, -0.25], [0.0, 0.0]]) * temperature / 2
        torch.testing.assert_close(gradient, wanted)
    assert distillation_loss(teacher, teacher, 3.0).item() == pytest.approx(0, abs=1e-6)


RGB = Preprocessing(16, 16)
OTHER = replace(RGB, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
BGR = replace(OTHER, colour="BGR")
GREY = Preprocessing(16, 16, mean=(0.5,), std=(0.25,), colour="L")


@pytest.mark.parametrize("source", [RGB, OTHER, BGR, GREY])
@pytest.mark.parametrize("target", [RGB, OTHER, BGR, GREY])
def test_the_teacher_sees_what_it_was_trained_on(
    source: Preprocessing, target: Preprocessing
) -> None:
    """A teacher whose red and blue are exchanged, or too bright, teaches nonsense."""

    def normalized(preprocessing: Preprocessing) -> torch.Tensor:
        image = Image.fromarray(pixels)
        if "L" in (source.colour, preprocessing.colour):
            image = image.convert("L")
        values = torch.tensor(np.array(image.convert("RGB")))[None, ..., : len(preprocessing.mean)]
        return plain(values, preprocessing.mean, preprocessing.std, preprocessing.colour)

    pixels = noise(7, 9)
    got = converted(normalized(source), source, target)
    level = 1 / 255 / min(target.std) if target.colour == "L" else 1e-5  # Pillow rounds grey
    torch.testing.assert_close(got, normalized(target), atol=level, rtol=0)


def test_labels_are_not_learnt_from(work: Path, tmp_path: Path) -> None:
    """With every training image in the wrong class, only the teacher's answers help."""
    photos = tmp_path / "swapped"
    for split, (cat, dog) in {"train": ("dog", "cat"), "val": ("cat", "dog")}.items():
        for name, source in ((cat, "cat"), (dog, "dog")):
            (photos / split / name).mkdir(parents=True)
            chosen = sorted((work / "photos" / source).iterdir())
            for path in chosen[:8] if split == "train" else chosen[8:]:
                shutil.copy(path, photos / split / name)
    given: dict[str, Any] = {"recipe": QUICK, "epochs": 8, "size": 16, "workers": 0}
    wrong = resnext.train(photos, TINY, out=tmp_path / "w.safetensors", progress=False, **given)
    student = distil(work, tmp_path / "s.safetensors", data=photos, recipe=QUICK, epochs=8)
    assert wrong.card is not None
    assert student.card is not None
    assert wrong.card.metrics["val_accuracy"] <= 0.5
    assert student.card.metrics["val_accuracy"] == 1


def test_classes_in_another_order_are_permuted() -> None:
    """A teacher that was trained on a list of classes may number them differently."""
    network = tiny_network(TINY.replace(num_classes=3), Card(labels=("dog", "emu", "cat")))
    data = replace(DATA, labels=("cat", "dog", "emu"))
    x = torch.randn(5, 3, 16, 16)
    teacher = open_teacher(network, data, progress=False)
    agree(teacher.logits(x, Preprocessing(), teacher.network), network(x)[:, [2, 0, 1]])


def test_a_network_that_teaches_is_not_changed() -> None:
    """A teacher is folded and permuted: in a copy, or the caller's network would be spoilt."""
    network = tiny_network(TINY, Card(labels=("dog", "cat"))).train()
    before = {name: x.clone() for name, x in network.state_dict().items()}
    open_teacher(network, DATA, progress=False)
    assert network.training
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(x, after[name]) for name, x in before.items())


def test_teachers_of_16_bits_answer_in_single_precision() -> None:
    """On a GPU, images of 32 bits and weights of 16 ended in a traceback."""
    network = tiny_network(TINY, Card(("cat", "dog"), Preprocessing(16, 16))).to(torch.bfloat16)
    teacher = open_teacher(network, DATA, progress=False)
    assert {x.dtype for x in teacher.network.parameters()} == {torch.float32}
    assert network.fc.weight.dtype is torch.bfloat16
    x = torch.rand(2, 3, 16, 16)
    agree(teacher.network(x), copy.deepcopy(network).float()(x))


def test_the_hash_is_that_of_the_answers() -> None:
    """Resuming with a teacher that answers differently must be noticed; with a copy, it is fine."""

    def digest(network: ResNeXt) -> str:
        return open_teacher(network, DATA, progress=False).digest

    card = Card(labels=("cat", "dog"))
    network = tiny_network(TINY, card)
    same = tiny_network(TINY, replace(card, licence="mit"))
    other_input = tiny_network(TINY, replace(card, preprocessing=BGR))
    other_weights = tiny_network(TINY, card)
    with torch.no_grad():
        other_weights.fc.bias[0] += 1
    assert digest(network) == digest(same)
    assert len({digest(x) for x in (network, other_input, other_weights)}) == 3


def test_the_student_inherits_the_preprocessing() -> None:
    """At another size or with another mean, the teacher would be asked what it never saw."""
    card = Card(labels=("cat", "dog"), preprocessing=GREY)
    teacher = open_teacher(tiny_network(TINY.replace(in_channels=1), card), DATA, progress=False)
    assert teacher.default_preprocessing("L") == GREY
    assert teacher.default_preprocessing("RGB") == RGB


def test_images_of_more_than_8_bits_look_as_the_teacher_knows_them(tmp_path: Path) -> None:
    """It answered to images of another brightness than those that it was trained on."""
    rng = np.random.default_rng(0)
    for i, label in enumerate(("cat", "dog")):
        (tmp_path / "deep" / label).mkdir(parents=True)
        for j in range(4):
            values = rng.integers(17_000 + 999 * i, 18_000 + 999 * i, (16, 16)).astype(np.uint16)
            Image.fromarray(values).save(tmp_path / "deep" / label / f"{j}.png")
    for values in ((0, 40_000), None):  # None: an older teacher, which took the upper 8 bits
        card = Card(("cat", "dog"), Preprocessing(16, 16, value_range=values))
        options: dict[str, Any] = {"epochs": 1, "index": False, "overwrite": True}
        student = distil(
            tmp_path,
            tmp_path / "out.safetensors",
            teacher=tiny_network(TINY, card),
            data=tmp_path / "deep",
            **options,
        )
        assert student.card is not None
        assert student.card.preprocessing.value_range == values


def test_unlabelled_images_are_learnt_from(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They must be drawn as often as labelled ones, except copies of validation images."""
    more = photo_folder(tmp_path / "more", ("flat", "x"), count=5, size=25)
    for path in (more / "flat").iterdir():
        path.rename(more / path.name)  # at any depth
    split = tmp_path / "split"
    for i, name in enumerate(("cat", "dog")):
        for j, path in enumerate(sorted((work / "photos" / name).iterdir())):
            folder = split / ("val" if j < 3 else "train") / name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)
        shutil.copy(split / "val" / name / "000.jpg", more / f"copy{i}.jpg")
    drawn: list[int] = []
    original = TrainDataset.__getitem__

    def recording(self: Any, key: Any) -> Any:
        drawn.append(key.image)
        return original(self, key)

    monkeypatch.setattr(TrainDataset, "__getitem__", recording)
    out = tmp_path / "s.safetensors"
    student = distil(work, out, data=split, unlabelled=more, batch_size=7)
    assert student.card is not None
    assert student.card.provenance["unlabelled"] == 10
    assert sorted(drawn) == sorted([*range(18 + 10)] * SHORT.epochs)
    page = out.with_name("s.run") / "report.html"
    assert "18 train, 6 val, 10 unlabelled images of 2 classes" in page.read_text()


def test_the_forecast_times_the_teacher(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow teacher is validated at the end, at its own size; a time budget would be exceeded."""
    forecasts: list[float] = []
    monkeypatch.setattr(forecast, "_step_seconds", lambda *_: 1.0)
    monkeypatch.setattr(
        forecast, "_validation_seconds", lambda _, __, settings, *___: settings.preprocessing.size
    )
    monkeypatch.setattr(forecast, "forecast_line", lambda *given: forecasts.append(given[2]) or "")
    distil(work, tmp_path / "s.safetensors", size=24, dry_run=True)
    assert forecasts == [Speed(1.0, 24, 16).run(SHORT, 20)]
    assert Speed(1.0, 24, 16).ending() == Speed(1.0, 24).ending() + 16


def test_a_time_budget(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unlabelled images take time too, and the size of all candidates is the teacher's."""
    more = photo_folder(tmp_path / "more", ("x",), count=8, size=25)
    for module in (minutes, forecast):
        monkeypatch.setattr(module, "measure", lambda *_, **__: Speed(1.0, 0.0))
    monkeypatch.setattr(minutes.time, "monotonic", lambda: 0.0)
    given: dict[str, Any] = {"unlabelled": more, "batch_size": 8, "minutes": 10, "progress": True}
    distil(work, tmp_path / "s.safetensors", dry_run=True, **given)
    shown = capsys.readouterr().err
    assert "Images: 20 train, 4 val, 8 unlabelled; " in shown
    epochs = int((600 * (1 - minutes._MARGIN) - Speed(1.0, 0.0).ending()) / 3)
    assert f"at 16 pixels, {epochs} epochs of 28 images" in shown


def test_resuming_is_exact(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher must answer the same after an interruption, in the middle of an epoch."""
    more = photo_folder(tmp_path / "more", ("x",), count=4)
    given: dict[str, Any] = {"unlabelled": more, "epochs": 2, "distill_temperature": 2.0}
    distil(work, tmp_path / "left_alone.safetensors", **given)
    stop_after(monkeypatch, 2, 7)
    out = tmp_path / "m.safetensors"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            distil(work, out, resume=True, **given)
    distil(work, out, resume=True, **given)
    assert sha(out) == sha(tmp_path / "left_alone.safetensors")


def test_another_teacher_is_refused_on_resume(work: Path, tmp_path: Path) -> None:
    """A student of two teachers, or of a teacher and of labels, is a model nobody asked for."""
    out, copy = tmp_path / "m.safetensors", tmp_path / "copy.safetensors"
    more = photo_folder(tmp_path / "more", ("x",), count=4)
    distil(work, out, epochs=1)
    shutil.copy(work / "big.safetensors", copy)
    distil(work, out, epochs=1, teacher=copy, resume=True)
    other = tiny_network(TINY, Card(labels=("cat", "dog"), preprocessing=RGB))
    for changes, message in (
        ({"teacher": other}, "another run: teacher was .*, now .* Give the same"),
        ({"teacher": None, "size": 16}, "another run: teacher was .*, now None"),
        ({"unlabelled": more}, "run on other images"),
    ):
        with pytest.raises(CheckpointError, match=message):
            distil(work, out, epochs=1, resume=True, **changes)


def test_a_student_may_start_from_weights(work: Path, tmp_path: Path) -> None:
    """At a tiny rate, the student stays what it started from, in the same classes."""
    given: dict[str, Any] = {"weights": work / "big.safetensors", "model": None}
    given |= {"learning_rate": 1e-9, "epochs": 1, "frozen_norms": True}
    student = distil(work, tmp_path / "s.safetensors", **given)
    before = resnext.load(work / "big.safetensors").state_dict()
    for name, x in student.state_dict().items():
        assert torch.allclose(x, before[name], atol=1e-6), name


def test_the_recipe_is_the_patient_one(work: Path, tmp_path: Path) -> None:
    """Without --recipe, the default for photos would learn from mild views, and briefly."""
    student = distil(work, tmp_path / "s.safetensors", recipe=None, epochs=1)
    assert student.card is not None
    recipe = student.card.provenance["recipe"]
    assert (recipe["mixup"], recipe["label_smoothing"], recipe["clip"]) == (1.0, 0.0, 1.0)
    assert student.card.preprocessing.size == 16  # the teacher's


def test_the_command_compares_student_and_teacher(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was gained and what it cost is the point of a distillation."""
    out = tmp_path / "s.safetensors"
    options = {"--data": work / "photos", "--model": "resnext11_8x16d", "--size": 32, "--out": out}
    options |= {"--epochs": 1, "--batch-size": 8, "--workers": 0}
    arguments = [x for option in options.items() for x in option]
    code, text, err = run_cli(capsys, monkeypatch, "distill", work / "big.safetensors", *arguments)
    assert code == 0, err
    student = resnext.load(out)
    assert student.card is not None
    teacher = student.card.provenance["teacher"]
    cost = resnext.summary.summarize(TINY, 16)
    assert (teacher["name"], teacher["val_accuracy"]) == ("big.safetensors", 1.0)
    assert (teacher["macs"], teacher["parameters"]) == (cost.macs, cost.parameters)
    share = student.card.metrics["val_accuracy"]
    line = f"{share:.1%} of the teacher's validation accuracy (big.safetensors, 100.00%) with "
    assert f"{out}: {line}" in text
    page = out.with_name("s.run") / "report.html"
    assert "the teacher&#39;s validation accuracy (big.safetensors" in page.read_text()
    assert json.loads(json.dumps(teacher)) == teacher


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "nowhere.pth"}, "nowhere.pth does not exist"),
        ({"teacher": tiny_network(TINY)}, "ResNeXt cannot be a teacher. The model has no labels"),
        ({"teacher": Backbone(TINY)}, "must be a ResNeXt with a classifier.* not Backbone"),
        (
            {"teacher": tiny_network(TINY, Card(labels=("cat", "emu")))},
            "does not know 'dog'. Give a teacher that was trained on the same classes",
        ),
        (
            {
                "teacher": tiny_network(
                    TINY.replace(num_classes=3), Card(labels=("cat", "dog", "emu"))
                )
            },
            "it also knows 'emu', which .*photos lacks",
        ),
        ({"loss": "binary"}, "loss must be 'cross_entropy' with a teacher"),
        ({"balance": "sampling"}, "balance must be 'none' with a teacher"),
        ({"recipe": "finetune"}, "probe must be False with a teacher"),
        ({"label_smoothing": 0.1}, "label_smoothing has no effect with a teacher, whose answers"),
        (
            {"frozen_stages": 1, "cached_views": 1, "mixup": 0.0},
            "cached_views has no effect with a teacher, which needs the images",
        ),
        ({"recipe": "probe", "weights": "w.pth", "model": None}, "probe learns from labels"),
        ({"distill_temperature": 0.0}, "distill_temperature must be a number from"),
        (
            {
                "teacher": tiny_network(
                    TINY.replace(small_stem=False), Card(labels=("cat", "dog"))
                ),
                "size": 4,
            },
            "ResNeXt needs images of at least 8 pixels, and the student is to see 4",
        ),
        ({"unlabelled": "nowhere"}, "nowhere is not a folder"),
        ({"unlabelled": ".", "teacher": None, "size": 16}, "Unlabelled images need a teacher"),
    ],
)
def test_wrong_arguments(work: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """One line says what was wanted, before anything is written."""
    with pytest.raises(ResNeXtError, match=message):
        distil(work, tmp_path / "s.safetensors", **changes)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_classes_is_not_unlabelled(work: Path, tmp_path: Path) -> None:
    """The training folder itself, given twice, would train on its validation images."""
    with pytest.raises(ResNeXtError, match="a folder for the class 'cat', so its images have"):
        distil(work, tmp_path / "s.safetensors", unlabelled=work / "photos")


def test_checkpoints_from_before_distillation_resume() -> None:
    """They lack the fields, and were trained with their defaults."""
    later = {"recipe.distill_temperature": 1.0, "recipe.probe": False}
    check_identity({}, {**later, "teacher": None, "minutes": None})
    with pytest.raises(CheckpointError, match=r"distill_temperature was 1\.0, now 2\.0"):
        check_identity({}, {"recipe.distill_temperature": 2.0})
